//! The variable in which C functions report their errors.

use core::ffi::{c_int, c_void};

/// Sets `errno`.
#[cold]
pub(crate) fn fail(error: c_int) {
    // SAFETY: the address of the calling thread's `errno` is always valid.
    unsafe { *libc::__errno_location() = error };
}

/// Returns `block`. If it is null, sets `errno` to `ENOMEM`.
#[inline]
pub(crate) fn or_no_memory(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        fail(libc::ENOMEM);
    }
    block.cast()
}
