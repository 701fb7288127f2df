//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::allocator::{self, Allocator};
use crate::engine::Scale;
use crate::workloads::{self, Kind, Workload};

/// Measure Hayloft against mimalloc 3, the system allocator and other peers.
///
/// Every pair of an allocator and a workload runs in a process of its own; rounds are interleaved. Ratios are medians over
/// rounds of the ratio within one round, so that a machine that slows down for a while spoils no comparison.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// Do less, for a first look in under 45 seconds.
    #[arg(long)]
    pub quick: bool,

    /// Run only these workloads, comma separated.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = workloads::parse)]
    pub workloads: Vec<&'static Workload>,

    /// Measure only these allocators, comma separated. The cargo feature `peers` adds more.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = allocator::parse)]
    pub allocators: Vec<&'static Allocator>,

    /// How often every pair runs [default: 5, or 3 with --quick, or 1 with --curves].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,

    /// Watch how memory goes over time: run the workloads of kind `Curve`, which takes two minutes for each allocator,
    /// and draw each as an SVG in this directory.
    #[arg(long, value_name = "DIR")]
    pub curves: Option<PathBuf>,

    /// Save every sample, the machine, and how each allocator was built.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Print the tables as Markdown.
    #[arg(long)]
    pub markdown: bool,

    /// Build engines in this cargo profile: `release`, or `plain` for cargo's own release defaults, without
    /// link-time optimisation [default: the profile of this executable].
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,

    /// List workloads and allocators, and stop.
    #[arg(long)]
    pub list: bool,
}

impl Args {
    /// The workloads to run, in the order of the table. Unless they are named, those that are watched run if curves are
    /// wanted, and else all others.
    pub fn workloads(&self) -> Vec<&'static Workload> {
        let chosen = |workload: &&Workload| {
            if self.workloads.is_empty() {
                (workload.kind == Kind::Curve) == self.curves.is_some()
            } else {
                self.workloads.iter().any(|it| it.name == workload.name)
            }
        };
        workloads::ALL.iter().filter(chosen).collect()
    }

    /// The allocators to measure, in the order of the table.
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

    /// How often every pair runs.
    pub fn rounds(&self) -> u32 {
        let default = match (&self.curves, self.quick) {
            (Some(_), _) => 1,
            (None, true) => 3,
            (None, false) => 5,
        };
        self.rounds.unwrap_or(default)
    }

    /// How much each run does.
    pub fn scale(&self) -> Scale {
        if self.quick { Scale::Quick } else { Scale::Full }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once(&"compare").chain(arguments))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn by_default_everything_runs_but_what_takes_long() {
        let args = parse(&[]).unwrap();
        let long = workloads::ALL.iter().filter(|workload| workload.kind == Kind::Curve).count();
        assert_eq!(args.workloads().len(), workloads::ALL.len() - long);
        assert_eq!(args.allocators().len(), if cfg!(feature = "peers") { 7 } else { 3 });
        assert_eq!((args.rounds(), args.scale()), (5, Scale::Full));
    }

    #[test]
    fn quick_does_less() {
        let args = parse(&["--quick"]).unwrap();
        assert_eq!((args.rounds(), args.scale()), (3, Scale::Quick));
        assert_eq!(parse(&["--quick", "--rounds", "7"]).unwrap().rounds(), 7);
    }

    #[test]
    fn curves_are_drawn_of_what_is_watched() {
        let args = parse(&["--curves", "here"]).unwrap();
        assert!(args.workloads().iter().all(|workload| workload.kind == Kind::Curve));
        assert_eq!((args.workloads().len(), args.rounds(), args.scale()), (5, 1, Scale::Full));
        let args = parse(&["--curves", "here", "--workloads", "sawtooth"]).unwrap();
        assert_eq!(args.workloads().len(), 1);
    }

    #[test]
    fn choices_keep_the_order_of_the_table() {
        let args = parse(&["--workloads", "json,pair-const", "--allocators", "system,hayloft"]);
        let args = args.unwrap();
        let names: Vec<&str> = args.workloads().iter().map(|workload| workload.name).collect();
        assert_eq!(names, ["pair-const", "json"]);
        let names: Vec<&str> = args.allocators().iter().map(|allocator| allocator.name).collect();
        assert_eq!(names, ["hayloft", "system"]);
    }

    #[test]
    fn unknown_names_are_refused_with_the_valid_ones() {
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
    fn a_peer_that_is_not_built_names_the_feature() {
        let text = parse(&["--allocators", "jemalloc"]).unwrap_err().to_string();
        assert!(text.contains("`peers`"), "{text}");
    }

    #[test]
    fn no_rounds_are_refused() {
        assert_eq!(parse(&["--rounds", "0"]).unwrap_err().exit_code(), 2);
    }
}
