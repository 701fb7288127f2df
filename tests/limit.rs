//! `HAYLOFT_LIMIT`: beyond the soft limit free memory goes back at once, at the hard one there is null, and nothing lost.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use alloc_core::fault::{self, Place};
use alloc_core::nolock;
use tests::pattern;
use tests::process::status_bytes;
use tests::routes::Hayloft;
use tests::scenario::Scenario;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MB: usize = 1 << 20;

/// Runs `body` on both backends within a limit, and with memory going back for no other reason.
fn within<F: Fn()>(limit: &str, body: F) {
    for backend in ["rseq", "fallback"] {
        Scenario::new(backend, &body)
            .env("HAYLOFT_BACKEND", backend)
            .env("HAYLOFT_LIMIT", limit)
            .env("HAYLOFT_DECAY_MS", "3600000")
            .succeeds();
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("a valid layout")
}

/// Blocks of one size, as many as there may be.
struct Hoard {
    layout: Layout,
    blocks: Vec<*mut u8>,
}

impl Hoard {
    /// Allocates and fills blocks until it is refused. `room` is for their addresses.
    fn new(size: usize, room: Vec<*mut u8>) -> Hoard {
        let mut hoard = Hoard { layout: layout(size), blocks: room };
        loop {
            assert!(hoard.blocks.len() < hoard.blocks.capacity(), "never refused");
            // SAFETY: the size is not zero.
            let block = unsafe { GLOBAL.alloc(hoard.layout) };
            if block.is_null() {
                return hoard;
            }
            // SAFETY: the block is that long.
            unsafe { pattern::fill(block, 0, size, hoard.blocks.len() as u64) };
            hoard.blocks.push(block);
        }
    }

    fn bytes(&self) -> usize {
        self.blocks.len() * self.layout.size()
    }

    /// Checks all blocks and frees them; the room for addresses.
    fn free(mut self) -> Vec<*mut u8> {
        while let Some(block) = self.blocks.pop() {
            // SAFETY: a block of this layout, which was filled, and is freed once.
            unsafe {
                let mismatch =
                    pattern::find_mismatch(block, self.layout.size(), self.blocks.len() as u64);
                assert_eq!(mismatch, None);
                GLOBAL.dealloc(block, self.layout);
            }
        }
        self.blocks
    }
}

/// What one size had goes to the next: sheaves, barns and empty slabs are no loss.
#[test]
fn the_hard_limit_is_null() {
    within("48M", || {
        let before = status_bytes("VmRSS");
        let mut room = Vec::with_capacity(48 * MB / 64);
        for size in [64, 3000, MB, 20_000, 5 * MB, 64] {
            let hoard = Hoard::new(size, room);
            assert!(hoard.bytes() < 48 * MB, "{} bytes of {size}", hoard.bytes());
            assert!(hoard.bytes() > 32 * MB, "{} bytes of {size}", hoard.bytes());
            // There is nothing more, however one asks, and the last block is as it was.
            let last = hoard.blocks[hoard.blocks.len() - 1];
            // SAFETY: the sizes are not zero; the block is of that layout.
            unsafe {
                assert!(GLOBAL.alloc(layout(6 * MB)).is_null());
                assert!(GLOBAL.alloc_zeroed(layout(6 * MB)).is_null());
                assert!(GLOBAL.realloc(last, hoard.layout, 20 * MB).is_null());
                assert!(nolock::alloc(layout(6 * MB)).is_none());
            }
            room = hoard.free();
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
