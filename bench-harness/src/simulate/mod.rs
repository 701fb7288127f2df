//! `simulate`: predicts the behaviour of the allocator's paths between CPUs, on machines that are
//! not available.
//!
//! `docs/scaling.md` describes the results, and what the model leaves out.
//!
//! The modules, each of which imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `report` | tables, CSV and JSON |
//! | [`calibrate`] `curve` | the costs on this machine; one trace on more and more CPUs |
//! | [`model`] | the paths of `hayloft-core`, as a simulation of discrete events |
//! | `args` `blocks` | the command line; the blocks of a trace during a simulation |
//! | `events` `lock` `store` | events in order; a lock; barns and slabs |
//! | [`outcome`] [`setup`] | results of a simulation; its parameters |
//! | [`real`] [`record`] | replay of traces on this machine; traces of workloads as they run |
//! | [`machine`] | virtual CPUs, their distances, and the costs of operations (`costs.toml`) |
//! | [`trace`] | the requests that each thread of a program makes to its allocator |

pub mod calibrate;
pub mod machine;
pub mod model;
pub mod outcome;
pub mod real;
pub mod record;
pub mod setup;
pub mod trace;

mod args;
mod blocks;
mod curve;
mod events;
mod lock;
mod report;
mod store;

use std::fs::File;
use std::process::ExitCode;

use clap::Parser;

use self::args::Args;
use self::curve::Curve;
use self::machine::Costs;
use self::model::Model;
use self::setup::Setup;
use self::trace::Trace;
use crate::exit;

/// Runs `simulate`: the body of its `main`.
pub fn main() -> ExitCode {
    exit::code(simulate(&Args::parse()))
}

/// Does what the arguments request. Returns `false` if a prediction was too far off.
fn simulate(args: &Args) -> Result<bool, String> {
    let mut costs = match &args.costs {
        None => Costs::recorded(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
            Costs::parse(&text)?
        }
    };
    if args.calibrate {
        costs = calibrate::calibrate(costs);
        print!("{}", toml::to_string(&costs).map_err(|error| error.to_string())?);
        if !args.validate {
            return Ok(true);
        }
    }
    if args.validate {
        return Ok(validate(args, costs));
    }
    let curves: Vec<Curve> = match &args.trace {
        Some(file) => {
            let mut file = File::open(file).map_err(|error| error.to_string())?;
            let trace = Trace::load(&mut file)?;
            let group = trace.threads.len();
            let make = |cpus: usize| trace.repeated(cpus / group);
            vec![Curve::new(args, costs, "trace", group, &make)]
        }
        None => {
            let rules = args.rules();
            rules
                .iter()
                .map(|rule| Curve::new(args, costs, rule.name, rule.group, &rule.make))
                .collect()
        }
    };
    if args.csv {
        print!("{}", report::csv(&curves));
    } else if args.json {
        print!("{}", report::json(&curves)?);
    } else {
        println!("{}", report::text(&curves, args.markdown));
    }
    Ok(true)
}

/// Largest accepted error of a prediction, relative to the measurement.
const TOLERANCE: f64 = 0.25;

/// Repeats a measurement until the transfer of a line takes as long after it as before, since the
/// cores may move. Returns the costs with that transfer time, and the measurement.
fn while_cores_stay<R>(costs: Costs, mut measure: impl FnMut() -> R) -> (Costs, R) {
    const TRIES: usize = 20;
    let mut before = calibrate::line(costs);
    for _ in 1..TRIES {
        let measured = measure();
        let after = calibrate::line(costs);
        if (after.line[0] / before.line[0] - 1.0).abs() < 0.1 {
            return (after, measured);
        }
        before = after;
    }
    (before, measure())
}

/// Simulates traces that this machine can replay, and replays them. Returns `false` if a prediction
/// is too far off.
fn validate(args: &Args, costs: Costs) -> bool {
    let mut rows = Vec::new();
    for rule in args.rules() {
        for cpus in [1, 2].into_iter().filter(|cpus: &usize| cpus.is_multiple_of(rule.group)) {
            let trace = (rule.make)(cpus);
            let (costs, (measured, nothing)) = match cpus {
                1 => (costs, real::measure(&trace, args.rounds)),
                _ => while_cores_stay(costs, || real::measure(&trace, args.rounds)),
            };
            // The program's own work is the time of a replay without an allocator.
            let operations = 2.0 * trace.pairs() / cpus as f64;
            let setup = Setup::new(args.here(), costs, nothing / operations);
            let outcome = Model::new(&trace, &setup).run();
            rows.push(report::Validated {
                name: rule.name,
                cpus,
                line: (cpus > 1).then_some(costs.line[0]),
                pairs: trace.pairs(),
                nothing,
                measured,
                predicted: outcome.nanoseconds,
            });
        }
    }
    println!("{}", report::validation(&rows, args.markdown));
    rows.iter().all(|row| row.error().abs() <= TOLERANCE)
}
