//! Everything that was measured and all that is needed to judge it: what `--json` saves.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::engines::{CrateBuild, Engine};
use super::runner::{Outcome, Sample};
use super::statistics::median;
use super::{Args, Machine};
use crate::measurement::Measurement;

/// The workload that shows whether an allocator was compiled without optimisation.
const YARDSTICK: &str = "pair-hidden";
/// How many times slower than the median allocator one has to be on it to be suspected.
const SUSPICIOUS: f64 = 5.0;

/// One run of `compare`.
#[derive(Debug, Serialize)]
pub struct Record {
    /// Where.
    pub machine: Machine,
    /// How often every pair ran.
    pub rounds: u32,
    /// How much each process did.
    pub scale: &'static str,
    /// How long it all took, building not included.
    pub seconds: f64,
    /// What was measured.
    pub allocators: Vec<Subject>,
    /// Every process.
    pub samples: Vec<Sample>,
}

/// An allocator that was measured.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Its name.
    pub name: &'static str,
    /// The version it reports of itself, if it does.
    pub version: Option<String>,
    /// How it was built, one entry per crate, unless that is not known. Empty if it comes with the system.
    pub build: Option<Vec<CrateBuild>>,
    /// Why its numbers should not be believed, if something says so.
    pub warning: Option<String>,
}

impl Record {
    /// Puts together what was measured.
    pub fn new(args: &Args, engines: &[Engine], samples: Vec<Sample>, took: Duration) -> Self {
        let yardstick = |name: &str| median(timings(&samples, name, YARDSTICK));
        let usual = median(engines.iter().filter_map(|engine| yardstick(engine.allocator.name)));
        let subject = |engine: &Engine| {
            let name = engine.allocator.name;
            let slow = match (yardstick(name), usual) {
                (Some(time), Some(usual)) if time > SUSPICIOUS * usual => Some(time),
                _ => None,
            };
            Subject {
                name,
                version: measurements(&samples, name).find_map(|found| found.version.clone()),
                build: engine.build.clone(),
                warning: warning(engine.build.as_deref().unwrap_or_default(), slow),
            }
        };
        Self {
            machine: Machine::detect(),
            rounds: args.rounds(),
            scale: args.scale().name(),
            seconds: took.as_secs_f64(),
            allocators: engines.iter().map(subject).collect(),
            samples,
        }
    }

    /// Whether every process measured.
    pub fn is_complete(&self) -> bool {
        self.samples.iter().all(|sample| matches!(sample.outcome, Outcome::Measured(_)))
    }

    /// Writes it as JSON.
    pub fn save(&self, file: &Path) -> Result<(), String> {
        let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let output = File::create(file).map_err(|error| explain(&error))?;
        serde_json::to_writer_pretty(BufWriter::new(output), self).map_err(|error| explain(&error))
    }
}

/// What one allocator measured in all its processes.
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

/// All times per operation of one pair.
fn timings(samples: &[Sample], allocator: &str, workload: &str) -> Vec<f64> {
    measurements(samples, allocator)
        .filter(|measurement| measurement.workload == workload)
        .flat_map(|measurement| measurement.nanoseconds.iter().copied())
        .collect()
}

/// Why numbers should not be believed: the build says so, or a hot pair takes suspiciously long.
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
    fn an_optimised_build_of_usual_speed_is_believed() {
        assert_eq!(warning(&[build("3", "-O3 -DNDEBUG")], None), None);
    }

    #[test]
    fn an_unoptimised_build_is_not() {
        assert!(warning(&[build("0", "-O3")], None).is_some());
        assert!(warning(&[build("3", "-O0")], None).is_some());
        assert!(warning(&[build("3", "-O3")], Some(136.0)).unwrap().contains("136 ns"));
    }
}
