//! The benchmark harness of Hayloft.
//!
//! `compare` measures allocators against each other. Every (allocator, workload) pair runs in a process of its own, an
//! *engine*: one small executable per allocator, which installs that allocator as its `#[global_allocator]`, runs one
//! workload, and prints one line of JSON. `compare` builds the engines, runs them interleaved over rounds, and reports.
//!
//! | module | what it holds |
//! |---|---|
//! | [`allocator`] | the table of allocators that can be measured |
//! | [`workloads`] | the table of workloads, one file per family |
//! | [`engine`] | what an engine does: time one workload and print a [`measurement::Measurement`] |
//! | `count` | how often workloads make CPUs agree on something |
//! | [`measurement`] | the line of JSON that an engine hands to `compare` |
//! | [`simulate`] | the tuning between CPUs on machines that are not there |
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

/// What a `main` exits with: 1 if not all is well, or there was an error, which is told.
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

/// Tells an error.
fn complain(error: &str) {
    eprintln!("{} {error}", console::style("error:").for_stderr().red().bold());
}
