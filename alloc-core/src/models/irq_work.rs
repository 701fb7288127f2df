//! Irq work, deferred frees, and CPUs that go offline.
//!
//! Each CPU's thread is played by a loom thread that runs the queued items when it is notified, and
//! by the main thread, which runs the rest at the end, as the loop of a CPU would.

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::sync::{Arc, Mutex};
use std::boxed::Box;

use super::{loom_finds, race, race_of};
use crate::deferred::Deferred;
use crate::irq_work::{IrqWork, Runner};
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

fn look(work: &IrqWork) {
    // SAFETY: the item is the first field of a `Job`.
    let job = unsafe { &*core::ptr::from_ref(work).cast::<Job>() };
    job.seen.fetch_or(job.written.load(Relaxed), Relaxed);
}

/// A machine of two CPUs.
struct Machine {
    lists: CpuLists<IrqWork, CPUS>,
    runners: [Runner; CPUS],
    job: Job,
}

// SAFETY: all threads may use items and lists.
unsafe impl Send for Machine {}
// SAFETY: as for `Send`.
unsafe impl Sync for Machine {}

impl Machine {
    fn new() -> Arc<Machine> {
        let lists = CpuLists::new();
        for cpu in 0..CPUS {
            lists.of(cpu).open();
        }
        assert!(lists.boot().close().next().is_none());
        let (written, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let job = Job { work: IrqWork::new(look), written, seen };
        Arc::new(Machine { lists, runners: [Runner::new(), Runner::new()], job })
    }

    fn queue(&self, cpu: usize) -> bool {
        let claimed = self.job.work.claim();
        if claimed {
            // SAFETY: the machine outlives its threads.
            unsafe { self.lists.add(cpu, (&raw const self.job.work).cast_mut()) };
        }
        claimed
    }

    /// Does what the thread of a CPU does when it is notified.
    fn run(&self, cpu: usize) {
        for item in self.lists.of(cpu).take() {
            // SAFETY: the item is a claimed one of this machine.
            unsafe { IrqWork::run(item, &self.runners[cpu]) };
        }
    }

    /// Takes a CPU offline whose thread has ended.
    fn down(&self, cpu: usize) {
        for item in self.lists.of(cpu).close() {
            // SAFETY: the item is a claimed one of this machine.
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
fn queued_work_sees_what_came_before() {
    loom::model(|| {
        let machine = Machine::new();
        let shared = machine.clone();
        race_of(3, move |number| {
            if number == 3 {
                shared.run(0);
            } else {
                shared.job.written.fetch_or(number, Relaxed);
                shared.queue(0);
            }
        });
        machine.run(0);
        assert!(!machine.job.work.is_busy() && !machine.job.work.is_pending());
        assert_eq!(machine.job.seen.load(Relaxed), 3);
    });
}

/// Frees the item after waiting for it: the runner's last touch is over then.
fn free_after(wait: fn(&Machine)) {
    let machine = Machine::new();
    machine.job.written.store(1, Relaxed);
    machine.queue(0);
    race(move |number| {
        if number == 1 {
            machine.run(0);
        } else {
            wait(&machine);
            assert_eq!(machine.job.seen.load(Relaxed), 1);
            machine.job.work.life.with_mut(|_| ());
        }
    });
}

#[test]
fn waited_for_work_may_be_freed() {
    loom::model(|| free_after(Machine::sync));
}

/// Waits for BUSY alone, as the kernel once did: the runner wakes its waiter through an item that
/// is gone.
#[test]
fn work_not_busy_may_not_be_freed() {
    loom_finds("Causality violation", "models::irq_work::work_not_busy_may_not_be_freed", || {
        free_after(|machine| {
            machine.job.work.wait_until_idle(true);
        });
    });
}

/// Queues an item on another CPU while it runs, waits for that run, and frees it.
fn free_after_two_runs(wait: fn(&Machine)) {
    let machine = Machine::new();
    machine.queue(0);
    race(move |number| {
        if number == 1 {
            machine.run(0);
        } else if machine.queue(1) {
            machine.run(1);
            wait(&machine);
            machine.job.work.life.with_mut(|_| ());
        }
    });
}

#[test]
fn work_of_two_runners_may_be_freed() {
    loom::model(|| free_after_two_runs(Machine::sync));
}

/// Waits for the CPU that had the item last: the first runner touches an item that is gone.
#[test]
fn work_left_by_its_last_runner_may_not_be_freed() {
    let test = "models::irq_work::work_left_by_its_last_runner_may_not_be_freed";
    loom_finds("Causality violation", test, || {
        free_after_two_runs(|machine| {
            machine.job.work.wait_until_idle(false);
            machine.job.work.wait_until_left(&machine.runners[1..]);
        });
    });
}

/// Two destroyers wait for the same CPU's work at once, with the lock that cures this or without.
fn two_destroyers(mutex: Option<Mutex<()>>) {
    let machine = Machine::new();
    machine.queue(0);
    race_of(3, move |number| {
        if number == 1 {
            machine.run(0);
        } else {
            let _turn = mutex.as_ref().map(|mutex| mutex.lock().unwrap());
            // Does not wait until the runner has left: loom knows no fairness among threads that
            // spin.
            machine.job.work.wait_until_idle(false);
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
fn work_outlives_its_cpu() {
    loom::model(|| {
        let machine = Machine::new();
        race(move |number| {
            if number == 1 {
                machine.down(1);
            } else {
                machine.job.written.store(1, Relaxed);
                machine.queue(1);
                machine.run(0);
                machine.sync();
                assert_eq!(machine.job.seen.load(Relaxed), 1);
            }
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
    fn queue(&self, machine: &Machine, cpu: usize) {
        let work = &raw const self.works[cpu];
        if self.works[cpu].claim() {
            // SAFETY: the frees outlive their use by the machine.
            unsafe { machine.lists.add(cpu, work.cast_mut()) };
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
fn nothing_is_left_behind_on_a_cpu() {
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
fn a_cpu_that_goes_is_waited_for() {
    loom::model(|| {
        let frees = Frees::new();
        let machine = Machine::new();
        let online = Mutex::new(CPUS);
        race(move |number| {
            if number == 1 {
                let mut online = online.lock().unwrap();
                frees.deferred.offline(Context::WAITING, 1, |block| frees.free(block));
                *online = 1;
                // The last round of its thread.
                machine.run(1);
                machine.down(1);
                return;
            }
            if let Some(cpu) = frees.defer(1, 1) {
                frees.queue(&machine, cpu);
            }
            let online = online.lock().unwrap();
            for cpu in 0..*online {
                frees.barrier(cpu);
                machine.run(cpu);
                frees.works[cpu].wait_until_idle(false);
                frees.works[cpu].wait_until_left(&machine.runners);
            }
            assert!(frees.is_freed(1), "left behind");
        });
    });
}

/// With a mask to check instead of a list that closes: a thread that checked before adds after, and
/// no walk ever gets there.
#[test]
fn a_list_that_stays_open_is_forgotten() {
    let test = "models::irq_work::a_list_that_stays_open_is_forgotten";
    loom_finds("left behind", test, || {
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
        assert!(frees.is_freed(1), "left behind");
    });
}

/// A thread is stopped between adding to the list and queueing the work. The next one finds a list
/// that is not empty, queues nothing, and calls the barrier.
fn stopped_adder(barrier: fn(&Frees, &Machine)) {
    let frees = Frees::new();
    let machine = Machine::new();
    race(move |number| {
        let queue = frees.defer(0, number);
        if number == 1 {
            // Stopped forever.
            return;
        }
        if let Some(cpu) = queue {
            frees.queue(&machine, cpu);
        }
        barrier(&frees, &machine);
        assert!(frees.is_freed(2), "slipped past the barrier");
        machine.run(0);
        frees.barrier(0);
    });
}

#[test]
fn the_barrier_empties_the_list_itself() {
    loom::model(|| {
        stopped_adder(|frees, machine| {
            frees.barrier(0);
            machine.run(0);
            frees.works[0].wait_until_idle(false);
        });
    });
}

#[test]
fn a_barrier_that_only_syncs_is_slipped_past() {
    let test = "models::irq_work::a_barrier_that_only_syncs_is_slipped_past";
    loom_finds("slipped past", test, || {
        stopped_adder(|frees, machine| {
            machine.run(0);
            frees.works[0].wait_until_idle(false);
        });
    });
}
