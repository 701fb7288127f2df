//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::allocator::{self, Allocator};
use crate::run::Scale;
use crate::workloads::{self, Kind, Workload};

/// Measure Hayloft against mimalloc 3, the system allocator and other peers.
///
/// Every pair of an allocator and a workload runs in a process of its own; rounds are interleaved.
/// Ratios are medians over rounds of the ratio within one round, so a machine that slows down for a
/// while spoils no comparison.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// Do less, for a first look in about a minute.
    #[arg(long)]
    pub quick: bool,

    /// Time each workload five times per process, however long that takes: for tables.
    #[arg(long, conflicts_with = "quick")]
    pub full: bool,

    /// Run only these workloads, comma separated.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = workloads::parse)]
    pub workloads: Vec<&'static Workload>,

    /// Measure only these allocators, comma separated. The cargo feature `peers` adds more.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = allocator::parse)]
    pub allocators: Vec<&'static Allocator>,

    /// How often every pair runs [default: 5, but only as often as fits into three minutes; 5 with
    /// --full, 4 with --quick, 1 if all are watched].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,

    /// Watch memory over time: run the workloads of kind `Curve`, which takes two minutes for each
    /// allocator, and draw each as an SVG in this directory.
    #[arg(long, value_name = "DIR")]
    pub curves: Option<PathBuf>,

    /// Write the report as one self-contained HTML page. With --curves the workloads that are
    /// watched run beside the others.
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    pub html: Option<PathBuf>,

    /// Save the run as JSON: every sample, the machine, and how each allocator was built.
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    pub save: Option<PathBuf>,

    /// Measure nothing, and report the contents of a file of --save.
    #[arg(long, value_name = "FILE", conflicts_with_all = MEASURING)]
    pub from: Option<PathBuf>,

    /// Compare with a run that --save wrote, and say of each difference whether it is noise.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Exit with 1 if Hayloft is slower than in --baseline, or needs more memory, in any workload
    /// and beyond noise.
    #[arg(long, requires = "baseline")]
    pub fail_on_slower: bool,

    /// Print the tables as Markdown.
    #[arg(long)]
    pub markdown: bool,

    /// Build engines in this cargo profile: `release`, or `plain` for cargo's own release defaults,
    /// without link-time optimisation [default: the profile of this executable].
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,

    /// List workloads and allocators, and stop.
    #[arg(long)]
    pub list: bool,
}

/// Arguments that configure a measurement.
const MEASURING: [&str; 7] =
    ["quick", "full", "workloads", "allocators", "rounds", "profile", "save"];

impl Args {
    /// Returns the workloads to run, in the order of the table. Without a choice by name, the
    /// watched workloads run if curves are requested. The others run if no curves are requested, or
    /// if a page is.
    pub fn workloads(&self) -> Vec<&'static Workload> {
        let chosen = |workload: &&Workload| {
            if self.workloads.is_empty() {
                match workload.kind {
                    Kind::Curve => self.curves.is_some(),
                    _ => self.curves.is_none() || self.html.is_some(),
                }
            } else {
                self.workloads.iter().any(|it| it.name == workload.name)
            }
        };
        workloads::ALL.iter().filter(chosen).collect()
    }

    /// Returns the allocators to measure, in the order of the table.
    pub fn allocators(&self) -> Vec<&'static Allocator> {
        let chosen = |allocator: &&Allocator| {
            if self.allocators.is_empty() {
                allocator.is_built()
            } else {
                self.allocators.contains(allocator)
            }
        };
        allocator::ALL.iter().filter(chosen).collect()
    }

    /// Returns the time budget: apart from the first, no round begins that would exceed it. Returns
    /// `None` where the arguments request a fixed amount of work.
    pub fn budget(&self) -> Option<Duration> {
        const DEFAULT: Duration = Duration::from_secs(180);
        let is_asked = self.full || self.quick || self.rounds.is_some() || self.curves.is_some();
        (!is_asked && !self.watches_only()).then_some(DEFAULT)
    }

    /// Returns the number of rounds of every pair, as far as the budget allows. Pairs of a watched
    /// workload run once if there are other workloads.
    pub fn rounds(&self) -> u32 {
        let default = match (self.watches_only(), self.quick) {
            (true, _) => 1,
            // The fewest rounds that give a verdict about a change.
            (false, true) => 4,
            (false, false) => 5,
        };
        self.rounds.unwrap_or(default)
    }

    /// Returns the number of rounds of every pair with `workload`.
    pub fn rounds_of(&self, workload: &Workload) -> u32 {
        let is_aside = workload.kind == Kind::Curve && !self.watches_only();
        if is_aside { 1 } else { self.rounds() }
    }

    /// Returns whether all workloads are watched. Each of them takes about a minute.
    fn watches_only(&self) -> bool {
        self.workloads().iter().all(|workload| workload.kind == Kind::Curve)
    }

    /// Returns the amount of work of each run.
    pub fn scale(&self) -> Scale {
        match (self.full, self.quick) {
            (true, _) => Scale::Full,
            (_, true) => Scale::Quick,
            _ => Scale::Short,
        }
    }
}

/// Parses the name of an output file, and checks as far as possible without writing that it can be
/// written: after the measurement an error would come too late.
fn output_file(name: &str) -> Result<PathBuf, String> {
    let file = PathBuf::from(name);
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    if directory.is_some_and(|directory| !directory.is_dir()) {
        return Err("there is no such directory".to_owned());
    }
    if file.is_dir() {
        return Err("that is a directory".to_owned());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once(&"compare").chain(arguments))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn default_runs_everything_except_curves() {
        let args = parse(&[]).unwrap();
        let long = workloads::ALL.iter().filter(|workload| workload.kind == Kind::Curve).count();
        assert_eq!(args.workloads().len(), workloads::ALL.len() - long);
        assert_eq!(args.allocators().len(), if cfg!(feature = "peers") { 7 } else { 3 });
        assert_eq!((args.rounds(), args.scale()), (5, Scale::Short));
        assert_eq!(args.budget(), Some(Duration::from_secs(180)));
    }

    #[test]
    fn full_runs_have_no_time_budget() {
        let args = parse(&["--full"]).unwrap();
        assert_eq!((args.rounds(), args.scale(), args.budget()), (5, Scale::Full, None));
        assert_eq!(parse(&["--rounds", "9"]).unwrap().budget(), None);
        assert_eq!(parse(&["--full", "--quick"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn quick_runs_fewer_rounds() {
        let args = parse(&["--quick"]).unwrap();
        assert_eq!((args.rounds(), args.scale()), (4, Scale::Quick));
        assert_eq!(parse(&["--quick", "--rounds", "7"]).unwrap().rounds(), 7);
    }

    #[test]
    fn curves_option_selects_curve_workloads() {
        let args = parse(&["--curves", "here"]).unwrap();
        assert!(args.workloads().iter().all(|workload| workload.kind == Kind::Curve));
        let curves = workloads::ALL.iter().filter(|workload| workload.kind == Kind::Curve);
        assert_eq!(args.workloads().len(), curves.count());
        assert_eq!((args.rounds(), args.scale()), (1, Scale::Short));
        let args = parse(&["--curves", "here", "--workloads", "sawtooth"]).unwrap();
        assert_eq!(args.workloads().len(), 1);
    }

    #[test]
    fn curve_workloads_run_once_beside_others() {
        let args = parse(&["--workloads", "json,sawtooth"]).unwrap();
        let rounds: Vec<u32> =
            args.workloads().iter().map(|workload| args.rounds_of(workload)).collect();
        assert_eq!(rounds, [5, 1]);
        let args = parse(&["--html", "page.html", "--curves", "here"]).unwrap();
        assert_eq!((args.workloads().len(), args.rounds()), (workloads::ALL.len(), 5));
        let args = parse(&["--workloads", "sawtooth", "--rounds", "3"]).unwrap();
        assert_eq!(args.rounds_of(args.workloads()[0]), 3);
    }

    #[test]
    fn saved_run_is_not_measured_again() {
        let error = parse(&["--from", "run.json", "--rounds", "3"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let args = parse(&["--from", "run.json", "--markdown", "--curves", "here"]).unwrap();
        assert!(args.from.is_some());
    }

    #[test]
    fn selections_keep_the_order_of_the_table() {
        let args = parse(&["--workloads", "json,pair-const", "--allocators", "system,hayloft"]);
        let args = args.unwrap();
        let names: Vec<&str> = args.workloads().iter().map(|workload| workload.name).collect();
        assert_eq!(names, ["pair-const", "json"]);
        let names: Vec<&str> = args.allocators().iter().map(|allocator| allocator.name).collect();
        assert_eq!(names, ["hayloft", "system"]);
    }

    #[test]
    fn unknown_names_are_rejected_with_the_valid_ones() {
        let error = parse(&["--workloads", "pair-const,nope"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("nope") && text.contains("churn-10k"), "{text}");

        let error = parse(&["--allocators", "tlsf"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("tlsf") && text.contains("hayloft"), "{text}");
    }

    #[test]
    #[cfg(not(feature = "peers"))]
    fn missing_peer_names_the_feature() {
        let text = parse(&["--allocators", "jemalloc"]).unwrap_err().to_string();
        assert!(text.contains("`peers`"), "{text}");
    }

    #[test]
    fn zero_rounds_are_rejected() {
        assert_eq!(parse(&["--rounds", "0"]).unwrap_err().exit_code(), 2);
    }
}
