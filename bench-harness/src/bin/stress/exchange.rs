//! Where threads hand blocks to each other.
//!
//! A fixed set of slots, each with one bundle of blocks. To hand a bundle over is to swap it for
//! what is in a slot: the bundle of another thread, possibly one that ended long ago.

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
    /// An exchange of empty slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Mutex::default()).collect() }
    }

    /// Leaves `bundle` in a slot and returns what was there.
    pub(crate) fn swap(&self, slot: usize, bundle: Bundle) -> Bundle {
        let mut place = self.slots[slot].lock();
        std::mem::replace(&mut *place, bundle)
    }

    /// Empties every slot.
    pub(crate) fn drain(&self) -> impl Iterator<Item = Block> + '_ {
        (0..self.slots.len()).flat_map(|slot| self.swap(slot, Bundle::new()))
    }
}
