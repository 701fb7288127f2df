//! Hayloft as the `malloc` of programs in C and C++: `libhayloft.so`, to be preloaded or linked, and `libhayloft.a`.
//!
//! | module | has |
//! |---|---|
//! | `malloc` | the functions of the C standard, POSIX and glibc |
//! | `foreign` | blocks of the C library's own heap |
//! | `children` | `vfork` |
//! | `limits` | `setrlimit` and `prlimit` |
//! | `operators` | `operator new` and `operator delete` of C++ |
//! | `report` | what glibc tells of its heap |
//! | `api` | what is Hayloft's own: caches, allocating without waiting; declared in `include/hayloft.h` |
//!
//! The library needs no special care while the process starts: it calls nothing of the C library that allocates, its thread-locals
//! have their place from a thread's start, and what the loader allocated before it bound symbols to us it does not free. Nothing is undone at exit, so what is freed late is freed as ever. Around a fork, whoever runs a handler before or
//! after Hayloft's may allocate: such a thread is in a slow path, and does not wait.
//!
//! Nothing unwinds out of these functions but what a new-handler throws, and `std::bad_alloc`: a panic ends the process.

#![no_std]

mod api;
mod children;
mod foreign;
mod limits;
mod malloc;
mod operators;
mod report;

use core::ffi::{c_int, c_void};

/// What the standard library in here allocates comes from the same heap.
#[global_allocator]
static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;

// What the standard library unwinds with, from the compiler's archive: with the shared one, `libgcc_s`, each program would load
// another library at its start, for what only happens where a panic ends it.
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

/// Sets `errno`.
#[cold]
fn fail(error: c_int) {
    // SAFETY: the address of this thread's `errno` is always valid.
    unsafe { *libc::__errno_location() = error };
}

/// A block, or null with `errno` set.
#[inline]
fn or_no_memory(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        fail(libc::ENOMEM);
    }
    block.cast()
}
