//! Work for a CPU, queued from any context. (`kernel/irq_work.c` of Linux.)
//!
//! An item is *claimed* by one atomic step, put on a lock-less list, and run by the thread that acts as the CPU: in its
//! signal handler (*hard*), or in its loop (*threaded*). Its life in `flags`:
//!
//! ```text
//! idle 0 --claim--> PENDING|BUSY --run--> BUSY --function returned--> 0
//!                        ^                  |
//!                        +----claimed again-+
//! ```
//!
//! PENDING is cleared before the function runs, so whoever queues the item after its function looked at the world has it run
//! once more. BUSY is cleared after it, unless the item was claimed again; [`IrqWork::sync`] waits for that.
//!
//! *The runner's last touch.* Who waits for an item may free it as soon as BUSY is clear, but the runner has a waiter to
//! wake after clearing it, and finds the waiter in the item. So each runner says which item it is at, and `sync` waits until
//! none is at this one. (The kernel ends the same race by a grace period of RCU.) None, not only the last: an item that is
//! claimed again while it runs may go to another CPU, and be done there before its first runner comes to the waking; or run
//! there at the same time, and have BUSY cleared by the first.
//!
//! *Forks.* The child has none of the other threads that may have had an item in hand: on its way to a list, taken from one,
//! or running. There an item is queued if it was on a list when the parent forked, and idle otherwise. The flags say of which
//! process they are, by the number of forks. A handler that interrupted a queueing may fork, too: each thread has a list of
//! the items that it is queueing. These stay claimed in the child, and whoever queues one finds out afterwards whether it is
//! queued there.
//!
//! This file may touch `sync`, `thread`, `percpu` and `fault`.

use core::cell::UnsafeCell;
use core::ptr;

#[cfg(not(loom))]
pub(crate) use queues::{
    count, end, help, offline, online, queued, run_hard, run_threaded, without_cpus,
};

use crate::sync::counters::{self, Line};
use crate::sync::{AtomicPtr, AtomicU32, Backoff, Link, Ordering, Rcuwait, forks};

/// Queued, and not yet begun.
const PENDING: u32 = 1;
/// Queued or running.
const BUSY: u32 = 2;
/// Runs in the handler, whatever the others do. (`IRQ_WORK_HARD_IRQ`.)
const HARD: u32 = 8;
/// Where the number of forks begins.
const FORKS: u32 = 16;

/// Flags as they would be in this process.
fn of_this_process(flags: u32) -> u32 {
    flags % FORKS + forks() * FORKS
}

/// Something for a CPU to do. It is queued at most once at a time, but may be queued on another CPU while it runs, and then
/// runs on both.
pub struct IrqWork {
    flags: AtomicU32,
    next: UnsafeCell<*mut IrqWork>,
    function: fn(&IrqWork),
    waiter: Rcuwait,
    /// Read by each touch of a runner, and written by who frees the item: for loom to see that they are ordered.
    #[cfg(loom)]
    pub(crate) life: loom::cell::UnsafeCell<()>,
}

// SAFETY: all fields are atomics, but for `next`, which belongs to whoever claimed the item, and then to its list.
unsafe impl Sync for IrqWork {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl Send for IrqWork {}

// SAFETY: `next` is used for lists only, and a claimed item is on one list.
unsafe impl Link for IrqWork {
    unsafe fn link(item: *mut IrqWork) -> *mut *mut IrqWork {
        // SAFETY: the caller's promise.
        unsafe { UnsafeCell::raw_get(&raw const (*item).next) }
    }
}

impl IrqWork {
    /// An idle item that runs `function`, which must not wait for what the code it interrupts may hold.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new(function: fn(&IrqWork)) -> IrqWork {
        IrqWork {
            flags: AtomicU32::new(0),
            next: UnsafeCell::new(ptr::null_mut()),
            function,
            waiter: Rcuwait::new(),
        }
    }

    /// An idle item that runs `function`.
    #[cfg(loom)]
    pub(crate) fn new(function: fn(&IrqWork)) -> IrqWork {
        IrqWork {
            flags: AtomicU32::new(0),
            next: UnsafeCell::new(ptr::null_mut()),
            function,
            waiter: Rcuwait::new(),
            life: loom::cell::UnsafeCell::new(()),
        }
    }

    /// Makes an item idle that is left over from before a fork.
    fn renew(&self) {
        // Not in the models, which do not fork.
        #[cfg(not(loom))]
        {
            let flags = self.flags.load(Ordering::Relaxed);
            if flags != of_this_process(flags) {
                let idle = of_this_process(flags & HARD);
                // It fails where somebody else was faster.
                let _ =
                    self.flags.compare_exchange(flags, idle, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Whether the item is queued or running.
    pub fn is_busy(&self) -> bool {
        self.renew();
        // Acquire: pairs with the Release in `run`: what the function did is seen by whoever sees it done.
        self.flags.load(Ordering::Acquire) & BUSY != 0
    }

    /// Whether the item is queued and its function not yet begun.
    pub fn is_pending(&self) -> bool {
        self.renew();
        self.flags.load(Ordering::Relaxed) & PENDING != 0
    }

    /// Makes the item the caller's to queue; false if it is queued already, and will see what the caller did before.
    pub(crate) fn claim(&self) -> bool {
        self.renew();
        // The item, and then the queue.
        counters::wrote(Line::IrqWork, 2);
        // Release: pairs with the Acquire in `run`. Acquire: the last run's last touch of the item is over.
        self.flags.fetch_or(PENDING | BUSY, Ordering::AcqRel) & PENDING == 0
    }

    /// Waits until the item is not busy, spinning or sleeping.
    pub(crate) fn wait_until_idle(&self, spins: bool) {
        if !spins {
            return self.waiter.wait_until(|| !self.is_busy());
        }
        let mut backoff = Backoff::new();
        while self.is_busy() {
            backoff.pause();
        }
    }

    /// Waits until no runner is at an item that is not busy.
    pub(crate) fn wait_until_left<'a>(&self, runners: impl IntoIterator<Item = &'a Runner>) {
        for runner in runners {
            let mut backoff = Backoff::new();
            while runner.is_at(self) {
                backoff.pause();
            }
        }
    }

    /// Runs a claimed item that was taken from its list, and wakes who waits for it.
    ///
    /// # Safety
    /// The item is valid until it is not busy and no runner is at it.
    pub(crate) unsafe fn run(item: *mut IrqWork, runner: &Runner) {
        runner.enter(item);
        // SAFETY: the caller's promise; `runner` is at the item.
        unsafe {
            // Acquire: pairs with the Release in `claim`, also of those who found it PENDING. (The kernel has a plain store
            // and a full barrier here; our memory model needs the read of the read-modify-write.)
            // Release: whoever sees BUSY cleared, be it by another runner, sees that this one is at the item.
            let flags = (*item).flags.fetch_and(!PENDING, Ordering::AcqRel) & !PENDING;
            ((*item).function)(&*item);
            // Release: pairs with the Acquire in `is_busy`. It fails where the item was claimed again: then it stays busy.
            let _ = (*item).flags.compare_exchange(
                flags,
                flags & !BUSY,
                Ordering::Release,
                Ordering::Relaxed,
            );
            (*item).waiter.wake();
            #[cfg(loom)]
            (*item).life.with(|_| ());
        }
        runner.leave();
    }
}

/// Who runs the items of a list, one at a time: the thread of a CPU, or whoever ended that thread; or, before there were any,
/// those who wait.
pub(crate) struct Runner {
    /// The item it is at.
    at: AtomicPtr<IrqWork>,
}

impl Runner {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Runner {
        Runner { at: AtomicPtr::new(ptr::null_mut()) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Runner {
        Runner { at: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Goes to an item; several threads that are one runner take turns.
    fn enter(&self, item: *mut IrqWork) {
        // Relaxed: `run` tells of it by the item's flags. A read-modify-write even for one thread: so that whoever finds the
        // runner at another item sees that it has left the one before, as by the Release in `leave`.
        let enter = || {
            self.at.compare_exchange(ptr::null_mut(), item, Ordering::Relaxed, Ordering::Relaxed)
        };
        let mut backoff = Backoff::new();
        while enter().is_err() {
            backoff.pause();
        }
    }

    fn leave(&self) {
        // Release: pairs with the Acquire in `is_at`.
        self.at.store(ptr::null_mut(), Ordering::Release);
    }

    /// Whether it is at an item that is not busy.
    fn is_at(&self, item: &IrqWork) -> bool {
        // Acquire: pairs with the Release in `leave`: the last touch is over.
        ptr::eq(self.at.load(Ordering::Acquire), item)
    }
}

#[cfg(not(loom))]
mod queues {
    #![expect(
        improper_ctypes_definitions,
        reason = "`extern \"C\"` for its unwinding rule, not for C"
    )]

    use core::iter;
    use core::ptr;
    use core::sync::atomic::{AtomicU64, compiler_fence};

    use super::{HARD, IrqWork, PENDING, Runner, of_this_process};
    use crate::arch;
    use crate::fault::{self, Place};
    use crate::os;
    use crate::percpu;
    use crate::sync::{AtomicU32, Backoff, CpuLists, Ordering, Taken, count_fork, forks};
    use crate::thread::{self, IrqMode, MAX_CPUS};

    /// Items for the handler, and for the loop, of each CPU's thread. (`raised_list` and `lazy_list` of the kernel.)
    static RAISED: CpuLists<IrqWork, MAX_CPUS> = CpuLists::new();
    static THREADED: CpuLists<IrqWork, MAX_CPUS> = CpuLists::new();

    /// Items queued so far.
    static QUEUED: AtomicU64 = AtomicU64::new(0);

    /// How many items were queued so far. In any context.
    pub(crate) fn count() -> u64 {
        QUEUED.load(Ordering::Relaxed)
    }

    /// The runners of the CPUs.
    static RUNNERS: [Runner; MAX_CPUS] = [const { Runner::new() }; MAX_CPUS];
    /// Who waits for an item runs others: before there are any CPUs, or where one does not come to
    /// it.
    static BOOT_RUNNER: Runner = Runner::new();

    /// An item that a thread is queueing.
    struct Queueing {
        item: *const IrqWork,
        /// What a handler interrupted by queueing this one.
        outer: *const Queueing,
    }

    impl Queueing {
        /// What this thread is queueing. Where a handler forks in the midst of that, it is the same thread that goes on in the
        /// child.
        fn first() -> *const Queueing {
            arch::locals().queueing.load(Ordering::Relaxed).cast()
        }

        fn set_first(first: *const Queueing) {
            arch::locals().queueing.store(first.cast_mut().cast(), Ordering::Relaxed);
        }

        /// Runs what claims an item and takes it to a list.
        fn run<R>(item: *const IrqWork, body: impl FnOnce(&Queueing) -> R) -> R {
            let outer = Queueing::first();
            let queueing = Queueing { item, outer };
            // A handler in the midst of this leaves the list as it found it.
            Queueing::set_first(&raw const queueing);
            // Towards handlers on this thread: the item is claimed and on the list in between.
            compiler_fence(Ordering::SeqCst);
            let result = body(&queueing);
            compiler_fence(Ordering::SeqCst);
            Queueing::set_first(outer);
            result
        }

        /// What this thread is queueing: this, and what was interrupted by that.
        fn all<'a>(first: *const Queueing) -> impl Iterator<Item = &'a Queueing> {
            // SAFETY: entries stay on the stack of their thread until they have left the list.
            let entry = |entry: *const Queueing| unsafe { entry.as_ref() };
            iter::successors(entry(first), move |queueing| entry(queueing.outer))
        }

        /// After a fork in the midst of this, in the child: whether the item is claimed and on no list, as it was not this
        /// thread that claimed it, or another one had taken it from its list. Then it is idle now.
        #[cold]
        fn was_lost(&self) -> bool {
            // No handler finds the list empty, or the item idle and on it.
            let _masked = os::block_signals();
            // SAFETY: the promise of who queues it.
            let flags = unsafe { &(*self.item).flags };
            // What was interrupted goes on with the item.
            if !THREADED.is_boot()
                || Queueing::all(self.outer).any(|outer| ptr::eq(outer.item, self.item))
                || flags.load(Ordering::Relaxed) & PENDING == 0
            {
                return false;
            }
            let mut is_there = false;
            for lists in [&RAISED, &THREADED] {
                for item in lists.boot().take() {
                    is_there |= ptr::eq(item, self.item);
                    // SAFETY: what was on a list stays valid until it is run.
                    unsafe { lists.add(0, item) };
                }
            }
            if !is_there {
                flags.store(
                    of_this_process(flags.load(Ordering::Relaxed) & HARD),
                    Ordering::Relaxed,
                );
            }
            !is_there
        }
    }

    impl IrqWork {
        /// Marks the item to be run in the signal handler of the CPU's thread, whatever `HAYLOFT_IRQ` says, where there is a
        /// signal.
        #[must_use]
        pub const fn hard(mut self) -> IrqWork {
            self.flags = AtomicU32::new(HARD);
            self
        }

        /// Queues the item on the CPU that this thread runs on, or another if that is offline; false if it is queued
        /// already. May be called in any context. Before the machine was started (see [`cpu`](crate::cpu)), it stays queued
        /// until that, or until somebody waits for it.
        pub fn queue(&'static self) -> bool {
            self.queue_on(percpu::cpu())
        }

        /// As [`IrqWork::queue`], on a certain CPU, or another if that is offline.
        pub fn queue_on(&'static self, cpu: usize) -> bool {
            // SAFETY: static, so it outlives its runs.
            unsafe { IrqWork::queue_raw(self, cpu) }
        }

        /// As [`IrqWork::queue_on`], for an item that is not static.
        ///
        /// # Safety
        /// The item stays where it is until [`IrqWork::sync`] has returned and nobody queued it again. That goes for the child
        /// of a fork as well, where an item that was on a list is run by whoever first waits for one: so an item on the stack of
        /// a thread is not to be queued while another thread forks.
        pub unsafe fn queue_raw(item: *const IrqWork, cpu: usize) -> bool {
            // SAFETY: the caller's promise.
            let queue = || unsafe {
                let told = (*item).claim().then(|| {
                    fault::point(Place::WorkClaimed);
                    // Relaxed: a number that is looked at, and guards nothing.
                    QUEUED.fetch_add(1, Ordering::Relaxed);
                    let lists = if (*item).is_for_handler() { &RAISED } else { &THREADED };
                    lists.add(cpu, item.cast_mut())
                });
                fault::point(Place::WorkQueued);
                told
            };
            let told = loop {
                let before = forks();
                let (told, was_lost) = Queueing::run(item, |queueing| {
                    (queue(), forks() != before && queueing.was_lost())
                });
                if !was_lost {
                    break told;
                }
            };
            if let Some(Some(cpu)) = told {
                thread::raise(cpu);
            }
            told.is_some()
        }

        /// Waits until the item is not busy; then nobody touches it any more, unless it is queued
        /// again. What a CPU does not come to within a second, as where a real-time thread never leaves
        /// it, is run by another thread then.
        ///
        /// Where it runs in a handler this spins. Where it runs in a loop it sleeps in a place for one waiter, so callers
        /// for one item must take turns (see `Rcuwait`), and must not be in a handler.
        ///
        /// # Panics
        /// In debug builds if two threads sleep here at once for one item.
        pub fn sync(&self) {
            // Nobody else runs what is queued before there are CPUs.
            let mut backoff = Backoff::new();
            while self.is_busy() && THREADED.is_boot() {
                run_boot();
                backoff.pause();
            }
            let wait = || self.wait_until_idle(self.is_for_handler());
            // Its CPU may be one that a real-time thread never leaves.
            if self.is_pending() {
                thread::watched(wait)
            } else {
                wait()
            }
            self.wait_until_left(RUNNERS.iter().chain([&BOOT_RUNNER]));
        }

        fn is_for_handler(&self) -> bool {
            match thread::mode() {
                IrqMode::Hard => true,
                IrqMode::Threaded => self.flags.load(Ordering::Relaxed) & HARD != 0,
                IrqMode::None => false,
            }
        }
    }

    /// Runs items. It does not unwind: where a function panics, the process ends, rather than wait for its item for ever.
    extern "C" fn run(runner: &Runner, items: Taken<IrqWork>) {
        for item in items {
            // SAFETY: items on lists are claimed, and those who queued them keep them valid.
            unsafe { IrqWork::run(item, runner) };
        }
    }

    /// Runs what was queued before there were CPUs.
    fn run_boot() {
        for lists in [&RAISED, &THREADED] {
            run(&BOOT_RUNNER, lists.boot().take());
        }
    }

    /// Runs what the thread of a CPU did not come to.
    pub(crate) fn help(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            run(&BOOT_RUNNER, lists.of(cpu).take());
        }
    }

    /// Runs what the handler of a CPU's thread is to run.
    pub(crate) fn run_hard(cpu: usize) {
        run(&RUNNERS[cpu], RAISED.of(cpu).take());
    }

    /// Runs what the loop of a CPU's thread is to run.
    pub(crate) fn run_threaded(cpu: usize) {
        run(&RUNNERS[cpu], THREADED.of(cpu).take());
    }

    /// Lets items be queued on a CPU whose thread is there; takes over what was queued before there were any.
    pub(crate) fn online(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            lists.of(cpu).open();
            for item in lists.boot().close() {
                // SAFETY: as in `run`.
                if let Some(cpu) = unsafe { lists.add(cpu, item) } {
                    thread::raise(cpu);
                }
            }
        }
    }

    /// In the child of a fork, which has no CPUs: what was queued runs as before there were any.
    pub(crate) fn without_cpus() {
        let runners = RUNNERS.iter().chain([&BOOT_RUNNER]);
        runners.for_each(|runner| runner.at.store(ptr::null_mut(), Ordering::Relaxed));
        count_fork();
        let keep = |item: *const IrqWork| {
            // SAFETY: items on lists, and those that this thread is queueing, are valid, and there is no other thread.
            let flags = unsafe { &(*item).flags };
            flags.store(of_this_process(flags.load(Ordering::Relaxed)), Ordering::Relaxed);
        };
        for lists in [&RAISED, &THREADED] {
            lists.without_cpus(|item| keep(item));
        }
        for queueing in Queueing::all(Queueing::first()) {
            // SAFETY: as above.
            let flags = unsafe { &(*queueing.item).flags };
            if flags.load(Ordering::Relaxed) & PENDING == 0 {
                // Another thread was running it.
                flags.fetch_and(HARD, Ordering::Relaxed);
            }
            keep(queueing.item);
        }
    }

    /// What is queued on a CPU, and what its runner is at, at the time of asking.
    #[derive(Debug)]
    pub(crate) struct Queued {
        /// Something waits for the handler.
        pub(crate) raised: bool,
        /// Something waits for the loop.
        pub(crate) threaded: bool,
        /// The item that is being run, or null. It may be gone by now.
        pub(crate) at: *const IrqWork,
    }

    /// What is queued on a CPU.
    pub(crate) fn queued(cpu: usize) -> Queued {
        Queued {
            raised: !RAISED.of(cpu).is_empty(),
            threaded: !THREADED.of(cpu).is_empty(),
            at: RUNNERS[cpu].at.load(Ordering::Relaxed),
        }
    }

    /// Lets no more items be queued on a CPU, and runs those that were. The CPU's thread has ended.
    pub(crate) fn offline(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            run(&RUNNERS[cpu], lists.of(cpu).close());
        }
    }
    /// Has items queued as before there were CPUs, and runs those that were. All threads of CPUs
    /// have ended.
    pub(crate) fn end() {
        for lists in [&RAISED, &THREADED] {
            lists.boot().open();
        }
        (0..MAX_CPUS).for_each(offline);
    }
}
