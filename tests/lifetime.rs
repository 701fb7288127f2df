//! The heap throughout a process's life: before `main`, in exit handlers, and in a child of `fork`
//! without `exec`.

use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use tests::entry_points::Hayloft;
use tests::pattern;
use tests::scenario::{Scenario, describe, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// The vector that [`before_main`] left.
static EARLY: AtomicPtr<Vec<u8>> = AtomicPtr::new(ptr::null_mut());

/// Number of times [`before_main`] ran.
static EARLY_RUNS: AtomicUsize = AtomicUsize::new(0);

/// Uses the heap before `main` and before the Rust runtime is set up. Called by the loader.
extern "C" fn before_main() {
    EARLY_RUNS.fetch_add(1, Ordering::Relaxed);
    let early = churn().swap_remove(3);
    EARLY.store(Box::into_raw(Box::new(early)), Ordering::Release);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// Allocates, grows and frees blocks of many sizes. Returns some of them, filled.
fn churn() -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    for power in 0..20 {
        let mut bytes = vec![0; 1 << power];
        bytes.resize((1 << power) + (1 << power) / 2 + 1, 0);
        // SAFETY: the range is the whole vector.
        unsafe { pattern::fill(bytes.as_mut_ptr(), 0, bytes.len(), power) };
        if power % 2 == 1 {
            kept.push(bytes);
        }
    }
    check(&kept);
    kept
}

fn check(kept: &[Vec<u8>]) {
    for (index, bytes) in kept.iter().enumerate() {
        let id = 2 * index as u64 + 1;
        // SAFETY: the range is the whole vector.
        let mismatch = unsafe { pattern::find_mismatch(bytes.as_ptr(), bytes.len(), id) };
        assert_eq!(mismatch, None, "contents changed");
    }
}

/// Writes `text` to standard output unbuffered, so that it reaches the parent even as the process's
/// last act.
fn print_unbuffered(text: &str) {
    // SAFETY: the pointer and the length are those of `text`.
    let written = unsafe { libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len()) };
    assert_eq!(written, text.len() as isize);
}

/// Checks that a child exited with status 0 and wrote `text`.
fn assert_printed(output: &process::Output, text: &str) {
    let is_printed = String::from_utf8_lossy(&output.stdout).contains(text);
    assert!(output.status.success() && is_printed, "{}", describe(output));
}

#[test]
fn the_heap_works_before_main() {
    on_both_backends(|| {
        assert_eq!(EARLY_RUNS.load(Ordering::Relaxed), 1, "runs before main");
        let early = EARLY.swap(ptr::null_mut(), Ordering::Acquire);
        assert!(!early.is_null(), "the vector made before main is missing");
        // SAFETY: `before_main` stored a box of this type, and the swap made this thread its owner.
        let early = unsafe { Box::from_raw(early) };
        // SAFETY: the range is the whole vector.
        let mismatch = unsafe { pattern::find_mismatch(early.as_ptr(), early.len(), 7) };
        assert_eq!(mismatch, None, "contents changed");
        drop(early);
        drop(churn());
    });
}

extern "C" fn at_exit() {
    drop(churn());
    print_unbuffered("ok at exit\n");
}

#[test]
fn the_heap_works_in_exit_handlers() {
    for backend in ["rseq", "fallback"] {
        let exits = || {
            // SAFETY: the handler may run at any time and does not unwind.
            assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
            drop(churn());
            process::exit(0);
        };
        Scenario::new(backend, exits)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_printed(output, "ok at exit"));
    }
}

/// Exit handlers also run if the exiting thread is not the first, with other threads in the middle
/// of their work.
#[test]
fn the_heap_works_in_exit_handlers_while_threads_run() {
    for backend in ["rseq", "fallback"] {
        let exits = || {
            // SAFETY: the handler may run at any time and does not unwind.
            assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
            let (started, all_started) = std::sync::mpsc::channel();
            for _ in 0..4 {
                let started = started.clone();
                std::thread::spawn(move || {
                    drop(churn());
                    let _ = started.send(());
                    loop {
                        drop(churn());
                    }
                });
            }
            assert_eq!(all_started.iter().take(4).count(), 4);
            process::exit(0);
        };
        Scenario::new(backend, exits)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_printed(output, "ok at exit"));
    }
}

/// The child of a fork has the heap with all its blocks.
#[test]
fn the_heap_works_in_a_forked_child() {
    on_both_backends(|| {
        let kept = churn();
        for _ in 0..10 {
            // SAFETY: the child uses nothing but the heap, and leaves by `_exit`.
            let child = unsafe { libc::fork() };
            assert!(child >= 0, "fork failed");
            if child == 0 {
                check(&kept);
                drop(churn());
                drop(kept);
                // SAFETY: `_exit` has no preconditions.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: `status` is valid for the write.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child of fork failed");
            check(&kept);
        }
    });
}
