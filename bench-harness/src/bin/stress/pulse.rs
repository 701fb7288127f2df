//! Signs of life.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A count of what was done, by which the [`watchdog`](crate::watchdog) sees that it goes on.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Pulse {
    beats: AtomicU64,
    over: AtomicBool,
}

impl Pulse {
    /// The pulse of something that has done nothing yet.
    pub(crate) const fn new() -> Self {
        Self { beats: AtomicU64::new(0), over: AtomicBool::new(false) }
    }

    /// Something was done.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing more is to be done.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// How often something was done.
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Whether nothing more is to be done.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
