//! The benchmark harness of Hayloft.
//!
//! `compare` measures allocators against each other. Every (allocator, workload) pair runs in a
//! process of its own, an *engine*. There is one small executable per allocator: it installs that
//! allocator as its `#[global_allocator]`, runs one workload, and prints one line of JSON.
//! `compare` builds the engines, interleaves their runs over several rounds, and reports the
//! results.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows, here and
//! in each module that declares others (the test `layers` checks the imports against the tables):
//!
//! | module | holds |
//! |---|---|
//! | `count` | how often workloads make CPUs synchronise with each other |
//! | [`compare`] [`simulate`] | measuring and reporting; the paths between CPUs on other machines |
//! | [`engine`] | the body of an engine, which prints a [`measurement::Measurement`] |
//! | [`workloads`] | the table of workloads, one file per family |
//! | [`run`] | timing and watching a workload |
//! | [`allocator`] [`measurement`] | the table of allocators; the line of JSON that engines print |
//! | [`statistics`] `rows` `exit` | medians, intervals; tables of text; the end of a program |
//! | `blocks` `prng` | raw blocks of memory; random numbers |

pub mod allocator;
pub mod compare;
#[cfg(feature = "counters")]
pub mod count;
pub mod engine;
pub mod measurement;
pub mod run;
pub mod simulate;
pub mod statistics;
pub mod workloads;

mod blocks;
mod exit;
mod prng;
mod rows;
