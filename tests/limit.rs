//! `HAYLOFT_LIMIT`: beyond the soft limit free memory is decommitted at once; at the hard limit
//! allocations return null, and no block is lost.

use std::alloc::GlobalAlloc;
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::fault::{self, Place};
use hayloft_core::{heap, nolock, stats};
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::process::{Limit, status_bytes};
use tests::scenario::{Scenario, on_both_backends_with};
use tests::sizes::{MIB, layout};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Runs `body` on both backends with a limit. Memory is decommitted for no other reason.
fn within<F: Fn()>(limit: &str, body: F) {
    on_both_backends_with(&[("HAYLOFT_LIMIT", limit)], body);
}

/// Spins until another thread makes `condition` true.
fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

/// Blocks that grew have no room that other allocations are refused for.
#[test]
fn room_to_grow_causes_no_refusals() {
    let body = || {
        let mut stack = BlockStack::with_table(vec![ptr::null_mut(); 1000].leak());
        for (from, to) in [(2 * MIB, 3 * MIB), (9 * MIB, 10 * MIB)] {
            let mut grown = Vec::with_capacity(4);
            for _ in 0..grown.capacity() {
                // SAFETY: the size is not zero, and the block is live with its first layout.
                let block =
                    unsafe { GLOBAL.realloc(GLOBAL.alloc(layout(from, 16)), layout(from, 16), to) };
                assert!(!block.is_null(), "{to} bytes were refused");
                grown.push(block);
            }
            stack.fill(layout(2 * MIB, 16));
            let live = grown.len() * to + stack.len() * 2 * MIB;
            assert!(live > 128 * MIB * 7 / 10, "only {live} bytes could be allocated");
            stack.free_all(layout(2 * MIB, 16));
            // SAFETY: the blocks are live with this layout.
            grown.into_iter().for_each(|block| unsafe { GLOBAL.dealloc(block, layout(to, 16)) });
        }
    };
    within("128M", body);
    Scenario::new("data", body).limit(Limit::Data, 128 * MIB).succeeds();
}

/// Freed memory of one size is available to the next size. Sheaves, barns and empty slabs withhold
/// none of it.
#[test]
fn allocations_beyond_the_hard_limit_return_null() {
    within("48M", || {
        let before = status_bytes("VmRSS");
        let mut stack = BlockStack::with_table(vec![ptr::null_mut(); 48 * MIB / 64].leak());
        for size in [64, 3000, 40_000, MIB, 20_000, 300_000, 5 * MIB, 64] {
            stack.fill(layout(size, 16));
            assert!(!stack.is_full(), "no allocation was refused");
            let bytes = stack.len() * size;
            assert!(bytes < 48 * MIB, "{bytes} bytes granted in blocks of {size}");
            assert!(bytes > 32 * MIB, "only {bytes} bytes granted in blocks of {size}");
            // Every further allocation is refused, and the last block is intact.
            let last = stack.last();
            // SAFETY: the sizes are not zero, and the last block is live with this layout.
            unsafe {
                assert!(GLOBAL.alloc(layout(6 * MIB, 16)).is_null(), "alloc succeeded");
                assert!(
                    GLOBAL.alloc_zeroed(layout(6 * MIB, 16)).is_null(),
                    "alloc_zeroed succeeded"
                );
                assert!(
                    GLOBAL.realloc(last, layout(size, 16), 20 * MIB).is_null(),
                    "realloc succeeded"
                );
                assert!(nolock::alloc(layout(6 * MIB, 16)).is_none(), "nolock::alloc succeeded");
            }
            stack.free_all(layout(size, 16));
        }
        let peak = status_bytes("VmHWM");
        assert!(peak < before + 52 * MIB, "{before} bytes resident before, {peak} at the peak");
    });
}

/// Frees beyond the soft limit decommit at once, and frees below it do not.
#[test]
fn frees_beyond_the_soft_limit_decommit_at_once() {
    within("24M:200M", || {
        let burst = |bytes: usize| {
            let blocks: Vec<Vec<u8>> = (0..bytes / 8000).map(|_| vec![1; 8000]).collect();
            let resident = status_bytes("VmRSS");
            drop(blocks);
            (resident, status_bytes("VmRSS"))
        };
        let before = status_bytes("VmRSS");
        let (full, freed) = burst(12 * MIB);
        assert!(
            full > before + 11 * MIB && freed > before + 9 * MIB,
            "{before} bytes resident before, {full} at the peak, {freed} now"
        );
        let (full, freed) = burst(100 * MIB);
        assert!(full > before + 95 * MIB, "{before} bytes resident before, {full} at the peak");
        assert!(
            freed < before + 30 * MIB,
            "{before} bytes resident before, {full} at the peak, {freed} now"
        );
    });
}

/// A vector at the limit reports that and keeps its elements. Its memory is available to others
/// after it is dropped.
#[test]
fn vector_at_the_limit_keeps_its_elements() {
    within("32M", || {
        let mut vector: Vec<u64> = (0..1000).collect();
        while vector.try_reserve(vector.len()).is_ok() {
            vector.extend_from_within(..);
        }
        assert!(vector.len() * 8 >= 4 * MIB, "growth was refused at {} elements", vector.len());
        let is_intact = vector.iter().enumerate().all(|(at, value)| *value == at as u64 % 1000);
        assert!(is_intact, "elements changed");
        drop(vector);
        assert_eq!(vec![7_u8; 20 * MIB].len(), 20 * MIB);
    });
}

/// An allocation waits for memory that another thread is decommitting, instead of being refused.
#[test]
fn allocation_waits_for_a_purge_in_progress() {
    static PURGE_STARTED: AtomicBool = AtomicBool::new(false);
    within("20M:48M", || {
        fault::set_hook(|place| {
            if place == Place::ArenaPurging && !PURGE_STARTED.swap(true, Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
            }
        });
        let block = vec![1_u8; 30 * MIB];
        thread::scope(|scope| {
            scope.spawn(move || drop(block));
            while !PURGE_STARTED.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // SAFETY: the size is not zero, and the block is freed once.
            unsafe {
                let block = GLOBAL.alloc(layout(30 * MIB, 16));
                assert!(!block.is_null(), "30 MiB were refused");
                GLOBAL.dealloc(block, layout(30 * MIB, 16));
            }
        });
    });
}

thread_local! {
    /// Whether this thread stops while it holds an arena's lock.
    static HOLDS_ARENA: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is in a free that must not wait.
    static IN_NOLOCK_FREE: Cell<bool> = const { Cell::new(false) };
}

/// Decommitting in a context that must not wait does not depend on a lock that another thread takes
/// meanwhile.
#[test]
fn nolock_free_decommits_despite_a_busy_arena() {
    static ARENA_HELD: AtomicBool = AtomicBool::new(false);
    static PURGE_STARTED: AtomicBool = AtomicBool::new(false);
    static FREE_RETURNED: AtomicBool = AtomicBool::new(false);
    within("1M:512M", || {
        fault::set_hook(|place| match place {
            // The purging thread lets the other one take the arena's lock.
            Place::ArenaPurging if IN_NOLOCK_FREE.get() => {
                PURGE_STARTED.store(true, Ordering::Relaxed);
                wait_until(|| ARENA_HELD.load(Ordering::Relaxed));
            }
            Place::ArenaAllocating if HOLDS_ARENA.get() => {
                ARENA_HELD.store(true, Ordering::Relaxed);
                wait_until(|| FREE_RETURNED.load(Ordering::Relaxed));
            }
            _ => {}
        });
        let large = layout(100 * MIB, 16);
        let block = nolock::alloc(large).expect("memory");
        let held = stats::gather_own().held;
        thread::scope(|scope| {
            scope.spawn(|| {
                wait_until(|| {
                    PURGE_STARTED.load(Ordering::Relaxed) || FREE_RETURNED.load(Ordering::Relaxed)
                });
                HOLDS_ARENA.set(true);
                drop(vec![1_u8; MIB]);
                HOLDS_ARENA.set(false);
            });
            IN_NOLOCK_FREE.set(true);
            // SAFETY: the block is live with this layout, and freed once.
            unsafe { nolock::free(block, large) };
            IN_NOLOCK_FREE.set(false);
            FREE_RETURNED.store(true, Ordering::Relaxed);
        });
        hayloft::trim();
        let now = stats::gather_own().held;
        assert!(now + 90 * MIB < held, "{held} bytes held with the block, {now} after trim");
    });
}

/// A window that ends while an allocation decommits memory does not stop that.
#[test]
fn window_end_does_not_stop_a_purge_for_an_allocation() {
    static PURGE_STARTED: AtomicBool = AtomicBool::new(false);
    static WINDOW_ENDED: AtomicBool = AtomicBool::new(false);
    let settings = [
        ("HAYLOFT_LIMIT", "48M:48M"),
        ("HAYLOFT_DECAY_MS", "3600000"),
        // No background thread ends windows.
        ("HAYLOFT_BACKGROUND", "0"),
    ];
    on_both_backends_with(&settings, || {
        fault::set_hook(|place| {
            if place == Place::ArenaPurging && !PURGE_STARTED.swap(true, Ordering::Relaxed) {
                // Bounded, since the other thread may have to wait for this one.
                for _ in 0..100 {
                    if !WINDOW_ENDED.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        });
        let mut blocks: Vec<Vec<u8>> = (0..36).map(|_| vec![1; MIB]).collect();
        // Nothing freed from here on has been idle for a whole window.
        hayloft::trim();
        PURGE_STARTED.store(false, Ordering::Relaxed);
        heap::end_window();
        // Every second block stays live, so that there are many dirty runs, none of them long
        // enough.
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 2 == 0
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                wait_until(|| PURGE_STARTED.load(Ordering::Relaxed));
                heap::end_window();
                WINDOW_ENDED.store(true, Ordering::Relaxed);
            });
            // SAFETY: the size is not zero, and the block is freed once.
            unsafe {
                let block = GLOBAL.alloc(layout(24 * MIB, 16));
                assert!(!block.is_null(), "24 MiB were refused");
                GLOBAL.dealloc(block, layout(24 * MIB, 16));
            }
        });
    });
}

/// A refused allocation is not retried for as long as another thread decommits memory.
#[test]
fn refused_allocation_is_retried_a_bounded_number_of_times() {
    static PURGE_STARTED: AtomicBool = AtomicBool::new(false);
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    const MOST: usize = 1000;
    within("20M:48M", || {
        fault::set_hook(|place| match place {
            Place::ArenaPurging if !PURGE_STARTED.swap(true, Ordering::Relaxed) => {
                for _ in 0..200 {
                    if TRIES.load(Ordering::Relaxed) < MOST {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            Place::ArenaAllocating => _ = TRIES.fetch_add(1, Ordering::Relaxed),
            _ => {}
        });
        let (stays, block) = (vec![1_u8; 10 * MIB], vec![1_u8; 20 * MIB]);
        thread::scope(|scope| {
            scope.spawn(move || drop(block));
            wait_until(|| PURGE_STARTED.load(Ordering::Relaxed));
            TRIES.store(0, Ordering::Relaxed);
            // SAFETY: the size is not zero.
            assert!(unsafe { GLOBAL.alloc(layout(40 * MIB, 16)) }.is_null(), "40 MiB were granted");
        });
        let tries = TRIES.load(Ordering::Relaxed);
        assert!(tries < MOST, "the allocation was tried {tries} times");
        drop(stays);
    });
}
