//! `stress`: many threads, random layouts, every byte checked.
//!
//! Each worker thread allocates, reallocates and frees blocks of random size and alignment. Every
//! block is filled with a pattern of its own ([`pattern`]), which is checked in full whenever the
//! block is reallocated or freed. Two blocks that overlap, a copy that lost bytes, or memory handed
//! out twice therefore shows as a mismatch. Blocks pass between threads ([`exchange`]), and the
//! threads themselves come and go ([`crew`]): a worker lives for one *generation*, leaves its
//! blocks to the others and is replaced by a new thread.
//!
//! On request, other activities run at the same time: signal handlers that allocate and queue irq
//! work ([`signals`]), CPUs that go offline and online ([`hotplug`]), fork children ([`forks`]),
//! and object caches that are created and destroyed ([`caches`]). A [`watchdog`] ends a run in
//! which something is stuck, and prints the state of the allocator.
//!
//! The program prints the first mismatch, with everything needed to find it again, and exits with
//! code 1. A request that the allocator refuses with null is counted. It is not a fault, as long as
//! a refused `realloc` left the block unchanged. But the program's own tables are on the same heap,
//! and it gives up when the allocator refuses memory for them.
//!
//! The modules, each of which imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `crew` | the supervisor, which keeps one worker running per lane |
//! | `worker` | one worker thread: a generation of random operations |
//! | `companion` | threads beside the workers |
//! | `forks` `signals` | fork children; signals that interrupt threads anywhere |
//! | `irq` | irq work, queued in signal handlers |
//! | `caches` `visit` | object caches that come and go; operations for any context |
//! | `exchange` `relay` | slots that threads pass blocks through; such slots for any context |
//! | `published` | cache objects that any context may read |
//! | `block` `object` | a block and a cache's object, which check their contents |
//! | `hotplug` `watchdog` | CPUs that come and go; the end of a run that is stuck |
//! | `failure` | the end of a run that found a fault |
//! | `pattern` `totals` | the contents of blocks; counts of the work done |
//! | `draw` `options` `pulse` | random layouts; the command line; signs of progress |
//!
//! # Replay
//!
//! The operations of a worker depend only on the seed, its thread number and its generation. The
//! same seed, `--threads`, `--max-size` and `--live-mb` give the same sequence of operations,
//! sizes, alignments and choices in every thread. Blocks that arrive from other threads are checked
//! and freed immediately. The choices for them are drawn from the block, never from the worker, so
//! that timing cannot leak into the sequence. Activities beside the workers draw from generators of
//! their own, so they do not change the sequences either. The interleaving of the threads, and with
//! it the addresses that they see, is up to the machine. With `--operations` the length of the run
//! is fixed too, and the digest printed at the end must be the same each time.

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
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Environment variable that selects how irq work runs. The allocator reads it before `main`.
const IRQ: &str = "HAYLOFT_IRQ";

/// Starts this program again with the value `irq` for [`IRQ`]. Returns only if that fails.
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
