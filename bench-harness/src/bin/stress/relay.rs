//! Slots through which code in any context passes blocks on: signal handlers, irq work, and the
//! code that they interrupt.
//!
//! No access ever waits. A slot that is busy is skipped, whether its user runs on another CPU or is
//! the very code that a handler interrupted. The queue of a library would not do: if it orders its
//! entries, a handler has to wait until the interrupted thread has finished its own.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::block::Block;
use crate::draw::Rng;

/// Size of the largest block passed on, in bytes: each handler that receives a block reads and
/// writes all of it.
pub(crate) const MAX_SIZE: usize = 256 << 10;

/// Blocks that the relay can hold.
const SLOTS: usize = 64;

static RELAY: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// A place for a block.
struct Slot {
    busy: AtomicBool,
    block: UnsafeCell<Option<Block>>,
}

// SAFETY: only the context that made the slot busy touches the block.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Slot {
        Slot { busy: AtomicBool::new(false), block: UnsafeCell::new(None) }
    }

    /// Leaves `block` and returns the previous content. Returns `block` itself if the slot is busy.
    fn swap(&self, block: Option<Block>) -> Option<Block> {
        // Acquire: pairs with the Release below, which makes the block visible.
        if self.busy.swap(true, Ordering::Acquire) {
            return block;
        }
        // SAFETY: the slot was free, and the swap made it busy for this context alone.
        let before = unsafe { self.block.get().replace(block) };
        self.busy.store(false, Ordering::Release);
        before
    }
}

/// Leaves a block, or nothing, in a random slot, and returns the slot's previous content.
pub(crate) fn swap(rng: &mut Rng, block: Option<Block>) -> Option<Block> {
    debug_assert!(block.as_ref().is_none_or(|block| block.size() <= MAX_SIZE));
    RELAY[rng.below(SLOTS)].swap(block)
}

/// Empties every slot and returns the blocks.
pub(crate) fn drain() -> impl Iterator<Item = Block> {
    RELAY.iter().filter_map(|slot| slot.swap(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Actor, Role};
    use std::alloc::Layout;

    #[test]
    fn busy_slot_hands_the_block_back() {
        let actor = Actor { seed: 0, role: Role::Handler, thread: 0, generation: 0, operation: 0 };
        let block = |key| Block::alloc(Layout::new::<u64>(), key, actor).expect("memory");
        let slot = Slot::new();
        assert!(slot.swap(Some(block(1))).is_none());
        slot.busy.store(true, Ordering::Relaxed);
        let back = slot.swap(Some(block(2))).expect("the busy slot returns the block");
        assert_eq!(back.key(), 2);
        slot.busy.store(false, Ordering::Relaxed);
        let first = slot.swap(None).expect("the block in the slot");
        assert_eq!(first.key(), 1);
        back.free(actor);
        first.free(actor);
    }
}
