//! Waits for another thread that will not be long, and has nothing to sleep on.

use super::spin_or_yield;

/// Pauses for which only the CPU is given up.
#[cfg(not(loom))]
const YIELDS: u32 = 100;

/// Microseconds of a longer pause.
#[cfg(not(loom))]
const PAUSE: u32 = 50;

/// Pauses between looks at whether another thread is done. They become longer: a thread of a real-time policy gives up its CPU
/// to others of its priority only, so where the other has a lower one, it runs while this one sleeps.
pub(crate) struct Backoff {
    #[cfg(not(loom))]
    pauses: u32,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff {
            #[cfg(not(loom))]
            pauses: 0,
        }
    }

    /// Waits a little. In any context.
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
