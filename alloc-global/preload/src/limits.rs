//! `setrlimit` and `prlimit`, which also release reserved address space.
//!
//! The address space that Hayloft reserves in advance counts for `RLIMIT_AS`. Unless it is released
//! when the program sets that limit, it may leave the program none.

use core::ffi::{c_int, c_long};

use hayloft_core::heap;
use libc::{pid_t, rlimit};

/// Sets a resource limit of this process.
///
/// # Safety
/// As for `setrlimit` of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn setrlimit(resource: c_int, new: *const rlimit) -> c_int {
    // SAFETY: the caller guarantees that `new` is valid; `prlimit` accepts a null `old`.
    unsafe { prlimit(0, resource, new, core::ptr::null_mut()) }
}

/// # Safety
/// As for [`setrlimit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn setrlimit64(resource: c_int, new: *const rlimit) -> c_int {
    // SAFETY: the caller guarantees that `new` is valid.
    unsafe { setrlimit(resource, new) }
}

/// Reads and sets a resource limit of a process. If the process limits its own address space,
/// releases reserved address space.
///
/// # Safety
/// As for `prlimit` of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit(
    process: pid_t,
    resource: c_int,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the caller guarantees that `new` and `old` are each null or valid.
    unsafe {
        let arguments = (c_long::from(process), c_long::from(resource));
        let result = libc::syscall(libc::SYS_prlimit64, arguments.0, arguments.1, new, old);
        if result == 0
            && resource == libc::RLIMIT_AS as c_int
            && let Some(limit) = new.as_ref()
            && (process == 0 || process == libc::getpid())
        {
            heap::limit_address_space(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX));
        }
        result as c_int
    }
}

/// # Safety
/// As for [`prlimit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit64(
    process: pid_t,
    resource: c_int,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the caller guarantees that `new` and `old` are each null or valid.
    unsafe { prlimit(process, resource, new, old) }
}
