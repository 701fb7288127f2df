//! Deferred frees: what was freed in a context that could not wait, until somebody who can frees it in earnest.
//!
//! Each CPU that is online has a list, linked through the first word of the blocks. Adding to it needs no lock and cannot
//! fail; who adds the first block queues the CPU's irq work, which empties the list. Slow paths that may wait empty the list
//! of the CPU they run on, too, so nothing depends on a signal, and before the machine was started nothing else does.
//! (`defer_free` and `free_deferred_objects` of `mm/slub.c`.)
//!
//! Who empties a list holds its lock from the taking to the last free: what is neither on the list nor freed when the lock
//! can be had was never there.
//!
//! This file may touch `sync`, `percpu`, `thread` and `fault`.

use crate::fault::{self, Place};
use crate::percpu;
use crate::sync::{Context, CpuLists, Link, Lock};
use crate::thread::{self, MAX_CPUS};

/// A block that waits: an object of a slab or a run.
struct Block {
    next: *mut Block,
}

// SAFETY: the word is the block's own, and whoever freed the block does not use it any more.
unsafe impl Link for Block {
    unsafe fn link(block: *mut Block) -> *mut *mut Block {
        // SAFETY: the caller's promise.
        unsafe { &raw mut (*block).next }
    }
}

static DEFERRED: CpuLists<Block, MAX_CPUS> = CpuLists::new();

/// Held by who empties the list of the same number; the last one is for the time before the machine was started.
static EMPTYING: [Lock<()>; MAX_CPUS + 1] = [const { Lock::new(()) }; MAX_CPUS + 1];

/// Whose list: that of a CPU, or that for the time before the machine was started.
#[derive(Clone, Copy)]
pub(crate) enum Whose {
    Cpu(usize),
    Boot,
}

impl Whose {
    /// The one that blocks deferred by this thread are on now.
    #[inline]
    pub(crate) fn current() -> Whose {
        if thread::is_started() { Whose::Cpu(percpu::cpu()) } else { Whose::Boot }
    }
}

/// Puts a block off; the CPU whose irq work has to be queued, if any has.
///
/// # Safety
/// The block is at least a word long, aligned to one, and nobody uses it.
pub(crate) unsafe fn add(block: *mut u8) -> Option<usize> {
    // SAFETY: the caller's promise.
    unsafe { DEFERRED.add(percpu::cpu(), block.cast()) }
}

/// Frees what is on a list, by `free`. Does nothing if somebody else is at that and the context may not wait for it.
#[inline]
pub(crate) fn flush(context: Context, whose: Whose, free: impl FnMut(*mut u8)) {
    let list = match whose {
        Whose::Cpu(cpu) => DEFERRED.of(cpu),
        Whose::Boot => DEFERRED.boot(),
    };
    if !list.is_empty() {
        empty(context, whose, || list.take().map(<*mut Block>::cast), free);
    }
}

/// As [`flush`], whether something is on the list or not, and waits for others who empty it.
pub(crate) fn barrier(context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
    let list = DEFERRED.of(cpu);
    empty(context, Whose::Cpu(cpu), || list.take().map(<*mut Block>::cast), free);
}

#[cold]
#[inline(never)]
fn empty<B: Iterator<Item = *mut u8>>(
    context: Context,
    whose: Whose,
    take: impl FnOnce() -> B,
    free: impl FnMut(*mut u8),
) {
    let number = match whose {
        Whose::Cpu(cpu) => cpu % MAX_CPUS,
        Whose::Boot => MAX_CPUS,
    };
    if let Some(_emptying) = EMPTYING[number].acquire(context) {
        let blocks = take();
        fault::point(Place::DeferredTaken);
        blocks.for_each(free);
    }
}

/// Lets blocks be put off on a CPU; frees what was put off before there was any.
pub(crate) fn online(context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
    DEFERRED.of(cpu).open();
    let boot = || DEFERRED.boot().close().map(<*mut Block>::cast);
    empty(context, Whose::Boot, boot, free);
}

/// Lets no more blocks be put off on a CPU, and frees those that were.
pub(crate) fn offline(context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
    let list = || DEFERRED.of(cpu).close().map(<*mut Block>::cast);
    empty(context, Whose::Cpu(cpu), list, free);
}
