//! Random churn: a set of live blocks. Each operation replaces a random one by a block of a random
//! size.

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

/// A full set of slots, and the state for further replacements.
pub(super) struct Churn {
    slots: Vec<Block>,
    largest: usize,
    prng: Prng,
}

impl Churn {
    /// Fills `slots` slots with blocks of 1 to `largest` bytes.
    pub(super) fn new(seed: u64, slots: usize, largest: usize) -> Self {
        let mut prng = Prng::new(seed);
        let slots = (0..slots).map(|_| Block::new(1 + prng.below(largest))).collect();
        Self { slots, largest, prng }
    }

    /// Replaces `count` blocks, chosen at random.
    #[inline(always)]
    pub(super) fn replace(&mut self, count: u64) {
        for _ in 0..count {
            let (slot, size) = self.next();
            self.slots[slot] = Block::new(size);
        }
    }

    /// Returns the slot to replace next, and the size of its new block.
    #[inline(always)]
    pub(super) fn next(&mut self) -> (usize, usize) {
        (self.prng.below(self.slots.len()), 1 + self.prng.below(self.largest))
    }

    /// Puts `block` into `slot` and returns the block that it replaces.
    #[inline(always)]
    pub(super) fn swap(&mut self, slot: usize, block: Block) -> Block {
        std::mem::replace(&mut self.slots[slot], block)
    }
}

/// Keeps about 5 MB live: more than the first-level cache, less than the last-level cache.
pub(super) fn ten_thousand(run: &mut Run) {
    let count = run.pick(5_000_000, 400_000, 1000);
    let mut churn = Churn::new(42, run.pick(10_000, 10_000, 100), 1000);
    run.time(count, || churn.replace(count));
}

/// Keeps about 130 MB live: more than any cache. The quick scale keeps a quarter of that, since
/// filling the slots takes longest.
pub(super) fn million(run: &mut Run) {
    let count = run.pick(1_000_000, 200_000, 1000);
    let mut churn = Churn::new(42, run.pick(1_000_000, 250_000, 100), 256);
    run.time(count, || churn.replace(count));
}

/// Runs one thread per core.
pub(super) fn two_threads(run: &mut Run) {
    threads(run, 2);
}

/// Runs more threads than cores: they are preempted in the middle of operations.
pub(super) fn sixteen_threads(run: &mut Run) {
    threads(run, 16);
}

/// Runs far more threads than cores: shows the cost of a cache per thread.
pub(super) fn sixty_four_threads(run: &mut Run) {
    threads(run, 64);
}

fn threads(run: &mut Run, threads: usize) {
    let total: u64 = run.pick(8_000_000, 640_000, 6400);
    let slots = run.pick(5000, 5000, 50);
    run.time_threads(
        threads,
        total,
        |index| Churn::new(index as u64 * 77 + 5, slots, 1000),
        |churn| churn.replace(total / threads as u64),
    );
}
