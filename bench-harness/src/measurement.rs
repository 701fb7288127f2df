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
}

/// The distribution of the time that single operations took, in nanoseconds, reading the clock included.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// How many operations were timed.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// The longest one.
    pub max: u64,
    /// What reading the clock costs by itself: the median of two readings in a row. Not subtracted from the others.
    pub clock: u64,
}
