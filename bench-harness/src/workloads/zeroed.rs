//! Zeroed memory. Does an allocator know which of its memory is already zero?

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

pub(super) fn run(run: &mut Run) {
    let count: u64 = run.pick(400_000, 50_000, 1000);
    let mut prng = Prng::new(13);
    let mut slots: Vec<Block> = (0..500).map(|_| block(&mut prng)).collect();
    run.time(count, || {
        for _ in 0..count {
            let slot = prng.below(slots.len());
            slots[slot] = block(&mut prng);
            // Dirties the block: otherwise the allocator would never have to zero a reused one.
            slots[slot].fill();
        }
    });
}

/// Returns a zeroed block of 16 bytes to 64 KiB.
#[inline(always)]
fn block(prng: &mut Prng) -> Block {
    Block::zeroed(prng.geometric(16, 64 * 1024))
}
