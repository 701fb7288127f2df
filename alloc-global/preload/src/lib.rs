//! Hayloft as the `malloc` of programs in C and C++: `libhayloft.so`, to preload or link, and
//! `libhayloft.a`.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `api` | Hayloft's own functions, declared in `include/hayloft.h` |
//! | `malloc` | the functions of the C standard, POSIX and glibc |
//! | `operators` | `operator new` and `operator delete` of C++ |
//! | `children` `limits` | `vfork`; `setrlimit` and `prlimit` |
//! | `report` | glibc's reports about its heap (`mallinfo` and others) |
//! | `errno` `foreign` | `errno`; blocks of the C library's own heap |
//!
//! The library needs no special care while the process starts. It calls no function of the C
//! library that allocates. Its thread-locals exist from the start of a thread. The loader never
//! frees blocks that it allocated before it bound symbols to this library. Nothing is torn down at
//! exit, so late frees work as all others do. Fork handlers that run before or after Hayloft's may
//! allocate: the forking thread counts as being in a slow path, so it does not wait for locks.
//!
//! Only `std::bad_alloc` and exceptions of a new-handler unwind out of these functions. A panic
//! ends the process.

#![no_std]

mod api;
mod children;
mod errno;
mod foreign;
mod limits;
mod malloc;
mod operators;
mod report;

/// The allocator of the Rust standard library in this library, which uses the same heap.
#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

// The standard library's unwinder, from the compiler's archive. With the shared one, `libgcc_s`,
// each program would load another library at its start, only to use it when a panic ends the
// process.
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}
