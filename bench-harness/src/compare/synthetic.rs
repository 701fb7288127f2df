//! Invented runs for tests.

use super::engines::CrateBuild;
use super::machine::Machine;
use super::record::{FORMAT, Record, Subject};
use super::runner::{Outcome, Sample};
use crate::measurement::{Curve, Latency, Measurement, Point};
use crate::run::Scale;
use crate::workloads::{self, Kind, Workload};

/// Allocators of a run, with the factor by which each needs more of everything.
pub(super) const ALLOCATORS: [(&str, u64); 3] = [("hayloft", 3), ("mimalloc", 1), ("system", 2)];

/// Returns a run of these workloads. `slower` returns the factor by which an allocator is slower in
/// a round.
pub(super) fn record(workloads: &[&str], rounds: u32, slower: impl Fn(&str, u32) -> f64) -> Record {
    let mut samples = Vec::new();
    for round in 0..rounds {
        for name in workloads {
            let workload = workloads::find(name).unwrap();
            for (allocator, factor) in ALLOCATORS {
                let measurement = measurement(workload, factor, slower(allocator, round));
                samples.push(Sample {
                    round,
                    allocator: allocator.to_owned(),
                    workload: workload.name.to_owned(),
                    outcome: Outcome::Measured(Box::new(measurement)),
                });
            }
        }
    }
    let build = CrateBuild {
        name: "some-sys".to_owned(),
        version: "1.2.3".to_owned(),
        features: vec!["static".to_owned()],
        opt_level: "3".to_owned(),
        debug_assertions: false,
        native_flags: Some("-O3 -DNDEBUG".to_owned()),
    };
    let subject = |(name, _): &(&str, u64)| Subject {
        name: (*name).to_owned(),
        version: Some("9.8.7".to_owned()),
        build: Some(vec![build.clone()]),
        warning: None,
    };
    Record {
        format: FORMAT,
        date: "2025-06-01T12:00:00Z".parse().unwrap(),
        command: "compare --save run.json".to_owned(),
        machine: Machine::detect(),
        rounds,
        scale: Scale::Tiny,
        profile: "release".to_owned(),
        seconds: 1.0,
        allocators: ALLOCATORS.iter().map(subject).collect(),
        samples,
    }
}

fn measurement(workload: &Workload, factor: u64, slower: f64) -> Measurement {
    let point = |(ms, resident_kib, live_kib): (u64, u64, u64)| Point {
        ms,
        resident_kib: resident_kib * 1024 * factor,
        live_kib: live_kib * 1024,
    };
    let points = [(0, 1, 0), (500, 99, 100), (1000, 50, 25), (3000, 20, 25), (4000, 60, 50)];
    Measurement {
        allocator: String::new(),
        version: None,
        workload: workload.name.to_owned(),
        operations: 1,
        nanoseconds: vec![factor as f64 * slower],
        peak_rss_kib: 1024 * factor,
        final_rss_kib: 1024 * factor,
        latency: (workload.kind == Kind::Latency).then_some(Latency {
            count: 1,
            p50: 0,
            p90: 10 * factor,
            p99: 20 * factor,
            p999: 30 * factor,
            max: (1000.0 * factor as f64 * slower) as u64,
            clock: 20,
        }),
        curve: (workload.kind == Kind::Curve)
            .then(|| Curve { freed_ms: Some(1000), points: points.map(point).to_vec() }),
        sharing: None,
    }
}
