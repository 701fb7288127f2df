//! A comparison of two runs: separates real differences from those that rounds show anyway.

use super::machine::Machine;
use super::record::{Record, Subject};
use super::summary::{Aspect, Cell, MEANS, Mean, Row, Summary};
use crate::allocator::OURS;
use crate::statistics::{Mood, Shift, geometric_mean, shift};

/// The differences between a run and an earlier one.
#[derive(Debug)]
pub struct Changes {
    /// Date of the earlier run.
    pub then: String,
    /// Allocators that both runs measured: the columns.
    pub allocators: Vec<&'static str>,
    /// Values compared: for time and then for memory, the means and then the workloads.
    pub lines: Vec<Line>,
    /// Reasons to doubt the comparison.
    pub warnings: Vec<String>,
}

/// One mean, or one workload.
#[derive(Debug)]
pub struct Line {
    /// Name of the mean or workload.
    pub name: &'static str,
    /// Aspect compared: time or memory.
    pub aspect: Aspect,
    /// Whether the line is a mean.
    pub is_mean: bool,
    /// The change for each allocator, if both runs have values for it.
    pub shifts: Vec<Option<Shift>>,
}

/// The judgement of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The difference is no larger than those between rounds, or within three percent.
    Noise,
    /// The later run takes less time or memory.
    Better,
    /// The later run takes more.
    Worse,
    /// There are too few rounds for a judgement.
    TooFew,
}

impl Verdict {
    /// Judges a difference.
    pub fn of(shift: &Shift) -> Self {
        match (shift.interval, Mood::of(shift.ratio)) {
            (None, _) => Self::TooFew,
            (Some((_, high)), Mood::Better) if high < 1.0 => Self::Better,
            (Some((low, _)), Mood::Worse) if low > 1.0 => Self::Worse,
            _ => Self::Noise,
        }
    }

    /// Returns the judgement in one to three words.
    pub fn word(self, aspect: Aspect) -> &'static str {
        match (self, aspect) {
            (Self::Noise, _) => "noise",
            (Self::Better, Aspect::Time) => "faster",
            (Self::Worse, Aspect::Time) => "slower",
            (Self::Better, Aspect::Memory) => "less",
            (Self::Worse, Aspect::Memory) => "more",
            (Self::TooFew, _) => "too few rounds",
        }
    }
}

impl Changes {
    /// Compares `record`, of which `summary` is the summary, with the earlier run `then`.
    pub fn new(record: &Record, summary: &Summary, then: &Record) -> Self {
        let earlier = Summary::new(then);
        let both: Vec<Column> = (summary.allocators.iter().enumerate())
            .filter_map(|(now, &name)| {
                let then = earlier.allocators.iter().position(|&other| other == name)?;
                Some(Column { name, now, then })
            })
            .collect();
        let rows: Vec<(&Row, &Row)> = (summary.rows.iter())
            .filter_map(|row| {
                let same = |other: &&Row| other.workload.name == row.workload.name;
                Some((row, earlier.rows.iter().find(same)?))
            })
            .collect();

        let mut lines = Vec::new();
        for aspect in [Aspect::Time, Aspect::Memory] {
            for mean in MEANS.iter().filter(|mean| mean.aspect == aspect) {
                lines.push(Line {
                    name: mean.title,
                    aspect,
                    is_mean: true,
                    shifts: both.iter().map(|column| column.of_mean(mean, &rows)).collect(),
                });
            }
            let of_aspect = rows.iter().filter(|(row, _)| aspect.includes(row.workload));
            lines.extend(of_aspect.map(|rows| Line {
                name: rows.0.workload.name,
                aspect,
                is_mean: false,
                shifts: both.iter().map(|column| column.of_workload(aspect, rows)).collect(),
            }));
        }
        lines.retain(|line| line.shifts.iter().any(Option::is_some));

        let allocators: Vec<&str> = both.iter().map(|column| column.name).collect();
        let mut changes =
            Self { then: then.date.to_string(), allocators, lines, warnings: Vec::new() };
        changes.warnings = changes.doubts(record, then);
        changes
    }

    /// Returns the workloads and means in which this project's allocator is slower or needs more
    /// memory.
    pub fn losses(&self) -> Vec<String> {
        let Some(ours) = self.allocators.iter().position(|&name| name == OURS) else {
            return Vec::new();
        };
        let lost = |line: &&Line| {
            line.shifts[ours].is_some_and(|shift| Verdict::of(&shift) == Verdict::Worse)
        };
        let name = |line: &Line| format!("{} ({})", line.name, Verdict::Worse.word(line.aspect));
        self.lines.iter().filter(lost).map(name).collect()
    }

    /// Returns the unintended differences between the runs, and reasons to distrust the verdicts.
    fn doubts(&self, now: &Record, then: &Record) -> Vec<String> {
        let mut doubts = differences(now, then);
        if self.lines.is_empty() {
            doubts.push("the two runs have nothing in common".to_owned());
        }
        let verdicts = |index: usize| {
            let shifts = self.lines.iter().filter_map(move |line| line.shifts[index]);
            shifts.map(|shift| Verdict::of(&shift))
        };
        if (0..self.allocators.len()).flat_map(verdicts).any(|it| it == Verdict::TooFew) {
            doubts.push(
                "some have too few rounds for a verdict; measure both runs with --rounds 4 or more"
                    .to_owned(),
            );
        }
        // A change of an allocator that is identical in both runs comes from the machine, or from
        // chance.
        let same: Vec<usize> = (0..self.allocators.len())
            .filter(|&index| {
                let name = self.allocators[index];
                name != OURS && is_same(subject(now, name), subject(then, name))
            })
            .collect();
        let names: Vec<&str> = same.iter().map(|&index| self.allocators[index]).collect();
        let of_same: Vec<Verdict> = same.into_iter().flat_map(verdicts).collect();
        let changed =
            of_same.iter().filter(|it| matches!(it, Verdict::Better | Verdict::Worse)).count();
        if changed > 0 {
            doubts.push(format!(
                "{changed} of {} verdicts about {}, built alike in both runs, are not noise: expect as large a part of the \
                 others to be chance, or the machine",
                of_same.len(),
                names.join(", ")
            ));
        }
        doubts
    }
}

/// An allocator of both runs, and its index in each.
struct Column {
    name: &'static str,
    now: usize,
    then: usize,
}

impl Column {
    fn cells<'a>(&self, rows: &(&'a Row, &'a Row)) -> (&'a Cell, &'a Cell) {
        (&rows.0.cells[self.now], &rows.1.cells[self.then])
    }

    fn of_workload(&self, aspect: Aspect, rows: &(&Row, &Row)) -> Option<Shift> {
        let (now, then) = self.cells(rows);
        let values = |cell| -> Option<Vec<f64>> {
            Some(aspect.of(cell)?.rounds.iter().copied().flatten().collect())
        };
        shift(&values(now)?, &values(then)?)
    }

    /// Compares the means of each round, over the workloads that no round lacks. A slowdown of a
    /// whole round then widens the interval.
    fn of_mean(&self, mean: &Mean, rows: &[(&Row, &Row)]) -> Option<Shift> {
        let rounds =
            |cell| -> Option<Vec<f64>> { mean.aspect.of(cell)?.rounds.iter().copied().collect() };
        let (now, then): (Vec<_>, Vec<_>) = (rows.iter())
            .filter(|(row, _)| (mean.includes)(row.workload))
            .map(|rows| self.cells(rows))
            .filter_map(|(now, then)| Some((rounds(now)?, rounds(then)?)))
            .unzip();
        let means = |workloads: &[Vec<f64>]| -> Vec<f64> {
            let rounds = workloads.first().map_or(0, Vec::len);
            let of_round = |round| geometric_mean(workloads.iter().map(|values| values[round]));
            (0..rounds).filter_map(of_round).collect()
        };
        shift(&means(&now), &means(&then))
    }
}

fn subject<'a>(record: &'a Record, name: &str) -> Option<&'a Subject> {
    record.allocators.iter().find(|subject| subject.name == name)
}

fn is_same(now: Option<&Subject>, then: Option<&Subject>) -> bool {
    let (Some(now), Some(then)) = (now, then) else { return false };
    now.version == then.version && now.build.is_some() && now.build == then.build
}

/// Returns the differences between the environments of the two runs.
fn differences(now: &Record, then: &Record) -> Vec<String> {
    let all = |record: &Record| {
        let Machine { cpu, cpus, governor, kernel, memory_mib, transparent_hugepages, rustc } =
            record.machine.clone();
        [
            ("processor", cpu),
            ("number of CPUs", cpus.to_string()),
            ("governor", governor),
            ("kernel", kernel),
            ("memory in MiB", memory_mib.to_string()),
            ("use of huge pages", transparent_hugepages),
            ("compiler", rustc),
            ("cargo profile", record.profile.clone()),
            ("scale", record.scale.name().to_owned()),
        ]
    };
    let pairs = all(then).into_iter().zip(all(now));
    pairs
        .filter(|((_, then), (_, now))| then != now)
        .map(|((what, then), (_, now))| format!("the {what} was {then}, and is {now}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::synthetic;
    use crate::run::Scale;

    const WORKLOADS: [&str; 3] = ["pair-const", "churn-10k", "json"];

    /// Returns a factor by which rounds differ, by up to four percent.
    fn noise(round: u32) -> f64 {
        1.0 + 0.02 * f64::from(round * 2 % 5) - 0.04
    }

    fn run(rounds: u32, hayloft: f64) -> Record {
        let slower = |allocator: &str, round| {
            noise(round) * if allocator == "hayloft" { hayloft } else { 1.0 }
        };
        synthetic::record(&WORKLOADS, rounds, slower)
    }

    fn compare(now: &Record, then: &Record) -> Changes {
        Changes::new(now, &Summary::new(now), then)
    }

    /// Returns the verdicts about one allocator's time, including the means.
    fn verdicts(changes: &Changes, index: usize) -> Vec<Verdict> {
        let timed = changes.lines.iter().filter(|line| line.aspect == Aspect::Time);
        timed.map(|line| Verdict::of(line.shifts[index].as_ref().unwrap())).collect()
    }

    #[test]
    fn equal_runs_differ_by_noise() {
        let changes = compare(&run(5, 1.0), &run(5, 1.0));
        assert_eq!(changes.allocators, ["hayloft", "mimalloc", "system"]);
        // Three workloads, and two means over them.
        for index in 0..3 {
            assert_eq!(verdicts(&changes, index), [Verdict::Noise; 5]);
        }
        assert!(changes.losses().is_empty() && changes.warnings.is_empty(), "{changes:?}");
    }

    #[test]
    fn changed_and_unchanged_allocators_are_distinguished() {
        for (factor, expected) in [(0.7, Verdict::Better), (1.4, Verdict::Worse)] {
            let changes = compare(&run(5, factor), &run(5, 1.0));
            assert_eq!(verdicts(&changes, 0), [expected; 5]);
            assert_eq!(verdicts(&changes, 1), [Verdict::Noise; 5]);
            let shift = changes.lines[0].shifts[0].unwrap();
            let (low, high) = shift.interval.unwrap();
            assert!((shift.ratio / factor - 1.0).abs() < 0.02, "{shift:?}");
            assert!(low < factor && factor < high, "{shift:?}");
        }
    }

    #[test]
    fn losses_name_the_workload() {
        let losses = compare(&run(5, 1.4), &run(5, 1.0)).losses();
        assert!(losses.contains(&"json (slower)".to_owned()), "{losses:?}");
        // A slower peer is no loss.
        let mut now = run(5, 1.0);
        for sample in now.samples.iter_mut().filter(|sample| sample.allocator == "mimalloc") {
            if let crate::compare::runner::Outcome::Measured(found) = &mut sample.outcome {
                found.nanoseconds = vec![1000.0];
                found.peak_rss_kib *= 2;
            }
        }
        let changes = compare(&now, &run(5, 1.0));
        assert!(changes.losses().is_empty());
        let warning = changes.warnings.iter().find(|text| text.contains("built alike")).unwrap();
        assert!(warning.contains("mimalloc"), "{warning}");
        let more = changes.lines.iter().filter(|line| line.aspect == Aspect::Memory);
        let more: Vec<Verdict> =
            more.map(|line| Verdict::of(line.shifts[1].as_ref().unwrap())).collect();
        assert!(more.iter().all(|verdict| *verdict == Verdict::Worse), "{more:?}");
    }

    #[test]
    fn small_shifts_are_noise_even_if_significant() {
        let sure = Shift { ratio: 1.02, interval: Some((1.01, 1.03)) };
        assert_eq!(Verdict::of(&sure), Verdict::Noise);
        let unsure = Shift { ratio: 1.5, interval: Some((0.9, 2.0)) };
        assert_eq!(Verdict::of(&unsure), Verdict::Noise);
    }

    #[test]
    fn too_few_rounds_yield_no_verdict() {
        let changes = compare(&run(3, 1.4), &run(3, 1.0));
        assert_eq!(verdicts(&changes, 0), [Verdict::TooFew; 5]);
        assert!(changes.warnings.iter().any(|text| text.contains("too few")));
        assert!(changes.losses().is_empty());
    }

    #[test]
    fn differing_conditions_cause_warnings() {
        let mut then = run(5, 1.0);
        then.machine.kernel = "0.0.1".to_owned();
        then.profile = "plain".to_owned();
        then.scale = Scale::Full;
        let warnings = compare(&run(5, 1.0), &then).warnings;
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("kernel was 0.0.1"), "{warnings:?}");
        assert!(warnings[1].contains("profile was plain, and is release"), "{warnings:?}");
        assert!(warnings[2].contains("scale was full, and is tiny"), "{warnings:?}");
    }

    #[test]
    fn workloads_of_one_run_only_are_left_out() {
        let now = synthetic::record(&["pair-const", "json"], 5, |_, _| 1.0);
        let mut then = synthetic::record(&["json", "trees"], 5, |_, _| 1.0);
        then.allocators.retain(|subject| subject.name != "system");
        let changes = compare(&now, &then);
        assert_eq!(changes.allocators, ["hayloft", "mimalloc"]);
        let workloads: Vec<&str> =
            changes.lines.iter().filter(|line| !line.is_mean).map(|line| line.name).collect();
        assert_eq!(workloads, ["json", "json"]);

        let changes = compare(&now, &synthetic::record(&["trees"], 5, |_, _| 1.0));
        assert!(changes.lines.is_empty());
        assert_eq!(changes.warnings, ["the two runs have nothing in common"]);
    }
}
