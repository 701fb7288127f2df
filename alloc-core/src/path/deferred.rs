//! Deferred frees: keeps blocks that were freed in a context that could not wait, until a thread
//! that can wait frees them.
//!
//! Each CPU that is online has a list, linked through the first word of the blocks. Adding to it
//! needs no lock and cannot fail. The thread that adds the first block queues the CPU's irq work,
//! which empties the list. Slow paths that may wait also empty the list of the CPU they run on, so
//! nothing depends on a signal. Until the CPU threads are started, slow paths alone empty the
//! lists. (`defer_free` and `free_deferred_objects` of `mm/slub.c`.)
//!
//! A thread that empties a list holds the list's lock from taking the blocks to the last free. So
//! to a holder of the lock, every block that was on the list before is still on it, or freed.
//!
//! The *boot list* serves while no CPU is online.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::fault::{self, Place};
use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{
    Context, CpuLists, Link, Llist, Lock, LockClass, Taken, array_of, const_unless_loom,
};

/// A deferred block: an object of a slab, or a run.
pub(crate) struct Block {
    next: *mut Block,
}

// SAFETY: the word is the block's own, and the program does not use a block that it freed.
unsafe impl Link for Block {
    unsafe fn link(block: *mut Block) -> *mut *mut Block {
        // SAFETY: the caller guarantees that `block` is valid.
        unsafe { &raw mut (*block).next }
    }
}

/// The deferred blocks of each CPU.
pub(crate) struct Deferred<const CPUS: usize> {
    lists: CpuLists<Block, CPUS>,
    /// Held while the list of the same number is emptied.
    emptying: [Lock<()>; CPUS],
    /// Held while the boot list is emptied.
    emptying_boot: Lock<()>,
    /// Numbers of blocks deferred so far, and of deferred blocks freed. Nothing relies on these, so
    /// loom need not see them.
    deferred: AtomicU64,
    flushed: AtomicU64,
}

impl<const CPUS: usize> Deferred<CPUS> {
    const_unless_loom! {
        pub(crate) const fn new() -> Deferred<CPUS> {
            Deferred {
                lists: CpuLists::new(),
                emptying: array_of![Lock::new(LockClass::Emptying, ()); CPUS],
                emptying_boot: Lock::new(LockClass::Emptying, ()),
                deferred: AtomicU64::new(0),
                flushed: AtomicU64::new(0),
            }
        }
    }

    /// Returns the numbers of blocks deferred so far, and of those among them that are freed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        // Acquire: pairs with the Release in `empty`, so that each block that counts as freed
        // counts as deferred.
        let flushed = self.flushed.load(Ordering::Acquire);
        (self.deferred.load(Ordering::Relaxed), flushed)
    }

    /// Returns whether no block is deferred on `cpu`, or for `None` on the boot list: a hint.
    #[inline]
    pub(crate) fn is_empty(&self, cpu: Option<usize>) -> bool {
        self.list(cpu).0.is_empty()
    }

    /// Returns the list of a CPU, or for `None` the boot list, and the lock for emptying it.
    #[inline]
    fn list(&self, cpu: Option<usize>) -> (&Llist<Block>, &Lock<()>) {
        match cpu {
            Some(cpu) => (self.lists.of(cpu), &self.emptying[cpu % CPUS]),
            None => (self.lists.boot(), &self.emptying_boot),
        }
    }

    /// Visits every lock of the lists.
    pub(crate) fn for_each_lock(&self, visit: &dyn Fn(LockClass, &RawLock)) {
        self.emptying.iter().for_each(|lock| visit(LockClass::Emptying, lock.raw()));
        visit(LockClass::Emptying, self.emptying_boot.raw());
    }

    /// Moves all blocks to the boot list, in the child of a fork. Blocks that a thread missing here
    /// had taken from a list are lost with it; the lists themselves are whole.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread.
    pub(crate) unsafe fn without_cpus(&self) {
        self.lists.without_cpus(|_| {});
        // SAFETY: the caller guarantees that this is the child of a fork. The locks protect no
        // data, and the lists are whole after each store.
        self.for_each_lock(&|_, lock| unsafe { lock.reclaim_in_child() });
    }

    /// Defers a block on `cpu`, or on another CPU if that is offline. Returns the CPU whose irq
    /// work the caller must queue, if any.
    ///
    /// # Safety
    /// The block is at least a word long, aligned to one, and nobody uses it.
    pub(crate) unsafe fn add(&self, cpu: usize, block: *mut u8) -> Option<usize> {
        // The counter, and the list.
        counters::wrote(Line::Deferred, 2);
        self.deferred.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller guarantees that the block is unused and has room for the link.
        unsafe { self.lists.add(cpu, block.cast()) }
    }

    /// Frees the blocks deferred on `cpu`, or for `None` those on the boot list, by calling `free`.
    /// Does nothing if another thread is emptying the list and the context must not wait.
    #[inline]
    pub(crate) fn flush(&self, context: Context, cpu: Option<usize>, free: impl FnMut(*mut u8)) {
        if !self.is_empty(cpu) {
            self.empty(context, cpu, Llist::take, free);
        }
    }

    /// As [`Deferred::flush`], but also waits for a thread that is emptying the list, if the
    /// context may wait: no block deferred there before remains to be freed by another thread.
    pub(crate) fn barrier(&self, context: Context, cpu: Option<usize>, free: impl FnMut(*mut u8)) {
        self.empty(context, cpu, Llist::take, free);
    }

    /// Opens the list of a CPU, closes the boot list, and frees the blocks that were on that.
    pub(crate) fn online(&self, context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
        self.lists.of(cpu).open();
        self.empty(context, None, Llist::close, free);
    }

    /// Closes the list of a CPU, and frees the blocks that were on it.
    pub(crate) fn offline(&self, context: Context, cpu: usize, free: impl FnMut(*mut u8)) {
        self.empty(context, Some(cpu), Llist::close, free);
    }

    /// Reopens the boot list, closes the lists of all CPUs, and frees the blocks that were on
    /// these.
    pub(crate) fn end(&self, context: Context, mut free: impl FnMut(*mut u8)) {
        self.lists.boot().open();
        (0..CPUS).for_each(|cpu| self.offline(context, cpu, &mut free));
    }

    /// Frees the blocks of all lists, except of those that another thread is emptying. Returns
    /// whether any list held blocks.
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
