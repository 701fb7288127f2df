//! `stress`: many threads, random layouts, every byte checked.
//!
//! Each worker thread allocates, reallocates and frees blocks of random size and alignment. Every
//! block is filled with a pattern of its own ([`pattern`]), which is checked in full whenever the
//! block is reallocated or freed, so two blocks that overlap, a copy that lost bytes or memory
//! handed out twice shows as a mismatch. Blocks pass between threads ([`exchange`]), and the threads
//! themselves come and go: a worker lives for one *generation*, leaves its blocks to the others and
//! is replaced by a fresh thread ([`crew`]).
//!
//! On request much else goes on at the same time: signal handlers that allocate and queue irq work
//! ([`signals`]), CPUs that come and go ([`hotplug`]), children ([`forks`]), object caches that are made
//! and destroyed ([`caches`]). A [`watchdog`] ends a run in which something is stuck, and says in which
//! state the allocator is.
//!
//! The first mismatch is printed with all that is needed to find it again, and ends the process with
//! exit code 1. A request refused with null is counted and is no fault, as long as a refused `realloc`
//! left the block as it was; but the program's own tables are on the same heap, and it gives up when
//! they find no memory.
//!
//! # Replay
//!
//! What a worker does depends on the seed, its thread number and its generation alone: same seed,
//! same `--threads`, `--max-size` and `--live-mb`, same sequence of operations, sizes, alignments
//! and choices in every thread. Blocks that come in from other threads are checked and freed on the
//! spot with choices drawn from the block, never from the worker, so that timing cannot leak into
//! the sequence. What goes on beside the workers draws from generators of its own, so it leaves their
//! sequences alone. How threads interleave, hence which addresses they see, is up to the machine. With
//! `--operations` the length of the run is fixed too, and the digest printed at the end must come
//! out the same each time.

mod block;
mod caches;
mod companion;
mod crew;
mod draw;
mod exchange;
mod failure;
mod forks;
mod hotplug;
mod irq;
mod object;
mod options;
mod pattern;
mod published;
mod pulse;
mod relay;
mod signals;
mod totals;
mod visit;
mod watchdog;
mod worker;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use clap::Parser as _;

#[global_allocator]
static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;

/// The setting that says how irq work runs. It is read before `main`.
const IRQ: &str = "HAYLOFT_IRQ";

/// Starts this program again, with irq work run in that way; returns where that fails.
fn start_again(irq: &str) -> ExitCode {
    let program = env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let error = Command::new(program).args(env::args_os().skip(1)).env(IRQ, irq).exec();
    eprintln!("stress: cannot be started again with {IRQ}={irq}: {error}");
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    let plan = options::Options::parse().plan();
    if let Some(irq) = plan.irq
        && env::var_os(IRQ).is_none_or(|set| set != irq.name())
    {
        return start_again(irq.name());
    }
    println!("{plan}");
    failure::exit_on_panic();

    let outcome = crew::run(&plan);
    println!("{outcome}");
    let faults = outcome.faults().inspect(|fault| eprintln!("stress: {fault}")).count();
    if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
