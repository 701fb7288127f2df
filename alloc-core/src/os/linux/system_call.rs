//! Bare system calls, and the preservation of `errno` around calls of the C library.
//!
//! Slow paths make their system calls directly. The C library's functions for these calls may be
//! wrapped by a library that allocates in the wrapper or holds a lock there, and they are
//! cancellation points. A slow path permits none of this. Nor do bare calls touch `errno`.

use core::ffi::{c_int, c_long};

use crate::arch;

/// Makes a system call.
///
/// # Errors
/// The kernel's error number.
///
/// # Safety
/// The effect of the call with these arguments is sound.
#[inline]
pub(in super::super) unsafe fn call<const COUNT: usize>(
    number: c_long,
    arguments: [usize; COUNT],
) -> Result<usize, c_int> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = from;
    }
    // SAFETY: the caller guarantees that the call is sound.
    let result = unsafe { arch::system_call(number as usize, all) };
    // The kernel reserves the last page of numbers for errors.
    if (-4095..0).contains(&result) { Err(-result as c_int) } else { Ok(result as usize) }
}

/// Converts a number to the kernel's form: a negative one is sign-extended to a word.
#[inline]
pub(super) fn word(number: c_int) -> usize {
    number as isize as usize
}

/// Restores `errno` when dropped: a caller of `malloc` does not expect it to change, a signal
/// handler even less.
pub(in super::super) struct SavedErrno(c_int);

impl SavedErrno {
    pub(in super::super) fn new() -> SavedErrno {
        // SAFETY: the address of this thread's `errno` is always valid.
        SavedErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for SavedErrno {
    fn drop(&mut self) {
        // SAFETY: the address of this thread's `errno` is always valid.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
