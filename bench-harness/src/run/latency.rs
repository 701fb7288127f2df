//! Times single operations and keeps the distribution of their durations.

use std::time::Instant;

use hdrhistogram::Histogram;

use crate::measurement::Latency;

/// Longest duration that the histogram can distinguish, in nanoseconds: ten seconds.
const LONGEST: u64 = 10_000_000_000;

/// A histogram of the durations of single operations.
pub struct LatencyRecorder(Histogram<u64>);

impl LatencyRecorder {
    /// Creates an empty recorder. It allocates all its memory now, so that recording does not
    /// allocate.
    #[expect(clippy::new_without_default, reason = "a recorder of nothing is no useful default")]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("valid bounds"))
    }

    /// Runs `operation`, records its duration, and returns its result.
    #[inline(always)]
    pub fn time<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = operation();
        self.0.saturating_record(start.elapsed().as_nanos() as u64);
        result
    }

    /// Adds the durations that another thread recorded.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all recorders have the same bounds");
    }

    /// Discards all recorded durations.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Returns the percentiles.
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

/// Returns the median time between two consecutive readings of the clock, in nanoseconds.
fn clock_cost() -> u64 {
    let mut recorder = LatencyRecorder::new();
    for _ in 0..10_000 {
        recorder.time(|| ());
    }
    recorder.0.value_at_quantile(0.5)
}
