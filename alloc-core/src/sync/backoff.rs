//! Waiting for another thread that will soon be done, without anything to sleep on.

use super::spin_or_yield;

/// Pauses that only yield the CPU.
const YIELDS: u32 = 100;

/// Microseconds of each later pause.
const PAUSE: u32 = 50;

/// Pauses between checks of whether another thread is done. They become longer: a real-time thread
/// yields its CPU only to threads of its priority, so a thread of lower priority runs only while
/// this one sleeps.
pub(crate) struct Backoff {
    pauses: u32,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { pauses: 0 }
    }

    /// Waits briefly. May be called in any context.
    pub(crate) fn pause(&mut self) {
        #[cfg(not(loom))]
        {
            self.pauses = self.pauses.saturating_add(1);
            if self.pauses > YIELDS {
                return crate::os::sleep_microseconds(PAUSE);
            }
        }
        spin_or_yield();
    }
}
