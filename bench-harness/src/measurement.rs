//! The line of JSON in which an engine tells what it measured.

use serde::{Deserialize, Serialize};

/// One workload, measured once under one allocator in a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the allocator, as the engine knows it.
    pub allocator: String,
    /// The version that the allocator reports of itself, if it does.
    pub version: Option<String>,
    /// Name of the workload.
    pub workload: String,
    /// How many operations one repetition has.
    pub operations: u64,
    /// Nanoseconds per operation, one value per timed repetition. Empty if the workload is not timed.
    pub nanoseconds: Vec<f64>,
    /// The most memory the process ever had resident, in KiB.
    pub peak_rss_kib: u64,
    /// What it had resident when the workload was over, in KiB.
    pub final_rss_kib: u64,
    /// How the time of single operations was distributed, if the workload records it.
    pub latency: Option<Latency>,
    /// How memory went over time, if the workload is watched.
    pub curve: Option<Curve>,
    /// What CPUs had to agree on in all timed repetitions, in a build that counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
}

/// How often an allocator took locks that CPUs share, and wrote to cache lines that others write.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sharing {
    /// In how many operations.
    pub operations: u64,
    /// What locks protect, how often one was acquired, and how often somebody else had it.
    pub locks: Vec<(String, u64, u64)>,
    /// What is in a line, and how often one was written.
    pub writes: Vec<(String, u64)>,
}

/// The distribution of the time that single operations took, in nanoseconds, reading the clock included.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// How many operations were timed.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// The longest one.
    pub max: u64,
    /// What reading the clock costs by itself: the median of two readings in a row. Not subtracted from the others.
    pub clock: u64,
}

/// How memory went over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// When the workload had freed what should go back to the system, if there is such a moment.
    pub freed_ms: Option<u64>,
    /// From before the workload to its end, in the order of time.
    pub points: Vec<Point>,
}

/// One look at the memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Milliseconds since the workload began.
    pub ms: u64,
    /// What the kernel had given it, in KiB.
    pub resident_kib: u64,
    /// What the workload had allocated and not freed, in KiB.
    pub live_kib: u64,
}

impl Point {
    /// How many bytes are resident for each that is live. `None` if none is.
    pub fn resident_per_live(&self) -> Option<f64> {
        (self.live_kib > 0).then(|| self.resident_kib as f64 / self.live_kib as f64)
    }
}

impl Curve {
    /// How long after the free memory is looked at: long enough for an allocator that gives back after a while.
    pub const PATIENCE_MS: u64 = 2000;

    /// Before the workload allocated anything.
    pub fn before(&self) -> Option<Point> {
        self.points.first().copied()
    }

    /// When the workload was over.
    pub fn end(&self) -> Option<Point> {
        self.points.last().copied()
    }

    /// Two seconds after the free, or at the end if that comes before. `None` if there is no such free.
    pub fn after_free(&self) -> Option<Point> {
        let moment = self.freed_ms? + Self::PATIENCE_MS;
        self.points.iter().find(|point| point.ms >= moment).copied().or_else(|| self.end())
    }

    /// How many bytes were resident for each that was live, over all the time. Not a mean of ratios, in which the moments
    /// at which hardly anything is live would outweigh all others.
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
    fn a_free_is_judged_two_seconds_later() {
        let after = |freed_ms| curve(freed_ms).after_free().map(|point| point.ms);
        assert_eq!(after(Some(500)), Some(3000));
        // Less than two seconds were watched.
        assert_eq!(after(Some(2000)), Some(3000));
        assert_eq!(after(None), None);
    }

    #[test]
    fn resident_is_related_to_live() {
        let curve = curve(None);
        assert_eq!(curve.before().unwrap().resident_per_live(), None);
        assert_eq!(curve.end().unwrap().resident_per_live(), Some(2.0));
        assert_eq!(curve.resident_per_live(), Some(2600.0 / 1200.0));
        assert_eq!(Curve { freed_ms: None, points: Vec::new() }.resident_per_live(), None);
    }
}
