//! Forks while the backend is being selected.
//!
//! There is no global allocator here: the first allocation of a scenario selects the backend.

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hayloft_core::fault::{self, Place};
use hayloft_core::nolock;
use tests::fork::{
    FORKED, IN_HANDLER, IS_FORKING, STOPPED, exercise_allocator, exercise_in_child, fork,
    fork_in_handler, is_child, stop_until_forked, wait_for,
};
use tests::scenario::on_both_backends;
use tests::slow_paths::{handle_sigusr1, raise_sigusr1};

/// Allocates and frees a block without waiting.
fn use_memory() {
    let layout = Layout::new::<[u64; 8]>();
    let block = nolock::alloc(layout).expect("memory");
    // SAFETY: the block has this layout and is freed once.
    unsafe { nolock::free(block, layout) };
}

/// Lets another thread begin to select the backend, and calls `fork` once that thread is stopped.
fn fork_while_another_selects(at_fault_point: fn(Place), fork: impl FnOnce()) {
    fault::set_hook(at_fault_point);
    IS_FORKING.set(true);
    thread::scope(|scope| {
        scope.spawn(use_memory);
        while !STOPPED.load(Ordering::Acquire) {
            thread::yield_now();
        }
        fork();
    });
    exercise_allocator();
}

/// A fork waits for the thread that selects the backend.
#[test]
fn fork_waits_for_the_selection() {
    static RESUMED: AtomicBool = AtomicBool::new(false);
    fn at_fault_point(place: Place) {
        if place == Place::BackendDeciding {
            // The fork waits for this thread, which therefore stops only for a while.
            stop_until_forked(20);
            RESUMED.store(true, Ordering::Release);
        }
    }
    on_both_backends(|| {
        fork_while_another_selects(at_fault_point, || {
            let child = fork();
            assert!(RESUMED.load(Ordering::Acquire), "the backend was not selected");
            if child == 0 {
                exercise_in_child();
            }
            FORKED.store(true, Ordering::Release);
            wait_for(child);
        });
    });
}

/// A fork in a handler that interrupted a slow path does not wait for the selection forever. The
/// child, which lacks the thread that selects the backend, selects it itself.
#[test]
fn forked_child_selects_the_backend_anew() {
    fn at_fault_point(place: Place) {
        if is_child() {
            return;
        }
        if !IS_FORKING.get() {
            if place == Place::BackendDeciding {
                stop_until_forked(60_000);
            }
        } else if STOPPED.swap(false, Ordering::Relaxed) && !IN_HANDLER.get() {
            raise_sigusr1();
        }
    }
    on_both_backends(|| {
        handle_sigusr1(fork_in_handler);
        fork_while_another_selects(at_fault_point, || {
            use_memory();
            if is_child() {
                use_memory();
                exercise_in_child();
            }
        });
    });
}

/// A handler that interrupted the selection forks. Parent and child complete the selection.
#[test]
fn forked_child_completes_the_selection() {
    fn at_fault_point(place: Place) {
        if place == Place::BackendDeciding && !IN_HANDLER.get() {
            raise_sigusr1();
        }
    }
    on_both_backends(|| {
        handle_sigusr1(fork_in_handler);
        fault::set_hook(at_fault_point);
        use_memory();
        assert!(is_child() || FORKED.load(Ordering::Relaxed), "the handler did not run");
        if is_child() {
            exercise_in_child();
        }
        exercise_allocator();
    });
}
