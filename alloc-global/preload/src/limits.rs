//! `setrlimit` and `prlimit`, after which address space that is reserved for what may come goes back: else it would count for
//! `RLIMIT_AS`, and leave the program none.

use core::ffi::{c_int, c_long};

use alloc_core::kmalloc;
use libc::{pid_t, rlimit};

/// Sets a limit of this process.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn setrlimit(resource: c_int, new: *const rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, new, core::ptr::null_mut()) }
}

/// # Safety
/// As [`setrlimit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn setrlimit64(resource: c_int, new: *const rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { setrlimit(resource, new) }
}

/// Sets a limit of a process, or tells it.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit(
    process: pid_t,
    resource: c_int,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let arguments = (c_long::from(process), c_long::from(resource));
        let result = libc::syscall(libc::SYS_prlimit64, arguments.0, arguments.1, new, old);
        if result == 0
            && resource == libc::RLIMIT_AS as c_int
            && let Some(limit) = new.as_ref()
            && (process == 0 || process == libc::getpid())
        {
            kmalloc::limit_address_space(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX));
        }
        result as c_int
    }
}

/// # Safety
/// As [`prlimit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit64(
    process: pid_t,
    resource: c_int,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(process, resource, new, old) }
}
