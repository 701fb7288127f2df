//! Runs engines: every pair in a process of its own, interleaved over rounds.

use std::collections::HashSet;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use wait_timeout::ChildExt;

use super::args::Args;
use super::engines::Engine;
use crate::measurement::Measurement;
use crate::run::Scale;
use crate::workloads::{Kind, Workload};

/// Returns the time after which an engine counts as hung. Most last about a second; a watched
/// workload lasts about a minute.
fn patience(workload: &Workload) -> Duration {
    Duration::from_secs(if workload.kind == Kind::Curve { 180 } else { 60 })
}

/// Description of the failure of a hung engine.
const HUNG: &str = "hung";

/// The result of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Index of the round.
    pub round: u32,
    /// Name of the allocator.
    pub allocator: String,
    /// Name of the workload.
    pub workload: String,
    /// Measurement, or failure.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The process measured.
    Measured(Box<Measurement>),
    /// The process failed.
    Failed(Failure),
}

/// A process that did not measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Reason, in a few words.
    pub how: String,
    /// Output to standard error.
    pub said: String,
}

impl From<String> for Failure {
    fn from(how: String) -> Self {
        Self { how, said: String::new() }
    }
}

/// Runs all pairs that `args` choose, as far as the budget allows. A process that fails becomes a
/// failed sample.
pub fn run(args: &Args, engines: &[Engine]) -> Vec<Sample> {
    let workloads = args.workloads();
    let mut plan = Plan::new(args, engines);
    let bar = progress_bar(plan.runs() as u64);
    let mut samples = Vec::with_capacity(plan.runs());
    let mut hung = HashSet::new();
    for round in 0..args.rounds() {
        if !plan.has_time_for(round) {
            break;
        }
        for workload in workloads.iter().filter(|workload| round < args.rounds_of(workload)) {
            // Each round begins with another engine, so that none always runs right after the same
            // other one.
            let first = round as usize % engines.len();
            for engine in engines[first..].iter().chain(&engines[..first]) {
                let allocator = engine.allocator.name;
                if hung.contains(&(allocator, workload.name)) {
                    bar.inc(1);
                    continue;
                }
                bar.set_length(plan.runs() as u64);
                bar.set_prefix(HumanDuration(plan.left()).to_string());
                bar.set_message(format!(
                    "round {}: {} under {allocator}",
                    round + 1,
                    workload.name
                ));
                let start = Instant::now();
                let outcome = measure(engine, workload, args.scale());
                plan.took(round, start.elapsed());
                if let Outcome::Failed(Failure { how, said }) = &outcome {
                    // Unlike a crash, a hang would take long in each round.
                    if how == HUNG {
                        hung.insert((allocator, workload.name));
                    }
                    bar.suspend(|| eprintln!("{} under {allocator}: {how}\n{said}", workload.name));
                }
                samples.push(Sample {
                    round,
                    allocator: allocator.to_owned(),
                    workload: workload.name.to_owned(),
                    outcome,
                });
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    samples
}

/// The remaining runs and an estimate of their duration.
struct Plan {
    /// Number of runs in each round.
    of_round: Vec<usize>,
    budget: Option<Duration>,
    /// Duration of each run so far of the first round, in order. Only that round includes every
    /// pair. `done` and `spent` are the number and total duration of the runs in all rounds.
    first: Vec<Duration>,
    done: usize,
    spent: Duration,
}

impl Plan {
    fn new(args: &Args, engines: &[Engine]) -> Self {
        let workloads = args.workloads();
        let runs = |round| {
            let those = workloads.iter().filter(|workload| round < args.rounds_of(workload));
            those.count() * engines.len()
        };
        Self::of((0..args.rounds()).map(runs).collect(), args.budget())
    }

    fn of(of_round: Vec<usize>, budget: Option<Duration>) -> Self {
        Self { of_round, budget, first: Vec::new(), done: 0, spent: Duration::ZERO }
    }

    /// Returns the estimated duration of a round, from the known part of the first round.
    fn round(&self) -> Duration {
        let all = self.of_round.first().map_or(0, |runs| *runs as u32);
        let known: Duration = self.first.iter().sum();
        known * all / (self.first.len().max(1) as u32)
    }

    /// Returns the number of rounds that fit into the budget, at least one.
    fn rounds(&self) -> usize {
        let all = self.of_round.len();
        match (self.budget, self.round().as_nanos()) {
            (None, _) | (_, 0) => all,
            (Some(budget), round) => all.min((budget.as_nanos() / round) as usize).max(1),
        }
    }

    /// Returns whether `round` may begin.
    fn has_time_for(&self, round: u32) -> bool {
        let ends = self.spent + self.round();
        round == 0 || self.budget.is_none_or(|budget| ends <= budget)
    }

    /// Returns the number of runs in all rounds that fit, at least those done already.
    fn runs(&self) -> usize {
        self.of_round.iter().take(self.rounds()).sum::<usize>().max(self.done)
    }

    /// Returns the estimated duration of the remaining runs.
    fn left(&self) -> Duration {
        let mean = |runs: usize| {
            self.round() * runs as u32 / self.of_round.first().map_or(1, |runs| *runs as u32).max(1)
        };
        let left = mean(self.runs() - self.done);
        match self.budget {
            Some(budget) if self.first.is_empty() => budget,
            Some(budget) if self.rounds() > 1 => left.min(budget.saturating_sub(self.spent)),
            _ => left,
        }
    }

    fn took(&mut self, round: u32, time: Duration) {
        if round == 0 {
            self.first.push(time);
        }
        self.done += 1;
        self.spent += time;
    }
}

fn progress_bar(length: u64) -> ProgressBar {
    let style = "{bar:30.green} {pos:>4}/{len} {elapsed:>4}, {prefix} left  {wide_msg}";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    ProgressBar::new(length).with_style(style)
}

/// Runs one engine with one workload.
fn measure(engine: &Engine, workload: &Workload, scale: Scale) -> Outcome {
    let measured = |measurement| Outcome::Measured(Box::new(measurement));
    let measurement = try_measure(&mut Command::new(&engine.path), workload, scale);
    measurement.map_or_else(Outcome::Failed, measured)
}

/// Runs `command`, an engine, with one workload and returns its measurement.
pub(crate) fn try_measure(
    command: &mut Command,
    workload: &Workload,
    scale: Scale,
) -> Result<Measurement, Failure> {
    let mut child = command
        .args([workload.name, scale.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("does not start: {error}"))?;
    // Read while the engine runs: a curve is larger than the buffer of a pipe.
    let output = child.stdout.take();
    let output = thread::spawn(|| drain(output));
    let Some(status) = child.wait_timeout(patience(workload)).map_err(|error| error.to_string())?
    else {
        // Both calls fail only if the process has already ended, which is their purpose.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Failure { how: HUNG.to_owned(), said: drain(child.stderr.take()) });
    };
    if !status.success() {
        return Err(Failure { how: describe(status), said: drain(child.stderr.take()) });
    }
    let line = output.join().expect("reading does not panic");
    serde_json::from_str(&line).map_err(|error| format!("printed no measurement: {error}").into())
}

/// Returns everything that a process writes into a pipe until it ends.
fn drain(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // After an error, returns the part that could be read.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Describes how a failed process ended.
fn describe(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("failed with {status}");
    };
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTRAP => "SIGTRAP",
        _ => return format!("crashed by signal {signal}"),
    };
    format!("crashed by {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_start_while_the_budget_lasts() {
        const SECOND: Duration = Duration::from_secs(1);
        for (seconds, rounds) in [(1, 5), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (20, 1), (60, 1)]
        {
            let mut plan = Plan::of(vec![10; 5], Some(180 * SECOND));
            assert_eq!((plan.runs(), plan.left()), (50, 180 * SECOND));
            let mut done = 0;
            while done < 5 && plan.has_time_for(done) {
                for _ in 0..10 {
                    plan.took(done, seconds * SECOND);
                }
                done += 1;
                assert_eq!(plan.runs(), rounds as usize * 10);
                assert_eq!(plan.left(), (rounds - done) * 10 * seconds * SECOND);
            }
            assert_eq!(done, rounds, "{seconds}");
            assert!(done == 1 || plan.spent <= 180 * SECOND);
        }
        // A later round may be slower.
        let mut plan = Plan::of(vec![1; 5], Some(180 * SECOND));
        plan.took(0, 40 * SECOND);
        plan.took(1, 110 * SECOND);
        assert!(!plan.has_time_for(2));
        let plan = Plan { budget: None, ..plan };
        assert!(plan.has_time_for(2));
    }

    #[test]
    fn crash_names_its_signal() {
        assert_eq!(describe(ExitStatus::from_raw(libc::SIGSEGV)), "crashed by SIGSEGV");
        assert_eq!(describe(ExitStatus::from_raw(libc::SIGUSR1)), "crashed by signal 10");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "failed with exit status: 1");
    }
}
