//! Batches: many blocks allocated at once, then freed in one order or the other.

use crate::blocks::Fixed;
use crate::run::Run;

const BATCH: usize = 10_000;

/// Frees the last allocated block first, which suits a stack of free blocks.
pub(super) fn lifo(run: &mut Run) {
    batches(run, |blocks| while blocks.pop().is_some() {});
}

/// Frees the first allocated block first.
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
