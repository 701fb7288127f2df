//! The end of a run that found something wrong.

use std::alloc::Layout;
use std::fmt;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::pattern::Mismatch;

/// Who does something, and when: enough to find the place again in a replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    pub(crate) seed: u64,
    pub(crate) thread: u32,
    pub(crate) generation: u32,
    /// Number of the operation in this thread and generation.
    pub(crate) operation: u64,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, thread, generation, operation } = self;
        write!(f, "seed {seed}, thread {thread}, generation {generation}, operation {operation}")
    }
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The block is not aligned as its layout asks.
    Misaligned,
    /// A byte of a zeroed block is not zero.
    NotZeroed(Mismatch),
    /// A byte of the block is not what was written to it.
    Contents(Mismatch),
}

/// Prints the fault and ends the process with exit code 1. Only the first fault is printed.
///
/// `when` says what was being done with the block, `born` who allocated it.
pub(crate) fn report(
    fault: Fault,
    when: &str,
    actor: Actor,
    born: Actor,
    address: *const u8,
    layout: Layout,
) -> ! {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    if REPORTED.swap(true, Ordering::Relaxed) {
        // Another thread is about to end the process.
        loop {
            thread::park();
        }
    }
    eprintln!("stress: MISMATCH {when}");
    eprintln!("  by        {actor}");
    eprintln!("  block     {address:p}, size {}, align {}", layout.size(), layout.align());
    eprintln!("  allocated {born}");
    match fault {
        Fault::Misaligned => eprintln!("  the address is not a multiple of the alignment"),
        Fault::NotZeroed(Mismatch { offset, found, .. }) => {
            eprintln!("  offset    {offset}: expected zero, found {found:#04x}");
        }
        Fault::Contents(Mismatch { offset, expected, found }) => {
            eprintln!("  offset    {offset}: expected {expected:#04x}, found {found:#04x}");
        }
    }
    exit_at_once()
}

/// Makes a panic in any thread end the whole process with exit code 1.
pub(crate) fn exit_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        exit_at_once()
    }));
}

/// Ends the process without running exit handlers, which need a heap that is still whole.
fn exit_at_once() -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(1) }
}
