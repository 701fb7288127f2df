//! Out of memory: an allocation returns null, never aborts or panics, and no block is lost.
//!
//! A child process under `RLIMIT_AS` allocates blocks of one size until it is refused, finds all of
//! them intact, frees them, and can allocate again.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::fault::{self, Place};
use hayloft_core::heap;
use tests::hoard::Hoard;
use tests::process::{Limit, status_bytes};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends, on_both_backends_within, with_larger_pages};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MIB: usize = 1 << 20;

/// Exhausts memory twice with blocks of `size` bytes. The table has room for `within` bytes of
/// blocks and can therefore never be full.
fn exhaust(size: usize, within: usize) {
    exhaust_into(Hoard::new(within / size), size, within);
}

/// Exhausts memory as [`exhaust`] does, with a table made in advance.
fn exhaust_into(mut hoard: Hoard, size: usize, within: usize) {
    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
    hoard.fill_up(layout);
    let first = hoard.len();
    assert!(!hoard.is_full(), "never refused");
    assert_ne!(first, 0, "no block of {size} bytes in {within} bytes of address space");
    // Allocations by all three functions are refused as well, and every block is still intact.
    let last = hoard.last();
    let large = Layout::from_size_align(within, 16).expect("a valid layout");
    // SAFETY: the sizes are not zero, and the last block is live with this layout.
    unsafe {
        assert!(Hayloft.realloc(last, layout, large.size()).is_null());
        assert!(Hayloft.alloc(large).is_null());
        assert!(Hayloft.alloc_zeroed(large).is_null());
    }
    hoard.free_all(layout);

    hoard.fill_up(layout);
    let second = hoard.len();
    assert!(second >= first / 2, "{first} blocks the first time, then {second}");
    hoard.free_all(layout);
}

#[test]
fn blocks_of_64_bytes() {
    on_both_backends_within(160 * MIB, || exhaust(64, 160 * MIB));
}

#[test]
fn blocks_of_a_page() {
    on_both_backends_within(320 * MIB, || exhaust(4096, 320 * MIB));
}

#[test]
fn blocks_of_a_mebibyte() {
    on_both_backends_within(320 * MIB, || exhaust(MIB, 320 * MIB));
}

#[test]
fn blocks_of_a_hundred_mebibytes() {
    on_both_backends_within(320 * MIB, || exhaust(100 * MIB, 320 * MIB));
}

#[test]
fn larger_pages() {
    with_larger_pages(Some(160 * MIB), || {
        exhaust(5000, 160 * MIB);
        hayloft::trim();
        assert_eq!(vec![7_u8; 20 * MIB].len(), 20 * MIB);
    });
}

/// Where the kernel limits memory but not address space, reserving more address space does not help
/// and is not attempted.
#[test]
fn no_memory_is_no_want_of_address_space() {
    for backend in ["rseq", "fallback"] {
        Scenario::new(backend, || {
            let reserved = status_bytes("VmSize");
            // Both tables are mapped before memory is exhausted.
            for (size, hoard) in [64, MIB].map(|size| (size, Hoard::new(320 * MIB / size))) {
                exhaust_into(hoard, size, 320 * MIB);
            }
            let now = status_bytes("VmSize");
            assert!(now < reserved + 1024 * MIB, "{reserved} bytes reserved, now {now}");
        })
        .env("HAYLOFT_BACKEND", backend)
        .limit(Limit::Data, 256 * MIB)
        .succeeds();
    }
}

/// Shrinking a block by C's `realloc` needs no memory, since the block has room for its contents.
#[test]
fn a_block_that_shrinks() {
    on_both_backends(|| {
        let large = Layout::from_size_align(100_000, 16).expect("a valid layout");
        let middle = Layout::from_size_align(20_000, 16).expect("a valid layout");
        let small = Layout::from_size_align(100, 16).expect("a valid layout");
        let [mut first, mut second, mut third] =
            [large, middle, small].map(|layout| Hoard::new(160 * MIB / layout.size()));
        let limit = status_bytes("VmData") + 100 * MIB;
        Limit::Data.set(limit).expect("the limit can be lowered");
        // SAFETY: the size is not zero.
        let of_middle = unsafe { Hayloft.alloc(middle) };
        first.fill_up(large);
        second.fill_up(middle);
        third.fill_up(small);
        for (block, size) in [(first.last(), 100_000), (of_middle, 20_000)] {
            // SAFETY: the block is live and has at least `size` bytes.
            unsafe {
                block.write_bytes(7, size);
                let shrunk = hayloft_core::by_address::realloc(block, 100);
                assert_eq!(shrunk, block, "of {size} bytes");
                assert!((0..100).all(|offset| *block.add(offset) == 7));
            }
        }
    });
}

/// The limit is set while the heap is in use and may have reserved address space. Memory may then
/// last beyond the limit, but every refusal is null.
#[test]
fn a_limit_set_late() {
    on_both_backends(|| {
        let layout = Layout::from_size_align(10_000, 16).expect("a valid layout");
        let mut hoard = Hoard::new(600 * MIB / layout.size());
        drop(vec![1_u8; 3 * MIB]);
        for (limit, figure) in [(Limit::AddressSpace, "VmSize"), (Limit::Data, "VmData")] {
            limit.set(status_bytes(figure) + 300 * MIB).expect("the limit can be lowered");
        }
        for _ in 0..2 {
            hoard.fill_up(layout);
            assert_ne!(hoard.len(), 0);
            hoard.free_all(layout);
        }
    });
}

/// A vector that cannot grow reports that and keeps its elements.
#[test]
fn a_vector_that_cannot_grow() {
    on_both_backends_within(320 * MIB, || {
        let mut vector: Vec<u64> = (0..1000).collect();
        while vector.try_reserve(vector.len()).is_ok() {
            vector.extend_from_within(..);
        }
        assert!(vector.iter().enumerate().all(|(index, value)| *value == index as u64 % 1000));
        let len = vector.len();
        assert!(vector.try_reserve(isize::MAX as usize / 8 - len).is_err());
        drop(vector);
        assert_eq!(vec![7_u8; MIB].len(), MIB);
    });
}

/// A request beyond what the system grants returns null, reserves no address space and flushes no
/// sheaves.
#[test]
fn much_too_large() {
    const GIB: usize = 1 << 30;
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
                let layout = Layout::from_size_align(size, 16).expect("a valid layout");
                // SAFETY: the size is not zero.
                assert!(unsafe { GLOBAL.alloc(layout) }.is_null(), "{size} bytes");
            }
            let now = status_bytes("VmSize");
            assert!(now < reserved + GIB, "{reserved} bytes reserved, now {now}");
            assert_eq!(CLOSED.load(Ordering::Relaxed), 0);
            assert_eq!(vec![1_u8; 400 * MIB].len(), 400 * MIB);
        })
        .env("HAYLOFT_BACKEND", backend)
        .limit(Limit::Data, 600 * MIB)
        .succeeds();
    }
}

/// A block for which there is address space is not refused because of how arenas divide it.
#[test]
fn a_large_block_within_a_limit() {
    on_both_backends_within(840 * MIB, || {
        let layout = Layout::from_size_align(400 * MIB, 16).expect("a valid layout");
        // SAFETY: the size is not zero, and the block is freed once.
        unsafe {
            let block = GLOBAL.alloc(layout);
            assert!(!block.is_null());
            GLOBAL.dealloc(block, layout);
        }
    });
}

/// After a program lowers its own limit, the remaining address space serves blocks and mappings
/// alike, and the limit holds.
#[test]
fn address_space_that_was_reserved_goes_back() {
    on_both_backends(|| {
        const MOST: usize = 400 * MIB;
        let kept = vec![1_u8; 10 * MIB];
        Limit::AddressSpace.set(MOST).expect("the limit can be lowered");
        heap::limit_address_space(MOST);
        assert!(status_bytes("VmSize") < MOST);
        thread::spawn(|| ()).join().expect("there is room for a thread");
        let layout = Layout::from_size_align(MIB, 16).expect("a valid layout");
        let small = Layout::from_size_align(100, 16).expect("a valid layout");
        let (mut hoard, mut objects) = (Hoard::new(MOST / MIB), Hoard::new(MOST / 100));
        for _ in 0..2 {
            hoard.fill_up(layout);
            assert!(hoard.len() > 100 && !hoard.is_full(), "{} MiB", hoard.len());
            hoard.free_all(layout);
        }
        // Objects need metadata, which lies near the released address space.
        objects.fill_up(small);
        assert!(!objects.is_full() && objects.len() > 500_000, "{} objects", objects.len());
        objects.free_all(small);
        assert!(kept.iter().all(|byte| *byte == 1));
    });
}

/// While one thread waits for the system to commit memory, others allocate what is committed
/// already.
#[test]
fn committing_keeps_nobody_waiting() {
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
                    assert!(IS_DONE.load(Ordering::Relaxed), "another thread waits");
                }
            });
            drop(vec![1_u8; 100 * MIB]);
        });
        assert!(IS_COMMITTING.load(Ordering::Relaxed));
    });
}
