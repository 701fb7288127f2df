//! The end of a run that found a fault.

use std::alloc::Layout;
use std::fmt;
use std::io::{Cursor, Write as _};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::pattern::Mismatch;

/// The context in which an operation is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The next step of the thread's own sequence.
    Worker,
    /// A signal handler that interrupted the thread.
    Handler,
    /// Irq work on the thread of a CPU.
    IrqWork,
    /// The child of a fork.
    Child,
}

/// The thread that does an operation, and the operation: enough to find it again in a replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    pub(crate) seed: u64,
    pub(crate) role: Role,
    pub(crate) thread: u32,
    pub(crate) generation: u32,
    /// For a worker, the number of the operation in this thread and generation. For other roles,
    /// the number of the visit in the whole run.
    pub(crate) operation: u64,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, role, thread, generation, operation } = self;
        let thread = format_args!("thread {thread}, generation {generation}");
        match role {
            Role::Worker => write!(f, "seed {seed}, {thread}, operation {operation}"),
            Role::Handler => write!(f, "seed {seed}, handler {operation} on {thread}"),
            Role::IrqWork => write!(f, "seed {seed}, irq work {operation}"),
            Role::Child => write!(f, "seed {seed}, child of a fork, {operation}"),
        }
    }
}

/// The fault found in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The block is not aligned as its layout requires.
    Misaligned,
    /// A byte of a zeroed block is not zero.
    NotZeroed(Mismatch),
    /// A byte of the block differs from the byte written there.
    Contents(Mismatch),
    /// The constructor's mark was replaced by this value.
    NotConstructed(u64),
}

/// Prints the fault and ends the process with exit code 1. Only the first fault is printed.
///
/// `when` describes the operation on the block. `born` is the thread and operation that allocated
/// it, if known.
pub(crate) fn report(
    fault: Fault,
    when: &str,
    actor: Actor,
    born: Option<Actor>,
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
    say(format_args!("stress: MISMATCH {when}"));
    say(format_args!("  by        {actor}"));
    let (size, align) = (layout.size(), layout.align());
    say(format_args!("  block     {address:p}, size {size}, align {align}"));
    if let Some(born) = born {
        say(format_args!("  allocated {born}"));
    }
    match fault {
        Fault::Misaligned => {
            say(format_args!("  the address is not a multiple of the alignment"));
        }
        Fault::NotZeroed(Mismatch { offset, found, .. }) => {
            say(format_args!("  offset    {offset}: expected zero, found {found:#04x}"));
        }
        Fault::Contents(Mismatch { offset, expected, found }) => {
            say(format_args!("  offset    {offset}: expected {expected:#04x}, found {found:#04x}"));
        }
        Fault::NotConstructed(found) => {
            say(format_args!("  found {found:#018x} instead of what the constructor left"));
        }
    }
    exit_at_once()
}

/// Writes a line to standard error without the heap and without locks. That works in any context,
/// and also when the heap or a lock is stuck.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let mut text = Cursor::new([0; 512]);
    // A line that does not fit is truncated.
    let _ = writeln!(text, "{line}");
    let len = text.position() as usize;
    // SAFETY: the pointer and the length describe an initialised part of the array.
    unsafe { libc::write(libc::STDERR_FILENO, text.get_ref().as_ptr().cast(), len) };
}

/// Prints the error and the state of the allocator, then ends the process with exit code 1.
/// Callable in any context.
pub(crate) fn give_up(what: fmt::Arguments<'_>) -> ! {
    say(format_args!("stress: {what}"));
    hayloft_core::dump::machine(&|line| say(format_args!("  {line}")));
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

/// Ends the process with exit code 1. Skips the exit handlers, which need an intact heap.
pub(crate) fn exit_at_once() -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(1) }
}
