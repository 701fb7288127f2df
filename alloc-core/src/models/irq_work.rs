//! Irq work, deferred frees, and CPUs that go offline.
//!
//! Each CPU's thread is played by a loom thread that runs the queued items when it is notified, and
//! by the main thread, which runs the rest at the end, as the loop of a CPU would.

use core::ptr;

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::sync::{Arc, Mutex};
use std::boxed::Box;

use super::{loom_finds, race, race_of};
use crate::irq::work::{IrqWork, Runner};
use crate::path::deferred::Deferred;
use crate::sync::{Context, CpuLists};

const CPUS: usize = 2;

/// An item that records what it saw. The item is the first field, so that its address is that of
/// the job.
#[repr(C)]
struct Job {
    work: IrqWork,
    written: AtomicUsize,
    seen: AtomicUsize,
}

fn record_writes(work: &IrqWork) {
    // SAFETY: the item is the first field of a `Job`.
    let job = unsafe { &*core::ptr::from_ref(work).cast::<Job>() };
    job.seen.fetch_or(job.written.load(Relaxed), Relaxed);
}

/// Two CPUs with their lists and runners, and an item to queue.
struct Cpus {
    lists: CpuLists<IrqWork, CPUS>,
    runners: [Runner; CPUS],
    job: Job,
}

// SAFETY: all threads may use items and lists.
unsafe impl Send for Cpus {}
// SAFETY: as for `Send`.
unsafe impl Sync for Cpus {}

impl Cpus {
    fn new() -> Arc<Cpus> {
        let lists = CpuLists::new();
        for cpu in 0..CPUS {
            lists.of(cpu).open();
        }
        assert!(lists.boot().close().next().is_none());
        let (written, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let job = Job { work: IrqWork::new(record_writes), written, seen };
        Arc::new(Cpus { lists, runners: [Runner::new(), Runner::new()], job })
    }

    fn queue(&self, cpu: usize) -> bool {
        let claimed = self.job.work.claim();
        if claimed {
            // SAFETY: the CPUs outlive their threads.
            unsafe { self.lists.add(cpu, (&raw const self.job.work).cast_mut()) };
        }
        claimed
    }

    /// Does what the thread of a CPU does when it is notified.
    fn run(&self, cpu: usize) {
        for item in self.lists.of(cpu).take() {
            // SAFETY: the item is a claimed one of these CPUs.
            unsafe { IrqWork::run(item, &self.runners[cpu]) };
        }
    }

    /// Takes a CPU offline whose thread has ended.
    fn down(&self, cpu: usize) {
        for item in self.lists.of(cpu).close() {
            // SAFETY: the item is a claimed one of these CPUs.
            unsafe { IrqWork::run(item, &self.runners[cpu]) };
        }
    }

    fn sync(&self) {
        self.job.work.wait_until_idle(false);
        self.job.work.wait_until_left(&self.runners);
    }
}

/// Two threads write and queue while the CPU runs the item: the last run sees everything that was
/// written before any queueing, whether that was accepted or not.
#[test]
fn queued_work_sees_earlier_writes() {
    loom::model(|| {
        let cpus = Cpus::new();
        let shared = cpus.clone();
        race_of(3, move |number| {
            if number == 3 {
                shared.run(0);
            } else {
                shared.job.written.fetch_or(number, Relaxed);
                shared.queue(0);
            }
        });
        cpus.run(0);
        assert!(!cpus.job.work.is_busy() && !cpus.job.work.is_pending());
        assert_eq!(cpus.job.seen.load(Relaxed), 3);
    });
}

/// Frees the item after waiting for it: the runner's last touch is over then.
fn free_after(wait: fn(&Cpus)) {
    let cpus = Cpus::new();
    cpus.job.written.store(1, Relaxed);
    cpus.queue(0);
    race(move |number| {
        if number == 1 {
            cpus.run(0);
        } else {
            wait(&cpus);
            assert_eq!(cpus.job.seen.load(Relaxed), 1);
            cpus.job.work.life.with_mut(|_| ());
        }
    });
}

#[test]
fn work_may_be_freed_after_sync() {
    loom::model(|| free_after(Cpus::sync));
}

/// Waits for BUSY alone, as the kernel once did: the runner wakes its waiter through an item that
/// is gone.
#[test]
fn waiting_until_idle_alone_is_too_short() {
    loom_finds(
        "Causality violation",
        "models::irq_work::waiting_until_idle_alone_is_too_short",
        || {
            free_after(|cpus| {
                cpus.job.work.wait_until_idle(true);
            });
        },
    );
}

/// Queues an item on another CPU while it runs, waits for that run, and frees it.
fn free_after_two_runs(wait: fn(&Cpus)) {
    let cpus = Cpus::new();
    cpus.queue(0);
    race(move |number| {
        if number == 1 {
            cpus.run(0);
        } else if cpus.queue(1) {
            cpus.run(1);
            wait(&cpus);
            cpus.job.work.life.with_mut(|_| ());
        }
    });
}

#[test]
fn work_run_by_two_cpus_may_be_freed_after_sync() {
    loom::model(|| free_after_two_runs(Cpus::sync));
}

/// Waits for the CPU that had the item last: the first runner touches an item that is gone.
#[test]
fn waiting_for_the_last_runner_alone_is_too_short() {
    let test = "models::irq_work::waiting_for_the_last_runner_alone_is_too_short";
    loom_finds("Causality violation", test, || {
        free_after_two_runs(|cpus| {
            cpus.job.work.wait_until_idle(false);
            cpus.job.work.wait_until_left(&cpus.runners[1..]);
        });
    });
}

/// Two destroyers wait for the same CPU's work at once, with the lock that cures this or without.
fn two_destroyers(mutex: Option<Mutex<()>>) {
    let cpus = Cpus::new();
    cpus.queue(0);
    race_of(3, move |number| {
        if number == 1 {
            cpus.run(0);
        } else {
            let _turn = mutex.as_ref().map(|mutex| mutex.lock().unwrap());
            // Does not wait until the runner has left: loom knows no fairness among threads that
            // spin.
            cpus.job.work.wait_until_idle(false);
        }
    });
}

#[test]
fn serialised_barriers_return() {
    loom::model(|| two_destroyers(Some(Mutex::new(()))));
}

/// The kernel's bug: `kmem_cache_destroy` synced without a lock.
#[test]
fn unserialised_barriers_hang() {
    loom_finds("deadlock", "models::irq_work::unserialised_barriers_hang", || {
        two_destroyers(None);
    });
}

/// An item is queued on a CPU that goes offline, and waited for at the same time: it runs there, or
/// on the CPU that it went to.
#[test]
fn work_of_an_offline_cpu_runs() {
    loom::model(|| {
        let cpus = Cpus::new();
        race(move |number| {
            if number == 1 {
                cpus.down(1);
            } else {
                cpus.job.written.store(1, Relaxed);
                cpus.queue(1);
                cpus.run(0);
                cpus.sync();
                assert_eq!(cpus.job.seen.load(Relaxed), 1);
            }
        });
    });
}

/// Two threads take turns as one runner, as they do before there are CPU threads. A third frees the
/// first item once that is done with and the runner is not at it, also where it sees only the
/// second thread leave. Without the Acquire in `enter`, loom finds the free unordered.
///
/// Items do not run here: the fence of each run would order the two threads as well. The third
/// looks once instead of waiting, as loom knows no fairness among threads that spin.
#[test]
fn runner_that_threads_share_is_left_by_all() {
    loom::model(|| {
        let works = Arc::new([IrqWork::new(|_| ()), IrqWork::new(|_| ())]);
        let (runner, is_done) = (Runner::new(), AtomicBool::new(false));
        race_of(3, move |number| {
            let first = &works[0];
            if number == 3 {
                if is_done.load(Acquire) && !runner.is_at(first) {
                    first.life.with_mut(|_| ());
                }
                return;
            }
            runner.enter(ptr::from_ref(&works[number - 1]).cast_mut());
            if number == 1 {
                is_done.store(true, Release);
                first.life.with(|_| ());
            }
            runner.leave();
        });
    });
}

/// A block that can be deferred: a word for the list, and a number.
#[repr(C)]
struct Block {
    link: usize,
    number: usize,
}

/// Deferred frees of two CPUs, the irq work that frees them, and a bit for each number that was
/// freed.
#[repr(C)]
struct Frees {
    works: [IrqWork; CPUS],
    deferred: Deferred<CPUS>,
    freed: AtomicUsize,
}

// SAFETY: blocks belong to lists, not to threads.
unsafe impl Send for Frees {}
// SAFETY: as for `Send`.
unsafe impl Sync for Frees {}

fn flush<const CPU: usize>(work: &IrqWork) {
    // SAFETY: the item of that CPU, in the array that is the first field of `Frees`.
    let frees = unsafe { &*core::ptr::from_ref(work).sub(CPU).cast::<Frees>() };
    frees.deferred.flush(Context::WAITING, Some(CPU), |block| frees.free(block));
}

impl Frees {
    fn new() -> Arc<Frees> {
        let works = [IrqWork::new(flush::<0>), IrqWork::new(flush::<1>)];
        let (deferred, freed) = (Deferred::new(), AtomicUsize::new(0));
        for cpu in 0..CPUS {
            deferred.online(Context::WAITING, cpu, |_| unreachable!());
        }
        Arc::new(Frees { works, deferred, freed })
    }

    /// Defers the block of this number on a CPU. Returns the CPU whose irq work must be queued, if
    /// any.
    fn defer(&self, cpu: usize, number: usize) -> Option<usize> {
        let block = Box::into_raw(Box::new(Block { link: 0, number }));
        // SAFETY: a block that was just made, with room for the link.
        unsafe { self.deferred.add(cpu, block.cast()) }
    }

    /// Queues the irq work of a CPU.
    fn queue(&self, cpus: &Cpus, cpu: usize) {
        let work = &raw const self.works[cpu];
        if self.works[cpu].claim() {
            // SAFETY: the frees outlive their use by the CPUs.
            unsafe { cpus.lists.add(cpu, work.cast_mut()) };
        }
    }

    fn free(&self, block: *mut u8) {
        // SAFETY: `defer` made the block from a `Box`.
        let block = unsafe { Box::from_raw(block.cast::<Block>()) };
        let freed = self.freed.fetch_or(1 << block.number, AcqRel);
        assert_eq!(freed & 1 << block.number, 0, "freed twice");
    }

    fn barrier(&self, cpu: usize) {
        self.deferred.barrier(Context::WAITING, Some(cpu), |block| self.free(block));
    }

    fn is_freed(&self, number: usize) -> bool {
        self.freed.load(Relaxed) & 1 << number != 0
    }
}

/// Two CPUs defer on one list while a third thread flushes it: each block is freed once.
#[test]
fn deferred_blocks_are_freed_once() {
    loom::model(|| {
        let frees = Frees::new();
        let shared = frees.clone();
        race_of(3, move |number| {
            if number == 3 {
                flush::<0>(&shared.works[0]);
            } else {
                shared.defer(0, number);
            }
        });
        frees.barrier(0);
        assert!(frees.is_freed(1) && frees.is_freed(2));
    });
}

/// A free is deferred on a CPU that goes offline: the walk over the remaining CPUs finds it, or it
/// was freed.
#[test]
fn deferred_free_of_an_offline_cpu_is_found() {
    loom::model(|| {
        let frees = Frees::new();
        let shared = frees.clone();
        race(move |number| {
            if number == 1 {
                shared.deferred.offline(Context::WAITING, 1, |block| shared.free(block));
            } else {
                shared.defer(1, 1);
            }
        });
        frees.barrier(0);
        assert!(frees.is_freed(1));
    });
}

/// A CPU goes offline with a free deferred on it, whose work is being queued, while another thread
/// waits for all deferred frees. Both hold the hotplug lock, as `cpu::down` and `heap::barrier`
/// do.
#[test]
fn barrier_waits_for_a_cpu_that_goes_offline() {
    loom::model(|| {
        let frees = Frees::new();
        let cpus = Cpus::new();
        let online = Mutex::new(CPUS);
        race(move |number| {
            if number == 1 {
                let mut online = online.lock().unwrap();
                frees.deferred.offline(Context::WAITING, 1, |block| frees.free(block));
                *online = 1;
                // The last round of its thread.
                cpus.run(1);
                cpus.down(1);
                return;
            }
            if let Some(cpu) = frees.defer(1, 1) {
                frees.queue(&cpus, cpu);
            }
            let online = online.lock().unwrap();
            for cpu in 0..*online {
                frees.barrier(cpu);
                cpus.run(cpu);
                frees.works[cpu].wait_until_idle(false);
                frees.works[cpu].wait_until_left(&cpus.runners);
            }
            assert!(frees.is_freed(1), "a deferred block was missed");
        });
    });
}

/// With a mask to check instead of a list that closes: a thread that checked before adds after, and
/// no walk ever gets there.
#[test]
fn list_that_stays_open_is_missed() {
    let test = "models::irq_work::list_that_stays_open_is_missed";
    loom_finds("a deferred block was missed", test, || {
        let frees = Frees::new();
        let online = Arc::new(AtomicBool::new(true));
        let shared = frees.clone();
        race(move |number| {
            if number == 1 {
                online.store(false, Release);
                shared.barrier(1);
            } else {
                let cpu = usize::from(online.load(Acquire));
                shared.defer(cpu, 1);
            }
        });
        frees.barrier(0);
        assert!(frees.is_freed(1), "a deferred block was missed");
    });
}

/// A thread is stopped between adding to the list and queueing the work. The next one finds a list
/// that is not empty, queues nothing, and calls the barrier.
fn stopped_adder(barrier: fn(&Frees, &Cpus)) {
    let frees = Frees::new();
    let cpus = Cpus::new();
    race(move |number| {
        let queue = frees.defer(0, number);
        if number == 1 {
            // Stopped forever.
            return;
        }
        if let Some(cpu) = queue {
            frees.queue(&cpus, cpu);
        }
        barrier(&frees, &cpus);
        assert!(frees.is_freed(2), "the barrier missed a block");
        cpus.run(0);
        frees.barrier(0);
    });
}

#[test]
fn barrier_empties_the_list_itself() {
    loom::model(|| {
        stopped_adder(|frees, cpus| {
            frees.barrier(0);
            cpus.run(0);
            frees.works[0].wait_until_idle(false);
        });
    });
}

#[test]
fn barrier_that_only_syncs_misses_a_block() {
    let test = "models::irq_work::barrier_that_only_syncs_misses_a_block";
    loom_finds("the barrier missed", test, || {
        stopped_adder(|frees, cpus| {
            cpus.run(0);
            frees.works[0].wait_until_idle(false);
        });
    });
}
