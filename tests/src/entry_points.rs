//! The two entry points of the allocator.
//!
//! A program calls the allocator through `std::alloc`, where the compiler inserts shims and may
//! fold size and alignment, or through the methods of `GlobalAlloc`. Tests use both.

use std::alloc::{self, GlobalAlloc, Layout};
use std::hint::black_box;

pub use hayloft::Hayloft;

/// The registered global allocator, through `std::alloc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registered;

// SAFETY: every method forwards to the global allocator. `black_box` keeps the compiler from
// removing allocations that it sees through.
unsafe impl GlobalAlloc for Registered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees that the size is not zero.
        black_box(unsafe { alloc::alloc(layout) })
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees that the block is live and was allocated with `layout`.
        unsafe { alloc::dealloc(black_box(address), layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees that the size is not zero.
        black_box(unsafe { alloc::alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the block is live with `layout`, and that `new_size`
        // is valid.
        black_box(unsafe { alloc::realloc(black_box(address), layout, new_size) })
    }
}
