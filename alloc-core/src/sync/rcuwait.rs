//! A place for one thread to wait. (`include/linux/rcuwait.h` of Linux.)
//!
//! It has one slot. Two threads that wait at once overwrite each other's entry, and one of them
//! sleeps forever. So waiters must be serialised by other means: that is the contract, and the
//! price of a slot of one word. Threads that wake need no serialising.

use super::primitive::{Ordering, fence};
use super::{Futex, const_unless_loom, forks, witness};

const NOBODY: u32 = 0;

/// Returns the value of an occupied slot. It contains the fork generation, so a fork child takes a
/// waiter of the parent for an empty slot.
fn waiting() -> u32 {
    2 * forks() + 1
}

/// A slot for one waiting thread.
pub(crate) struct Rcuwait {
    task: Futex,
}

impl Rcuwait {
    const_unless_loom! {
        pub(crate) const fn new() -> Rcuwait {
            Rcuwait { task: Futex::new(NOBODY) }
        }
    }

    /// Sleeps until `condition` holds. Another thread makes it true before it calls
    /// [`Rcuwait::wake`].
    ///
    /// # Panics
    /// In debug builds, if another thread waits here.
    #[track_caller]
    pub(crate) fn wait_until(&self, condition: impl Fn() -> bool) {
        // Relaxed: the fences order the accesses that matter.
        witness::may_sleep();
        let task = self.task.swap(waiting(), Ordering::Relaxed);
        debug_assert!(
            task != waiting(),
            "two threads wait at once in one rcuwait: one would sleep for ever"
        );
        loop {
            // A, pairs with B in `wake`: either this thread sees the condition, or `wake` sees the
            // waiter.
            fence(Ordering::SeqCst);
            if condition() {
                break;
            }
            self.task.wait(waiting());
            // The waking thread has emptied the slot.
            self.task.store(waiting(), Ordering::Relaxed);
        }
        self.task.store(NOBODY, Ordering::Relaxed);
    }

    /// Wakes the waiting thread, if there is one. May be called in any context.
    pub(crate) fn wake(&self) {
        // B, pairs with A in `wait_until`.
        fence(Ordering::SeqCst);
        // Relaxed: the fences order the accesses that matter.
        if self.task.load(Ordering::Relaxed) != NOBODY
            && self.task.swap(NOBODY, Ordering::Relaxed) != NOBODY
        {
            self.task.wake_one();
        }
    }
}
