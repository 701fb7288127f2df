//! Two functions for `fast_path.rs` to disassemble: the operations with a layout known at compile time.

use alloc_global::Hayloft;
use std::alloc::{GlobalAlloc, Layout};

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Allocates 64 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn golden_alloc() -> *mut u8 {
    // SAFETY: the layout is not empty.
    unsafe { Hayloft.alloc(LAYOUT) }
}

/// Frees 64 bytes.
///
/// # Safety
/// The block comes from [`golden_alloc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn golden_dealloc(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { Hayloft.dealloc(block, LAYOUT) }
}

fn main() {
    let block = golden_alloc();
    // SAFETY: allocated above.
    unsafe { golden_dealloc(block) };
}
