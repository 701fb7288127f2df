//! The line of JSON in which an engine reports its measurement.

use serde::{Deserialize, Serialize};

/// One workload, measured once under one allocator in a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the allocator, as the engine knows it.
    pub allocator: String,
    /// Version that the allocator reports about itself, if it reports one.
    pub version: Option<String>,
    /// Name of the workload.
    pub workload: String,
    /// Operations in one repetition.
    pub operations: u64,
    /// Nanoseconds per operation, one value per timed repetition. Empty if the workload is not
    /// timed.
    pub nanoseconds: Vec<f64>,
    /// Peak resident memory of the process, in KiB.
    pub peak_rss_kib: u64,
    /// Resident memory at the end of the workload, in KiB.
    pub final_rss_kib: u64,
    /// Distribution of the duration of single operations, if the workload records it.
    pub latency: Option<Latency>,
    /// Memory over time, if the workload is watched.
    pub curve: Option<Curve>,
    /// Synchronisation between CPUs in all timed repetitions, in a build that counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
}

/// Counts of the allocator's acquisitions of locks that CPUs share, and of its writes to cache
/// lines that other CPUs write.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sharing {
    /// Operations during which the events were counted.
    pub operations: u64,
    /// For each kind of lock: what it protects, its acquisitions, and the acquisitions that found
    /// it held.
    pub locks: Vec<(String, u64, u64)>,
    /// For each kind of cache line: its contents, and the writes to it.
    pub writes: Vec<(String, u64)>,
}

/// Distribution of the duration of single operations, in nanoseconds. Includes reading the clock.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Operations that were timed.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Maximum.
    pub max: u64,
    /// Cost of reading the clock: the median time between two consecutive readings. Not subtracted
    /// from the other values.
    pub clock: u64,
}

/// Memory over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Milliseconds from the start to the moment when the workload had freed the memory that should
    /// return to the system, if it has such a moment.
    pub freed_ms: Option<u64>,
    /// Samples in order of time, from before the workload to its end.
    pub points: Vec<Point>,
}

/// One sample of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Milliseconds since the workload began.
    pub ms: u64,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Memory that the workload had allocated and not freed, in KiB.
    pub live_kib: u64,
}

impl Point {
    /// Returns the resident bytes per live byte, or `None` if nothing is live.
    pub fn resident_per_live(&self) -> Option<f64> {
        (self.live_kib > 0).then(|| self.resident_kib as f64 / self.live_kib as f64)
    }
}

impl Curve {
    /// Milliseconds from the free to the sample that judges it: long enough for an allocator that
    /// returns memory with a delay.
    pub const PATIENCE_MS: u64 = 2000;

    /// Returns the sample from before the workload allocated anything.
    pub fn before(&self) -> Option<Point> {
        self.points.first().copied()
    }

    /// Returns the sample from the end of the workload.
    pub fn end(&self) -> Option<Point> {
        self.points.last().copied()
    }

    /// Returns the sample two seconds after the free, or the last sample if the workload ended
    /// sooner. Returns `None` if the workload marked no free.
    pub fn after_free(&self) -> Option<Point> {
        let moment = self.freed_ms? + Self::PATIENCE_MS;
        self.points.iter().find(|point| point.ms >= moment).copied().or_else(|| self.end())
    }

    /// Returns the resident bytes per live byte over the whole run: the ratio of the two sums. In a
    /// mean of ratios, the moments when hardly anything is live would outweigh all others.
    pub fn resident_per_live(&self) -> Option<f64> {
        let resident: u64 = self.points.iter().map(|point| point.resident_kib).sum();
        let live: u64 = self.points.iter().map(|point| point.live_kib).sum();
        (live > 0).then(|| resident as f64 / live as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(freed_ms: Option<u64>) -> Curve {
        let point = |(ms, resident_kib, live_kib)| Point { ms, resident_kib, live_kib };
        let points = [(0, 100, 0), (20, 1100, 1000), (1000, 1200, 100), (3000, 200, 100)];
        Curve { freed_ms, points: points.map(point).to_vec() }
    }

    #[test]
    fn after_free_is_sampled_two_seconds_later() {
        let after = |freed_ms| curve(freed_ms).after_free().map(|point| point.ms);
        assert_eq!(after(Some(500)), Some(3000));
        // The samples end less than two seconds after this free.
        assert_eq!(after(Some(2000)), Some(3000));
        assert_eq!(after(None), None);
    }

    #[test]
    fn resident_memory_is_divided_by_live_bytes() {
        let curve = curve(None);
        assert_eq!(curve.before().unwrap().resident_per_live(), None);
        assert_eq!(curve.end().unwrap().resident_per_live(), Some(2.0));
        assert_eq!(curve.resident_per_live(), Some(2600.0 / 1200.0));
        assert_eq!(Curve { freed_ms: None, points: Vec::new() }.resident_per_live(), None);
    }
}
