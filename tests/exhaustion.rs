//! Out of memory: an allocation returns null, never aborts or panics, and no block is lost.
//!
//! A child process under `RLIMIT_AS` allocates blocks of one size until it is refused, finds all of
//! them intact, frees them, and can allocate again.

use std::alloc::GlobalAlloc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::fault::{self, Place};
use hayloft_core::heap;
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::process::{Limit, status_bytes};
use tests::scenario::{Scenario, on_both_backends, on_both_backends_within, with_larger_pages};
use tests::sizes::{GIB, LARGE, MIB, layout};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Exhausts memory twice with blocks of `size` bytes. The table has room for `within` bytes of
/// blocks and can therefore never be full.
fn exhaust(size: usize, within: usize) {
    exhaust_into(BlockStack::new(within / size), size, within);
}

/// Exhausts memory as [`exhaust`] does, with a table made in advance.
fn exhaust_into(mut stack: BlockStack, size: usize, within: usize) {
    let (layout, large) = (layout(size, 16), layout(within, 16));
    stack.fill(layout);
    let first = stack.len();
    assert!(!stack.is_full(), "no allocation was refused");
    assert_ne!(first, 0, "no block of {size} bytes fits into {within} bytes");
    // Allocations by all three functions are refused as well, and every block is still intact.
    let last = stack.last();
    // SAFETY: the sizes are not zero, and the last block is live with this layout.
    unsafe {
        assert!(Hayloft.realloc(last, layout, large.size()).is_null(), "realloc succeeded");
        assert!(Hayloft.alloc(large).is_null(), "alloc succeeded");
        assert!(Hayloft.alloc_zeroed(large).is_null(), "alloc_zeroed succeeded");
    }
    stack.free_all(layout);

    stack.fill(layout);
    let second = stack.len();
    assert!(second >= first / 2, "{first} blocks fit the first time, then {second}");
    stack.free_all(layout);
}

#[test]
fn blocks_of_64_bytes_survive_exhaustion() {
    on_both_backends_within(160 * MIB, || exhaust(64, 160 * MIB));
}

#[test]
fn blocks_of_a_page_survive_exhaustion() {
    on_both_backends_within(320 * MIB, || exhaust(4096, 320 * MIB));
}

#[test]
fn blocks_of_middle_sizes_survive_exhaustion() {
    on_both_backends_within(320 * MIB, || {
        // All tables are mapped before memory is exhausted.
        let tables = [40_000, 300_000, MIB].map(|size| (size, BlockStack::new(320 * MIB / size)));
        for (size, stack) in tables {
            exhaust_into(stack, size, 320 * MIB);
        }
    });
}

#[test]
fn blocks_of_100_mib_survive_exhaustion() {
    on_both_backends_within(320 * MIB, || exhaust(100 * MIB, 320 * MIB));
}

#[test]
fn blocks_survive_exhaustion_with_larger_pages() {
    with_larger_pages(Some(160 * MIB), || {
        exhaust(5000, 160 * MIB);
        hayloft::trim();
        assert_eq!(vec![7_u8; 20 * MIB].len(), 20 * MIB);
    });
}

/// Where the kernel limits memory but not address space, reserving more address space does not help
/// and is not attempted.
#[test]
fn data_limit_causes_no_reservations() {
    for backend in ["rseq", "fallback"] {
        Scenario::new(backend, || {
            let reserved = status_bytes("VmSize");
            // Both tables are mapped before memory is exhausted.
            for (size, stack) in [64, MIB].map(|size| (size, BlockStack::new(320 * MIB / size))) {
                exhaust_into(stack, size, 320 * MIB);
            }
            let now = status_bytes("VmSize");
            assert!(
                now < reserved + 1024 * MIB,
                "{reserved} bytes of address space before, {now} after"
            );
        })
        .env("HAYLOFT_BACKEND", backend)
        .limit(Limit::Data, 256 * MIB)
        .succeeds();
    }
}

/// Shrinking a block by C's `realloc` needs no memory, since the block has room for its contents.
#[test]
fn shrinking_needs_no_memory() {
    on_both_backends(|| {
        let large = layout(LARGE, 16);
        let middle = layout(20_000, 16);
        let small = layout(100, 16);
        let [mut first, mut second, mut third] =
            [large, middle, small].map(|layout| BlockStack::new(160 * MIB / layout.size()));
        let limit = status_bytes("VmData") + 100 * MIB;
        Limit::Data.set(limit).expect("the limit can be lowered");
        // SAFETY: the size is not zero.
        let of_middle = unsafe { Hayloft.alloc(middle) };
        first.fill(large);
        second.fill(middle);
        third.fill(small);
        for (block, size) in [(first.last(), LARGE), (of_middle, 20_000)] {
            // SAFETY: the block is live and has at least `size` bytes.
            unsafe {
                block.write_bytes(7, size);
                let shrunk = hayloft_core::by_address::realloc(block, 100);
                assert_eq!(shrunk, block, "a block of {size} bytes moved");
                assert!((0..100).all(|offset| *block.add(offset) == 7), "contents changed");
            }
        }
    });
}

/// The limit is set while the heap is in use and may have reserved address space. Memory may then
/// last beyond the limit, but every refusal is null.
#[test]
fn late_limits_refuse_with_null() {
    on_both_backends(|| {
        let layout = layout(10_000, 16);
        let mut stack = BlockStack::new(600 * MIB / layout.size());
        drop(vec![1_u8; 3 * MIB]);
        for (limit, figure) in [(Limit::AddressSpace, "VmSize"), (Limit::Data, "VmData")] {
            limit.set(status_bytes(figure) + 300 * MIB).expect("the limit can be lowered");
        }
        for _ in 0..2 {
            stack.fill(layout);
            assert_ne!(stack.len(), 0, "no block fits");
            stack.free_all(layout);
        }
    });
}

/// A vector that cannot grow reports that and keeps its elements.
#[test]
fn failed_vector_growth_keeps_elements() {
    on_both_backends_within(320 * MIB, || {
        let mut vector: Vec<u64> = (0..1000).collect();
        while vector.try_reserve(vector.len()).is_ok() {
            vector.extend_from_within(..);
        }
        let is_intact = vector.iter().enumerate().all(|(at, value)| *value == at as u64 % 1000);
        assert!(is_intact, "elements changed");
        let len = vector.len();
        let result = vector.try_reserve(isize::MAX as usize / 8 - len);
        assert!(result.is_err(), "a vector of half the address space fits");
        drop(vector);
        assert_eq!(vec![7_u8; MIB].len(), MIB);
    });
}

/// A request beyond what the system grants returns null, reserves no address space and flushes no
/// sheaves.
#[test]
fn oversized_requests_have_no_side_effects() {
    for backend in ["rseq", "fallback"] {
        Scenario::new(backend, || {
            static CLOSED: AtomicUsize = AtomicUsize::new(0);
            fault::set_hook(|place| {
                if place == Place::SheavesClosed {
                    CLOSED.fetch_add(1, Ordering::Relaxed);
                }
            });
            let reserved = status_bytes("VmSize");
            let sizes = (0..100).map(|number| 200 * GIB + number * GIB);
            for size in sizes.chain((40..47).map(|shift| 1 << shift)) {
                let layout = layout(size, 16);
                // SAFETY: the size is not zero.
                assert!(unsafe { GLOBAL.alloc(layout) }.is_null(), "{size} bytes were granted");
            }
            let now = status_bytes("VmSize");
            assert!(now < reserved + GIB, "{reserved} bytes of address space before, {now} after");
            assert_eq!(CLOSED.load(Ordering::Relaxed), 0, "sheaves were flushed");
            assert_eq!(vec![1_u8; 400 * MIB].len(), 400 * MIB);
        })
        .env("HAYLOFT_BACKEND", backend)
        .limit(Limit::Data, 600 * MIB)
        .succeeds();
    }
}

/// A block for which there is address space is not refused because of how arenas divide it.
#[test]
fn large_block_fits_within_the_limit() {
    on_both_backends_within(840 * MIB, || {
        let layout = layout(400 * MIB, 16);
        // SAFETY: the size is not zero, and the block is freed once.
        unsafe {
            let block = GLOBAL.alloc(layout);
            assert!(!block.is_null(), "400 MiB were refused");
            GLOBAL.dealloc(block, layout);
        }
    });
}

/// After a program lowers its own limit, the remaining address space serves blocks and mappings
/// alike, and the limit holds.
#[test]
fn reserved_address_space_is_released_for_a_limit() {
    on_both_backends(|| {
        const MOST: usize = 400 * MIB;
        let kept = vec![1_u8; 10 * MIB];
        Limit::AddressSpace.set(MOST).expect("the limit can be lowered");
        heap::limit_address_space(MOST);
        let size = status_bytes("VmSize");
        assert!(size < MOST, "{size} bytes of address space beyond the limit");
        thread::spawn(|| ()).join().expect("there is room for a thread");
        let (layout, small) = (layout(MIB, 16), layout(100, 16));
        let (mut stack, mut objects) = (BlockStack::new(MOST / MIB), BlockStack::new(MOST / 100));
        for _ in 0..2 {
            stack.fill(layout);
            assert!(stack.len() > 100 && !stack.is_full(), "{} blocks of 1 MiB fit", stack.len());
            stack.free_all(layout);
        }
        // Objects need metadata, which lies near the released address space.
        objects.fill(small);
        assert!(!objects.is_full() && objects.len() > 500_000, "{} objects fit", objects.len());
        objects.free_all(small);
        assert!(kept.iter().all(|byte| *byte == 1), "contents changed");
    });
}

/// While one thread waits for the system to commit memory, others allocate what is committed
/// already.
#[test]
fn committing_does_not_block_other_threads() {
    static IS_COMMITTING: AtomicBool = AtomicBool::new(false);
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    on_both_backends(|| {
        drop(vec![1_u8; 4 * MIB]);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !IS_COMMITTING.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                drop(vec![1_u8; MIB]);
                IS_DONE.store(true, Ordering::Relaxed);
            });
            fault::set_hook(|place| {
                if place == Place::ArenaCommitting && !IS_COMMITTING.swap(true, Ordering::Relaxed) {
                    for _ in 0..10_000 {
                        if !IS_DONE.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                    assert!(
                        IS_DONE.load(Ordering::Relaxed),
                        "another thread waited for the commit"
                    );
                }
            });
            drop(vec![1_u8; 100 * MIB]);
        });
        assert!(IS_COMMITTING.load(Ordering::Relaxed), "no memory was committed");
    });
}
