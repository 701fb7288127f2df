//! Operations for any context: signal handlers, irq work, fork children.
//!
//! A *visit* is a few operations on blocks that arrive and leave by the [`relay`]. It touches only
//! statics, takes no lock and never waits. Its choices are drawn from the seed and the number of
//! the visit, so they do not change the choices of the workers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::Block;
use crate::draw::{self, Rng};
use crate::failure::{Actor, Role};
use crate::published;
use crate::relay;
use crate::totals::Totals;

/// Seed of the randomness of visits.
pub(crate) static SEED: OnceLock<u64> = OnceLock::new();

/// Visits begun.
static VISITS: AtomicU64 = AtomicU64::new(0);

/// Counts of the work of all visits, as in [`Totals`].
static ALLOCS: AtomicU64 = AtomicU64::new(0);
static ZEROED: AtomicU64 = AtomicU64::new(0);
static GROWN: AtomicU64 = AtomicU64::new(0);
static SHRUNK: AtomicU64 = AtomicU64::new(0);
static FREES: AtomicU64 = AtomicU64::new(0);
static CHECKS: AtomicU64 = AtomicU64::new(0);
static FOREIGN_FREES: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Returns the counts of all visits so far, without the number of operations.
pub(crate) fn totals() -> Totals {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Totals {
        allocs: of(&ALLOCS),
        zeroed: of(&ZEROED),
        grown: of(&GROWN),
        shrunk: of(&SHRUNK),
        frees: of(&FREES),
        checks: of(&CHECKS),
        foreign_frees: of(&FOREIGN_FREES),
        refused: of(&REFUSED),
        bytes: of(&BYTES),
        ..Totals::default()
    }
}

/// A few operations.
pub(crate) struct Visit {
    pub(crate) actor: Actor,
    /// Also for the visitor's other choices.
    pub(crate) rng: Rng,
}

impl Visit {
    /// Creates the next visit. `thread` and `generation` identify the thread that a handler
    /// interrupted.
    pub(crate) fn new(role: Role, thread: u32, generation: u32) -> Self {
        let seed = SEED.get().copied().unwrap_or_default();
        let operation = VISITS.fetch_add(1, Ordering::Relaxed);
        let actor = Actor { seed, role, thread, generation, operation };
        Self { actor, rng: Rng::of_visit(seed, operation) }
    }

    /// Does the operations and returns their number.
    pub(crate) fn run(&mut self) -> u64 {
        let operations = 1 + self.rng.below(6);
        for _ in 0..operations {
            match self.rng.below(8) {
                0..4 => self.alloc_one(),
                4 => self.free_one(),
                5 => self.realloc_one(),
                6 => self.check_one(),
                _ => published::read(&mut self.rng, self.actor),
            }
        }
        operations as u64
    }

    /// Allocates a block, passes it on, and frees the block received in exchange.
    fn alloc_one(&mut self) {
        let layout = draw::layout(&mut self.rng, relay::MAX_SIZE);
        let key = self.rng.next();
        let (counter, block) = match self.rng.below(4) {
            0 => (&ZEROED, Block::alloc_zeroed(layout, key, self.actor)),
            1 => (&ALLOCS, Block::alloc_nolock(layout, key, self.actor)),
            _ => (&ALLOCS, Block::alloc(layout, key, self.actor)),
        };
        count(if block.is_some() { counter } else { &REFUSED }, 1);
        count(&BYTES, layout.size() as u64);
        self.pass_on(block);
    }

    fn free_one(&mut self) {
        self.pass_on(None);
    }

    fn realloc_one(&mut self) {
        let Some(mut block) = relay::swap(&mut self.rng, None) else { return };
        let new_size = draw::new_size(&mut self.rng, block.size(), relay::MAX_SIZE);
        let grows = new_size > block.size();
        let done = block.realloc(new_size, self.actor);
        count(&BYTES, new_size as u64);
        count(
            match done {
                false => &REFUSED,
                true if grows => &GROWN,
                true => &SHRUNK,
            },
            1,
        );
        self.pass_on(Some(block));
    }

    fn check_one(&mut self) {
        let Some(block) = relay::swap(&mut self.rng, None) else { return };
        block.check("on its way", self.actor);
        count(&CHECKS, 1);
        self.pass_on(Some(block));
    }

    /// Leaves `block`, or nothing, in the relay, and frees the block received in exchange.
    fn pass_on(&mut self, block: Option<Block>) {
        let Some(block) = relay::swap(&mut self.rng, block) else { return };
        count(&FREES, 1);
        count(&FOREIGN_FREES, u64::from(!block.is_of(self.actor)));
        if self.rng.below(4) == 0 {
            block.free_nolock(self.actor);
        } else {
            block.free(self.actor);
        }
    }
}
