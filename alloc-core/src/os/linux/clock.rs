//! The time, and sleeping for some of it.

use core::ffi::c_int;

use super::super::vdso;
use super::system_call::{call, word};

/// Returns the time of a coarse monotonic clock in milliseconds, for decay. Takes no system call if
/// the vDSO has `clock_gettime`.
pub(crate) fn milliseconds() -> u64 {
    let now = time(libc::CLOCK_MONOTONIC_COARSE);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Returns the time of a precise clock, in nanoseconds, to measure how long something takes.
pub(crate) fn nanoseconds() -> u64 {
    let now = time(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn time(clock: c_int) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if !vdso::clock(clock, &mut now) {
        let to = (&raw mut now).expose_provenance();
        // SAFETY: the kernel writes only the local struct. Both clocks exist since Linux 2.6.32.
        let _ = unsafe { call(libc::SYS_clock_gettime, [word(clock), to]) };
    }
    now
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
