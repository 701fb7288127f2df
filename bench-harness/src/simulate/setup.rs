//! The parameters of a simulation.

use hayloft_core::size_class::{CLASSES, Class};
use hayloft_core::tuning::{self, Numbers};

use super::machine::{Costs, Topology};

/// The allocator that serves a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Protocol {
    /// Sheaves, barns, slabs, pages.
    Hayloft,
    /// A free list for each class, all under one lock: for comparison.
    OneLock,
}

/// The parameters of a simulation besides the trace.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Distances between CPUs.
    pub topology: Topology,
    /// Costs of operations.
    pub costs: Costs,
    /// Time that the program spends between two operations, in nanoseconds.
    pub work: f64,
    /// Tuning constants of each class.
    pub numbers: Vec<Numbers>,
    /// Allocator that serves the trace.
    pub protocol: Protocol,
    /// Number of arenas, one of which a shared store uses. One by default; `hayloft-core` has one
    /// per node.
    pub arenas: usize,
}

impl Setup {
    /// Creates a setup with the tuning constants of `hayloft-core`.
    pub fn new(topology: Topology, costs: Costs, work: f64) -> Self {
        let class = |index| Class::from_index(index).expect("a class");
        let numbers = (0..CLASSES).map(|index| tuning::of_class(class(index))).collect();
        Self { topology, costs, work, numbers, protocol: Protocol::Hayloft, arenas: 1 }
    }

    /// Makes all sheaves, batches and barns `factor` times as large.
    pub fn scale_sheaves(&mut self, factor: usize) {
        for numbers in &mut self.numbers {
            numbers.sheaf *= factor;
            numbers.batch *= factor;
            numbers.barn *= factor;
        }
    }
}
