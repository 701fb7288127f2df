//! Which process this is: how many forks lie behind it.
//!
//! What a thread had in hand that the child of a fork does not have, is told from what is of this process by that number.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU32, Ordering};

#[cfg(not(loom))]
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie behind this process.
#[inline]
pub(crate) fn forks() -> u32 {
    // Relaxed: it changes only where there is no other thread. The models do not fork.
    #[cfg(not(loom))]
    return FORKS.load(Ordering::Relaxed);
    #[cfg(loom)]
    0
}

/// Counts a fork, in the child.
#[cfg(not(loom))]
pub(crate) fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
