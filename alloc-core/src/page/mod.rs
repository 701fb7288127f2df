//! Pages: address space reserved in *arenas*, divided into 64 KiB *units* and allocated in *runs*
//! of consecutive units.
//!
//! A low-water mark decides which dirty runs return to the system: units that stayed dirty through
//! a whole window are decommitted at its end. (This is the working-set estimate of FreeBSD's UMA,
//! applied to pages.) `reclaim` decides when windows end and how long they are.
//!
//! If a node's arenas cannot serve a request, the arenas of other nodes are tried before the
//! request is refused.

mod advice;
mod arena;
mod arenas;
mod arrays;
mod bins;
mod decommit;
mod descriptor;
mod dumped;
mod give_up;
mod limit;
mod make;
mod misplaced;
mod purge;
mod reserve;
mod runs;

use core::sync::atomic::Ordering;

use crate::arch::FIRST;
use crate::node;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::{Context, LockClass, RawLock};
use arena::Arena;
use arenas::{ARENAS, CLAIMED, arenas, arenas_beside, arenas_of};
pub(crate) use arrays::{ENTRY_SIZE, META_SIZE};
pub(crate) use decommit::{decommit, decommits, decommitted};
use descriptor::{MOVED, NONE, PIECES, RunState};
pub(crate) use give_up::limit_address_space;
use make::make_arena;
pub(crate) use misplaced::Misplaced;
pub(crate) use purge::{
    Purging, alloc_after_trim, due, end_window, in_child, lock as purging_lock, purge_due, trim,
    trim_to,
};
use runs::MOVES;
pub(crate) use runs::{Allocation, moves};

/// A unit of one of our arenas, found by an address in it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    arena: &'static Arena,
    index: u32,
}

impl Unit {
    /// Returns the unit that holds `address`, or `None` if no arena of ours does.
    #[inline]
    pub(crate) fn of(address: *mut u8) -> Option<Unit> {
        arenas().find_map(|arena| {
            let offset = address.addr().wrapping_sub(arena.arrays().base.addr());
            let index = (offset >> UNIT_SHIFT) as u32;
            let is_here = offset < arena.bytes.load(Ordering::Relaxed)
                || arena.is_of_reserve(offset >> UNIT_SHIFT);
            is_here.then_some(Unit { arena, index })
        })
    }

    /// Returns the unit that starts at `address`, which is this unit or one below it in the same
    /// run.
    #[inline]
    pub(crate) fn at(self, address: *mut u8) -> Unit {
        let below = (self.address().addr() - address.addr()) >> UNIT_SHIFT;
        Unit { arena: self.arena, index: self.index - below as u32 }
    }

    /// Returns the node of the unit's arena.
    pub(crate) fn node(self) -> usize {
        self.arena.arrays().node
    }

    /// Returns the address of the unit.
    #[inline]
    pub(crate) fn address(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of units.
        unsafe { self.arena.arrays().base.add((self.index as usize) << UNIT_SHIFT) }
    }

    /// Returns the metadata of the unit: [`META_SIZE`] bytes, aligned to a cache line, that are
    /// zero until they are first written. The metadata stays committed as long as a run holds the
    /// unit.
    #[inline]
    pub(crate) fn meta(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of metadata.
        unsafe { self.arena.arrays().meta.add(self.index as usize * META_SIZE) }
    }

    /// Returns the entry of the unit: [`ENTRY_SIZE`] bytes, aligned to as many, that are zero until
    /// they are first written. The entry can be read and written as long as the metadata can, and
    /// keeps its contents forever.
    #[inline]
    pub(crate) fn entry(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of entries.
        unsafe { self.arena.arrays().entries.add(self.index as usize * ENTRY_SIZE) }
    }

    /// Returns whether the metadata of the unit can be read: the unit is committed, or lies in a
    /// block of the reserve that is taken and committed.
    pub(crate) fn is_committed(self) -> bool {
        // Acquire: pairs with the Release in `FreeRuns::add`.
        self.index < self.arena.committed.load(Ordering::Acquire)
            || self
                .arena
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
        unsafe { self.arena.used_len(self.index) }.map(|len| len as usize)
    }

    /// Explains, for a message, why no block in use starts at an address in this unit.
    #[cold]
    pub(crate) fn misplaced(self) -> Misplaced {
        Context::enter(|context| self.arena.misplaced(context, self.index))
    }
}

/// Returns the entry of the unit that holds `address`, or `None` if the address is foreign or
/// its unit is not committed.
#[inline(always)]
pub(crate) fn entry_at(address: *mut u8) -> Option<*mut u8> {
    // Nearly all addresses lie in the arena that was made first. Acquire: pairs with the Release in
    // `fill`.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    // SAFETY: `ARENAS` has an element 0. By a pointer, since a reference to the array would make
    // Miri look at all of it.
    let committed = unsafe { &(*(&raw const ARENAS).cast::<Arena>()).committed };
    // Acquire: as in `Unit::is_committed`.
    if offset < bytes && (offset >> UNIT_SHIFT) < committed.load(Ordering::Acquire) as usize {
        let entries = FIRST.entries.load(Ordering::Relaxed);
        return Some(entries.wrapping_add((offset >> UNIT_SHIFT) * ENTRY_SIZE));
    }
    elsewhere(address)
}

/// As [`entry_at`], for an address in any arena.
#[cold]
#[inline(never)]
fn elsewhere(address: *mut u8) -> Option<*mut u8> {
    Unit::of(address).filter(|unit| unit.is_committed()).map(Unit::entry)
}

/// Allocates a run of `units` units whose address is a multiple of `align` units, a power of two.
/// Its memory is of `node` if that node has some. Returns `None` when out of memory.
pub(crate) fn alloc(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let run = alloc_without_trim(context, node, units, align)?;
    if run.zeroed {
        keep_limit(context);
    }
    Some(run)
}

/// As [`alloc`], without trimming when the soft limit is exceeded.
fn alloc_without_trim(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    let align = u32::try_from(align).ok()?;
    let need = len.checked_add(align)?;
    let mut has_made = false;
    loop {
        let claimed = CLAIMED.load(Ordering::Relaxed);
        let mut found = arenas_of(node).find_map(|arena| arena.alloc(context, len, align));
        // Prefer a new arena of this node to the arenas of other nodes.
        if found.is_none()
            && !has_made
            && node::count() > 1
            && !limit::forbids(len)
            && make::may_succeed(need)
            && !arenas_of(node).any(|arena| arena.has_room(need))
            && let Some(made) = make_arena(context, node, need, claimed)
        {
            has_made = made;
            continue;
        }
        let mut with_reserves = arenas_of(node).chain(arenas_beside(node));
        found = found
            .or_else(|| arenas_beside(node).find_map(|arena| arena.alloc(context, len, align)))
            .or_else(|| with_reserves.find_map(|arena| arena.alloc_reserved(len, align)));
        if found.is_some() {
            return found;
        }
        // Another arena does not help where an arena still has address space: then memory ran out,
        // or the limit is reached.
        let is_in_vain = |arena: &Arena| arena.has_room(need) && arena.may_be_had(context);
        if has_made || limit::forbids(len) || arenas().any(is_in_vain) {
            return None;
        }
        has_made = make_arena(context, node, need, claimed)?;
    }
}

/// Allocates a run that is longer than its block has to be. It comes from the existing arenas of
/// `node` only, never from a reserve, another node or a new arena.
pub(crate) fn alloc_room(context: Context, node: usize, units: usize) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    arenas_of(node).find_map(|arena| arena.alloc(context, len, 1))
}

/// Frees a run. Returns false, and the run is still the caller's, if the lock would have to be
/// waited for.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and nobody uses the run any longer.
#[must_use]
pub(crate) unsafe fn free(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller guarantees that an unused run from `alloc` starts at `unit`.
    unsafe { unit.arena.free(context, unit.index, RunState::Dirty) }
}

/// As [`free`], for a run whose pages read as zero.
///
/// # Safety
/// As [`free`], and the run was not touched since its pages were last decommitted or moved away.
#[must_use]
pub(crate) unsafe fn free_clean(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller guarantees that an unused and untouched run from `alloc` starts at `unit`.
    unsafe { unit.arena.free(context, unit.index, RunState::Clean) }
}

/// Makes a run read as zero by decommitting its memory, unless it is `zeroed` already. The run gets
/// no huge pages unless `HAYLOFT_THP=always`, so that it takes memory only where it is written.
/// Returns false if the system refused to decommit.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and its contents are dead.
pub(crate) unsafe fn clear(unit: Unit, zeroed: bool) -> bool {
    // SAFETY: the caller guarantees that a run from `alloc` with dead contents starts at `unit`.
    unsafe { unit.arena.clear(unit.index, zeroed) }
}

/// Marks a run as moved. Call after pages were moved into it.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn note_move(unit: Unit) {
    // SAFETY: the caller guarantees that it owns the run, and only the owner touches a run's marks.
    unsafe { (*unit.arena.run(unit.index)).marks |= MOVED };
    // Relaxed: a counter that guards nothing.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// Returns the bytes of dirty free memory, which the system still counts as ours. The sum is a
/// guess while other threads allocate and free.
pub(crate) fn dirty() -> usize {
    arenas().map(|arena| arena.dirty.load(Ordering::Relaxed) as usize * UNIT).sum()
}

/// Returns whether a run of `units` units that was refused might be allocated after decommitting
/// all idle memory. Units that the system refuses to commit now, it would refuse to commit then.
pub(crate) fn may_have(units: usize) -> bool {
    let is_limited = u32::try_from(units).is_ok_and(limit::forbids);
    let is_committed = |arena: &Arena| arena.committed() as usize > units;
    units <= limit::hard() && (is_limited || arenas().any(is_committed))
}

/// Returns the bytes of memory in use and of dirty free memory, which the system still counts as
/// ours.
pub(crate) fn charged() -> usize {
    limit::charged() << UNIT_SHIFT
}

/// Returns the hard limit on [`charged`] in bytes, or `None` if there is none.
pub(crate) fn limit() -> Option<usize> {
    limit::hard().checked_mul(UNIT)
}

/// Trims all free memory at once if the soft limit is exceeded. Does nothing in a context that must
/// not wait. Call after frees, and after allocating a clean run.
#[inline]
pub(crate) fn keep_limit(context: Context) {
    if limit::is_soft_exceeded() {
        trim(context);
    }
}

/// Returns whether there is memory to purge. Waits for frees in progress, so that they count, too.
/// Runs that the system refused to decommit count only after something else is freed, so that they
/// are not offered to it again and again.
pub(crate) fn is_dirty(context: Context) -> bool {
    arenas().any(|arena| {
        let units = arena.state.acquire(context);
        units.is_some_and(|units| arena.dirty() > 0 && !units.was_refused)
    })
}

/// Calls `visit` with every unit whose metadata can be read.
pub(crate) fn for_each_unit(visit: &mut dyn FnMut(Unit)) {
    for arena in arenas() {
        let arrays = arena.arrays();
        // Unit 0 is never part of a run.
        for index in
            (1..arena.committed.load(Ordering::Acquire)).chain(arrays.reserve..arrays.units)
        {
            let unit = Unit { arena, index };
            if unit.is_committed() {
                visit(unit);
            }
        }
    }
}

/// Calls `visit` with every lock of this layer except [`purging_lock`], which is taken before the
/// locks of slabs.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::ArenaMaking, make::lock());
    arenas().for_each(|arena| {
        visit(LockClass::Committing, arena.committing.raw());
        visit(LockClass::Arena, arena.state.raw());
    });
}

/// Records that only the first `bytes` bytes of a run are used, rounded up to [`PIECES`]; the
/// others are room to grow. `bytes` is at least 1. When [`grow`] or [`shrink`] sets a new length,
/// all of the run counts as used again.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns and that has at least `bytes`
/// bytes.
pub(crate) unsafe fn set_used_bytes(unit: Unit, bytes: usize) {
    let pieces = u32::try_from(bytes.div_ceil(PIECES)).unwrap_or(NONE);
    // SAFETY: the caller guarantees that it owns the run; nobody else looks at `next` of a run in
    // use.
    unsafe { (*unit.arena.run(unit.index)).next = pieces };
}

/// Returns the bytes of a run that are used: the value of [`set_used_bytes`] if that was called,
/// and otherwise all.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn used_bytes(unit: Unit) -> usize {
    // SAFETY: the caller guarantees that it owns the run, so its descriptor does not change.
    let (len, pieces) = unsafe {
        let run = unit.arena.run(unit.index);
        ((*run).len, (*run).next)
    };
    if pieces == NONE { (len as usize) << UNIT_SHIFT } else { pieces as usize * PIECES }
}

/// Extends a run to at least `units` units without moving it. The added units may hold anything.
/// Returns false if that is impossible.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`].
pub(crate) unsafe fn grow(context: Context, unit: Unit, units: usize) -> bool {
    // SAFETY: the caller guarantees that a run from `alloc` starts at `unit`.
    u32::try_from(units).is_ok_and(|len| unsafe { unit.arena.grow(context, unit.index, len) })
}

/// Shortens a run to `units` units, at least one, without moving it. A run of the reserve keeps its
/// length. So does any run if the lock would have to be waited for, or if the system cannot map
/// moved pages anew.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that has at least `units` units. Nobody uses the
/// units cut off any longer.
pub(crate) unsafe fn shrink(context: Context, unit: Unit, units: usize) {
    // SAFETY: the caller guarantees that a run of at least `units` units starts at `unit`, so that
    // the number fits.
    unsafe { unit.arena.shrink(context, unit.index, units as u32) };
}

#[cfg(test)]
mod tests {
    use core::ptr;

    use super::*;

    #[test]
    fn runs_are_disjoint_aligned_and_reused() {
        let waiting = Context::enter(|context| context);
        let first = alloc(waiting, 0, 3, 1).unwrap();
        let second = alloc(waiting, 0, 5, 8).unwrap();
        let unit = Unit::of(second.address.as_ptr()).unwrap();
        assert_eq!(second.address.addr().get() % (8 * UNIT), 0);
        assert_eq!(unit.address(), second.address.as_ptr());
        assert_eq!(unit.run_len(), Some(5));
        // SAFETY: the test owns both runs, of 3 and 5 units.
        unsafe {
            first.address.write_bytes(1, 3 * UNIT);
            second.address.write_bytes(2, 5 * UNIT);
            assert_eq!(*first.address.as_ptr(), 1);
            shrink(waiting, unit, 2);
            assert_eq!(unit.run_len(), Some(2));
            assert!(grow(waiting, unit, 4) && grow(waiting, unit, 3));
            assert_eq!(unit.run_len(), Some(4));
            assert!(free(waiting, unit));
            assert!(free(waiting, Unit::of(first.address.as_ptr()).unwrap()));
        }
        assert!(Unit::of(ptr::null_mut()).is_none());
        assert!(alloc(waiting, 0, u32::MAX as usize, 1).is_none());
    }

    #[test]
    fn a_busy_arena_has_its_reserve() {
        let waiting = Context::enter(|context| context);
        let run = alloc(waiting, 0, 2, 1).unwrap();
        let unit = Unit::of(run.address.as_ptr()).unwrap();
        let busy = unit.arena.state.acquire(waiting).unwrap();
        assert!(unit.arena.alloc(Context::TRYING, 5, 4).is_none());
        let reserved = unit.arena.alloc_reserved(5, 4).unwrap();
        let of_reserve = Unit::of(reserved.address.as_ptr()).unwrap();
        assert_eq!(reserved.address.addr().get() % (4 * UNIT), 0);
        assert_eq!(of_reserve.run_len(), Some(5));
        // SAFETY: the test owns both runs, of 2 and 5 units.
        unsafe {
            reserved.address.write_bytes(1, 5 * UNIT);
            assert!(!grow(Context::TRYING, unit, 3));
            assert!(!grow(waiting, of_reserve, 6));
            shrink(Context::TRYING, unit, 1);
            assert_eq!(unit.run_len(), Some(2));
            assert!(!free(Context::TRYING, unit) && free(Context::TRYING, of_reserve));
            drop(busy);
            assert!(free(waiting, unit));
        }
        assert!(!of_reserve.is_committed());
    }
}
