//! Forks in the middle of slow paths, the forking thread's own or another thread's.
//!
//! One fork happens at each fault point. `tests::fork` says what parent and child do afterwards.

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hayloft_core::cpu;
use hayloft_core::fault::{self, Place};
use hayloft_core::{nolock, stats};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::fork::{
    FORKED, IN_HANDLER, IS_FORKING, STOPPED, exercise_allocator, exercise_in_child, fork,
    fork_and_return_in_both, fork_in_handler, is_child, stop_until_forked, wait_for,
};
use tests::scenario::{in_every_mode, on_both_backends, with_decay};
use tests::slow_paths::{
    defer_run, defer_run_hook, exchange_block, grow_heap, handle_sigusr1, raise_sigusr1,
    reach_all_slow_paths,
};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Fault points that were not reached yet.
static UNREACHED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

fn index(place: Place) -> usize {
    Place::ALL.iter().position(|listed| *listed == place).expect("a listed place")
}

/// Returns whether `place` is reached for the first time.
fn is_first_visit(place: Place) -> bool {
    // A fault point reached while the set is locked does not count this time.
    UNREACHED.try_lock().is_ok_and(|mut unreached| unreached.remove(&index(place)))
}

fn unreached() -> Vec<Place> {
    UNREACHED
        .lock()
        .expect("no thread panics while it holds the lock")
        .iter()
        .map(|index| Place::ALL[*index])
        .collect()
}

/// Installs `at_fault_point` as the hook of all fault points, and marks them all as not reached.
fn hook_all_fault_points(at_fault_point: fn(Place)) {
    *UNREACHED.lock().expect("no thread panics while it holds the lock") =
        (0..Place::ALL.len()).collect();
    fault::set_hook(at_fault_point);
}

/// Reaches all fault points, or as many as it can before `is_over` returns true.
fn reach_all_fault_points(is_over: fn() -> bool) {
    // Either this thread or a CPU thread completes a deferred free.
    while !is_over() && unreached().contains(&Place::DeferredTaken) {
        defer_run();
        exchange_block();
    }
    while !is_over() && unreached().contains(&Place::ArenaCommitting) {
        grow_heap();
    }
    // Fault points that did not count because the set was locked have to be reached again. On a
    // busy machine that takes many rounds.
    for _ in 0..200 {
        reach_all_slow_paths(is_over);
        if is_over() || missing().is_empty() {
            break;
        }
    }
}

/// Returns the fault points that still have to be reached.
fn missing() -> Vec<Place> {
    let fallback = env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "fallback");
    let has_cpus = cpu::online().next().is_some();
    let mut unreached = unreached();
    unreached.retain(|place| match place {
        // These were reached before the hook was installed (`fork_backend` forks at the first).
        Place::BackendDeciding
        | Place::ThreadRegistering
        | Place::ThreadRegistered
        | Place::NodesReading
        | Place::ArenaMaking => false,
        // Reached only where the kernel refuses `membarrier`.
        Place::CpuVisiting => false,
        // Restartable sequences need no lock.
        Place::SheavesLocked => fallback,
        Place::WorkClaimed | Place::WorkQueued => has_cpus,
        _ => true,
    });
    unreached
}

fn assert_all_reached() {
    let missing = missing();
    assert!(missing.is_empty(), "fault points not reached: {missing:?}");
}

/// Whether the other thread has reached all fault points, or the one at which it stops.
static DONE: AtomicBool = AtomicBool::new(false);

/// Calls `when_stopped`, which forks, whenever another thread stops at a fault point. That thread
/// reaches all of them.
fn fork_while_another_visits(when_stopped: fn()) {
    IS_FORKING.set(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            reach_all_fault_points(|| false);
            DONE.store(true, Ordering::Release);
        });
        while !DONE.load(Ordering::Acquire) {
            if STOPPED.load(Ordering::Acquire) {
                when_stopped();
            }
            thread::yield_now();
        }
    });
    assert_all_reached();
    exercise_allocator();
}

/// Stops other threads at each fault point in turn while this one forks. The fork waits for their
/// locks.
fn fork_while_others_are_stopped() {
    fn at_fault_point(place: Place) {
        defer_run_hook(place);
        if !IS_FORKING.get() && is_first_visit(place) {
            // The forking thread may wait for this one's locks, so this one must not wait for the
            // fork: it stops only for a while.
            stop_until_forked(20);
        }
    }
    hook_all_fault_points(at_fault_point);
    fork_while_another_visits(|| {
        STOPPED.store(false, Ordering::Relaxed);
        let child = fork();
        if child == 0 {
            exercise_in_child();
        }
        FORKED.store(true, Ordering::Release);
        wait_for(child);
    });
}

#[test]
fn forked_child_works_while_others_are_in_slow_paths() {
    with_decay(|| {
        fork_while_others_are_stopped();
    });
    in_every_mode(|| {
        cpu::start();
        fork_while_others_are_stopped();
    });
}

/// Forks in a signal handler that interrupted a slow path. The child completes that slow path, too.
fn fork_in_interrupting_handlers() {
    fn at_fault_point(place: Place) {
        defer_run_hook(place);
        // Never interrupts the harness's thread. In the child it would wait for the tests to end.
        if IS_FORKING.get() && !IN_HANDLER.get() && !is_child() && is_first_visit(place) {
            raise_sigusr1();
        }
    }
    handle_sigusr1(fork_in_handler);
    hook_all_fault_points(at_fault_point);
    IS_FORKING.set(true);
    reach_all_fault_points(is_child);
    if is_child() {
        exercise_in_child();
    }
    assert_all_reached();
    exercise_allocator();
}

#[test]
fn forked_child_completes_the_interrupted_slow_path() {
    with_decay(|| {
        fork_in_interrupting_handlers();
    });
    in_every_mode(|| {
        cpu::start();
        fork_in_interrupting_handlers();
    });
}

/// Reaches some fault point, without waiting for a lock on the way.
fn visit_fault_points() {
    let layout = Layout::new::<[u64; 400]>();
    let blocks = [(); 20].map(|()| nolock::alloc(layout).expect("memory"));
    // SAFETY: the blocks have this layout, and each is freed once.
    blocks.into_iter().for_each(|block| unsafe { nolock::free(block, layout) });
}

/// Forks in a signal handler that interrupted a slow path, while other threads are stopped at each
/// fault point in turn. The fork does not wait for their locks, and the child does without them.
fn fork_in_handlers_while_others_are_stopped() {
    fn at_fault_point(place: Place) {
        defer_run_hook(place);
        if is_child() {
            return;
        }
        if IS_FORKING.get() {
            if STOPPED.swap(false, Ordering::Relaxed) && !IN_HANDLER.get() {
                raise_sigusr1();
            }
        } else if is_first_visit(place) {
            stop_until_forked(5000);
        }
    }
    handle_sigusr1(fork_in_handler);
    hook_all_fault_points(at_fault_point);
    fork_while_another_visits(|| {
        visit_fault_points();
        if is_child() {
            exercise_in_child();
        }
    });
}

#[test]
fn fork_in_a_handler_does_not_wait_for_others() {
    with_decay(|| {
        fork_in_handlers_while_others_are_stopped();
    });
    in_every_mode(|| {
        cpu::start();
        fork_in_handlers_while_others_are_stopped();
    });
}

/// Another thread has stored one half of a sheaf's header when this one forks, which does not wait
/// for it. The child can use the sheaf.
#[test]
fn forked_child_can_use_a_half_closed_sheaf() {
    fn at_fault_point(place: Place) {
        if is_child() {
            return;
        }
        if IS_FORKING.get() {
            if STOPPED.swap(false, Ordering::Relaxed) && !IN_HANDLER.get() {
                raise_sigusr1();
            }
        } else if place == Place::SheavesClosing && !DONE.swap(true, Ordering::Relaxed) {
            stop_until_forked(60_000);
        }
    }
    on_both_backends(|| {
        pin_here();
        cpu::start();
        handle_sigusr1(fork_in_handler);
        let cache = unmerged("half closed", 64);
        let use_cache = |count| {
            check_and_free(&cache, &alloc_filled(&cache, count), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
            cache.stats().in_sheaves
        };
        assert!(use_cache(20) > 0, "the sheaf is empty");
        fault::set_hook(at_fault_point);
        IS_FORKING.set(true);
        thread::scope(|scope| {
            scope.spawn(|| cache.shrink());
            while !STOPPED.load(Ordering::Acquire) {
                thread::yield_now();
            }
            visit_fault_points();
            if is_child() {
                for _ in 0..3 {
                    assert!(use_cache(300) > 0, "the sheaf stays closed");
                }
                exercise_in_child();
            }
        });
    });
}

/// Another thread decommits 64 MiB and stops in the middle of that, while this one forks in `fork`.
/// The child can use all of the memory, or decommit it itself.
fn fork_while_another_purges(fork: fn()) {
    const BYTES: usize = 64 << 20;
    fn at_fault_point(place: Place) {
        if place == Place::ArenaPurging && !IS_FORKING.get() && !DONE.swap(true, Ordering::Relaxed)
        {
            stop_until_forked(100);
        } else if place == Place::ArenaAllocating && IN_HANDLER.get() {
            IN_HANDLER.set(false);
            self::fork_and_return_in_both();
        }
    }
    IS_FORKING.set(true);
    fault::set_hook(at_fault_point);
    let block = vec![1_u8; BYTES];
    let held = stats::gather_own().held;
    drop(block);
    thread::scope(|scope| {
        scope.spawn(hayloft::trim);
        while !STOPPED.load(Ordering::Acquire) {
            thread::yield_now();
        }
        fork();
        if is_child() {
            hayloft::trim();
            let now = stats::gather_own().held;
            assert!(
                now + BYTES - (1 << 20) < held,
                "{held} bytes held with the block, {now} after trim"
            );
            exercise_in_child();
        }
    });
    exercise_allocator();
}

#[test]
fn forked_child_can_use_memory_being_purged() {
    on_both_backends(|| fork_while_another_purges(fork_and_return_in_both));
}

/// Here the fork does not wait for the other thread, since this one holds an arena's lock.
#[test]
fn fork_with_the_arena_locked_does_not_wait_for_a_purge() {
    on_both_backends(|| {
        fork_while_another_purges(|| {
            IN_HANDLER.set(true);
            let block = nolock::alloc(Layout::new::<[u8; 2_000_000]>());
            assert!(block.is_some(), "no memory for a run");
        });
    });
}
