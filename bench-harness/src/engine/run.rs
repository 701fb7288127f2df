//! Runs the body of a workload several times, and keeps the times.

use std::sync::Barrier;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::counting::Counting;
use super::curve::{self, Gauge};
use super::latency::LatencyRecorder;
use crate::measurement::{Curve, Latency};

/// How much work a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// For numbers worth quoting: a process lasts about a second.
    Full,
    /// As much, and timed once: a process lasts about a third of a second.
    Short,
    /// For a first look: a process lasts about a tenth of a second.
    Quick,
    /// For tests: enough to execute every line once.
    Tiny,
}

impl Scale {
    /// The name on an engine's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Short => "short",
            Self::Quick => "quick",
            Self::Tiny => "tiny",
        }
    }

    /// The opposite of [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Full, Self::Short, Self::Quick, Self::Tiny];
        all.into_iter().find(|scale| scale.name() == name)
    }

    /// How often the body is timed, after one run that is not.
    fn repetitions(self) -> usize {
        match self {
            Self::Full => 5,
            Self::Quick => 3,
            Self::Short | Self::Tiny => 1,
        }
    }
}

/// One run of one workload: tells the workload how much to do, and takes what it measured.
pub struct Run {
    scale: Scale,
    pub(super) operations: u64,
    pub(super) nanoseconds: Vec<f64>,
    pub(super) latency: Option<Latency>,
    pub(super) curve: Option<Curve>,
    pub(super) counting: Counting,
}

impl Run {
    /// A run in which nothing has been measured yet.
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

    /// Chooses by scale.
    pub fn pick<T>(&self, full: T, quick: T, tiny: T) -> T {
        match self.scale {
            Scale::Full | Scale::Short => full,
            Scale::Quick => quick,
            Scale::Tiny => tiny,
        }
    }

    /// Runs `body` once to warm up, and then times it again and again. Each time it does `operations` operations.
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

    /// Times `body` once and without a warm-up: for what takes long, and what a program does only once.
    pub fn time_once(&mut self, operations: u64, body: impl FnOnce()) {
        let start = Instant::now();
        body();
        self.record(operations, start.elapsed().as_nanos());
    }

    /// Does the same as [`time`](Self::time) in `count` threads at once, each with a state of its own that
    /// `setup` makes and nobody times.
    ///
    /// `body` runs as often as there; all threads begin together, and a repetition lasts from the
    /// start of the first to the end of the last. `operations` counts those of all threads.
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
            // No thread tears its state down while another is still being timed, or counted.
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

    /// Runs `body` once, not to time it but to watch how much memory is resident meanwhile.
    pub fn watch(&mut self, body: impl FnOnce(&Gauge)) {
        self.curve = Some(curve::watch(body));
    }

    /// Keeps the distribution that `recorder` holds as the result of this run.
    pub fn report_latency(&mut self, recorder: &LatencyRecorder) {
        self.latency = Some(recorder.summary());
    }

    fn record(&mut self, operations: u64, nanoseconds: u128) {
        self.operations = operations;
        self.nanoseconds.push(nanoseconds as f64 / operations as f64);
    }
}
