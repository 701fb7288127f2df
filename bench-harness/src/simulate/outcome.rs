//! The results of a simulation.

/// Counts of operations in the timed part, by all CPUs: the factors of the costs.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is counted for the cost of the same name")]
pub struct Counts {
    pub hit: u64,
    pub slow: u64,
    pub lock: u64,
    pub copy: u64,
    pub bit: u64,
    pub visit: u64,
    pub page: u64,
    pub make: u64,
}

/// The kinds of locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "told by their names")]
pub enum Kind {
    Barn,
    Slabs,
    Arena,
}

/// The result of a simulation.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Nanoseconds of the timed part, from its common start to the end of the last thread.
    pub nanoseconds: f64,
    /// Pairs of operations in the timed part.
    pub pairs: f64,
    /// Counts of operations.
    pub counts: Counts,
    /// Acquisitions by kind of lock.
    pub acquired: [u64; 3],
    /// Share of all CPUs' time that was spent waiting for locks of a kind.
    pub waited: [f64; 3],
    /// Share that was spent waiting for cache lines, without those of lock words.
    pub moved: f64,
}

impl Outcome {
    /// Returns millions of pairs per second, of all CPUs together.
    pub fn throughput(&self) -> f64 {
        self.pairs * 1000.0 / self.nanoseconds
    }
}
