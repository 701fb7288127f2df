//! Blocks with an alignment larger than the natural one: cache lines, vectors, pages.

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

pub(super) fn run(run: &mut Run) {
    let count: u64 = run.pick(1_500_000, 120_000, 1000);
    let mut prng = Prng::new(11);
    let mut slots: Vec<Block> = (0..1000).map(|_| block(&mut prng)).collect();
    run.time(count, || {
        for _ in 0..count {
            let slot = prng.below(slots.len());
            slots[slot] = block(&mut prng);
        }
    });
}

/// Returns a block of 32 to 8192 bytes, aligned to a power of two from 64 to 4096.
#[inline(always)]
fn block(prng: &mut Prng) -> Block {
    let align = 64 << prng.below(7);
    Block::aligned(prng.geometric(32, 8192), align)
}
