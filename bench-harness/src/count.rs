//! `count`: counts per 1000 operations how often each workload makes CPUs synchronise with each
//! other.
//!
//! Workloads run as under `compare`, each in a process of its own. That process is this executable
//! again. The tool needs the cargo feature `counters`. The counts do not depend on the speed of the
//! machine, and only slightly on its number of CPUs.

use std::process::{Command, ExitCode};

use clap::Parser;
use comfy_table::Table;

use crate::compare::runner::{self, Failure};
use crate::engine;
use crate::exit;
use crate::measurement::{Measurement, Sharing};
use crate::rows;
use crate::run::Scale;
use crate::workloads::{self, Kind, Workload};

/// Count acquisitions of shared locks, and writes to shared cache lines, per 1000 operations of
/// each workload.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Run only these workloads, comma separated [default: all that are timed].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = workloads::parse)]
    workloads: Vec<&'static Workload>,

    /// Do less.
    #[arg(long)]
    quick: bool,

    /// Print tables as Markdown.
    #[arg(long)]
    markdown: bool,

    /// Print the counts as lines of JSON.
    #[arg(long)]
    json: bool,
}

/// Smallest rate that the tables show.
const SHOWN: f64 = 0.005;

/// First argument of a process that runs one workload.
const ENGINE: &str = "engine";

/// Runs `count`: the body of its `main`.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(ENGINE) {
        return engine::run_one("hayloft", arguments, || None);
    }
    exit::code(count(&Args::parse()).map(|()| true))
}

fn count(args: &Args) -> Result<(), String> {
    let is_chosen = |workload: &&Workload| match args.workloads.as_slice() {
        [] => matches!(workload.kind, Kind::Allocation | Kind::Program),
        chosen => chosen.iter().any(|it| it.name == workload.name),
    };
    let scale = if args.quick { Scale::Quick } else { Scale::Full };
    let mut counted = Vec::new();
    for workload in workloads::ALL.iter().filter(is_chosen) {
        let measurement = run(workload, scale)?;
        if args.json {
            println!("{}", serde_json::to_string(&measurement).map_err(|error| error.to_string())?);
        }
        let sharing = measurement.sharing.ok_or("built without the feature `counters`")?;
        counted.push((workload.name, sharing));
    }
    if !args.json {
        println!(
            "Locks that CPUs share, acquired per 1000 operations (of these, somebody else had it):\n"
        );
        println!("{}\n", locks(&counted, args.markdown));
        println!("Cache lines that several CPUs write, written per 1000 operations:\n");
        println!("{}", writes(&counted, args.markdown));
    }
    Ok(())
}

fn run(workload: &Workload, scale: Scale) -> Result<Measurement, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    runner::try_measure(Command::new(this).arg(ENGINE), workload, scale)
        .map_err(|Failure { how, said }| format!("{}: {how}\n{said}", workload.name))
}

fn locks(counted: &[(&str, Sharing)], markdown: bool) -> Table {
    let cell = |sharing: &Sharing, index: usize| {
        let (_, acquired, contended) = &sharing.locks[index];
        match (rate(*acquired, sharing), rate(*contended, sharing)) {
            (acquired, _) if acquired < SHOWN => String::new(),
            (acquired, contended) if contended < SHOWN => format!("{acquired:.2}"),
            (acquired, contended) => format!("{acquired:.2} ({contended:.2})"),
        }
    };
    let names = |sharing: &Sharing| sharing.locks.iter().map(|(name, ..)| name.clone()).collect();
    let total = |sharing: &Sharing| sharing.locks.iter().map(|(_, acquired, _)| acquired).sum();
    table(counted, markdown, names, total, cell)
}

fn writes(counted: &[(&str, Sharing)], markdown: bool) -> Table {
    let cell = |sharing: &Sharing, index: usize| match rate(sharing.writes[index].1, sharing) {
        rate if rate < SHOWN => String::new(),
        rate => format!("{rate:.2}"),
    };
    let names = |sharing: &Sharing| sharing.writes.iter().map(|(name, _)| name.clone()).collect();
    let total = |sharing: &Sharing| sharing.writes.iter().map(|(_, writes)| writes).sum();
    table(counted, markdown, names, total, cell)
}

/// Returns a table with one row per workload. It has a column for each kind that any workload
/// counted, and one for the sum of all kinds.
fn table(
    counted: &[(&str, Sharing)],
    markdown: bool,
    names: impl Fn(&Sharing) -> Vec<String>,
    total: impl Fn(&Sharing) -> u64,
    cell: impl Fn(&Sharing, usize) -> String,
) -> Table {
    let kinds = counted.first().map_or(Vec::new(), |(_, sharing)| names(sharing));
    let is_used =
        |kind: &usize| counted.iter().any(|(_, sharing)| !cell(sharing, *kind).is_empty());
    let used: Vec<usize> = (0..kinds.len()).filter(is_used).collect();
    let header = ["workload", "all"].into_iter().map(str::to_owned);
    let header = header.chain(used.iter().map(|kind| kinds[*kind].clone()));
    let rows = counted.iter().map(|(name, sharing)| {
        let all = format!("{:.2}", rate(total(sharing), sharing));
        let row = [(*name).to_owned(), all].into_iter();
        row.chain(used.iter().map(|kind| cell(sharing, *kind))).collect::<Vec<_>>()
    });
    rows::table(markdown, header, rows)
}

/// Returns `count` per 1000 operations.
fn rate(count: u64, sharing: &Sharing) -> f64 {
    count as f64 * 1000.0 / sharing.operations.max(1) as f64
}
