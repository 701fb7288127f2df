//! Runs the body of a workload several times, and records times, memory and other measurements.
//!
//! | module | holds |
//! |---|---|
//! | `curve` | memory over time |
//! | `counting` `latency` | synchronisation between CPUs; durations of single operations |
//! | `memory` | resident memory of this process |

mod counting;
mod curve;
mod latency;
mod memory;

pub use curve::Gauge;
pub use latency::LatencyRecorder;

use std::sync::Barrier;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::counting::Counting;
use self::memory::Status;
use crate::measurement::{Curve, Latency, Measurement};

/// Amount of work that a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// For numbers worth quoting: a process lasts about a second.
    Full,
    /// The work of `Full`, timed only once: a process lasts about a third of a second.
    Short,
    /// For a first look: a process lasts about a tenth of a second.
    Quick,
    /// For tests: just enough to execute every line once.
    Tiny,
}

impl Scale {
    /// Returns the name on an engine's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Short => "short",
            Self::Quick => "quick",
            Self::Tiny => "tiny",
        }
    }

    /// Returns the scale with that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Full, Self::Short, Self::Quick, Self::Tiny];
        all.into_iter().find(|scale| scale.name() == name)
    }

    /// Returns the number of timed repetitions, which follow one untimed run.
    fn repetitions(self) -> usize {
        match self {
            Self::Full => 5,
            Self::Quick => 3,
            Self::Short | Self::Tiny => 1,
        }
    }
}

/// One run of one workload: passes the workload its scale, and records the measurements.
pub struct Run {
    scale: Scale,
    operations: u64,
    nanoseconds: Vec<f64>,
    latency: Option<Latency>,
    curve: Option<Curve>,
    counting: Counting,
}

impl Run {
    /// Creates a run without any measurements.
    pub fn new(scale: Scale) -> Self {
        Self {
            scale,
            operations: 0,
            nanoseconds: Vec::with_capacity(8),
            latency: None,
            curve: None,
            counting: Counting::new(),
        }
    }

    /// Returns the argument for the current scale.
    pub fn pick<T>(&self, full: T, quick: T, tiny: T) -> T {
        match self.scale {
            Scale::Full | Scale::Short => full,
            Scale::Quick => quick,
            Scale::Tiny => tiny,
        }
    }

    /// Runs `body` once to warm up, then times its repetitions. Each call of `body` does
    /// `operations` operations.
    pub fn time(&mut self, operations: u64, mut body: impl FnMut()) {
        body();
        self.counting.begin();
        for _ in 0..self.scale.repetitions() {
            let start = Instant::now();
            body();
            self.record(operations, start.elapsed().as_nanos());
        }
        self.counting.end(operations * self.scale.repetitions() as u64);
    }

    /// Times a single call of `body` without a warm-up. For long operations, and for those that a
    /// program does only once.
    pub fn time_once(&mut self, operations: u64, body: impl FnOnce()) {
        let start = Instant::now();
        body();
        self.record(operations, start.elapsed().as_nanos());
    }

    /// Does the same as [`time`](Self::time) in `count` threads at once. `setup` makes the state of
    /// each thread and is not timed.
    ///
    /// Each thread calls `body` as often as `time` does. All threads begin a repetition together;
    /// it lasts from the start of the first thread to the end of the last. `operations` is the
    /// total of all threads.
    pub fn time_threads<S>(
        &mut self,
        count: usize,
        operations: u64,
        setup: impl Fn(usize) -> S + Sync,
        body: impl Fn(&mut S) + Sync,
    ) {
        let repetitions = self.scale.repetitions() + 1;
        let barrier = Barrier::new(count);
        let counting = &self.counting;
        let worker = |index| {
            let mut state = setup(index);
            let mut laps = Vec::with_capacity(repetitions);
            for repetition in 0..repetitions {
                if barrier.wait().is_leader() && repetition == 1 {
                    counting.begin();
                }
                let start = Instant::now();
                body(&mut state);
                laps.push((start, Instant::now()));
            }
            // No thread drops its state while another is still being timed or counted.
            if barrier.wait().is_leader() {
                counting.end(operations * (repetitions - 1) as u64);
            }
            barrier.wait();
            laps
        };
        let laps: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
            let worker = &worker;
            let threads: Vec<_> =
                (0..count).map(|index| scope.spawn(move || worker(index))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a worker panicked")).collect()
        });
        // The first repetition is the warm-up.
        for repetition in 1..repetitions {
            let starts = laps.iter().map(|laps| laps[repetition].0);
            let ends = laps.iter().map(|laps| laps[repetition].1);
            if let (Some(start), Some(end)) = (starts.min(), ends.max()) {
                self.record(operations, (end - start).as_nanos());
            }
        }
    }

    /// Runs `body` once, untimed, and samples the resident memory meanwhile.
    pub fn watch(&mut self, body: impl FnOnce(&Gauge)) {
        self.curve = Some(curve::watch(body));
    }

    /// Stores the distribution in `recorder` as a result of this run.
    pub fn report_latency(&mut self, recorder: &LatencyRecorder) {
        self.latency = Some(recorder.summary());
    }

    /// Ends the run: adds the memory of the process to the measurements. `version` returns the
    /// version of the allocator, if the allocator reports one.
    pub(crate) fn finish(
        self,
        allocator: &str,
        workload: &str,
        version: impl FnOnce() -> Option<String>,
    ) -> Measurement {
        // Before anything is allocated for the measurement.
        let status = Status::open();
        let final_rss_kib = status.resident_kib();
        let peak_rss_kib = status.peak_resident_kib();
        Measurement {
            allocator: allocator.to_owned(),
            version: version(),
            workload: workload.to_owned(),
            operations: self.operations,
            nanoseconds: self.nanoseconds,
            peak_rss_kib,
            final_rss_kib,
            latency: self.latency,
            sharing: self.counting.result(),
            curve: self.curve,
        }
    }

    fn record(&mut self, operations: u64, nanoseconds: u128) {
        self.operations = operations;
        self.nanoseconds.push(nanoseconds as f64 / operations as f64);
    }
}
