//! Hot pairs: allocate, free, and again. The shortest road through an allocator, and nothing else.

use std::alloc::Layout;
use std::hint::black_box;

use crate::blocks::{alloc_raw, free_raw};
use crate::engine::Run;

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// The layout is a constant, as it is for `Box<T>`.
pub(super) fn constant(run: &mut Run) {
    let pairs = run.pick(20_000_000, 2_000_000, 1000);
    run.time(pairs, || {
        for _ in 0..pairs {
            // Without the black box the compiler would drop both calls.
            let block = black_box(alloc_raw(LAYOUT));
            // SAFETY: allocated with this layout just now.
            unsafe { free_raw(block, LAYOUT) };
        }
    });
}

/// The layout is known only at run time, as it is for `Vec<T>`.
pub(super) fn hidden(run: &mut Run) {
    let pairs = run.pick(20_000_000, 2_000_000, 1000);
    run.time(pairs, || {
        for _ in 0..pairs {
            let layout = black_box(LAYOUT);
            let block = black_box(alloc_raw(layout));
            // SAFETY: allocated with this layout just now.
            unsafe { free_raw(block, layout) };
        }
    });
}
