//! Blocks with an alignment larger than the natural one: cache lines, vectors, pages.

use crate::blocks::Block;
use crate::engine::Run;
use crate::prng::Prng;

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

/// 32 to 8192 bytes at a multiple of 64, 128, and so on to 4096.
#[inline(always)]
fn block(prng: &mut Prng) -> Block {
    let align = 64 << prng.below(7);
    Block::aligned(prng.geometric(32, 8192), align)
}
