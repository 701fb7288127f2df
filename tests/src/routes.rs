//! The two ways into the allocator.
//!
//! A program reaches it through `std::alloc`, where the compiler has shims in between and may fold
//! size and alignment; or by calling the methods of `GlobalAlloc`. Tests go both ways.

use std::alloc::{self, GlobalAlloc, Layout};
use std::hint::black_box;

pub use alloc_global::Hayloft;

/// The registered global allocator, through `std::alloc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registered;

// SAFETY: every method is the global allocator's own. `black_box` keeps the compiler from removing
// allocations, as it may with those it sees through.
unsafe impl GlobalAlloc for Registered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        black_box(unsafe { alloc::alloc(layout) })
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { alloc::dealloc(black_box(address), layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        black_box(unsafe { alloc::alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: passed on to the caller.
        black_box(unsafe { alloc::realloc(black_box(address), layout, new_size) })
    }
}
