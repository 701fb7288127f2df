//! Slots through which threads pass blocks to each other.
//!
//! Each of a fixed set of slots holds one bundle of blocks. A thread hands a bundle over by
//! swapping it for the bundle in a slot. That one comes from another thread, which may have ended
//! long ago.

use parking_lot::Mutex;

use crate::block::Block;

/// Blocks that change hands together.
pub(crate) type Bundle = Vec<Block>;

/// The slots.
#[derive(Debug)]
pub(crate) struct Exchange {
    slots: Box<[Mutex<Bundle>]>,
}

impl Exchange {
    /// Creates an exchange of empty slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Mutex::default()).collect() }
    }

    /// Leaves `bundle` in a slot and returns the previous bundle.
    pub(crate) fn swap(&self, slot: usize, bundle: Bundle) -> Bundle {
        let mut place = self.slots[slot].lock();
        std::mem::replace(&mut *place, bundle)
    }

    /// Empties every slot and returns the blocks.
    pub(crate) fn drain(&self) -> impl Iterator<Item = Block> + '_ {
        (0..self.slots.len()).flat_map(|slot| self.swap(slot, Bundle::new()))
    }
}
