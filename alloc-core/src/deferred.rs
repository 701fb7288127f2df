//! Deferred frees: what was freed in a context that could not wait, until somebody who can frees it in earnest.
//!
//! Each CPU that is online has a list, linked through the first word of the blocks. Adding to it needs no lock and cannot
//! fail; who adds the first block queues the CPU's irq work, which empties the list. Slow paths that may wait empty the list
//! of the CPU they run on, too, so nothing depends on a signal, and before the machine was started nothing else does.
//! (`defer_free` and `free_deferred_objects` of `mm/slub.c`.)
//!
//! Who empties a list holds its lock from the taking to the last free. So whoever has the lock knows that what was on the
//! list before is on it still, or freed.
//!
//! This file may touch `sync` and `fault`.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::fault::{self, Place};
#[cfg(not(loom))]
use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{Context, CpuLists, Link, Llist, Lock, LockClass, Taken};

/// A block that waits: an object of a slab or a run.
pub(crate) struct Block {
    next: *mut Block,
}

// SAFETY: the word is the block's own, and whoever freed the block does not use it any more.
unsafe impl Link for Block {
    unsafe fn link(block: *mut Block) -> *mut *mut Block {
        // SAFETY: the caller's promise.
        unsafe { &raw mut (*block).next }
    }
}

/// The blocks put off on each CPU.
pub(crate) struct Deferred<const CPUS: usize> {
    lists: CpuLists<Block, CPUS>,
    /// Held by who empties the list of the same number.
    emptying: [Lock<()>; CPUS],
    /// Held by who empties the list for the time before the machine was started.
    emptying_boot: Lock<()>,
    /// Blocks put off so far, and blocks freed after that. Nothing relies on these, so they are not for loom to know of.
    deferred: AtomicU64,
    flushed: AtomicU64,
}

impl<const CPUS: usize> Deferred<CPUS> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Deferred<CPUS> {
        Deferred {
            lists: CpuLists::new(),
            emptying: [const { Lock::new(LockClass::Emptying, ()) }; CPUS],
            emptying_boot: Lock::new(LockClass::Emptying, ()),
            deferred: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Deferred<CPUS> {
        Deferred {
            lists: CpuLists::new(),
            emptying: core::array::from_fn(|_| Lock::new(LockClass::Emptying, ())),
            emptying_boot: Lock::new(LockClass::Emptying, ()),
            deferred: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        }
    }

    /// How many blocks were put off so far, and how many of these are freed.
    #[cfg(not(loom))]
    pub(crate) fn counts(&self) -> (u64, u64) {
        // Acquire: pairs with the Release in `empty`: each block that counts as freed counts as put off.
        let flushed = self.flushed.load(Ordering::Acquire);
        (self.deferred.load(Ordering::Relaxed), flushed)
    }

    /// Whether nothing is put off on `cpu`, or for the time before the machine was started; a hint.
    #[inline]
    pub(crate) fn is_empty(&self, cpu: Option<usize>) -> bool {
        self.list(cpu).0.is_empty()
    }

    /// The list of a CPU, or of the time before there were any, and the lock of those who empty it.
    #[inline]
    fn list(&self, cpu: Option<usize>) -> (&Llist<Block>, &Lock<()>) {
        match cpu {
            Some(cpu) => (self.lists.of(cpu), &self.emptying[cpu % CPUS]),
            None => (self.lists.boot(), &self.emptying_boot),
        }
    }

    /// Every lock of these.
    #[cfg(not(loom))]
    pub(crate) fn for_each_lock(&self, visit: &dyn Fn(LockClass, &RawLock)) {
        self.emptying.iter().for_each(|lock| visit(LockClass::Emptying, lock.raw()));
        visit(LockClass::Emptying, self.emptying_boot.raw());
    }

    /// In the child of a fork: all blocks are on the list for the time before there were CPUs. Who was at emptying a list and is
    /// not here has taken its blocks along; the lists themselves are whole.
    #[cfg(not(loom))]
    pub(crate) fn without_cpus(&self) {
        self.lists.without_cpus(|_| {});
        self.for_each_lock(&|_, lock| lock.reclaim_in_child());
    }

    /// Puts a block off on `cpu`, or another if that is offline; the CPU whose irq work has to be queued, if any has.
    ///
    /// # Safety
    /// The block is at least a word long, aligned to one, and nobody uses it.
    pub(crate) unsafe fn add(&self, cpu: usize, block: *mut u8) -> Option<usize> {
        // The counter, and the list.
        counters::wrote(Line::Deferred, 2);
        self.deferred.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.lists.add(cpu, block.cast()) }
    }

    /// Frees what was put off on `cpu`, by `free`; `None` stands for the time before the machine was started. Does nothing if
    /// somebody else is at that and the context may not wait for it.
    #[inline]
    pub(crate) fn flush(&self, context: Context, cpu: Option<usize>, free: impl FnMut(*mut u8)) {
        if !self.is_empty(cpu) {
            self.empty(context, cpu, Llist::take, free);
        }
    }

    /// As [`Deferred::flush`], and then nothing that was put off there before is still to be freed by somebody else.
    pub(crate) fn barrier(&self, context: Context, cpu: Option<usize>, free: impl FnMut(*mut u8)) {
        self.empty(context, cpu, Llist::take, free);
    }

    /// Lets blocks be put off on a CPU; frees what was put off before there was any.
    pub(crate) fn online(&self, context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
        self.lists.of(cpu).open();
        self.empty(context, None, Llist::close, free);
    }

    /// Lets no more blocks be put off on a CPU, and frees those that were.
    pub(crate) fn offline(&self, context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
        self.empty(context, Some(cpu), Llist::close, free);
    }

    /// Has blocks be put off as before there were CPUs, and frees those that were.
    #[cfg(not(loom))]
    pub(crate) fn end(&self, context: Context, mut free: impl FnMut(*mut u8)) {
        self.lists.boot().open();
        (0..CPUS).for_each(|cpu| self.offline(context, cpu, &mut free));
    }

    /// Frees what was put off on any CPU, and before there were any, where nobody else is at that.
    /// Whether there was any.
    #[cfg(not(loom))]
    pub(crate) fn flush_all(&self, free: impl Fn(*mut u8)) -> bool {
        let all = (0..CPUS).map(Some).chain([None]);
        let is_full = |cpu: &Option<usize>| !self.is_empty(*cpu);
        all.filter(is_full).map(|cpu| self.flush(Context::TRYING, cpu, &free)).count() > 0
    }

    #[cold]
    #[inline(never)]
    fn empty(
        &self,
        context: Context,
        cpu: Option<usize>,
        take: fn(&Llist<Block>) -> Taken<Block>,
        mut free: impl FnMut(*mut u8),
    ) {
        let (list, emptying) = self.list(cpu);
        if let Some(_emptying) = emptying.acquire(context) {
            let blocks = take(list);
            fault::point(Place::DeferredTaken);
            let flushed = blocks.map(|block| free(block.cast())).count();
            // Release: pairs with the Acquire in `counts`.
            self.flushed.fetch_add(flushed as u64, Ordering::Release);
            counters::wrote(Line::Deferred, 2);
        }
    }
}
