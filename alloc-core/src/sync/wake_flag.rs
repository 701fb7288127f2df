//! An auto-reset flag: any context sets it, and one thread clears it and sleeps on it.
//!
//! Sets that precede the next clear merge into one. The clearing thread sees everything that was
//! done before each of them.

use super::counters::{self, Line};
use super::primitive::Ordering;
use super::{Futex, const_unless_loom};

const CLEAR: u32 = 0;
const SET: u32 = 1;

/// A flag that wakes a thread for work.
pub(crate) struct WakeFlag {
    state: Futex,
}

impl WakeFlag {
    const_unless_loom! {
        pub(crate) const fn new() -> WakeFlag {
            WakeFlag { state: Futex::new(CLEAR) }
        }
    }

    /// Sets the flag. Returns whether it was clear. If so, its thread may be asleep, and the caller
    /// must [wake](WakeFlag::wake) the thread or interrupt its sleep.
    #[must_use]
    pub(crate) fn set(&self) -> bool {
        counters::wrote(Line::WakeFlag, 1);
        // Release: pairs with the Acquire in `clear`.
        self.state.swap(SET, Ordering::Release) == CLEAR
    }

    /// Returns whether the flag is clear; a hint.
    pub(crate) fn is_clear(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CLEAR
    }

    /// Clears the flag. Call before looking for work.
    pub(crate) fn clear(&self) {
        // Acquire: pairs with the Release in `set`. A plain store would be wrong: it could follow a
        // set without reading it. The thread could then miss the work that preceded the set, and
        // sleep although that work exists.
        self.state.swap(CLEAR, Ordering::Acquire);
    }

    /// Clears the flag by a store, which is wrong: for the model that shows why.
    #[cfg(loom)]
    pub(crate) fn clear_blindly(&self) {
        self.state.store(CLEAR, Ordering::SeqCst);
    }

    /// Sleeps while the flag is clear. May return at any time.
    pub(crate) fn sleep(&self) {
        self.state.wait(CLEAR);
    }

    /// As [`WakeFlag::sleep`], for at most `milliseconds`.
    pub(crate) fn sleep_for(&self, milliseconds: u64) {
        self.state.wait_for(CLEAR, milliseconds);
    }

    /// Wakes the thread, if it sleeps.
    pub(crate) fn wake(&self) {
        self.state.wake_one();
    }
}
