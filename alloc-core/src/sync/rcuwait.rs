//! A place for one thread to wait. (`include/linux/rcuwait.h` of Linux.)
//!
//! It has one slot. Two threads that wait at once overwrite each other's entry, and one of them sleeps for ever, so those
//! who wait must be serialised by something else: that is the contract, and the price of the slot being a word. Those who
//! wake need no serialising.

use super::primitive::{Ordering, fence};
use super::{Futex, forks, witness};

const NOBODY: u32 = 0;

/// Somebody waits. A waiter that the child of a fork does not have counts as nobody there.
fn waiting() -> u32 {
    2 * forks() + 1
}

/// A slot for one waiting thread.
pub(crate) struct Rcuwait {
    task: Futex,
}

impl Rcuwait {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Rcuwait {
        Rcuwait { task: Futex::new(NOBODY) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Rcuwait {
        Rcuwait { task: Futex::new(NOBODY) }
    }

    /// Sleeps until `condition` holds, which somebody makes true before calling [`Rcuwait::wake`].
    ///
    /// # Panics
    /// In debug builds if another thread waits here.
    #[track_caller]
    pub(crate) fn wait_until(&self, condition: impl Fn() -> bool) {
        // Relaxed: what counts is ordered by the fences.
        witness::may_sleep();
        let task = self.task.swap(waiting(), Ordering::Relaxed);
        debug_assert!(
            task != waiting(),
            "two threads wait at once in one rcuwait: one would sleep for ever"
        );
        loop {
            // A, pairs with B in `wake`: either the condition is seen there and here, or the waiter there.
            fence(Ordering::SeqCst);
            if condition() {
                break;
            }
            self.task.wait(waiting());
            // Whoever woke this thread has emptied the slot.
            self.task.store(waiting(), Ordering::Relaxed);
        }
        self.task.store(NOBODY, Ordering::Relaxed);
    }

    /// Wakes the thread that waits, if one does. May be called in any context.
    pub(crate) fn wake(&self) {
        // B, pairs with A in `wait_until`.
        fence(Ordering::SeqCst);
        // Relaxed: as there.
        if self.task.load(Ordering::Relaxed) != NOBODY
            && self.task.swap(NOBODY, Ordering::Relaxed) != NOBODY
        {
            self.task.wake_one();
        }
    }
}
