//! Signs of progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A count of work done, by which the [`watchdog`](crate::watchdog) detects progress.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Pulse {
    beats: AtomicU64,
    over: AtomicBool,
}

impl Pulse {
    /// Creates the pulse of an activity that has done nothing yet.
    pub(crate) const fn new() -> Self {
        Self { beats: AtomicU64::new(0), over: AtomicBool::new(false) }
    }

    /// Counts one unit of work.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the work as complete.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Returns the units of work counted.
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Returns whether the work is complete.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
