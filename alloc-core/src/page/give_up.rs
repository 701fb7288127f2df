//! Giving up address space: where a program limits its own after arenas were reserved, they would leave it none.

use core::sync::atomic::Ordering;

use super::{Arena, Arrays, BLOCK, META_SIZE, Run, arenas};
use crate::arch::FIRST;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::Context;

/// Blocks of a reserve that stay.
const KEPT_BLOCKS: usize = 16;
/// Bytes of address space for each unit.
const PER_UNIT: usize = UNIT + META_SIZE + size_of::<Run>();

/// Gives up what no arena has committed, if the process has more than `most` bytes of address space: half of what is left then stays,
/// as when an arena is made under a limit. Nothing where the system does not say how much there is.
pub(crate) fn limit_address_space(context: Context, most: usize) {
    for arena in arenas() {
        let Some(size) = os::address_space().filter(|size| *size > most) else { return };
        // Nobody commits meanwhile.
        if let Some(_committing) = arena.committing.acquire(context) {
            arena.give_up(size, most);
        }
    }
}

impl Arena {
    /// To be called with the lock on committing.
    fn give_up(&self, size: usize, most: usize) {
        let arrays = self.arrays();
        let (committed, end) = (self.committed(), self.end());
        let blocks = (self.behind.load(Ordering::Relaxed) - arrays.reserve) / BLOCK;
        let kept = self.reserve.give_up(KEPT_BLOCKS, blocks as usize);
        let (behind, was) =
            (arrays.reserve + kept as u32 * BLOCK, self.behind.load(Ordering::Relaxed));
        let all = (end - committed) + (was - behind);
        let left = most.saturating_sub(size.saturating_sub(all as usize * PER_UNIT)) / 2;
        let stays = u32::try_from(left / PER_UNIT).unwrap_or(u32::MAX).min(end - committed);
        let bytes = ((committed + stays) as usize) << UNIT_SHIFT;
        // First this: another arena may come to lie there. Relaxed: who has a block of that got it after the system unmapped this.
        self.end.store(committed + stays, Ordering::Relaxed);
        self.behind.store(behind, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        if FIRST.base.load(Ordering::Relaxed) == arrays.base {
            FIRST.bytes.store(bytes, Ordering::Relaxed);
        }
        arrays.unmap(committed + stays, end);
        arrays.unmap(behind, was);
    }
}

impl Arrays {
    /// Gives up the address space of units that were never committed, and of the whole pages of what belongs to them.
    fn unmap(&self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        let arrays =
            [(self.base, UNIT), (self.meta, META_SIZE), (self.runs.cast(), size_of::<Run>())];
        for (base, size) in arrays {
            let (from, to) = ((from * size).next_multiple_of(UNIT), (to * size) & !(UNIT - 1));
            if from < to {
                // SAFETY: within the array that starts there, and nobody uses it.
                unsafe {
                    os::unreserve(core::ptr::NonNull::new_unchecked(base.add(from)), to - from)
                };
            }
        }
    }
}
