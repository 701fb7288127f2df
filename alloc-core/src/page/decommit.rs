//! Decommits memory and counts the calls, their time and the bytes.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::os;

/// Bytes decommitted so far.
static DECOMMITTED: AtomicU64 = AtomicU64::new(0);
/// Calls to the system that decommitted memory, and the nanoseconds that all such calls took.
static DECOMMITS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Decommits `len` bytes, and counts them. Returns whether they read as zero afterwards.
///
/// # Safety
/// As [`os::decommit`].
pub(crate) unsafe fn decommit(address: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller keeps the promises of `os::decommit`.
    unsafe { decommit_rest(address, len, 0) }
}

/// As [`decommit`], for a range of which `gone` bytes have no memory. These do not count.
///
/// # Safety
/// As [`os::decommit`].
pub(crate) unsafe fn decommit_rest(address: NonNull<u8>, len: usize, gone: usize) -> bool {
    let start = os::nanoseconds();
    // SAFETY: the caller keeps the promises of `os::decommit`.
    let done = unsafe { os::decommit(address, len) };
    let [calls, nanoseconds] = &DECOMMITS;
    // Relaxed: statistics that guard nothing.
    nanoseconds.fetch_add(os::nanoseconds().wrapping_sub(start), Ordering::Relaxed);
    if done {
        calls.fetch_add(1, Ordering::Relaxed);
        DECOMMITTED.fetch_add((len - gone) as u64, Ordering::Relaxed);
    }
    done
}

/// Returns the number of calls to the system that decommitted memory, and the nanoseconds that all
/// such calls took, those that the system refused included. May be called in any context.
pub(crate) fn decommits() -> (u64, u64) {
    let [calls, nanoseconds] = &DECOMMITS;
    (calls.load(Ordering::Relaxed), nanoseconds.load(Ordering::Relaxed))
}

/// Returns the bytes decommitted so far. May be called in any context.
pub(crate) fn decommitted() -> u64 {
    DECOMMITTED.load(Ordering::Relaxed)
}
