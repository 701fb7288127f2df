//! Hayloft as a Rust global allocator.
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;
//!
//! let words: Vec<String> = ["no", "other", "line"].map(String::from).to_vec();
//! assert_eq!(words.join(" "), "no other line");
//! ```
//!
//! # Environment
//! `HAYLOFT_BACKEND` chooses how per-CPU caches are operated: `rseq` (the default where the kernel has restartable
//! sequences) or `fallback` (a try-lock per CPU). `HAYLOFT_THP` says when huge pages are asked for: `auto` (the default,
//! from a heap of 4 MiB on), `always` or `never`. `HAYLOFT_DECAY_MS` is how long memory may stay unneeded before it goes back to
//! the system (1000 by default, 0 for at once), which with `HAYLOFT_BACKGROUND=0` happens in frees only. All are read once; a
//! value that is none of these is named in a line on stderr and ignored.

#![no_std]

use alloc_core::{cache, kmalloc};
use core::alloc::{GlobalAlloc, Layout};

/// Gives all memory back to the system that no block in use needs, at once; how many bytes it got. Without it the same happens
/// after a while. Not for signal handlers.
pub fn trim() -> usize {
    cache::trim()
}

/// The allocator: a unit, to be named in a `#[global_allocator]`.
///
/// All instances are one allocator. Out of memory is a null pointer, never an abort or a panic. A layout of size 0 is
/// served with memory of its own. Resizing happens in place where the size class or the neighbouring pages allow it,
/// and large blocks are moved by remapping their pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hayloft;

// SAFETY: `kmalloc` hands out disjoint blocks that fit their layouts, keeps what `realloc` must keep, and does not
// unwind.
unsafe impl GlobalAlloc for Hayloft {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        kmalloc::alloc(layout)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::free(block, layout) }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        kmalloc::alloc_zeroed(layout)
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::realloc(block, layout, new_size) }
    }
}
