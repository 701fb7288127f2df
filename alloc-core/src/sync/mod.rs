//! Atomics and locks: the only folder that knows whether atomics are the processor's or loom's.
//!
//! - [`Lock`]: the lock of the slow paths, a word that is tried, spun on briefly, and then slept on
//!   as a futex.
//! - [`Rcuwait`]: a place where one thread waits for the effect of a signal handler.
//! - [`Backoff`]: waiting for another thread without a lock to sleep in.
//! - [`WakeFlag`]: a flag that wakes a thread for work.
//! - [`counters`]: counts of lock acquisitions and of writes to shared cache lines.
//! - [`witness`]: checks of the lock order in debug builds.
//! - [`Context`]: the permission to wait for a lock.
//! - [`Llist`]: a list that any context may add to.
//! - [`Grace`]: detection of the end of a grace period.
//! - [`forks`]: the fork generation of this process, and work left for a fork child.
//! - [`add_up_to`]: a counter with an upper bound.
//! - [`const_unless_loom`]: functions that make such data at compile time.
//! - [`ControlRwLock`] and `ControlMutex`: locks of the control plane.
//!
//! Nothing here allocates.

mod backoff;
mod constant;
mod context;
mod control;
pub(crate) mod counters;
mod futex;
mod grace;
mod llist;
mod lock;
mod process;
mod rcuwait;
mod wake_flag;
pub(crate) mod witness;

pub(crate) use backoff::Backoff;
pub(crate) use constant::{array_of, const_unless_loom};
pub(crate) use context::Context;
pub(crate) use control::{ControlGuard, ControlMutex, ControlRwLock, Holders};
pub(crate) use futex::Futex;
pub(crate) use grace::{Grace, Ticket};
pub(crate) use llist::{CpuLists, Link, Llist, Taken};
#[cfg(not(loom))]
pub(crate) use lock::Fork;
pub(crate) use lock::{Guard, Lock, RawLock, SPINS};
pub(crate) use primitive::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(crate) use process::{count_fork, do_what_was_left, forks, leave_for_later};
pub(crate) use rcuwait::Rcuwait;
pub(crate) use wake_flag::WakeFlag;
pub(crate) use witness::LockClass;

/// Waits briefly for another thread, which may need this CPU to make progress.
pub(crate) fn spin_or_yield() {
    #[cfg(not(loom))]
    {
        primitive::spin_loop();
        crate::os::yield_now();
    }
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// Adds to a counter, unless the sum would exceed `most`. Returns whether it did. A refused
/// addition is never visible to other threads, so it cannot cause the refusal of a smaller one.
pub(crate) fn add_up_to(counter: &AtomicUsize, count: usize, most: usize) -> bool {
    let sum = |before: usize| before.checked_add(count).filter(|sum| *sum <= most);
    // Relaxed: a number that guards nothing.
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

#[cfg(not(loom))]
mod primitive {
    pub(crate) use core::cell::UnsafeCell;
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{
        AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

#[cfg(loom)]
mod primitive {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{
        AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}
