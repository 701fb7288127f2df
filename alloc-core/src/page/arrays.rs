//! The arrays of an arena: the addresses of units and of their metadata, and committing both.
//!
//! An arena is one reservation of address space that holds four parallel arrays: the entries that
//! frees read, the descriptors of runs, the slab layer's metadata for each unit, and the units
//! themselves. So pointer → unit → descriptor is arithmetic, and "is it ours" is a range check.
//!
//! Units are committed from the bottom of the arena upwards, except those of the reserve, which are
//! committed block by block. The metadata is committed with its units, in whole units of its own.

use core::ptr::NonNull;

use super::advice::HugePages;
use super::chunks::CHUNK;
use super::descriptor::Run;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::watch;

/// Bytes of metadata per unit, for the slab layer.
pub(crate) const META_SIZE: usize = if cfg!(debug_assertions) { 1088 } else { 576 };

/// Metadata per unit that the fast paths read, in bytes.
pub(crate) const ENTRY_SIZE: usize = 8;

/// Address space per unit, in bytes.
pub(super) const PER_UNIT: usize = UNIT + ENTRY_SIZE + size_of::<Run>() + META_SIZE;

/// Fewest units to commit at once, unless the arena or the system has fewer left.
const GROWTH: u32 = 16;
/// Most units to commit at once, unless a single request needs more. Rounded up to a huge page.
const MAX_GROWTH: u32 = 1024;

/// The arrays of an arena, by their first elements. Written once, before the arena is published.
#[cfg_attr(test, derive(Debug))]
pub(super) struct Arrays {
    pub(super) base: *mut u8,
    pub(super) entries: *mut u8,
    pub(super) runs: *mut Run,
    pub(super) meta: *mut u8,
    /// The first unit of the reserve, and the unit behind its last one.
    pub(super) reserve: u32,
    pub(super) units: u32,
    pub(super) node: usize,
}

impl Arrays {
    /// Returns the address of a unit. Meaningful only if the arena has that unit.
    #[inline]
    pub(super) fn address(&self, index: u32) -> NonNull<u8> {
        let address = self.base.wrapping_add((index as usize) << UNIT_SHIFT);
        NonNull::new(address).unwrap_or(NonNull::dangling())
    }

    /// Returns the arrays of metadata, with the bytes of an element.
    pub(super) fn metadata(&self) -> [(*mut u8, usize); 3] {
        [(self.entries, ENTRY_SIZE), (self.runs.cast(), size_of::<Run>()), (self.meta, META_SIZE)]
    }

    /// Returns the number of the arena's first unit, counted from address 0 and truncated to 32
    /// bits, which is enough for arithmetic on alignment.
    #[inline(always)]
    pub(super) fn base_unit(&self) -> u32 {
        (self.base.addr() >> UNIT_SHIFT) as u32
    }

    /// Makes the units `from..to` and their metadata readable and writable. Returns whether the
    /// system did. `continues` states that all units below are committed, from unit 1 on.
    ///
    /// # Safety
    /// The arrays are those of a reservation, and the caller owns the units `from..to` of it, which
    /// were not given up. With `continues`, all units from 1 to `from` are committed.
    pub(super) unsafe fn commit(&self, from: u32, to: u32, continues: bool) -> bool {
        let (from, to) = (from as usize, to as usize);
        // Metadata is committed in whole units as well, so that of these units may be committed
        // already.
        let meta = |base: *mut u8, size: usize| {
            let start = if continues && from > 1 {
                (from * size).next_multiple_of(UNIT)
            } else {
                (from * size) & !(UNIT - 1)
            };
            let end = (to * size).next_multiple_of(UNIT);
            if start >= end {
                return true;
            }
            // SAFETY: the caller guarantees that `from` and `to` are at most the number of units,
            // so both ends lie in the array at `base`.
            let done = unsafe { os::commit(NonNull::new_unchecked(base.add(start)), end - start) };
            watch::hide(base.wrapping_add(start), end - start);
            done
        };
        let (first, len) = (self.address(from as u32), (to - from) << UNIT_SHIFT);
        let done = self.metadata().into_iter().all(|(base, size)| meta(base, size))
            // SAFETY: the caller guarantees that it owns these units of the reservation.
            && unsafe { os::commit(first, len) };
        watch::make_noaccess(first.as_ptr(), len);
        done
    }

    /// Commits at least `room` units from `committed` on, and none from `end` on. Returns the
    /// number of units committed.
    ///
    /// # Safety
    /// The arrays are those of a reservation. Units 1 to `committed` are committed. Nobody else
    /// commits, uses or gives up the units from `committed` to `end` meanwhile.
    pub(super) unsafe fn commit_more(&self, committed: u32, end: u32, room: u32) -> Option<u32> {
        let rest = end - committed;
        let wish = room.max(GROWTH).max((committed / 8).min(MAX_GROWTH));
        // Up to the end of a huge page, so that no huge page is committed in parts.
        let past = committed.saturating_add(wish).wrapping_add(self.base_unit()) % CHUNK;
        let wish = wish.saturating_add((CHUNK - past) % CHUNK).min(rest);
        let commit = |more: &u32| {
            (room..=rest).contains(more)
                // SAFETY: the caller guarantees that the units up to `end` are nobody else's.
                && unsafe { self.commit(committed, committed + more, true) }
        };
        let more = [wish, room].into_iter().find(commit)?;
        if HugePages::are_for(room, committed) {
            let bytes = (more as usize) << UNIT_SHIFT;
            // SAFETY: these units lie in this arena and were committed above.
            unsafe { os::prefer_huge_pages(self.address(committed), bytes, true) };
        }
        Some(more)
    }
}
