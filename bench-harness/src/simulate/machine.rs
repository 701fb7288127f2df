//! The virtual machine: the distances between CPUs, and their costs.

use serde::{Deserialize, Serialize};

/// A time in picoseconds.
pub type Time = u64;

/// The parameters of the model, in nanoseconds. `costs.toml` explains each of them and its origin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "told in `costs.toml`, where they are to be read together")]
pub struct Costs {
    pub hit: f64,
    pub slow: f64,
    pub copy: f64,
    pub bit: f64,
    pub visit: f64,
    pub page: f64,
    pub make: f64,
    pub lock: f64,
    pub line: [f64; 3],
    pub stream: f64,
    pub spin: f64,
    pub sleep: f64,
    pub wake: f64,
    pub wake_up: f64,
}

impl Costs {
    /// Returns the costs of the file beside this one.
    pub fn recorded() -> Self {
        Self::parse(include_str!("costs.toml")).expect("the file is tested")
    }

    /// Parses a file of costs.
    ///
    /// # Errors
    ///
    /// Names a cost that is missing or unknown.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }
}

/// Converts nanoseconds to a [`Time`].
pub fn ns(nanoseconds: f64) -> Time {
    (nanoseconds * 1000.0) as Time
}

/// The distances between CPUs. CPUs with neighbouring numbers are near each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// CPUs that share a last-level cache.
    pub per_cache: usize,
    /// CPUs of a socket, which is a node.
    pub per_socket: usize,
    /// CPUs that share barns and partial slabs. The real allocator has one shared store of a class
    /// per node, for a limited number of nodes.
    pub per_store: usize,
    /// Most shared stores of a class. CPUs beyond share with the first ones.
    pub stores: usize,
}

impl Topology {
    /// Returns the index of a CPU's shared store.
    pub fn store(&self, cpu: usize) -> usize {
        (cpu / self.per_store) % self.stores
    }
}

/// The number of no CPU: none has the line yet.
const NOBODY: u16 = u16::MAX;

/// The costs of transferring a cache line between CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Distances {
    topology: Topology,
    line: [Time; 3],
    stream: f64,
}

impl Distances {
    pub(super) fn new(topology: Topology, costs: &Costs) -> Self {
        Self { topology, line: costs.line.map(ns), stream: costs.stream }
    }

    /// Returns the transfer time of a line from one CPU to another.
    pub(super) fn between(&self, from: usize, to: usize) -> Time {
        if from == to {
            0
        } else if from / self.topology.per_cache == to / self.topology.per_cache {
            self.line[0]
        } else if from / self.topology.per_socket == to / self.topology.per_socket {
            self.line[1]
        } else {
            self.line[2]
        }
    }

    /// Returns the transfer time of a line that is one of many in a row.
    pub(super) fn streamed(&self, line: Time) -> Time {
        (line as f64 * self.stream) as Time
    }
}

/// A CPU, and its distances to others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) cpu: usize,
    pub(super) distances: &'a Distances,
}

/// A cache line that is only accessed under a lock, and always written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line(u16);

impl Line {
    pub(super) const NEW: Self = Self(NOBODY);

    /// Brings the line to a CPU for writing, and returns the transfer time.
    pub(super) fn write(&mut self, here: Here<'_>) -> Time {
        let Here { cpu, distances } = here;
        let from = std::mem::replace(&mut self.0, cpu as u16);
        if from == NOBODY { 0 } else { distances.between(from.into(), cpu) }
    }
}

/// A cache line that is also read without a lock. `readers` has one word for each 64 CPUs.
#[derive(Clone, Debug)]
pub(super) struct SharedLine {
    writer: Line,
    readers: Vec<u64>,
}

impl SharedLine {
    pub(super) fn new(cpus: usize) -> Self {
        Self { writer: Line::NEW, readers: vec![0; cpus.div_ceil(64)] }
    }

    /// Makes the line the property of a CPU, where the caller accounts for the transfer.
    pub(super) fn hand_over(&mut self, to: usize) {
        self.readers.fill(0);
        self.readers[to / 64] |= 1 << (to % 64);
        self.writer = Line(to as u16);
    }

    /// Brings a copy of the line to a CPU, and returns the transfer time.
    pub(super) fn read(&mut self, here: Here<'_>) -> Time {
        let Here { cpu, distances } = here;
        let bit = 1 << (cpu % 64);
        let has_copy = self.readers[cpu / 64] & bit != 0;
        self.readers[cpu / 64] |= bit;
        match self.writer.0 {
            NOBODY => 0,
            _ if has_copy => 0,
            writer => distances.between(writer.into(), cpu),
        }
    }

    /// Brings the line to a CPU for writing, and returns the transfer time. Invalidating copies on
    /// other CPUs takes as long as the transfer from the last writer, and at least as long as one
    /// from a neighbour.
    pub(super) fn write(&mut self, here: Here<'_>) -> Time {
        let cpu = here.cpu;
        let others = self.readers.iter().enumerate().any(|(word, readers)| {
            let own = if word == cpu / 64 { 1 << (cpu % 64) } else { 0 };
            readers & !own != 0
        });
        self.readers.fill(0);
        self.readers[cpu / 64] |= 1 << (cpu % 64);
        let way = self.writer.write(here);
        if others { way.max(here.distances.line[0]) } else { way }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_costs_are_complete() {
        let costs = Costs::recorded();
        assert!(costs.line[0] <= costs.line[1] && costs.line[1] <= costs.line[2]);
        assert!(Costs::parse("hit = 1.0").is_err());
    }

    #[test]
    fn cost_of_a_line_grows_with_its_distance() {
        let topology = Topology { per_cache: 2, per_socket: 4, per_store: 4, stores: 2 };
        let costs = Costs { line: [1.0, 10.0, 100.0], ..Costs::recorded() };
        let distances = Distances::new(topology, &costs);
        let here = |cpu| Here { cpu, distances: &distances };
        let mut line = Line::NEW;
        let ways = [0, 0, 1, 3, 4].map(|cpu| line.write(here(cpu)));
        assert_eq!(ways, [0, 0, ns(1.0), ns(10.0), ns(100.0)]);

        let mut shared = SharedLine::new(8);
        assert_eq!(shared.write(here(0)), 0);
        assert_eq!([shared.read(here(3)), shared.read(here(3))], [ns(10.0), 0]);
        // The write invalidates a copy, and then the line is the writer's alone.
        assert_eq!([shared.write(here(0)), shared.write(here(0))], [ns(1.0), 0]);
    }
}
