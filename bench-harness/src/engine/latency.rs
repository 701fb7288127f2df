//! Times single operations, and keeps their distribution.

use std::time::Instant;

use hdrhistogram::Histogram;

use crate::measurement::Latency;

/// The longest operation that is told apart from longer ones: ten seconds.
const LONGEST: u64 = 10_000_000_000;

/// A histogram of the time that single operations took.
pub struct LatencyRecorder(Histogram<u64>);

impl LatencyRecorder {
    /// An empty one. It takes all the memory it needs now, so that recording does not allocate.
    #[expect(clippy::new_without_default, reason = "a recorder of nothing is no useful default")]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("valid bounds"))
    }

    /// Runs `operation` and records how long it took.
    #[inline(always)]
    pub fn time<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = operation();
        self.0.saturating_record(start.elapsed().as_nanos() as u64);
        result
    }

    /// Adds what another thread recorded.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all recorders have the same bounds");
    }

    /// Forgets what was recorded so far.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// The percentiles.
    pub(super) fn summary(&self) -> Latency {
        Latency {
            count: self.0.len(),
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
            clock: clock_cost(),
        }
    }
}

/// The median time between two readings of the clock in a row, in nanoseconds.
fn clock_cost() -> u64 {
    let mut recorder = LatencyRecorder::new();
    for _ in 0..10_000 {
        recorder.time(|| ());
    }
    recorder.0.value_at_quantile(0.5)
}
