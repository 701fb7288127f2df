//! Units, found by the addresses in them.
//!
//! [`Unit::of`] searches all arenas. [`meta_in_first`], on the path of objects of middle sizes,
//! only looks at the arena that was made first, whose bounds are in [`FIRST`].

use core::sync::atomic::Ordering;

use super::arena::Arena;
use super::arenas::{arenas, committed_of_first};
use super::arrays::{ENTRY_SIZE, META_SIZE};
use super::misplaced::Misplaced;
use crate::arch::FIRST;
use crate::size_class::UNIT_SHIFT;
use crate::sync::Context;

/// A unit of one of our arenas, found by an address in it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(super) arena: &'static Arena,
    pub(super) index: u32,
}

impl Unit {
    /// Returns the unit that holds `address`, or `None` if no arena of ours does.
    #[inline]
    pub(crate) fn of(address: *mut u8) -> Option<Unit> {
        arenas().find_map(|arena| {
            let offset = address.addr().wrapping_sub(arena.units.arrays().base.addr());
            let index = (offset >> UNIT_SHIFT) as u32;
            let is_here = offset < arena.bytes.load(Ordering::Relaxed)
                || arena.is_of_reserve(offset >> UNIT_SHIFT);
            is_here.then_some(Unit { arena, index })
        })
    }

    /// Returns the unit that starts at `address`.
    ///
    /// # Safety
    /// This unit starts there, or one below it in the same arena.
    #[inline]
    pub(crate) unsafe fn at(self, address: *mut u8) -> Unit {
        let below = (self.address().addr() - address.addr()) >> UNIT_SHIFT;
        Unit { arena: self.arena, index: self.index - below as u32 }
    }

    /// Returns the node of the unit's arena.
    pub(crate) fn node(self) -> usize {
        self.arena.units.arrays().node
    }

    /// Returns the address of the unit.
    #[inline]
    pub(crate) fn address(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of units.
        unsafe { self.arena.units.arrays().base.add((self.index as usize) << UNIT_SHIFT) }
    }

    /// Returns the metadata of the unit: [`META_SIZE`] bytes, aligned to a cache line, that are
    /// zero until they are first written. The metadata stays committed as long as a run holds the
    /// unit.
    #[inline]
    pub(crate) fn meta(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of metadata.
        unsafe { self.arena.units.arrays().meta.add(self.index as usize * META_SIZE) }
    }

    /// Returns the entry of the unit: [`ENTRY_SIZE`] bytes, aligned to as many, that are zero until
    /// they are first written. The entry can be read and written as long as the metadata can, and
    /// keeps its contents forever.
    #[inline]
    pub(crate) fn entry(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of entries.
        unsafe { self.arena.units.arrays().entries.add(self.index as usize * ENTRY_SIZE) }
    }

    /// Returns whether the metadata of the unit can be read: the unit is committed, or lies in a
    /// block of the reserve that is taken and committed.
    pub(crate) fn is_committed(self) -> bool {
        // Acquire: pairs with the Release in `FreeRuns::add`.
        self.index < self.arena.units.committed.load(Ordering::Acquire)
            || self
                .arena
                .units
                .reserved_block(self.index)
                .is_some_and(|block| self.arena.reserve.has(block))
    }

    /// Returns the length in units of the run in use that starts here, or `None` if none does. The
    /// answer is reliable for the owner of the run only, since nobody else changes its descriptor.
    pub(crate) fn run_len(self) -> Option<usize> {
        if !self.is_committed() {
            return None;
        }
        // SAFETY: the unit is committed, as was just checked.
        unsafe { self.arena.units.used_len(self.index) }.map(|len| len as usize)
    }

    /// Explains, for a message, why no block in use starts at an address in this unit.
    #[cold]
    pub(crate) fn misplaced(self) -> Misplaced {
        Context::enter(|context| self.arena.misplaced(context, self.index))
    }
}

/// Returns the metadata of the unit that holds `address`, or `None` if the address is foreign or
/// its unit is not committed.
#[inline(always)]
pub(crate) fn meta_at(address: *mut u8) -> Option<*mut u8> {
    meta_in_first(address).or_else(|| elsewhere(address))
}

/// As [`meta_at`], for an address in the arena that was made first, as nearly all are. Returns
/// `None` for any other.
#[inline(always)]
pub(crate) fn meta_in_first(address: *mut u8) -> Option<*mut u8> {
    // Acquire: pairs with the Release in `fill`.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    // Acquire: pairs with the Release in `FreeRuns::add`.
    let committed = || committed_of_first().load(Ordering::Acquire) as usize;
    (offset < bytes && (offset >> UNIT_SHIFT) < committed()).then(|| {
        let meta = FIRST.meta.load(Ordering::Relaxed);
        meta.wrapping_add((offset >> UNIT_SHIFT) * META_SIZE)
    })
}

/// Does the work of [`meta_at`] for an address in any arena.
#[cold]
#[inline(never)]
fn elsewhere(address: *mut u8) -> Option<*mut u8> {
    Unit::of(address).filter(|unit| unit.is_committed()).map(Unit::meta)
}

/// Calls `visit` with every unit whose metadata can be read.
pub(crate) fn for_each_unit(visit: &mut dyn FnMut(Unit)) {
    for arena in arenas() {
        let arrays = arena.units.arrays();
        // Unit 0 is never part of a run. Acquire: pairs with the Release in `FreeRuns::add`.
        for index in
            (1..arena.units.committed.load(Ordering::Acquire)).chain(arrays.reserve..arrays.units)
        {
            let unit = Unit { arena, index };
            if unit.is_committed() {
                visit(unit);
            }
        }
    }
}
