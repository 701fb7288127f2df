//! Gives up address space when a program limits its own after arenas were reserved. Otherwise the
//! arenas would leave the program none.

use core::sync::atomic::Ordering;

use super::arena::Arena;
use super::arenas::arenas;
use super::arrays::{Arrays, PER_UNIT};
use super::reserve::BLOCK;
use crate::arch::FIRST;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::Context;

/// Blocks of each reserve that are kept.
const KEPT_BLOCKS: usize = 16;

/// Gives up address space that no arena has committed, if the process has more than `most` bytes of
/// address space. Half of what the limit leaves stays reserved, as when an arena is made under a
/// limit. Does nothing where the system does not report the size of the address space.
pub(crate) fn limit_address_space(context: Context, most: usize) {
    for arena in arenas() {
        let Some(size) = os::address_space().filter(|size| *size > most) else { return };
        arena.give_up(context, size, most);
    }
}

impl Arena {
    /// Gives up this arena's part, in a process with `size` bytes of address space. Does nothing if
    /// another thread commits units and the context must not wait.
    fn give_up(&self, context: Context, size: usize, most: usize) {
        let Some(_committing) = self.committing.acquire(context) else { return };
        let arrays = self.units.arrays();
        let (committed, end) = (self.units.committed(), self.end());
        let blocks = (self.behind.load(Ordering::Relaxed) - arrays.reserve) / BLOCK;
        let kept = self.reserve.give_up(KEPT_BLOCKS, blocks as usize);
        let (behind, was) =
            (arrays.reserve + kept as u32 * BLOCK, self.behind.load(Ordering::Relaxed));
        let all = (end - committed) + (was - behind);
        let left = most.saturating_sub(size.saturating_sub(all as usize * PER_UNIT)) / 2;
        let stays = u32::try_from(left / PER_UNIT).unwrap_or(u32::MAX).min(end - committed);
        let bytes = ((committed + stays) as usize) << UNIT_SHIFT;
        // Store the bounds before unmapping, since another arena may be mapped there afterwards.
        // Relaxed: a thread that has a block of that arena got it after the system unmapped this
        // range.
        self.end.store(committed + stays, Ordering::Relaxed);
        self.behind.store(behind, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        if FIRST.base.load(Ordering::Relaxed) == arrays.base {
            FIRST.bytes.store(bytes, Ordering::Relaxed);
        }
        // SAFETY: `committing` is held and the bounds were lowered above, so nobody commits these
        // units any longer. Those from `behind` on are blocks that were taken from the reserve for
        // good.
        unsafe {
            arrays.unmap(committed + stays, end);
            arrays.unmap(behind, was);
        }
    }
}

impl Arrays {
    /// Unmaps the units `from..to`, and the whole pages of their descriptors and metadata.
    ///
    /// # Safety
    /// The arrays are those of a reservation, whose units `from..to` are nobody's, now and in
    /// future.
    unsafe fn unmap(&self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        for (base, size) in self.metadata().into_iter().chain([(self.base, UNIT)]) {
            let (from, to) = ((from * size).next_multiple_of(UNIT), (to * size) & !(UNIT - 1));
            if from < to {
                // SAFETY: the caller guarantees that nobody uses these units; their part of the
                // array at `base` lies in the reservation.
                unsafe {
                    os::unreserve(core::ptr::NonNull::new_unchecked(base.add(from)), to - from)
                };
            }
        }
    }
}
