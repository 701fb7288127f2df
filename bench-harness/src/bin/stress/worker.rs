//! One worker thread: a generation of random operations.

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::block::Block;
use crate::companion::Companion;
use crate::draw::{self, Rng};
use crate::exchange::{Bundle, Exchange};
use crate::failure::{Actor, Role};
use crate::options::Plan;
use crate::pulse::Pulse;
use crate::relay;
use crate::signals::Enlisted;
use crate::totals::Totals;

/// Bound on the blocks that a worker keeps. More would only delay the effect of a shrinking phase.
const LIVE_BLOCKS: usize = 16 << 10;

/// The progress of one lane, visible to the supervisor while it runs. A lane is one thread number:
/// its generations of threads succeed each other there.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Lane {
    /// Beats with each operation, in all generations.
    pub(crate) operations: Pulse,
    /// Bytes that the current worker keeps.
    pub(crate) live_bytes: AtomicU64,
}

/// State that all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) exchange: Exchange,
    pub(crate) lanes: Box<[Lane]>,
    pub(crate) companions: Box<[Companion]>,
    /// Set when the run is over.
    pub(crate) stop: AtomicBool,
}

impl Shared {
    /// Creates the shared state of a run that has not begun.
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            exchange: Exchange::new(plan.slots),
            lanes: (0..plan.threads).map(|_| Lane::default()).collect(),
            companions: Companion::all(&plan),
            stop: AtomicBool::new(false),
            plan,
        }
    }
}

/// The state of one worker.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    lane: &'a Lane,
    actor: Actor,
    rng: Rng,
    /// Generator of the keys of this worker's blocks.
    keys: Rng,
    live: Vec<Block>,
    live_bytes: usize,
    /// Whether allocations currently outnumber frees. Phases change at random, so that slabs and
    /// caches are both filled and emptied.
    growing: bool,
    totals: Totals,
}

impl<'a> Worker<'a> {
    /// Creates the worker of a thread number and generation.
    pub(crate) fn new(shared: &'a Shared, thread: u32, generation: u32) -> Self {
        let seed = shared.plan.seed;
        let mut rng = Rng::of_worker(seed, thread, generation);
        Self {
            shared,
            lane: &shared.lanes[thread as usize],
            actor: Actor { seed, role: Role::Worker, thread, generation, operation: 0 },
            keys: Rng::of_key(rng.next()),
            rng,
            live: Vec::new(),
            live_bytes: 0,
            growing: true,
            totals: Totals::default(),
        }
    }

    /// Runs at most `limit` operations and leaves the survivors to other threads.
    pub(crate) fn run(mut self, limit: u64) -> Totals {
        let Actor { thread, generation, .. } = self.actor;
        let _enlisted = self.shared.plan.modes.signals.then(|| Enlisted::new(thread, generation));
        // Long lives are as likely as very short ones.
        let life = (self.rng.log_uniform(1, 1 << 15) as u64).min(limit);
        while self.actor.operation < life && !self.shared.stop.load(Ordering::Relaxed) {
            self.step();
            self.actor.operation += 1;
            self.lane.operations.beat();
            self.lane.live_bytes.store(self.live_bytes as u64, Ordering::Relaxed);
        }
        self.leave();
        self.totals.operations = self.actor.operation;
        self.lane.live_bytes.store(0, Ordering::Relaxed);
        self.totals
    }

    /// Does one random operation.
    fn step(&mut self) {
        if self.rng.below(4000) == 0 {
            self.growing = !self.growing;
        }
        let (allocs, frees) = if self.growing { (60, 20) } else { (30, 50) };
        match self.rng.below(1000) {
            0..800 => match self.rng.below(allocs + frees) {
                n if n < allocs => self.alloc_one(),
                _ => self.free_one(),
            },
            800..935 => self.realloc_one(),
            935..965 => self.check_one(),
            965..970 => self.batch(),
            _ => self.hand_over_some(),
        }
    }

    /// Allocates a block to keep. One in four is zeroed.
    fn alloc_one(&mut self) {
        let layout = draw::layout(&mut self.rng, self.shared.plan.max_size);
        let zeroed = self.rng.below(4) == 0;
        self.make_room(layout.size());
        if let Some(block) = self.alloc(layout, zeroed) {
            self.keep(block);
        }
    }

    fn free_one(&mut self) {
        if let Some(block) = self.take_one() {
            self.free(block);
        }
    }

    fn realloc_one(&mut self) {
        let Some(mut block) = self.take_one() else { return };
        let max = self.shared.plan.max_size;
        let new_size = draw::new_size(&mut self.rng, block.size(), max);
        self.make_room(new_size.max(block.size()));
        self.totals.note(new_size as u64);
        self.realloc(&mut block, new_size);
        self.keep(block);
    }

    fn check_one(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let index = self.rng.below(self.live.len());
        self.live[index].check("at rest", self.actor);
        self.totals.checks += 1;
    }

    /// Allocates many blocks of one layout, then hands all of them over or frees them: in the order
    /// of allocation, in reverse, or shuffled.
    fn batch(&mut self) {
        let layout = draw::layout(&mut self.rng, self.shared.plan.slot_bytes.min(64 << 10));
        let fits = (self.shared.plan.slot_bytes / layout.size()).max(1);
        let count = self.rng.log_uniform(1, 1024).min(fits);
        let mut bundle: Bundle = (0..count).filter_map(|_| self.alloc(layout, false)).collect();
        self.totals.batches += 1;
        match self.rng.below(4) {
            0 => return self.hand_over(bundle),
            1 => bundle.reverse(),
            2 => {
                for last in (1..bundle.len()).rev() {
                    bundle.swap(last, self.rng.below(last + 1));
                }
            }
            _ => {}
        }
        for block in bundle {
            self.free(block);
        }
    }

    /// Hands a few of the kept blocks to the thread that uses the slot next.
    fn hand_over_some(&mut self) {
        let count = self.rng.log_uniform(1, 16);
        let bundle = self.gather(count);
        self.hand_over(bundle);
    }

    /// Removes up to `count` random blocks from those kept, at most as many bytes as a slot may
    /// hold.
    fn gather(&mut self, count: usize) -> Bundle {
        let mut bundle = Bundle::new();
        let mut room = self.shared.plan.slot_bytes;
        for _ in 0..count {
            let Some(block) = self.take_one() else { break };
            match room.checked_sub(block.size()) {
                Some(rest) => {
                    room = rest;
                    bundle.push(block);
                }
                // The block is too large for the rest of this slot.
                None => self.free(block),
            }
        }
        bundle
    }

    /// Swaps a bundle into a slot and frees the blocks received in exchange.
    ///
    /// The received blocks depend on timing. So handling them must touch neither the worker's
    /// random numbers nor the blocks that it keeps.
    fn hand_over(&mut self, bundle: Bundle) {
        self.totals.note(bundle.len() as u64);
        let slot = self.rng.below(self.shared.plan.slots);
        self.totals.hand_overs += 1;
        for mut block in self.shared.exchange.swap(slot, bundle) {
            let mut choice = Rng::of_key(block.key());
            if choice.below(8) == 0 {
                let new_size = draw::new_size(&mut choice, block.size(), self.shared.plan.max_size);
                self.realloc(&mut block, new_size);
            }
            let goes_on = self.shared.plan.modes.signals
                && block.size() <= relay::MAX_SIZE
                && choice.below(4) == 0;
            // Gives handlers blocks of workers to free, and workers blocks of handlers.
            let block = if goes_on { relay::swap(&mut choice, Some(block)) } else { Some(block) };
            if let Some(block) = block {
                self.free(block);
            }
        }
    }

    /// Ends this thread's part: passes the surviving blocks to the slots, in bundles, for others to
    /// free.
    fn leave(&mut self) {
        for _ in 0..self.shared.plan.slots {
            if self.live.is_empty() {
                return;
            }
            let bundle = self.gather(LIVE_BLOCKS);
            self.hand_over(bundle);
        }
        while let Some(block) = self.take_one() {
            self.free(block);
        }
    }

    /// Frees kept blocks until `size` more bytes fit.
    fn make_room(&mut self, size: usize) {
        while self.live_bytes + size > self.shared.plan.worker_bytes
            || self.live.len() >= LIVE_BLOCKS
        {
            let Some(block) = self.take_one() else { return };
            self.free(block);
        }
    }

    fn keep(&mut self, block: Block) {
        self.live_bytes += block.size();
        self.live.push(block);
    }

    fn take_one(&mut self) -> Option<Block> {
        if self.live.is_empty() {
            return None;
        }
        let index = self.rng.below(self.live.len());
        let block = self.live.swap_remove(index);
        self.live_bytes -= block.size();
        Some(block)
    }

    fn alloc(&mut self, layout: Layout, zeroed: bool) -> Option<Block> {
        self.totals.note(layout.size() as u64);
        self.totals.note(layout.align() as u64 * 2 + u64::from(zeroed));
        let key = self.keys.next();
        let block = if zeroed {
            Block::alloc_zeroed(layout, key, self.actor)
        } else {
            Block::alloc(layout, key, self.actor)
        };
        match block {
            None => self.totals.refused += 1,
            Some(_) if zeroed => self.totals.zeroed += 1,
            Some(_) => self.totals.allocs += 1,
        }
        self.totals.bytes += layout.size() as u64;
        block
    }

    fn realloc(&mut self, block: &mut Block, new_size: usize) {
        let grows = new_size > block.size();
        self.totals.bytes += new_size as u64;
        match block.realloc(new_size, self.actor) {
            false => self.totals.refused += 1,
            true if grows => self.totals.grown += 1,
            true => self.totals.shrunk += 1,
        }
    }

    fn free(&mut self, block: Block) {
        self.totals.foreign_frees += u64::from(!block.is_of(self.actor));
        block.free(self.actor);
        self.totals.frees += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Length, Modes};
    use crate::signals;

    fn run(seed: u64, generations: u32, modes: Modes) -> Totals {
        let plan = Plan {
            seed,
            threads: 2,
            length: Length::Operations(1000),
            max_size: 64 << 10,
            worker_bytes: 1 << 20,
            slots: 4,
            slot_bytes: 128 << 10,
            modes,
            irq: None,
        };
        let shared = Shared::new(plan);
        let mut totals = Totals::default();
        for generation in 0..generations {
            totals += Worker::new(&shared, generation % 2, generation / 2).run(1000);
        }
        let actor = Worker::new(&shared, 0, generations).actor;
        for block in shared.exchange.drain() {
            block.free(actor);
            totals.frees += 1;
        }
        totals
    }

    #[test]
    fn seed_determines_the_sequence() {
        let digest = |seed| run(seed, 10, Modes::default()).digest;
        assert_eq!(digest(5), digest(5));
        assert_ne!(digest(5), digest(6));
    }

    #[test]
    fn handlers_do_not_change_the_sequence() {
        signals::install();
        let with_signals = run(5, 10, Modes { signals: true, ..Modes::default() });
        assert!(signals::operations() > 0, "no signal handler ran");
        assert_eq!(with_signals.digest, run(5, 10, Modes::default()).digest);
    }

    #[test]
    fn every_operation_occurs_and_every_block_is_freed() {
        let totals = run(9, 40, Modes::default());
        assert_eq!(totals.live_blocks(), 0);
        assert_eq!(totals.refused, 0);
        let Totals { allocs, zeroed, grown, shrunk, checks, batches, .. } = totals;
        for count in [allocs, zeroed, grown, shrunk, checks, batches, totals.foreign_frees] {
            assert_ne!(count, 0, "{totals:?}");
        }
    }
}
