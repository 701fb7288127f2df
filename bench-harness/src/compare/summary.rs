//! Turns samples into the numbers of the tables: a median, a range and a ratio for every pair.

use super::record::Record;
use super::runner::{Outcome, Sample};
use crate::allocator::{self, BASELINE, OURS};
use crate::measurement::{Curve, Latency, Measurement, Point};
use crate::statistics::{geometric_mean, median, paired_ratios, range};
use crate::workloads::{self, Kind, Resident, Workload};

/// The numbers of all pairs.
#[derive(Debug)]
pub struct Summary {
    /// Names of the allocators: the columns.
    pub allocators: Vec<&'static str>,
    /// Index of the allocator that the others are compared with.
    pub baseline: usize,
    /// Workloads: the rows.
    pub rows: Vec<Row>,
}

/// One workload under all allocators.
#[derive(Debug)]
pub struct Row {
    /// Workload.
    pub workload: &'static Workload,
    /// One cell per allocator.
    pub cells: Vec<Cell>,
}

/// One workload under one allocator.
#[derive(Debug)]
pub struct Cell {
    /// Nanoseconds per operation.
    pub time: Option<Quantity>,
    /// Resident memory in MiB.
    pub resident: Option<Quantity>,
    /// Distribution of the duration of single operations, in nanoseconds.
    pub latency: Option<Percentiles>,
    /// Memory over time.
    pub curve: Option<CurveNumbers>,
    /// Description of a failed process, if there is one.
    pub failure: Option<String>,
}

/// The quantity that is compared across workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// Nanoseconds per operation.
    Time,
    /// Resident memory.
    Memory,
}

impl Aspect {
    /// Returns the quantity of a cell for this aspect.
    pub fn of(self, cell: &Cell) -> Option<&Quantity> {
        match self {
            Self::Time => cell.time.as_ref(),
            Self::Memory => cell.resident.as_ref(),
        }
    }

    /// Returns whether a workload represents this aspect. For time, it is timed to show speed; for
    /// memory, a single number describes its use.
    pub fn includes(self, workload: &Workload) -> bool {
        match self {
            Self::Time => matches!(workload.kind, Kind::Allocation | Kind::Huge | Kind::Program),
            Self::Memory => workload.kind != Kind::Curve,
        }
    }
}

/// A geometric mean over some workloads.
#[derive(Debug)]
pub struct Mean {
    /// Title in the tables.
    pub title: &'static str,
    /// Quantity averaged.
    pub aspect: Aspect,
    /// Selects the workloads.
    pub includes: fn(&Workload) -> bool,
}

/// All means, in the order of the table. Means of peak memory cover the workloads that report a
/// peak.
pub static MEANS: [Mean; 5] = [
    Mean {
        title: "time, allocation",
        aspect: Aspect::Time,
        includes: |workload| workload.kind == Kind::Allocation,
    },
    Mean {
        title: "time, programs",
        aspect: Aspect::Time,
        includes: |workload| workload.kind == Kind::Program,
    },
    Mean {
        title: "time, huge",
        aspect: Aspect::Time,
        includes: |workload| workload.kind == Kind::Huge,
    },
    Mean {
        title: "peak memory",
        aspect: Aspect::Memory,
        includes: |workload| has_peak(workload) && workload.kind != Kind::Huge,
    },
    Mean { title: "peak memory, huge too", aspect: Aspect::Memory, includes: has_peak },
];

fn has_peak(workload: &Workload) -> bool {
    workload.resident == Resident::Peak && workload.kind != Kind::Curve
}

/// Distribution of the duration of single operations. Each number is the median over rounds of that
/// percentile alone: a preemption can decide the maximum of one process, but not the median of the
/// maxima.
#[derive(Clone, Debug)]
pub struct Percentiles {
    /// Median.
    pub p50: Quantity,
    /// 90th percentile.
    pub p90: Quantity,
    /// 99th percentile.
    pub p99: Quantity,
    /// 99.9th percentile.
    pub p999: Quantity,
    /// Maximum.
    pub max: Quantity,
    /// Cost of reading the clock.
    pub clock: Quantity,
}

/// Numbers that describe a curve. Sizes are in MiB; values per live byte are resident bytes per
/// live byte.
#[derive(Clone, Debug)]
pub struct CurveNumbers {
    /// Resident memory before the workload.
    pub before: Quantity,
    /// Resident memory two seconds after the free that should return memory, if the workload has
    /// one.
    pub after_free: Option<Quantity>,
    /// Difference between `after_free` and `before`.
    pub left: Option<Quantity>,
    /// Resident memory at the end.
    pub end: Quantity,
    /// Per live byte, two seconds after the free.
    pub per_live_after_free: Option<Quantity>,
    /// Per live byte, at the end.
    pub per_live_at_end: Option<Quantity>,
    /// Per live byte, over the whole time.
    pub per_live: Option<Quantity>,
}

/// A quantity measured in every round.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// Median over rounds.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Median over rounds of the ratio to the baseline in the same round.
    pub ratio: Option<f64>,
    /// Smallest and largest of these ratios.
    pub spread: Option<(f64, f64)>,
    /// Value of each round, if it has one.
    pub rounds: Vec<Option<f64>>,
}

impl Summary {
    /// Summarises the samples of `record`. Leaves out allocators and workloads that this build does
    /// not know; it must know at least one allocator.
    pub fn new(record: &Record) -> Self {
        let is_subject =
            |name: &&str| record.allocators.iter().any(|subject| subject.name == *name);
        let allocators: Vec<&str> =
            allocator::ALL.iter().map(|allocator| allocator.name).filter(is_subject).collect();
        let was_run = |workload: &&Workload| {
            record.samples.iter().any(|sample| sample.workload == workload.name)
        };
        let baseline = allocators.iter().position(|&name| name == BASELINE).unwrap_or(0);
        let row = |workload: &'static Workload| {
            let rounds: Vec<Rounds<'_>> = allocators
                .iter()
                .map(|allocator| Rounds::find(record, allocator, workload.name))
                .collect();
            let cells = rounds.iter().map(|own| own.cell(&rounds[baseline], workload)).collect();
            Row { workload, cells }
        };
        Self {
            rows: workloads::ALL.iter().filter(was_run).map(row).collect(),
            allocators,
            baseline,
        }
    }

    /// Returns the index of this project's allocator, if there is another one besides the baseline
    /// to compare it with.
    pub fn ours(&self) -> Option<usize> {
        let ours = self.allocators.iter().position(|&name| name == OURS);
        ours.filter(|_| self.allocators.len() > 2)
    }

    /// Returns the name of the allocator that the others are compared with.
    pub fn baseline_name(&self) -> &'static str {
        self.allocators[self.baseline]
    }

    /// Compares one allocator with the best of the others on one workload. Returns the ratio and
    /// the index of the other.
    pub fn best_rival(&self, row: &Row, ours: usize, aspect: Aspect) -> Option<(f64, usize)> {
        // Ratios to the common baseline are paired by round, so their quotient is steadier than
        // that of the medians.
        let value = |index: usize| {
            aspect.of(&row.cells[index]).map(|quantity| quantity.ratio.unwrap_or(quantity.median))
        };
        let rivals = (0..self.allocators.len()).filter(|&index| index != ours);
        let (best, index) = rivals
            .filter_map(|index| Some((value(index)?, index)))
            .min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        Some((value(ours)? / best, index))
    }

    /// Returns the rows whose workloads are of one kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.workload.kind == kind)
    }

    /// Returns the rows whose workloads represent an aspect.
    pub fn of_aspect(&self, aspect: Aspect) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| aspect.includes(row.workload))
    }

    /// Returns a geometric mean of one allocator's ratios.
    pub fn mean(&self, mean: &Mean, allocator: usize) -> Option<f64> {
        let rows = self.rows.iter().filter(|row| (mean.includes)(row.workload));
        geometric_mean(rows.filter_map(|row| mean.aspect.of(&row.cells[allocator])?.ratio))
    }
}

/// Measurements of one pair, by round. `None` where a process failed.
struct Rounds<'a> {
    measured: Vec<Option<&'a Measurement>>,
    failure: Option<&'a str>,
}

impl<'a> Rounds<'a> {
    fn find(record: &'a Record, allocator: &str, workload: &str) -> Self {
        let mut rounds = Self { measured: vec![None; record.rounds as usize], failure: None };
        let is_ours =
            |sample: &&Sample| sample.allocator == allocator && sample.workload == workload;
        for sample in record.samples.iter().filter(is_ours) {
            match &sample.outcome {
                Outcome::Measured(measurement) => {
                    rounds.measured[sample.round as usize] = Some(measurement);
                }
                Outcome::Failed(failure) => rounds.failure = Some(&failure.how),
            }
        }
        rounds
    }

    fn cell(&self, baseline: &Self, workload: &Workload) -> Cell {
        let time = |measured: &Measurement| median(measured.nanoseconds.iter().copied());
        let resident = |measured: &Measurement| {
            let kib = match workload.resident {
                Resident::Peak => measured.peak_rss_kib,
                Resident::Final => measured.final_rss_kib,
            };
            Some(kib as f64 / 1024.0)
        };
        let all_times =
            self.measured.iter().flatten().flat_map(|measured| measured.nanoseconds.iter());
        // Spans the times of all repetitions, not only the median of each round.
        let times = range(all_times.copied());
        Cell {
            time: self.quantity(baseline, time).map(|quantity| {
                let (min, max) = times.unwrap_or((quantity.min, quantity.max));
                Quantity { min, max, ..quantity }
            }),
            resident: self.quantity(baseline, resident),
            latency: self.latency(baseline),
            curve: self.curve(baseline),
            failure: self.failure.map(str::to_owned),
        }
    }

    fn quantity(
        &self,
        baseline: &Self,
        value: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<Quantity> {
        let values = |rounds: &Self| -> Vec<Option<f64>> {
            rounds.measured.iter().map(|measured| value((*measured)?)).collect()
        };
        let own = values(self);
        let (min, max) = range(own.iter().copied().flatten())?;
        let ratios = paired_ratios(&own, &values(baseline));
        Some(Quantity {
            median: median(own.iter().copied().flatten())?,
            min,
            max,
            ratio: median(ratios.iter().copied()),
            spread: range(ratios),
            rounds: own,
        })
    }

    fn curve(&self, baseline: &Self) -> Option<CurveNumbers> {
        let number = |value: &dyn Fn(&Curve) -> Option<f64>| {
            self.quantity(baseline, |measured| value(measured.curve.as_ref()?))
        };
        let mib = |value: &dyn Fn(&Curve) -> Option<Point>| {
            number(&|curve| Some(value(curve)?.resident_kib as f64 / 1024.0))
        };
        let left = |curve: &Curve| {
            let more =
                curve.after_free()?.resident_kib as f64 - curve.before()?.resident_kib as f64;
            Some(more / 1024.0)
        };
        Some(CurveNumbers {
            before: mib(&Curve::before)?,
            after_free: mib(&Curve::after_free),
            left: number(&left),
            end: mib(&Curve::end)?,
            per_live_after_free: number(&|curve| curve.after_free()?.resident_per_live()),
            per_live_at_end: number(&|curve| curve.end()?.resident_per_live()),
            per_live: number(&Curve::resident_per_live),
        })
    }

    fn latency(&self, baseline: &Self) -> Option<Percentiles> {
        let quantity = |value: fn(&Latency) -> u64| {
            // A duration below one tick of the clock counts as one nanosecond, so that ratios are
            // defined.
            self.quantity(baseline, |measured| Some(value(&measured.latency?).max(1) as f64))
        };
        Some(Percentiles {
            p50: quantity(|latency| latency.p50)?,
            p90: quantity(|latency| latency.p90)?,
            p99: quantity(|latency| latency.p99)?,
            p999: quantity(|latency| latency.p999)?,
            max: quantity(|latency| latency.max)?,
            clock: quantity(|latency| latency.clock)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::synthetic;

    /// Returns a summary in which Hayloft needs three times as much as mimalloc, and the system's
    /// allocator twice as much. The last round is far worse for all.
    fn summary(names: &[&str]) -> Summary {
        const ROUNDS: u32 = 3;
        let worse = |round| if round + 1 == ROUNDS { 100.0 } else { 1.0 };
        Summary::new(&synthetic::record(names, ROUNDS, |_, round| worse(round)))
    }

    #[test]
    fn curves_are_summarised_by_numbers() {
        let summary = summary(&["survivors-5"]);
        let numbers = |index: usize| summary.rows[0].cells[index].curve.as_ref().unwrap();
        let theirs = numbers(summary.baseline);
        assert_eq!((theirs.before.median, theirs.end.median), (1.0, 60.0));
        assert_eq!(theirs.after_free.as_ref().unwrap().median, 20.0);
        assert_eq!(theirs.left.as_ref().unwrap().median, 19.0);
        assert_eq!(theirs.per_live_after_free.as_ref().unwrap().median, 0.8);
        assert_eq!(theirs.per_live_at_end.as_ref().unwrap().median, 1.2);
        assert_eq!(theirs.per_live.as_ref().unwrap().median, 1.15);
        let ratio = numbers(0).per_live.as_ref().unwrap().ratio.unwrap();
        assert!((ratio - 3.0).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn one_bad_round_does_not_decide_the_maximum() {
        let summary = summary(&["latency-churn"]);
        let latency = summary.rows[0].cells[0].latency.as_ref().unwrap();
        assert_eq!((latency.p999.median, latency.max.median), (90.0, 3000.0));
        assert_eq!((latency.p50.ratio, latency.max.ratio), (Some(1.0), Some(3.0)));
    }

    #[test]
    fn best_rival_is_found() {
        let summary = summary(&["json"]);
        let ours = summary.ours().unwrap();
        let (ratio, rival) = summary.best_rival(&summary.rows[0], ours, Aspect::Time).unwrap();
        assert_eq!((ratio, summary.allocators[rival]), (3.0, "mimalloc"));
    }

    #[test]
    fn mean_of_memory_excludes_huge_and_curve_workloads() {
        let mean = |workload: &str, title: &str| {
            let mean = MEANS.iter().find(|mean| mean.title == title).unwrap();
            summary(&[workload]).mean(mean, 0)
        };
        assert_eq!(mean("vec-1g", "peak memory"), None);
        assert!(mean("vec-1g", "peak memory, huge too").is_some());
        assert_eq!(mean("vec-1g", "time, allocation"), None);
        assert_eq!(mean("sawtooth", "peak memory, huge too"), None);
        assert_eq!(mean("give-back", "peak memory, huge too"), None);
    }
}
