//! Futexes: sleeping while a word holds a value, and waking the sleepers.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::AtomicU32;

use super::system_call::{call, word};

/// Sleeps while the futex holds `expected`. May return at any time.
pub(crate) fn futex_wait(futex: &AtomicU32, expected: u32) {
    wait(futex, expected, ptr::null());
}

/// As [`futex_wait`], for at most `milliseconds`.
pub(crate) fn futex_wait_for(futex: &AtomicU32, expected: u32, milliseconds: u64) {
    let time = libc::timespec {
        tv_sec: (milliseconds / 1000) as libc::time_t,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as libc::c_long,
    };
    wait(futex, expected, &raw const time);
}

fn wait(futex: &AtomicU32, expected: u32, time: *const libc::timespec) {
    let operation = word(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    let (address, time) = (futex.as_ptr().expose_provenance(), time.expose_provenance());
    // SAFETY: the futex outlives the call, and the kernel only reads it and the time.
    let _ = unsafe { call(libc::SYS_futex, [address, operation, expected as usize, time]) };
}

/// Returns whether the word at `address` can be read and holds `expected`. The address may be
/// anything.
pub(super) fn holds(address: usize, expected: u32) -> bool {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let operation = word(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    let now = (&raw const now).expose_provenance();
    // SAFETY: the kernel only reads the word and the time, and answers `EFAULT` where it cannot.
    let result = unsafe { call(libc::SYS_futex, [address, operation, expected as usize, now]) };
    // The kernel compares the word before it waits.
    matches!(result, Ok(_) | Err(libc::ETIMEDOUT | libc::EINTR))
}

/// As [`futex_wait`], for a word that the kernel clears when a thread ends.
pub(in super::super) fn futex_wait_shared(futex: &AtomicU32, expected: u32) {
    let address = futex.as_ptr().expose_provenance();
    let arguments = [address, word(libc::FUTEX_WAIT), expected as usize, 0];
    // SAFETY: the futex outlives the call, and the kernel only reads it.
    let _ = unsafe { call(libc::SYS_futex, arguments) };
}

/// Wakes one sleeper of [`futex_wait`].
pub(crate) fn futex_wake_one(futex: &AtomicU32) {
    wake(futex, 1);
}

/// Wakes all sleepers of [`futex_wait`].
pub(crate) fn futex_wake_all(futex: &AtomicU32) {
    wake(futex, c_int::MAX);
}

fn wake(futex: &AtomicU32, count: c_int) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let arguments = [futex.as_ptr().addr(), word(operation), word(count)];
    // SAFETY: the address only names a queue.
    let _ = unsafe { call(libc::SYS_futex, arguments) };
}
