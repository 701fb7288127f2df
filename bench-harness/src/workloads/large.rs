//! Large blocks, every page of which is touched: how often an allocator goes to the kernel, and what page faults cost.

use crate::blocks::Block;
use crate::engine::Run;
use crate::prng::Prng;

/// One block at a time.
pub(super) fn pairs(run: &mut Run) {
    let count: u64 = run.pick(30_000, 2000, 10);
    one_at_a_time(run, 17, count, LARGE);
}

/// Thirty-two at a time, about 25 MB.
pub(super) fn churn(run: &mut Run) {
    let count: u64 = run.pick(12_000, 800, 10);
    one_of(32, run, 19, count, LARGE);
}

/// One huge block at a time.
pub(super) fn touch(run: &mut Run) {
    let count: u64 = run.pick(100, 10, 1);
    one_at_a_time(run, 37, count, HUGE);
}

/// Four huge blocks at a time, about 60 MiB.
pub(super) fn touch_four(run: &mut Run) {
    let count: u64 = run.pick(100, 10, 1);
    one_of(4, run, 41, count, HUGE);
}

/// 32 KiB to 4 MiB.
const LARGE: (usize, usize) = (32 << 10, 4 << 20);
/// 1 to 64 MiB.
const HUGE: (usize, usize) = (1 << 20, 64 << 20);

/// Allocates and frees.
fn one_at_a_time(run: &mut Run, seed: u64, count: u64, sizes: (usize, usize)) {
    let mut prng = Prng::new(seed);
    run.time(count, || {
        for _ in 0..count {
            drop(block(&mut prng, sizes));
        }
    });
}

/// Replaces a random one of `live` blocks.
fn one_of(live: usize, run: &mut Run, seed: u64, count: u64, sizes: (usize, usize)) {
    let mut prng = Prng::new(seed);
    let mut slots: Vec<Block> = (0..live).map(|_| block(&mut prng, sizes)).collect();
    run.time(count, || {
        for _ in 0..count {
            let slot = prng.below(slots.len());
            slots[slot] = block(&mut prng, sizes);
        }
    });
}

/// A block with every page touched.
fn block(prng: &mut Prng, (smallest, largest): (usize, usize)) -> Block {
    let mut block = Block::new(prng.geometric(smallest, largest));
    block.touch_pages();
    block
}
