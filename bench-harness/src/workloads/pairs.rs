//! Hot pairs: allocate, free, and repeat. Measures the shortest path through an allocator and
//! nothing else.

use std::alloc::Layout;
use std::hint::black_box;

use crate::blocks::{alloc_raw, free_raw};
use crate::run::Run;

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Passes a constant layout, as `Box<T>` does.
pub(super) fn constant(run: &mut Run) {
    let pairs = run.pick(20_000_000, 2_000_000, 1000);
    run.time(pairs, || {
        for _ in 0..pairs {
            // Without the black box the compiler would remove both calls.
            let block = black_box(alloc_raw(LAYOUT));
            // SAFETY: the line above allocated `block` with this layout, and nothing else frees it.
            unsafe { free_raw(block, LAYOUT) };
        }
    });
}

/// Passes a layout that is known only at run time, as `Vec<T>` does.
pub(super) fn hidden(run: &mut Run) {
    let pairs = run.pick(20_000_000, 2_000_000, 1000);
    run.time(pairs, || {
        for _ in 0..pairs {
            let layout = black_box(LAYOUT);
            let block = black_box(alloc_raw(layout));
            // SAFETY: the line above allocated `block` with this layout, and nothing else frees it.
            unsafe { free_raw(block, layout) };
        }
    });
}
