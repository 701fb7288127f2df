//! `compare`: builds the engines, runs them interleaved over rounds, and reports.
//!
//! The modules, each of which imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | [`report`] | the report, as text or as a page |
//! | [`curves`] | a picture of memory over time for each watched workload |
//! | [`changes`] `charts` | the comparison with a saved run; charts as SVG |
//! | [`summary`] | the numbers of the tables, made of samples |
//! | [`record`] | everything that a run measured: the content of a saved file |
//! | [`runner`] | running the engines |
//! | [`engines`] | building the engines |
//! | [`args`] [`machine`] | the command line; the machine that measured |

pub mod args;
pub mod changes;
pub mod curves;
pub mod engines;
pub mod machine;
pub mod record;
pub mod report;
pub mod runner;
pub mod summary;

mod charts;
#[cfg(test)]
mod synthetic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use self::args::Args;
use self::changes::Changes;
use self::record::Record;
use self::summary::Summary;
use crate::allocator::{self, OURS};
use crate::{exit, workloads};

/// Runs `compare`: the body of its `main`. Exits with 2 for wrong arguments or a file that holds no
/// run, and with 1 if building, running or saving failed.
pub fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        print!("{}", listing());
        return ExitCode::SUCCESS;
    }
    // Saved runs are loaded first: an error should not come after the measurement, which takes
    // long.
    match Saved::load(&args) {
        Ok(saved) => exit::code(compare(&args, saved)),
        Err(error) => {
            exit::complain(&error);
            ExitCode::from(2)
        }
    }
}

/// Runs that were saved earlier, as far as arguments name them.
struct Saved {
    /// Run to report instead of measuring.
    run: Option<Record>,
    /// Run to compare with.
    then: Option<Record>,
}

impl Saved {
    fn load(args: &Args) -> Result<Self, String> {
        let load = |file: &Option<PathBuf>| file.as_deref().map(Record::load).transpose();
        Ok(Self { run: load(&args.from)?, then: load(&args.baseline)? })
    }
}

/// Measures, unless a saved run is reported, and prints the report. Returns `false` if an engine
/// failed.
///
/// # Errors
///
/// Describes a build or a file that failed. With `--fail-on-slower`, also names the workloads that
/// got worse.
fn compare(args: &Args, saved: Saved) -> Result<bool, String> {
    let record = match saved.run {
        Some(record) => record,
        None => measure(args)?,
    };
    let summary = Summary::new(&record);
    let changes = saved.then.map(|then| Changes::new(&record, &summary, &then));
    print!("{}", report::text(&record, &summary, changes.as_ref(), args.markdown));
    if let Some(file) = &args.save {
        record.save(file)?;
    }
    if let Some(file) = &args.html {
        report::save_page(&record, &summary, changes.as_ref(), file)?;
    }
    if let Some(directory) = &args.curves {
        curves::save(&record, directory)?;
    }
    let losses = changes.map_or(Vec::new(), |changes| changes.losses());
    if args.fail_on_slower && !losses.is_empty() {
        return Err(format!("{OURS} got worse: {}", losses.join(", ")));
    }
    Ok(record.is_complete())
}

fn measure(args: &Args) -> Result<Record, String> {
    let engines = engines::prepare(args)?;
    let start = Instant::now();
    let samples = runner::run(args, &engines.all);
    Ok(Record::new(args, &engines, samples, start.elapsed()))
}

/// Returns the names of all workloads and allocators.
fn listing() -> String {
    let mut text = String::from("Workloads:\n");
    for workload in workloads::ALL {
        text += &format!("  {:16} {:?}: {}\n", workload.name, workload.kind, workload.about);
    }
    text += "Allocators:\n";
    for allocator in &allocator::ALL {
        let note = if allocator.is_built() { "" } else { "(needs the cargo feature `peers`)" };
        text += format!("  {:16} {note}", allocator.name).trim_end();
        text += "\n";
    }
    text
}
