//! Where code in any context hands blocks over: signal handlers, irq work, and what they interrupt.
//!
//! Nobody ever waits here: a slot in which somebody is busy is passed over, be it on another CPU or in
//! the very code that a handler interrupted. A queue of a library would not do: one that orders its
//! entries makes a handler wait for the interrupted thread to finish its own.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::block::Block;
use crate::draw::Rng;

/// Longest block that is handed over: each handler that gets one reads and writes all of it.
pub(crate) const MAX_SIZE: usize = 256 << 10;

/// Blocks that can be under way.
const SLOTS: usize = 64;

static RELAY: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// A place for a block.
struct Slot {
    busy: AtomicBool,
    block: UnsafeCell<Option<Block>>,
}

// SAFETY: the block is touched only by who made the slot busy.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Slot {
        Slot { busy: AtomicBool::new(false), block: UnsafeCell::new(None) }
    }

    /// Leaves `block` and takes what was there; takes `block` itself where somebody is busy.
    fn swap(&self, block: Option<Block>) -> Option<Block> {
        // Acquire: pairs with the Release below, so that the block is seen.
        if self.busy.swap(true, Ordering::Acquire) {
            return block;
        }
        // SAFETY: the slot was not busy, and now is by us.
        let before = unsafe { self.block.get().replace(block) };
        self.busy.store(false, Ordering::Release);
        before
    }
}

/// Leaves a block, or nothing, in some slot, and takes what was there.
pub(crate) fn swap(rng: &mut Rng, block: Option<Block>) -> Option<Block> {
    debug_assert!(block.as_ref().is_none_or(|block| block.size() <= MAX_SIZE));
    RELAY[rng.below(SLOTS)].swap(block)
}

/// Empties every slot.
pub(crate) fn drain() -> impl Iterator<Item = Block> {
    RELAY.iter().filter_map(|slot| slot.swap(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Actor, Role};
    use std::alloc::Layout;

    #[test]
    fn a_busy_slot_is_passed_over() {
        let actor = Actor { seed: 0, role: Role::Handler, thread: 0, generation: 0, operation: 0 };
        let block = |key| Block::alloc(Layout::new::<u64>(), key, actor).expect("memory");
        let slot = Slot::new();
        assert!(slot.swap(Some(block(1))).is_none());
        slot.busy.store(true, Ordering::Relaxed);
        let back = slot.swap(Some(block(2))).expect("the same block");
        assert_eq!(back.key(), 2);
        slot.busy.store(false, Ordering::Relaxed);
        let first = slot.swap(None).expect("the block that was left");
        assert_eq!(first.key(), 1);
        back.free(actor);
        first.free(actor);
    }
}
