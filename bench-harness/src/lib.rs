//! The benchmark harness of Hayloft.
//!
//! `compare` measures allocators against each other. Every (allocator, workload) pair runs in a
//! process of its own, an *engine*. There is one small executable per allocator: it installs that
//! allocator as its `#[global_allocator]`, runs one workload, and prints one line of JSON.
//! `compare` builds the engines, interleaves their runs over several rounds, and reports the
//! results.
//!
//! | module | contents |
//! |---|---|
//! | [`allocator`] | the table of allocators that can be measured |
//! | [`workloads`] | the table of workloads, one file per family |
//! | [`engine`] | the engine: times one workload and prints a [`measurement::Measurement`] |
//! | `count` | counts how often workloads make CPUs synchronise with each other |
//! | [`measurement`] | the line of JSON that an engine prints for `compare` |
//! | [`simulate`] | a simulation of the paths between CPUs, for machines that are not available |
//! | [`compare`] | arguments, building, running, statistics, tables, the page |

pub mod allocator;
pub mod compare;
#[cfg(feature = "counters")]
pub mod count;
pub mod engine;
pub mod measurement;
pub mod simulate;
pub mod workloads;

mod blocks;
mod prng;
mod rows;

use std::process::ExitCode;

/// Converts the outcome of a `main` to its exit code, which is 1 for an error and for `Ok(false)`.
/// Prints the error.
fn exit(outcome: Result<bool, String>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error to standard error.
fn complain(error: &str) {
    eprintln!("{} {error}", console::style("error:").for_stderr().red().bold());
}
