//! The command line of `simulate`.

use std::path::PathBuf;

use clap::Parser;
use hayloft_core::tuning;

use super::machine::{Costs, Topology};
use super::setup::{Protocol, Setup};
use super::trace::{self, RULES, Rule};

/// Simulate the allocator's paths between CPUs on a machine that has more of them.
///
/// A virtual CPU runs one thread. CPUs that are near each other share a last-level cache, then a
/// socket.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
pub(super) struct Args {
    /// Only traces by these rules, comma separated: pair, churn, batch, phases, handoff, exchange.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = trace::rule)]
    rules: Vec<&'static Rule>,

    /// A recorded trace instead, done by as many groups of threads as there is room for.
    #[arg(long, value_name = "FILE", conflicts_with = "rules")]
    pub(super) trace: Option<PathBuf>,

    /// Numbers of CPUs to simulate, comma separated [default: 1,2,4 and so on to 512].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = at_least_one)]
    cpus: Vec<usize>,

    /// CPUs that share a last-level cache.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    per_cache: usize,

    /// CPUs of a socket, which is a node.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    per_socket: usize,

    /// CPUs that share barns and lists of slabs [default: those of a socket].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    per_store: Option<usize>,

    /// Nodes with state of their own; those beyond share with the first ones.
    #[arg(long, value_name = "N", default_value_t = tuning::NODES, value_parser = at_least_one)]
    nodes: usize,

    /// Make sheaves, batches and barns this many times as large.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    batch: usize,

    /// Arenas, each for the barns and slabs of some CPUs; there is one with `--protocol one-lock`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    arenas: usize,

    /// The allocator that serves the traces.
    #[arg(long, value_enum, default_value = "hayloft")]
    protocol: Protocol,

    /// Time that a thread spends between two operations, in nanoseconds.
    #[arg(long, value_name = "NS", default_value_t = 10.0)]
    work: f64,

    /// Other costs than those of `bench-harness/src/simulate/costs.toml`.
    #[arg(long, value_name = "FILE")]
    pub(super) costs: Option<PathBuf>,

    /// Measure the costs on this machine, and print them.
    #[arg(long)]
    pub(super) calibrate: bool,

    /// Compare predictions for 1 and 2 CPUs with measurements on this machine.
    #[arg(long)]
    pub(super) validate: bool,

    /// Measurements for each comparison; the median counts.
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = at_least_one)]
    pub(super) rounds: usize,

    /// Print tables as Markdown.
    #[arg(long)]
    pub(super) markdown: bool,

    /// Print all points as CSV.
    #[arg(long)]
    pub(super) csv: bool,

    /// Print all points as JSON.
    #[arg(long, conflicts_with = "csv")]
    pub(super) json: bool,
}

/// Most CPUs in a simulation.
const MOST: usize = 4096;

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "not a number from 1 on".to_owned())
}

impl Args {
    pub(super) fn rules(&self) -> Vec<&'static Rule> {
        if self.rules.is_empty() { RULES.iter().collect() } else { self.rules.clone() }
    }

    /// Returns the numbers of CPUs to simulate, in ascending order, for threads in groups of
    /// `group`.
    pub(super) fn counts(&self, group: usize) -> Vec<usize> {
        let mut counts = self.cpus.clone();
        if counts.is_empty() {
            let first = if group.is_power_of_two() { 1 } else { group };
            counts = (0..10).map(|power| first << power).filter(|count| *count <= 512).collect();
        }
        counts.retain(|count| count.is_multiple_of(group) && *count <= MOST);
        counts.sort_unstable();
        counts
    }

    pub(super) fn setup(&self, costs: Costs) -> Setup {
        let topology = Topology {
            per_cache: self.per_cache,
            per_socket: self.per_socket,
            per_store: self.per_store.unwrap_or(self.per_socket),
            stores: self.nodes,
        };
        let mut setup = Setup::new(topology, costs, self.work);
        setup.scale_sheaves(self.batch);
        setup.protocol = self.protocol;
        setup.arenas = match self.protocol {
            Protocol::Hayloft => self.arenas,
            Protocol::OneLock => 1,
        };
        setup
    }

    /// Returns the topology of two CPUs of the machine that this runs on.
    pub(super) fn here(&self) -> Topology {
        Topology { per_cache: 2, per_socket: 2, per_store: 2, stores: 1 }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn zero_nodes_are_rejected() {
        assert!(Args::try_parse_from(["simulate", "--nodes", "0"]).is_err());
    }
}
