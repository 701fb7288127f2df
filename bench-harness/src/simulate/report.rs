//! Tables, CSV and JSON of simulated results.

use std::fmt::Write as _;

use serde::Serialize;

use super::curve::Curve;
use super::outcome::Outcome;
use crate::rows;

/// A prediction, and the measurement that it is compared with.
pub(super) struct Validated {
    pub(super) name: &'static str,
    pub(super) cpus: usize,
    /// Transfer time of a line between the cores, in nanoseconds.
    pub(super) line: Option<f64>,
    pub(super) pairs: f64,
    pub(super) nothing: f64,
    pub(super) measured: f64,
    pub(super) predicted: f64,
}

impl Validated {
    /// Returns the error of the prediction, relative to the measured time.
    pub(super) fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

pub(super) fn validation(validated: &[Validated], markdown: bool) -> String {
    let header = ["trace", "CPUs", "a line", "no allocator", "measured", "predicted", "error"];
    let rows = validated.iter().map(|row| {
        // Converts to the time that a pair takes on one CPU.
        let each = |time: f64| format!("{:.2} ns", time * row.cpus as f64 / row.pairs);
        vec![
            row.name.to_owned(),
            row.cpus.to_string(),
            row.line.map_or(String::new(), |line| format!("{line:.0} ns")),
            each(row.nothing),
            each(row.measured),
            each(row.predicted),
            format!("{:+.0} %", row.error() * 100.0),
        ]
    });
    rows::table(markdown, header.map(str::to_owned), rows).to_string()
}

pub(super) fn text(curves: &[Curve], markdown: bool) -> String {
    let mut text = String::new();
    for curve in curves {
        let header = [
            "CPUs",
            "M pairs/s",
            "speed-up",
            "a CPU of one",
            "locks/1000",
            "waits: barn",
            "slabs",
            "arena",
            "lines",
        ];
        let rows = curve.points.iter().map(|point| {
            let (cpus, outcome) = point;
            let percent = |part: f64| format!("{:.1} %", part * 100.0);
            let [barn, slabs, arena] = outcome.waited;
            vec![
                cpus.to_string(),
                format!("{:.1}", outcome.throughput()),
                format!("{:.1}", curve.efficiency(point) * *cpus as f64),
                percent(curve.efficiency(point)),
                format!("{:.2}", locks(outcome)),
                percent(barn),
                percent(slabs),
                percent(arena),
                percent(outcome.moved),
            ]
        });
        let table = rows::table(markdown, header.map(str::to_owned), rows);
        let knee = curve.knee().map_or("none".to_owned(), |cpus| format!("{cpus} CPUs"));
        let _ = writeln!(text, "{}; first knee: {knee}\n\n{table}\n", curve.name);
    }
    text
}

/// Returns the acquisitions of locks per 1000 pairs.
fn locks(outcome: &Outcome) -> f64 {
    outcome.acquired.iter().sum::<u64>() as f64 * 1000.0 / outcome.pairs
}

#[derive(Serialize)]
struct Point<'a> {
    trace: &'a str,
    cpus: usize,
    pairs_per_second: f64,
    speed_up: f64,
    locks_per_1000: f64,
    waited_barn: f64,
    waited_slabs: f64,
    waited_arena: f64,
    waited_lines: f64,
}

fn points(curves: &[Curve]) -> Vec<Point<'_>> {
    let mut points = Vec::new();
    for curve in curves {
        for point in &curve.points {
            let (cpus, outcome) = point;
            let [waited_barn, waited_slabs, waited_arena] = outcome.waited;
            points.push(Point {
                trace: &curve.name,
                cpus: *cpus,
                pairs_per_second: outcome.throughput() * 1e6,
                speed_up: curve.efficiency(point) * *cpus as f64,
                locks_per_1000: locks(outcome),
                waited_barn,
                waited_slabs,
                waited_arena,
                waited_lines: outcome.moved,
            });
        }
    }
    points
}

pub(super) fn json(curves: &[Curve]) -> Result<String, String> {
    let json = serde_json::to_string_pretty(&points(curves)).map_err(|error| error.to_string())?;
    Ok(json + "\n")
}

pub(super) fn csv(curves: &[Curve]) -> String {
    let mut text = String::from(
        "trace,cpus,pairs_per_second,speed_up,locks_per_1000,waited_barn,waited_slabs,waited_arena,waited_lines\n",
    );
    for point in points(curves) {
        let Point { trace, cpus, pairs_per_second, speed_up, locks_per_1000, .. } = point;
        let waited =
            [point.waited_barn, point.waited_slabs, point.waited_arena, point.waited_lines];
        let waited = waited.map(|part| format!("{part:.5}")).join(",");
        let _ = writeln!(
            text,
            "{trace},{cpus},{pairs_per_second:.0},{speed_up:.3},{locks_per_1000:.3},{waited}"
        );
    }
    text
}
