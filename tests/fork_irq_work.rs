//! Forks while irq work is queued or runs. In the child, which lacks the threads that did so, each
//! item can be queued and waited for.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use hayloft_core::cpu;
use hayloft_core::fault::{self, Place};
use hayloft_core::irq_work::IrqWork;
use tests::entry_points::Hayloft;
use tests::fork::{
    FORKED, IN_HANDLER, IS_FORKING, STOPPED, exercise_in_child, fork, fork_in_handler, is_child,
    stop_until_forked, wait_for,
};
use tests::scenario::{in_every_mode, with_decay};
use tests::slow_paths::{handle_sigusr1, raise_sigusr1};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A CPU thread runs one item and holds another. The child, which lacks that thread, can queue both
/// and wait for them.
#[test]
fn forked_child_can_queue_work_that_was_running() {
    static FIRST: IrqWork = IrqWork::new(|_| {
        // Both are taken from the list at once, and the one queued last runs first.
        WAITING.queue_on(0);
        RUNNING.queue_on(0);
    });
    static WAITING: IrqWork = IrqWork::new(|_| ());
    static RUNNING: IrqWork = IrqWork::new(|_| {
        STARTED.store(true, Ordering::Relaxed);
        while !FORKED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    static STARTED: AtomicBool = AtomicBool::new(false);
    with_decay(|| {
        cpu::start();
        FIRST.queue_on(0);
        while !STARTED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let child = fork();
        FORKED.store(true, Ordering::Relaxed);
        for work in [&WAITING, &RUNNING] {
            if child == 0 {
                assert!(!work.is_busy() && work.queue(), "the child cannot queue the item");
            }
            work.sync();
            assert!(!work.is_busy(), "the item is busy after `sync`");
        }
        if child == 0 {
            exercise_in_child();
        }
        wait_for(child);
    });
}

/// An item that is not static was on a list. In the child it runs when any item is waited for, as
/// `IrqWork::queue_raw` says.
#[test]
fn forked_child_runs_work_that_was_listed() {
    static OTHER: IrqWork = IrqWork::new(|_| ());
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    with_decay(|| {
        let item = Box::new(IrqWork::new(|_| _ = RUNS.fetch_add(1, Ordering::Relaxed)));
        // There are no CPU threads yet, so the item stays on its list.
        // SAFETY: the item stays until `sync` has returned, in the parent and in the child.
        assert!(unsafe { IrqWork::queue_raw(&raw const *item, 0) }, "the item was refused");
        let child = fork();
        assert!(OTHER.queue() && item.is_pending(), "the item was not on a list");
        OTHER.sync();
        assert_eq!(RUNS.load(Ordering::Relaxed), 1, "runs of the item");
        item.sync();
        if child == 0 {
            exercise_in_child();
        }
        wait_for(child);
    });
}

/// Another thread has claimed an item and is stopped before it lists it. Meanwhile a signal handler
/// that interrupted this thread's queueing of an item forks. In the child, which lacks the other
/// thread, the claimed item is idle, or this thread has queued it.
#[test]
fn forked_child_finds_claimed_work_idle_or_queued() {
    static THEIRS: IrqWork = IrqWork::new(|_| RUNS.set(RUNS.get() | 1));
    static MINE: IrqWork = IrqWork::new(|_| RUNS.set(RUNS.get() | 2));
    thread_local! {
        static RUNS: Cell<u32> = const { Cell::new(0) };
    }
    fn at_fault_point(place: Place) {
        if is_child() {
            return;
        }
        if !IS_FORKING.get() {
            if place == Place::WorkClaimed {
                stop_until_forked(60_000);
            }
        } else if !IN_HANDLER.get() && FORK_AT.get() == Some(place) {
            raise_sigusr1();
        }
    }
    thread_local! {
        static FORK_AT: Cell<Option<Place>> = const { Cell::new(None) };
    }
    let fork_at_each = |places: &[(Place, &'static IrqWork)]| {
        handle_sigusr1(fork_in_handler);
        fault::set_hook(at_fault_point);
        IS_FORKING.set(true);
        for (place, item) in places {
            STOPPED.store(false, Ordering::Relaxed);
            thread::scope(|scope| {
                scope.spawn(|| THEIRS.queue());
                while !STOPPED.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                RUNS.set(0);
                FORK_AT.set(Some(*place));
                let was_queued = item.queue();
                if is_child() {
                    assert!(was_queued, "the item was refused");
                    let is_theirs = ptr::eq(*item, &raw const THEIRS);
                    assert!(is_theirs || !THEIRS.is_busy(), "the claimed item is not idle");
                    item.sync();
                    assert!(!item.is_busy(), "the item is busy after `sync`");
                    // This thread ran it, as there is no other.
                    assert_eq!(RUNS.get(), if is_theirs { 1 } else { 2 });
                    exercise_in_child();
                }
                FORK_AT.set(None);
            });
            THEIRS.sync();
            MINE.sync();
        }
    };
    in_every_mode(|| {
        fork_at_each(&[
            (Place::WorkClaimed, &MINE),
            (Place::WorkQueued, &MINE),
            (Place::WorkQueued, &THEIRS),
        ]);
    });
}
