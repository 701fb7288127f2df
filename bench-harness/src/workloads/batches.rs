//! Batches: many blocks at once, freed in one order or the other.

use crate::blocks::Fixed;
use crate::engine::Run;

const BATCH: usize = 10_000;

/// The last allocated is freed first: what a stack of free blocks likes.
pub(super) fn lifo(run: &mut Run) {
    batches(run, |blocks| while blocks.pop().is_some() {});
}

/// The first allocated is freed first.
pub(super) fn fifo(run: &mut Run) {
    batches(run, |blocks| blocks.drain(..).for_each(drop));
}

fn batches(run: &mut Run, free_all: impl Fn(&mut Vec<Fixed<64>>)) {
    let batches = run.pick(600, 60, 2);
    let mut blocks = Vec::with_capacity(BATCH);
    run.time((batches * BATCH) as u64, || {
        for _ in 0..batches {
            for _ in 0..BATCH {
                blocks.push(Fixed::new());
            }
            free_all(&mut blocks);
        }
    });
}
