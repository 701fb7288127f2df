//! A trace simulated on increasing numbers of CPUs.

use super::args::Args;
use super::machine::Costs;
use super::model::Model;
use super::outcome::Outcome;
use super::trace::Trace;

/// One trace on increasing numbers of CPUs.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(usize, Outcome)>,
}

impl Curve {
    pub(super) fn new(
        args: &Args,
        costs: Costs,
        name: &str,
        group: usize,
        make: &dyn Fn(usize) -> Trace,
    ) -> Self {
        let points = args.counts(group).into_iter().map(|cpus| {
            let trace = make(cpus);
            let setup = args.setup(costs);
            (cpus, Model::new(&trace, &setup).run())
        });
        Self { name: name.to_owned(), points: points.collect() }
    }

    /// Returns the throughput per CPU of a point, relative to that of the first point.
    pub(super) fn efficiency(&self, (cpus, outcome): &(usize, Outcome)) -> f64 {
        let Some((first, of_first)) = self.points.first() else { return 1.0 };
        outcome.throughput() / of_first.throughput() * *first as f64 / *cpus as f64
    }

    /// Returns the first number of CPUs at which the throughput per CPU is below four fifths of
    /// that of the first point.
    pub(super) fn knee(&self) -> Option<usize> {
        self.points.iter().find(|point| self.efficiency(point) < 0.8).map(|(cpus, _)| *cpus)
    }
}
