//! A bell: any context rings it, one thread answers it and sleeps beside it.
//!
//! Rings that come before the first one was answered are one with it. Whoever answers sees what was done before each of them.

use super::Futex;
use super::counters::{self, Line};
use super::primitive::Ordering;

const CLEAR: u32 = 0;
const SET: u32 = 1;

/// What tells a thread that there is something to do.
pub(crate) struct WakeFlag {
    state: Futex,
}

impl WakeFlag {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> WakeFlag {
        WakeFlag { state: Futex::new(CLEAR) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> WakeFlag {
        WakeFlag { state: Futex::new(CLEAR) }
    }

    /// Rings; whether the bell was silent. Then its thread may be asleep, and the caller has to [wake](WakeFlag::wake) it, or to
    /// interrupt its sleep.
    #[must_use]
    pub(crate) fn set(&self) -> bool {
        counters::wrote(Line::WakeFlag, 1);
        // Release: pairs with the Acquire in `answer`.
        self.state.swap(SET, Ordering::Release) == CLEAR
    }

    /// Whether nobody rang since the last answer; a hint.
    #[cfg(not(loom))]
    pub(crate) fn is_clear(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CLEAR
    }

    /// Silences the bell. To be called before looking for what there is to do.
    pub(crate) fn clear(&self) {
        // Acquire: pairs with the Release in `ring`. It must read the last ring to see what was done before that, so a store
        // would not do: the thread could find nothing, silence the bell after it, and sleep.
        self.state.swap(CLEAR, Ordering::Acquire);
    }

    /// As [`WakeFlag::clear`] must not be: for the model that shows why.
    #[cfg(loom)]
    pub(crate) fn clear_blindly(&self) {
        self.state.store(CLEAR, Ordering::SeqCst);
    }

    /// Sleeps while the bell is silent; may return at any time.
    pub(crate) fn sleep(&self) {
        self.state.wait(CLEAR);
    }

    /// As [`WakeFlag::sleep`], for so many milliseconds at most.
    #[cfg(not(loom))]
    pub(crate) fn sleep_for(&self, milliseconds: u64) {
        self.state.wait_for(CLEAR, milliseconds);
    }

    /// Ends the sleep of the thread, if it sleeps.
    pub(crate) fn wake(&self) {
        self.state.wake_one();
    }
}
