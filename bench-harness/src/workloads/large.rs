//! Large blocks, every page of which is touched: how often an allocator goes to the kernel, and what page faults cost.

use crate::blocks::Block;
use crate::engine::Run;
use crate::prng::Prng;

/// One block at a time.
pub(super) fn pairs(run: &mut Run) {
    let count: u64 = run.pick(30_000, 2000, 10);
    let mut prng = Prng::new(17);
    run.time(count, || {
        for _ in 0..count {
            drop(block(&mut prng));
        }
    });
}

/// Thirty-two at a time, about 25 MB.
pub(super) fn churn(run: &mut Run) {
    let count: u64 = run.pick(12_000, 800, 10);
    let mut prng = Prng::new(19);
    let mut slots: Vec<Block> = (0..32).map(|_| block(&mut prng)).collect();
    run.time(count, || {
        for _ in 0..count {
            let slot = prng.below(slots.len());
            slots[slot] = block(&mut prng);
        }
    });
}

/// 32 KiB to 4 MiB.
fn block(prng: &mut Prng) -> Block {
    let mut block = Block::new(prng.geometric(32 * 1024, 4 * 1024 * 1024));
    block.touch_pages();
    block
}
