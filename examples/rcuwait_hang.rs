//! Reproduces a hang that the kernel once had, on real threads: two threads that destroy caches
//! wait for the irq work of one CPU.
//!
//! Where irq work runs in a thread, `irq_work_sync` sleeps in an rcuwait, which has a slot for one
//! waiter. `kmem_cache_destroy` called it without a lock. Two callers therefore overwrote each
//! other in the slot, the wake-up found one of them, and the other slept forever. If both first
//! take the hotplug lock and the cache mutex, they take turns.
//!
//! `cargo run --release -p examples --bin rcuwait_hang` runs each order 10 000 times, or until it
//! hangs. In debug builds the second waiter is detected and panics instead of sleeping.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hayloft::cpu;
use hayloft::irq_work::IrqWork;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const ROUNDS: usize = 10_000;

/// The setting that makes irq work run in a thread.
const IRQ: &str = "HAYLOFT_IRQ";

/// The work that both destroyers wait for. It takes 20 microseconds.
static WORK: IrqWork = IrqWork::new(|_| {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(20) {}
});

static CACHE_MUTEX: Mutex<()> = Mutex::new(());

/// Waits as the kernel did before the fix: without a lock.
fn sync_unserialised() {
    WORK.sync();
}

/// Waits as after the fix: first takes the hotplug lock, then the cache mutex.
fn sync_serialised() {
    let _cpus = cpu::read_lock();
    let _caches = CACHE_MUTEX.lock().unwrap_or_else(PoisonError::into_inner);
    WORK.sync();
}

/// Makes two threads wait for the work at once, in many rounds. Returns the first round in which
/// one of them did not return.
fn hangs(sync: fn()) -> Option<usize> {
    let (returned, returns) = mpsc::channel();
    let meeting = Arc::new(Barrier::new(3));
    for _ in 0..2 {
        let (meeting, returned) = (meeting.clone(), returned.clone());
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                meeting.wait();
                sync();
                if returned.send(()).is_err() {
                    return;
                }
            }
        });
    }
    drop(returned);
    (0..ROUNDS).find(|_| {
        WORK.queue();
        meeting.wait();
        (0..2).any(|_| match returns.recv_timeout(Duration::from_secs(2)) {
            Ok(()) => false,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => true,
        })
    })
}

fn main() -> ExitCode {
    if env::var_os(IRQ).is_none() {
        // The settings are read before `main`, so the program starts itself again.
        let program = env::current_exe().expect("the program has a path");
        let error = Command::new(program).env(IRQ, "threaded").exec();
        println!("the program cannot be started again: {error}");
        return ExitCode::FAILURE;
    }
    cpu::start();
    if let Some(round) = hangs(sync_serialised) {
        println!("serialised: hung in round {round}");
        return ExitCode::FAILURE;
    }
    println!("serialised: {ROUNDS} rounds, no hang");
    let Some(round) = hangs(sync_unserialised) else {
        println!("unserialised: {ROUNDS} rounds, no hang; it takes some luck");
        return ExitCode::FAILURE;
    };
    println!("unserialised: in round {round} one of two waiters sleeps for ever");
    ExitCode::SUCCESS
}
