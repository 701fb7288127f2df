//! The process as a whole: hooks for its end and its forks, and the lock of the C library's
//! streams, which is held across forks.

use crate::arch;
use crate::atomic_fn::FnPtr;

/// Registers `hook` to run when the program ends by `exit` or by returning from `main`.
pub(crate) fn at_exit(hook: extern "C" fn()) {
    // SAFETY: the hook lives as long as the program.
    unsafe { libc::atexit(hook) };
}

/// Registers functions to call at each fork: before it, and after it in the parent and in the
/// child.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions may be called at a fork. If the C library has no memory to record them,
    // they are never called.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Acquires the lock of the C library's list of all streams, if it has one. It is held across
/// forks.
pub(crate) fn lock_streams() {
    call_streams(0);
}

/// Releases the lock of [`lock_streams`].
pub(crate) fn unlock_streams() {
    call_streams(1);
}

/// Resets the lock of [`lock_streams`] to free, in a fork child.
pub(crate) fn renew_streams() {
    call_streams(2);
}

fn call_streams(which: usize) {
    let address = arch::stream_locks()[which].cast_mut();
    // SAFETY: the address is null, or that of glibc's `_IO_list_lock`, `_IO_list_unlock` or
    // `_IO_list_resetlock`, which take and return nothing.
    unsafe {
        if let Some(function) = <unsafe extern "C" fn()>::at(address) {
            function();
        }
    }
}
