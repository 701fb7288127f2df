//! The time, and sleeping for some of it.

use core::ffi::c_int;

use super::super::vdso;
use super::system_call::{call, word};

/// Returns the time of a coarse monotonic clock in milliseconds, for decay. Takes no system call if
/// the vDSO has `clock_gettime`.
pub(crate) fn milliseconds() -> u64 {
    let now = time();
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Returns the time of the same clock, in nanoseconds, to sum up how long something takes. Such a
/// sum is right on average, as the clock advances by a tick in a part of the measurements.
pub(crate) fn nanoseconds() -> u64 {
    let now = time();
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn time() -> libc::timespec {
    const CLOCK: c_int = libc::CLOCK_MONOTONIC_COARSE;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if !vdso::clock(CLOCK, &mut now) {
        let to = (&raw mut now).expose_provenance();
        // SAFETY: the kernel writes only the local struct. The clock exists since Linux 2.6.32.
        let _ = unsafe { call(libc::SYS_clock_gettime, [word(CLOCK), to]) };
    }
    now
}

/// Returns the time of day, in nanoseconds since 1970.
pub(crate) fn unix_nanoseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let to = (&raw mut now).expose_provenance();
    // SAFETY: the kernel writes only the local struct.
    let _ = unsafe { call(libc::SYS_clock_gettime, [word(libc::CLOCK_REALTIME), to]) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Sleeps for `count` microseconds; a signal handler ends the sleep early.
pub(crate) fn sleep_microseconds(count: u32) {
    let time = libc::timespec {
        tv_sec: (count / 1_000_000).into(),
        tv_nsec: (count % 1_000_000 * 1000).into(),
    };
    // SAFETY: the kernel only reads the time.
    let _ = unsafe { call(libc::SYS_nanosleep, [(&raw const time).expose_provenance(), 0]) };
}
