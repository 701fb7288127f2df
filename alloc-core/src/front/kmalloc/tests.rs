//! Tests of the general-purpose allocator.

use super::*;
use crate::size_class::UNIT;
use core::sync::atomic::AtomicPtr;
use std::vec::Vec;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Allocates and fills a block, and checks its alignment.
fn filled(layout: Layout, value: u8) -> *mut u8 {
    let block = alloc(layout);
    assert!(!block.is_null(), "{layout:?} was refused");
    assert!(block.addr().is_multiple_of(layout.align()), "{block:p} for {layout:?}");
    // SAFETY: the block is fresh and of this layout.
    unsafe { block.write_bytes(value, layout.size()) };
    block
}

fn check(block: *mut u8, len: usize, value: u8) {
    // Miri is slow, so it checks only some of the bytes.
    let step = if cfg!(miri) { 509 } else { 1 };
    for offset in (0..len).step_by(step).chain(len.checked_sub(1)) {
        // SAFETY: callers pass a block of at least `len` bytes.
        assert_eq!(unsafe { *block.add(offset) }, value, "at offset {offset}");
    }
}

#[test]
fn blocks_of_a_class_are_disjoint_and_reusable() {
    for layout in [layout(24, 8), layout(1000, 8), layout(20_000, 16)] {
        let count = percpu::batch_len(class_of(layout).unwrap()) * 5 / 2;
        for _ in 0..2 {
            let blocks: Vec<_> = (0..count).map(|number| filled(layout, number as u8)).collect();
            for (number, &block) in blocks.iter().enumerate() {
                check(block, layout.size(), number as u8);
                // SAFETY: the block was allocated above with this layout.
                unsafe { free(block, layout) };
            }
        }
    }
}

#[test]
fn alloc_zeroed_clears_reused_memory() {
    for layout in [layout(100, 4), layout(3 * UNIT, 8)] {
        // SAFETY: the block is allocated with the same layout.
        unsafe { free(filled(layout, 0xff), layout) };
        let block = alloc_zeroed(layout);
        check(block, layout.size(), 0);
        // SAFETY: the block was allocated above with this layout.
        unsafe { free(block, layout) };
    }
}

/// A block that is moved by remapping may have a run longer than itself, of which the rest is
/// not moved.
#[cfg(not(miri))]
#[test]
fn alloc_zeroed_clears_the_rest_of_a_moved_run() {
    const MIB: usize = 1 << 20;
    let of = |mib| layout(mib * MIB, 8);
    // SAFETY: the blocks have these layouts, and each is freed once.
    unsafe {
        let dirty = filled(of(36), 0xff);
        let behind_dirty = alloc(of(1));
        let block = alloc(of(7));
        let behind_block = alloc(of(1));
        free(dirty, of(36));
        // Its run becomes four times as long as necessary and covers the dirty memory.
        let block = realloc(block, of(7), 9 * MIB);
        let block = realloc(block, of(9), 40 * MIB);
        let zeroed = alloc_zeroed(of(36));
        check(zeroed, 36 * MIB, 0);
        for (block, mib) in [(zeroed, 36), (block, 40), (behind_dirty, 1), (behind_block, 1)] {
            free(block, of(mib));
        }
    }
}

#[test]
fn realloc_keeps_contents() {
    let sizes = [1, 8, 100, 104, 5000, 40_000, 70_000, 700_000, 900_000, 300_000, 33_000, 10];
    let mut size = sizes[0];
    let mut block = filled(layout(size, 8), 7);
    for new_size in sizes {
        // SAFETY: the block has that size, and the new one is filled to its end.
        unsafe {
            block = realloc(block, layout(size, 8), new_size);
            check(block, size.min(new_size), 7);
            block.write_bytes(7, new_size);
        }
        size = new_size;
    }
    // SAFETY: the block has that size.
    unsafe { free(block, layout(size, 8)) };
}

#[test]
fn zero_size_works_and_huge_sizes_return_null() {
    for layout in [layout(0, 1), layout(0, 4096), layout(0, 1 << 17), layout(1, 1 << 20)] {
        let block = filled(layout, 1);
        // SAFETY: the block was allocated above with this layout.
        unsafe { free(block, layout) };
    }
    for size in [isize::MAX as usize, 1 << 46] {
        assert!(alloc(layout(size, 1)).is_null(), "{size} bytes were granted");
    }
}

#[test]
fn threads_can_free_blocks_of_others() {
    let layout = layout(64, 8);
    let rounds = if cfg!(miri) { 3 } else { 100 };
    let (send, receive) = std::sync::mpsc::sync_channel::<AtomicPtr<u8>>(16);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..rounds * 64 {
                send.send(filled(layout, number as u8).into()).unwrap();
            }
        });
        scope.spawn(move || {
            for (number, block) in receive.iter().enumerate() {
                let block = block.into_inner();
                check(block, layout.size(), number as u8);
                // SAFETY: the other thread allocated the block and does not use it any longer.
                unsafe { free(block, layout) };
            }
        });
    });
}
