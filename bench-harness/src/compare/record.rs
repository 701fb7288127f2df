//! Everything that a run measured, and everything needed to judge it. `--save` writes it, and
//! `--from` and `--baseline` read it.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

use super::args::Args;
use super::engines::{CrateBuild, Engine, Engines};
use super::machine::Machine;
use super::runner::{Outcome, Sample};
use crate::allocator;
use crate::measurement::Measurement;
use crate::run::Scale;
use crate::statistics::median;

/// Workload whose time reveals an allocator compiled without optimisation.
const YARDSTICK: &str = "pair-hidden";
/// Ratio to the median allocator's time on [`YARDSTICK`] above which an allocator is suspected.
const SUSPICIOUS: f64 = 5.0;

/// Version of the file format. Increased by each change that makes old files unreadable or alters
/// their meaning.
pub(super) const FORMAT: u32 = 1;

/// One run of `compare`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Always [`FORMAT`].
    pub format: u32,
    /// Time of the end of the run.
    pub date: Timestamp,
    /// Command line.
    pub command: String,
    /// Machine that measured.
    pub machine: Machine,
    /// Number of rounds that ran.
    pub rounds: u32,
    /// Amount of work of each process.
    pub scale: Scale,
    /// Cargo profile of the engines.
    pub profile: String,
    /// Duration of the run in seconds, without building.
    pub seconds: f64,
    /// Allocators that were measured.
    pub allocators: Vec<Subject>,
    /// Samples of all processes.
    pub samples: Vec<Sample>,
}

/// An allocator that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// Name.
    pub name: String,
    /// Version that the allocator reports about itself, if it reports one.
    pub version: Option<String>,
    /// How the allocator was built, with one entry per crate, if known. Empty if it comes with the
    /// system.
    pub build: Option<Vec<CrateBuild>>,
    /// Reason to distrust its numbers, if there is one.
    pub warning: Option<String>,
}

impl Record {
    /// Combines the samples with the facts about machine and builds.
    pub fn new(args: &Args, engines: &Engines, samples: Vec<Sample>, took: Duration) -> Self {
        let yardstick = |name: &str| median(timings(&samples, name, YARDSTICK));
        let usual =
            median(engines.all.iter().filter_map(|engine| yardstick(engine.allocator.name)));
        let subject = |engine: &Engine| {
            let name = engine.allocator.name;
            let slow = match (yardstick(name), usual) {
                (Some(time), Some(usual)) if time > SUSPICIOUS * usual => Some(time),
                _ => None,
            };
            Subject {
                name: name.to_owned(),
                version: measurements(&samples, name).find_map(|found| found.version.clone()),
                build: engine.build.clone(),
                warning: warning(engine.build.as_deref().unwrap_or_default(), slow),
            }
        };
        Self {
            format: FORMAT,
            date: now(),
            command: command(std::env::args()),
            machine: Machine::detect(),
            rounds: samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0),
            scale: args.scale(),
            profile: engines.profile.clone(),
            seconds: took.as_secs_f64(),
            allocators: engines.all.iter().map(subject).collect(),
            samples,
        }
    }

    /// Returns whether every process measured.
    pub fn is_complete(&self) -> bool {
        self.samples.iter().all(|sample| matches!(sample.outcome, Outcome::Measured(_)))
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// Describes the error in one line that begins with the name of the file.
    pub fn load(file: &Path) -> Result<Self, String> {
        let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = fs::read_to_string(file).map_err(|error| explain(&error))?;
        Self::parse(&text).map_err(|error| explain(&error))
    }

    fn parse(text: &str) -> Result<Self, String> {
        // Reads only the format first: a file in another format may lack anything else.
        let not_saved = |error| format!("not a run that --save wrote: {error}");
        let Format { format } = serde_json::from_str(text).map_err(not_saved)?;
        if format != FORMAT {
            return Err(format!(
                "saved in format {format}, but this reads {FORMAT}: measure again"
            ));
        }
        let record: Self = serde_json::from_str(text).map_err(not_saved)?;
        if record.samples.iter().any(|sample| sample.round >= record.rounds) {
            return Err(format!("a sample is of none of its {} rounds", record.rounds));
        }
        let is_known = |name: &str| allocator::ALL.iter().any(|found| found.name == name);
        if !record.allocators.iter().any(|subject| is_known(&subject.name)) {
            return Err("no allocator in it is known here".to_owned());
        }
        Ok(record)
    }

    /// Writes the record as JSON.
    pub fn save(&self, file: &Path) -> Result<(), String> {
        let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let output = File::create(file).map_err(|error| explain(&error))?;
        serde_json::to_writer_pretty(BufWriter::new(output), self).map_err(|error| explain(&error))
    }
}

/// The field that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Returns the time, in whole seconds.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now)
}

/// Returns a command line as typed, without the directory of the executable.
fn command(mut arguments: impl Iterator<Item = String>) -> String {
    let executable = arguments.next().unwrap_or_default();
    let name = Path::new(&executable).file_name().unwrap_or_default().to_string_lossy();
    std::iter::once(name.into_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Returns the measurements of one allocator in all its processes.
fn measurements<'a>(
    samples: &'a [Sample],
    allocator: &str,
) -> impl Iterator<Item = &'a Measurement> {
    samples.iter().filter(move |sample| sample.allocator == allocator).filter_map(|sample| {
        match &sample.outcome {
            Outcome::Measured(measurement) => Some(&**measurement),
            Outcome::Failed(_) => None,
        }
    })
}

/// Returns all times per operation of one pair.
fn timings(samples: &[Sample], allocator: &str, workload: &str) -> Vec<f64> {
    measurements(samples, allocator)
        .filter(|measurement| measurement.workload == workload)
        .flat_map(|measurement| measurement.nanoseconds.iter().copied())
        .collect()
}

/// Returns the reason to distrust the numbers, if there is one: an unoptimised build, or a hot pair
/// that takes suspiciously long.
fn warning(build: &[CrateBuild], slow: Option<f64>) -> Option<String> {
    if let Some(found) = build.iter().find(|found| found.is_unoptimised()) {
        return Some(format!("{} was built without optimisation", found.name));
    }
    let time = slow?;
    Some(format!("a hot pair takes {time:.0} ns: was it built without optimisation?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::synthetic;

    fn build(opt_level: &str, native_flags: &str) -> CrateBuild {
        CrateBuild {
            name: "some-sys".to_owned(),
            version: "1.0.0".to_owned(),
            features: Vec::new(),
            opt_level: opt_level.to_owned(),
            debug_assertions: false,
            native_flags: Some(native_flags.to_owned()),
        }
    }

    #[test]
    fn saved_record_can_be_read() {
        let record = synthetic::record(&["pair-const", "latency-churn", "sawtooth"], 2, |_, _| 0.1);
        let text = serde_json::to_string(&record).unwrap();
        let again = Record::parse(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }

    #[test]
    fn invalid_records_are_rejected_in_one_line() {
        let record = synthetic::record(&["pair-const"], 2, |_, _| 1.0);
        let refusal = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::to_value(&record).unwrap();
            change(&mut value);
            let error = Record::parse(&value.to_string()).unwrap_err();
            assert!(!error.contains('\n'), "{error}");
            error
        };
        assert!(refusal(&|run| run["format"] = 99.into()).contains("format 99"));
        assert!(refusal(&|run| *run = serde_json::json!({})).contains("`format`"));
        assert!(refusal(&|run| run["samples"] = 1.into()).contains("--save"));
        assert!(refusal(&|run| run["rounds"] = 1.into()).contains("1 rounds"));
        assert!(refusal(&|run| run["allocators"] = serde_json::json!([])).contains("no allocator"));
        assert!(Record::parse("no JSON").unwrap_err().contains("--save"));
        assert!(Record::load(Path::new("not/there")).unwrap_err().starts_with("not/there: "));
    }

    #[test]
    fn recorded_command_line_has_no_directory() {
        let arguments = ["/some/where/compare", "--quick"].map(str::to_owned);
        assert_eq!(command(arguments.into_iter()), "compare --quick");
    }

    #[test]
    fn optimised_build_causes_no_warning() {
        assert_eq!(warning(&[build("3", "-O3 -DNDEBUG")], None), None);
    }

    #[test]
    fn unoptimised_build_causes_a_warning() {
        assert!(warning(&[build("0", "-O3")], None).is_some());
        assert!(warning(&[build("3", "-O0")], None).is_some());
        assert!(warning(&[build("3", "-O3")], Some(136.0)).unwrap().contains("136 ns"));
    }
}
