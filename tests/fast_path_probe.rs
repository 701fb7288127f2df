//! Two functions for `fast_path.rs` to disassemble: `alloc` and `dealloc` of a layout known at
//! compile time.

use hayloft::Hayloft;
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
///
/// `block` must be live and come from [`golden_alloc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn golden_dealloc(block: *mut u8) {
    // SAFETY: the caller guarantees that `block` is live and of `LAYOUT`.
    unsafe { Hayloft.dealloc(block, LAYOUT) }
}

fn main() {
    let block = golden_alloc();
    // SAFETY: `golden_alloc` returned the block, and it is freed once.
    unsafe { golden_dealloc(block) };
}
