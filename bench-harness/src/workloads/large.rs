//! Large blocks, every page of which is touched. Shows how often an allocator goes to the kernel,
//! and the cost of page faults.

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

/// Keeps one large block at a time.
pub(super) fn pairs(run: &mut Run) {
    let count: u64 = run.pick(30_000, 2000, 10);
    one_at_a_time(run, 17, count, LARGE);
}

/// Keeps thirty-two large blocks, about 25 MB.
pub(super) fn churn(run: &mut Run) {
    let count: u64 = run.pick(12_000, 800, 10);
    one_of(32, run, 19, count, LARGE);
}

/// Keeps one huge block at a time.
pub(super) fn touch(run: &mut Run) {
    let count: u64 = run.pick(100, 10, 1);
    one_at_a_time(run, 37, count, HUGE);
}

/// Keeps four huge blocks, about 60 MiB.
pub(super) fn touch_four(run: &mut Run) {
    let count: u64 = run.pick(100, 10, 1);
    one_of(4, run, 41, count, HUGE);
}

/// Sizes of large blocks: 32 KiB to 4 MiB.
const LARGE: (usize, usize) = (32 << 10, 4 << 20);
/// Sizes of huge blocks: 1 to 64 MiB.
const HUGE: (usize, usize) = (1 << 20, 64 << 20);

/// Allocates and frees `count` blocks, one after the other.
fn one_at_a_time(run: &mut Run, seed: u64, count: u64, sizes: (usize, usize)) {
    let mut prng = Prng::new(seed);
    run.time(count, || {
        for _ in 0..count {
            drop(block(&mut prng, sizes));
        }
    });
}

/// Replaces a random one of `live` blocks, `count` times.
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

/// Returns a block of which every page is touched.
fn block(prng: &mut Prng, (smallest, largest): (usize, usize)) -> Block {
    let mut block = Block::new(prng.geometric(smallest, largest));
    block.touch_pages();
    block
}
