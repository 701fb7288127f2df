//! Zeroed memory: does an allocator know which of its memory is zero already?

use crate::blocks::Block;
use crate::engine::Run;
use crate::prng::Prng;

pub(super) fn run(run: &mut Run) {
    let count: u64 = run.pick(400_000, 50_000, 1000);
    let mut prng = Prng::new(13);
    let mut slots: Vec<Block> = (0..500).map(|_| block(&mut prng)).collect();
    run.time(count, || {
        for _ in 0..count {
            let slot = prng.below(slots.len());
            slots[slot] = block(&mut prng);
            // A used block comes back dirty, else nothing would ever have to be zeroed.
            slots[slot].fill();
        }
    });
}

/// 16 bytes to 64 KiB.
#[inline(always)]
fn block(prng: &mut Prng) -> Block {
    Block::zeroed(prng.geometric(16, 64 * 1024))
}
