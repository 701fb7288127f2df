//! Work for a CPU, queued from any context. (`kernel/irq_work.c` of Linux.)
//!
//! An item is *claimed* by one atomic step, put on a lock-less list, and run by the thread that
//! acts as the CPU: in its signal handler (*hard*), or in its loop (*threaded*). `flags` holds its
//! state:
//!
//! ```text
//! idle 0 --claim--> PENDING|BUSY --run--> BUSY --function returned--> 0
//!                        ^                  |
//!                        +----claimed again-+
//! ```
//!
//! PENDING is cleared before the function runs. So an item that is queued while its function runs,
//! perhaps after the function looked for work, is run once more. BUSY is cleared after the
//! function, unless the item was claimed again; [`IrqWork::sync`] waits for that.
//!
//! *The runner's last touch.* A waiter may free an item as soon as BUSY is clear. But after
//! clearing BUSY the runner wakes the waiter, whose slot is in the item. So each runner publishes
//! the item it is at, and `sync` waits until no runner is at this item. (The kernel ends the same
//! race by an RCU grace period.) Waiting for the last runner alone is not enough, since an item
//! that is claimed again while it runs may go to another CPU. It may be done there before its first
//! runner gets to the wake-up. Or it runs on both CPUs at the same time, and the first one clears
//! BUSY.
//!
//! *Forks.* The child lacks the other threads of the parent. One of these may have been adding an
//! item to a list, or have taken it from a list, or been running it. In the child an item is queued
//! if it was on a list when the parent forked, and idle otherwise. The flags include the number of
//! forks, and thereby the process for which they are valid. A handler that interrupted a queueing
//! may fork, too. For that each thread keeps a list of the items that it is queueing. These stay
//! claimed in the child, and after the queueing the thread finds out whether the item is on a list
//! there.

use core::cell::UnsafeCell;
use core::ptr;

#[cfg(not(loom))]
pub(crate) use queues::{
    count, end, help, offline, online, queued, run_hard, run_threaded, without_cpus,
};

use crate::sync::counters::{self, Line};
use crate::sync::{
    AtomicPtr, AtomicU32, Backoff, Link, Ordering, Rcuwait, const_unless_loom, forks,
};

/// Queued, and not yet begun.
const PENDING: u32 = 1;
/// Queued or running.
const BUSY: u32 = 2;
/// Runs in the handler, whatever the mode of other items is. (`IRQ_WORK_HARD_IRQ`.)
const HARD: u32 = 8;
/// Lowest bit of the number of forks.
const FORKS: u32 = 16;

/// Returns `flags` with the number of forks of this process.
fn of_this_process(flags: u32) -> u32 {
    flags % FORKS + forks() * FORKS
}

/// An item of work for a CPU. It is queued at most once at a time. But while it runs it may be
/// queued on another CPU, and then runs on both.
pub struct IrqWork {
    flags: AtomicU32,
    next: UnsafeCell<*mut IrqWork>,
    function: fn(&IrqWork),
    waiter: Rcuwait,
    /// Read at each touch by a runner, and written by the thread that frees the item: shows loom
    /// that these are ordered.
    #[cfg(loom)]
    pub(crate) life: loom::cell::UnsafeCell<()>,
}

// SAFETY: all fields are atomics, except for `next`, which belongs to the thread that claimed the
// item, and then to the item's list.
unsafe impl Sync for IrqWork {}
// SAFETY: as for `Sync`; nothing is tied to a thread.
unsafe impl Send for IrqWork {}

// SAFETY: `next` is used for lists only, and a claimed item is on one list at most.
unsafe impl Link for IrqWork {
    unsafe fn link(item: *mut IrqWork) -> *mut *mut IrqWork {
        // SAFETY: the caller guarantees that `item` is valid.
        unsafe { UnsafeCell::raw_get(&raw const (*item).next) }
    }
}

impl IrqWork {
    const_unless_loom! {
        /// Makes an idle item that runs `function`, which must not wait for anything that the
        /// interrupted code may hold.
        #[must_use]
        pub const fn new(function: fn(&IrqWork)) -> IrqWork {
            IrqWork {
                flags: AtomicU32::new(0),
                next: UnsafeCell::new(ptr::null_mut()),
                function,
                waiter: Rcuwait::new(),
                #[cfg(loom)]
                life: loom::cell::UnsafeCell::new(()),
            }
        }
    }

    /// Makes an item idle if its flags are from before a fork.
    fn renew(&self) {
        // Not in the models, which do not fork.
        #[cfg(not(loom))]
        {
            let flags = self.flags.load(Ordering::Relaxed);
            if flags != of_this_process(flags) {
                let idle = of_this_process(flags & HARD);
                // Fails if another thread was faster.
                let _ =
                    self.flags.compare_exchange(flags, idle, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Returns whether the item is queued or running.
    pub fn is_busy(&self) -> bool {
        self.renew();
        // Acquire: pairs with the Release in `run`, so that a thread that sees the function done
        // sees its effects.
        self.flags.load(Ordering::Acquire) & BUSY != 0
    }

    /// Returns whether the item is queued and its function not yet begun.
    pub fn is_pending(&self) -> bool {
        self.renew();
        self.flags.load(Ordering::Relaxed) & PENDING != 0
    }

    /// Claims the item: the caller must then queue it. Returns false if the item is queued already;
    /// its function will see what the caller did before.
    pub(crate) fn claim(&self) -> bool {
        self.renew();
        // The item, and then the list.
        counters::wrote(Line::IrqWork, 2);
        // Release: pairs with the Acquire in `run`. Acquire: pairs with the Release in `run`, so
        // that the last run is done with `next`.
        self.flags.fetch_or(PENDING | BUSY, Ordering::AcqRel) & PENDING == 0
    }

    /// Waits until the item is not busy: by spinning if `spins`, else by sleeping.
    pub(crate) fn wait_until_idle(&self, spins: bool) {
        if !spins {
            return self.waiter.wait_until(|| !self.is_busy());
        }
        let mut backoff = Backoff::new();
        while self.is_busy() {
            backoff.pause();
        }
    }

    /// Waits until no runner is at the item. The item must not be busy.
    pub(crate) fn wait_until_left<'a>(&self, runners: impl IntoIterator<Item = &'a Runner>) {
        for runner in runners {
            let mut backoff = Backoff::new();
            while runner.is_at(self) {
                backoff.pause();
            }
        }
    }

    /// Runs a claimed item that was taken from its list, and wakes its waiter.
    ///
    /// # Safety
    /// The item stays valid until it is not busy and no runner is at it.
    pub(crate) unsafe fn run(item: *mut IrqWork, runner: &Runner) {
        runner.enter(item);
        // SAFETY: the caller guarantees that the item is valid while a runner is at it, and
        // `runner` is.
        unsafe {
            // Acquire: pairs with the Release in `claim`, also in claims that found the item
            // PENDING. (The kernel has a plain store and a full barrier here; our memory model
            // needs the read of the read-modify-write.)
            // Release: a thread that sees BUSY cleared, even by another runner, sees that this
            // runner is at the item.
            let flags = (*item).flags.fetch_and(!PENDING, Ordering::AcqRel) & !PENDING;
            ((*item).function)(&*item);
            // Release: pairs with the Acquire in `is_busy`. Fails if the item was claimed again,
            // which then stays busy.
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

/// A runner of items, one at a time: the thread of a CPU, or, once that has ended, the thread that
/// takes the CPU offline. All threads that run items in place of CPU threads are one runner
/// together.
pub(crate) struct Runner {
    /// The item that is being run, or null.
    at: AtomicPtr<IrqWork>,
}

impl Runner {
    const_unless_loom! {
        pub(crate) const fn new() -> Runner {
            Runner { at: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Publishes that the runner is at an item. Several threads that are one runner take turns.
    pub(crate) fn enter(&self, item: *mut IrqWork) {
        // The Release on the item's flags in `run` publishes it. A read-modify-write, even where
        // the runner is a single thread, continues the release sequence of the store in `leave`: a
        // thread that finds the runner at another item sees that it has left the previous one.
        // Acquire: pairs with the Release in `leave`, so that a thread that sees this one leave
        // its item also sees that those before it left theirs. (The fence in `Rcuwait::wake` would
        // do that as well, but ThreadSanitizer knows no fences.)
        let enter = || {
            self.at.compare_exchange(ptr::null_mut(), item, Ordering::Acquire, Ordering::Relaxed)
        };
        let mut backoff = Backoff::new();
        while enter().is_err() {
            backoff.pause();
        }
    }

    pub(crate) fn leave(&self) {
        // Release: pairs with the Acquire in `is_at`.
        self.at.store(ptr::null_mut(), Ordering::Release);
    }

    /// Returns whether the runner is at an item, which must not be busy.
    pub(crate) fn is_at(&self, item: &IrqWork) -> bool {
        // Acquire: pairs with the Release in `leave`, after which the last touch is over.
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
    use crate::irq::thread::{self, IrqMode, MAX_CPUS};
    use crate::os;
    use crate::percpu;
    use crate::sync::{AtomicU32, Backoff, CpuLists, Ordering, Taken, count_fork, forks};

    /// Items for the handler, and for the loop, of each CPU's thread. (`raised_list` and
    /// `lazy_list` of the kernel.)
    static RAISED: CpuLists<IrqWork, MAX_CPUS> = CpuLists::new();
    static THREADED: CpuLists<IrqWork, MAX_CPUS> = CpuLists::new();

    /// Number of items queued so far.
    static QUEUED: AtomicU64 = AtomicU64::new(0);

    /// Returns the number of items queued so far. May be called in any context.
    pub(crate) fn count() -> u64 {
        QUEUED.load(Ordering::Relaxed)
    }

    /// The runners of the CPUs.
    static RUNNERS: [Runner; MAX_CPUS] = [const { Runner::new() }; MAX_CPUS];
    /// The runner of items that no CPU's thread runs: threads that wait for an item run them while
    /// no CPU is online, and the maker runs those of a CPU that does not get to its items.
    static BOOT_RUNNER: Runner = Runner::new();

    /// An item that a thread is queueing.
    struct Queueing {
        item: *const IrqWork,
        /// The queueing that was interrupted by the handler that does this one, or null.
        outer: *const Queueing,
    }

    impl Queueing {
        /// Returns this thread's innermost queueing. A handler that interrupts it may fork: in the
        /// child the same thread continues the queueing.
        fn first() -> *const Queueing {
            arch::locals().queueing.load(Ordering::Relaxed).cast()
        }

        fn set_first(first: *const Queueing) {
            arch::locals().queueing.store(first.cast_mut().cast(), Ordering::Relaxed);
        }

        /// Runs `body`, which claims an item and adds it to a list, with the item on this thread's
        /// list.
        fn run<R>(item: *const IrqWork, body: impl FnOnce(&Queueing) -> R) -> R {
            let outer = Queueing::first();
            let queueing = Queueing { item, outer };
            // A handler that interrupts this leaves the list as it found it.
            Queueing::set_first(&raw const queueing);
            // Towards handlers on this thread: the item is claimed and added between the fences.
            compiler_fence(Ordering::SeqCst);
            let result = body(&queueing);
            compiler_fence(Ordering::SeqCst);
            Queueing::set_first(outer);
            result
        }

        /// Returns the queueings of this thread: `first`, and those that it interrupted.
        fn all<'a>(first: *const Queueing) -> impl Iterator<Item = &'a Queueing> {
            // SAFETY: entries stay on the stack of their thread until they have left the list.
            let entry = |entry: *const Queueing| unsafe { entry.as_ref() };
            iter::successors(entry(first), move |queueing| entry(queueing.outer))
        }

        /// Returns, in the child of a fork that interrupted this queueing, whether the item is
        /// claimed and on no list. Then another thread had claimed it, or had taken it from its
        /// list. Makes such an item idle.
        #[cold]
        fn was_lost(&self) -> bool {
            // No handler may find the list empty, or the item idle and on the list.
            let _masked = os::block_signals();
            // SAFETY: the caller of `queue_raw` guarantees that the item is valid.
            let flags = unsafe { &(*self.item).flags };
            // An interrupted queueing of the same item continues with it.
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
                    // SAFETY: an item that was on a list stays valid until it is run.
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
        /// Marks the item to run in the signal handler of the CPU's thread, whatever `HAYLOFT_IRQ`
        /// says, provided that there is a signal.
        #[must_use]
        pub const fn hard(mut self) -> IrqWork {
            self.flags = AtomicU32::new(HARD);
            self
        }

        /// Queues the item on the CPU that this thread runs on, or on another if that is offline.
        /// Returns false if the item is queued already. May be called in any context. An item that
        /// is queued before the CPU threads are started (see [`cpu`](crate::cpu)) stays queued
        /// until they are, or until a thread waits for an item.
        pub fn queue(&'static self) -> bool {
            self.queue_on(percpu::cpu())
        }

        /// As [`IrqWork::queue`], on `cpu`, or on another CPU if that is offline.
        pub fn queue_on(&'static self, cpu: usize) -> bool {
            // SAFETY: a static item outlives its runs.
            unsafe { IrqWork::queue_raw(self, cpu) }
        }

        /// As [`IrqWork::queue_on`], for an item that is not static.
        ///
        /// # Safety
        /// The item stays where it is until [`IrqWork::sync`] has returned and nobody has queued it
        /// again. This also holds in the child of a fork, where the first thread that waits for any
        /// item runs the items that were on a list. So an item on the stack of a thread must not be
        /// queued while another thread forks.
        pub unsafe fn queue_raw(item: *const IrqWork, cpu: usize) -> bool {
            // SAFETY: the caller guarantees that the item stays valid until it has run.
            let queue = || unsafe {
                let told = (*item).claim().then(|| {
                    fault::point(Place::WorkClaimed);
                    // Relaxed: a number for display, which guards nothing.
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

        /// Waits until the item is not busy. Afterwards nobody touches it, unless it is queued
        /// again. If a CPU does not begin the item within a second, as where a real-time thread
        /// never leaves that CPU, another thread runs it.
        ///
        /// Spins if the item runs in a handler. If it runs in a loop, sleeps in a slot for one
        /// waiter: then callers for one item must take turns (see `Rcuwait`), and must not be in a
        /// handler.
        ///
        /// # Panics
        /// In debug builds, if two threads sleep here at once for one item.
        pub fn sync(&self) {
            // Nobody else runs items that are queued while no CPU is online.
            let mut backoff = Backoff::new();
            while self.is_busy() && THREADED.is_boot() {
                run_boot();
                backoff.pause();
            }
            let wait = || self.wait_until_idle(self.is_for_handler());
            // The item's CPU may be one that a real-time thread never leaves.
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

    /// Runs items. Does not unwind: if a function panics, the process ends, rather than wait for
    /// the function's item forever.
    extern "C" fn run(runner: &Runner, items: Taken<IrqWork>) {
        for item in items {
            // SAFETY: items on lists are claimed, and the threads that queued them keep them valid.
            unsafe { IrqWork::run(item, runner) };
        }
    }

    /// Runs the items that were queued while no CPU was online.
    fn run_boot() {
        for lists in [&RAISED, &THREADED] {
            run(&BOOT_RUNNER, lists.boot().take());
        }
    }

    /// Runs the items that the thread of a CPU does not get to.
    pub(crate) fn help(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            run(&BOOT_RUNNER, lists.of(cpu).take());
        }
    }

    /// Runs the items for the handler of a CPU's thread.
    pub(crate) fn run_hard(cpu: usize) {
        run(&RUNNERS[cpu], RAISED.of(cpu).take());
    }

    /// Runs the items for the loop of a CPU's thread.
    pub(crate) fn run_threaded(cpu: usize) {
        run(&RUNNERS[cpu], THREADED.of(cpu).take());
    }

    /// Opens the lists of a CPU that may have a thread now, and takes over the items that were
    /// queued while no CPU was online.
    pub(crate) fn online(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            lists.of(cpu).open();
            for item in lists.boot().close() {
                // SAFETY: the thread that queued an item keeps it valid until it has run.
                if let Some(cpu) = unsafe { lists.add(cpu, item) } {
                    thread::raise(cpu);
                }
            }
        }
    }

    /// Resets the lists in a fork child, which has no CPUs: queued items run as before any CPU was
    /// online.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread.
    pub(crate) unsafe fn without_cpus() {
        let runners = RUNNERS.iter().chain([&BOOT_RUNNER]);
        runners.for_each(|runner| runner.at.store(ptr::null_mut(), Ordering::Relaxed));
        count_fork();
        let keep = |item: *const IrqWork| {
            // SAFETY: items on lists, and those that this thread is queueing, are valid. The caller
            // guarantees that there is no other thread.
            let flags = unsafe { &(*item).flags };
            flags.store(of_this_process(flags.load(Ordering::Relaxed)), Ordering::Relaxed);
        };
        for lists in [&RAISED, &THREADED] {
            lists.without_cpus(|item| keep(item));
        }
        for queueing in Queueing::all(Queueing::first()) {
            // SAFETY: items that this thread is queueing are valid. The caller guarantees that
            // there is no other thread.
            let flags = unsafe { &(*queueing.item).flags };
            if flags.load(Ordering::Relaxed) & PENDING == 0 {
                // Another thread was running it.
                flags.fetch_and(HARD, Ordering::Relaxed);
            }
            keep(queueing.item);
        }
    }

    /// The queues of a CPU and the item that its runner is at, at the time of the call.
    #[derive(Debug)]
    pub(crate) struct Queued {
        /// Whether an item waits for the handler.
        pub(crate) raised: bool,
        /// Whether an item waits for the loop.
        pub(crate) threaded: bool,
        /// The item that is being run, or null. It may be freed by now.
        pub(crate) at: *const IrqWork,
    }

    /// Returns the state of a CPU's queues.
    pub(crate) fn queued(cpu: usize) -> Queued {
        Queued {
            raised: !RAISED.of(cpu).is_empty(),
            threaded: !THREADED.of(cpu).is_empty(),
            at: RUNNERS[cpu].at.load(Ordering::Relaxed),
        }
    }

    /// Closes the lists of a CPU and runs the items that were on them. The CPU's thread has ended.
    pub(crate) fn offline(cpu: usize) {
        for lists in [&RAISED, &THREADED] {
            run(&RUNNERS[cpu], lists.of(cpu).close());
        }
    }
    /// Reopens the lists that serve while no CPU is online, closes those of all CPUs, and runs the
    /// items that were on these. All threads of CPUs have ended.
    pub(crate) fn end() {
        for lists in [&RAISED, &THREADED] {
            lists.boot().open();
        }
        (0..MAX_CPUS).for_each(offline);
    }
}
