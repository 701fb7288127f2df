//! `HAYLOFT_LIMIT`: beyond the soft limit free memory goes back at once, at the hard one there is null, and nothing lost.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use alloc_core::fault::{self, Place};
use alloc_core::nolock;
use tests::hoard::Hoard;
use tests::process::status_bytes;
use tests::routes::Hayloft;
use tests::scenario::on_both_backends_with;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MB: usize = 1 << 20;

/// Runs `body` on both backends within a limit. Memory goes back for no other reason.
fn within<F: Fn()>(limit: &str, body: F) {
    on_both_backends_with(&[("HAYLOFT_LIMIT", limit)], body);
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("a valid layout")
}

/// What one size had goes to the next: sheaves, barns and empty slabs are no loss.
#[test]
fn the_hard_limit_is_null() {
    within("48M", || {
        let before = status_bytes("VmRSS");
        let mut hoard = Hoard::on(vec![ptr::null_mut(); 48 * MB / 64].leak());
        for size in [64, 3000, MB, 20_000, 5 * MB, 64] {
            hoard.fill_up(layout(size));
            assert!(!hoard.is_full(), "never refused");
            let bytes = hoard.len() * size;
            assert!(bytes < 48 * MB, "{bytes} bytes of {size}");
            assert!(bytes > 32 * MB, "{bytes} bytes of {size}");
            // There is nothing more, however one asks, and the last block is as it was.
            let last = hoard.last();
            // SAFETY: the sizes are not zero; the block is of that layout.
            unsafe {
                assert!(GLOBAL.alloc(layout(6 * MB)).is_null());
                assert!(GLOBAL.alloc_zeroed(layout(6 * MB)).is_null());
                assert!(GLOBAL.realloc(last, layout(size), 20 * MB).is_null());
                assert!(nolock::alloc(layout(6 * MB)).is_none());
            }
            hoard.free_all(layout(size));
        }
        let peak = status_bytes("VmHWM");
        assert!(peak < before + 52 * MB, "{before} before, {peak} at the peak");
    });
}

/// Frees beyond the soft limit give back at once, and only then.
#[test]
fn the_soft_limit_gives_back() {
    within("24M:200M", || {
        let burst = |bytes: usize| {
            let blocks: Vec<Vec<u8>> = (0..bytes / 8000).map(|_| vec![1; 8000]).collect();
            let resident = status_bytes("VmRSS");
            drop(blocks);
            (resident, status_bytes("VmRSS"))
        };
        let before = status_bytes("VmRSS");
        let (full, freed) = burst(12 * MB);
        assert!(full > before + 11 * MB && freed > before + 9 * MB, "{before}, {full}, {freed}");
        let (full, freed) = burst(100 * MB);
        assert!(full > before + 95 * MB, "{before}, {full}");
        assert!(freed < before + 30 * MB, "{before} before, {full} at the peak, {freed} now");
    });
}

/// A vector that comes to the limit says so and keeps its elements; what it leaves is for others.
#[test]
fn a_vector_at_the_limit() {
    within("32M", || {
        let mut vector: Vec<u64> = (0..1000).collect();
        while vector.try_reserve(vector.len()).is_ok() {
            vector.extend_from_within(..);
        }
        assert!(vector.len() * 8 >= 4 * MB, "refused at {} elements", vector.len());
        assert!(vector.iter().enumerate().all(|(index, value)| *value == index as u64 % 1000));
        drop(vector);
        assert_eq!(vec![7_u8; 20 * MB].len(), 20 * MB);
    });
}

/// What one thread gives back to the system at this moment is nobody's loss.
#[test]
fn memory_on_its_way_is_waited_for() {
    static IS_ON_ITS_WAY: AtomicBool = AtomicBool::new(false);
    within("20M:48M", || {
        fault::set_hook(|place| {
            if place == Place::ArenaPurging && !IS_ON_ITS_WAY.swap(true, Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
            }
        });
        let block = vec![1_u8; 30 * MB];
        thread::scope(|scope| {
            scope.spawn(move || drop(block));
            while !IS_ON_ITS_WAY.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // SAFETY: the size is not zero; the block is freed once.
            unsafe {
                let block = GLOBAL.alloc(layout(30 * MB));
                assert!(!block.is_null());
                GLOBAL.dealloc(block, layout(30 * MB));
            }
        });
    });
}
