//! Pages: address space reserved in *arenas*, divided into 64 KiB *units* and allocated in *runs*
//! of consecutive units.
//!
//! An arena is one reservation of address space, with a descriptor of each unit. Its memory belongs
//! to a NUMA node. Units are committed from the bottom of the arena upwards. The free ones form
//! *dirty* runs, whose pages take memory, and *clean* ones, which read as zero and take none.
//! Allocations prefer dirty runs; purging makes them clean.
//!
//! This module holds the functions that other layers call for a run. The modules below hold the
//! rest, from top to bottom; each imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `purge` `collapse` | decommitting dirty runs, by windows; huge pages for memory in use |
//! | `placement` | the arena that serves a request |
//! | `make` `give_up` `unit` | making arenas; giving up address space; units by address |
//! | `arenas` `runs` | all arenas; the runs of one arena: allocating, freeing, resizing |
//! | `misplaced` | why no block starts at an address |
//! | `arena` | an arena: its units, its free runs under their lock, its reserve |
//! | `free_runs` | the free runs of an arena |
//! | `units` `bins` | descriptors of units as boundary tags; free runs by length |
//! | `dumped` | free memory that core files leave out |
//! | `arrays` | addresses of units and of their metadata; committing both |
//! | `chunks` | which parts of an arena are huge pages, and which may become some |
//! | `advice` `descriptor` | huge pages and NUMA nodes; the descriptor of a unit |
//! | `decommit` `limit` `reserve` | decommitting; the limit on memory; the blocks of a reserve |

mod advice;
mod arena;
mod arenas;
mod arrays;
mod bins;
mod chunks;
mod collapse;
mod decommit;
mod descriptor;
mod dumped;
mod free_runs;
mod give_up;
mod limit;
mod make;
mod misplaced;
mod placement;
mod purge;
mod reserve;
mod runs;
mod unit;
mod units;

use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::{Context, LockClass, RawLock};
use arenas::arenas;
pub(crate) use arrays::{ENTRY_SIZE, META_SIZE};
pub(crate) use chunks::splits;
pub(crate) use collapse::{
    collapse_nothing, collapse_one, collapses, doubt_huge_pages, end_window_of_chunks,
    pause_collapsing, punch,
};
pub(crate) use decommit::{decommits, decommitted};
use descriptor::{MOVED, NONE, PIECES, RunState};
pub(crate) use give_up::limit_address_space;
pub(crate) use misplaced::Misplaced;
use placement::alloc_without_trim;
pub(crate) use placement::{alloc_room, may_have};
pub(crate) use purge::{
    Purging, alloc_after_trim, dirty, due, end_window, in_child, is_dirty, keep_limit,
    lock as purging_lock, purge_due, trim, trim_to,
};
use runs::MOVES;
pub(crate) use runs::{Allocation, moves};
pub(crate) use unit::{Unit, for_each_unit, meta_at, meta_in_first};

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

/// Returns an address in the arena that was made first, if there is one.
pub(crate) fn any_arena() -> Option<*mut u8> {
    arenas().next().map(|arena| arena.units.arrays().base)
}

/// Calls `visit` with the addresses of the metadata of each arena, in front of its units.
pub(crate) fn for_each_metadata(mut visit: impl FnMut(Range<usize>)) {
    for arrays in arenas().map(|arena| arena.units.arrays()) {
        visit(arrays.entries.addr()..arrays.base.addr());
    }
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

/// Frees a run as [`free`] does, but one whose pages read as zero.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and nobody uses the run any longer. The run was not
/// touched since its pages were last decommitted or moved away.
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
    unsafe { (*unit.arena.units.run(unit.index)).marks |= MOVED };
    // Relaxed: a counter that guards nothing.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// Notes that the system unmapped the first `units` units of a run. These stay in use permanently,
/// so that nobody is given their addresses, but count as no memory. The others are freed.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns and that has at least `units`
/// units. Nobody uses the run any longer.
pub(crate) unsafe fn lose(context: Context, unit: Unit, units: usize) {
    // SAFETY: the caller guarantees that it owns the run from `alloc` that starts at `unit`.
    unsafe { shrink(context, unit, units) };
    if let Some(len) = unit.run_len() {
        limit::uncharge(len as u32);
    }
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

/// Calls `visit` with every lock of this layer except [`purging_lock`], which is taken before the
/// locks of slabs.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::ArenaMaking, make::lock());
    arenas().for_each(|arena| {
        visit(LockClass::Committing, arena.committing.raw());
        visit(LockClass::Arena, arena.free_runs.raw());
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
    unsafe { (*unit.arena.units.run(unit.index)).next = pieces };
}

/// Returns the bytes of a run that are used: the value of [`set_used_bytes`] if that was called,
/// and otherwise all.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn used_bytes(unit: Unit) -> usize {
    // SAFETY: the caller guarantees that it owns the run, so its descriptor does not change.
    let (len, pieces) = unsafe {
        let run = unit.arena.units.run(unit.index);
        ((*run).len, (*run).next)
    };
    if pieces == NONE { (len as usize) << UNIT_SHIFT } else { pieces as usize * PIECES }
}

/// Extends a run to at least `units` units without moving it. The added units may hold anything.
/// Returns false if that is impossible.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn grow(context: Context, unit: Unit, units: usize) -> bool {
    // SAFETY: the caller guarantees that it owns the run from `alloc` that starts at `unit`.
    u32::try_from(units).is_ok_and(|len| unsafe { unit.arena.grow(context, unit.index, len) })
}

/// Shortens a run to `units` units, at least one, without moving it. A run of the reserve keeps its
/// length. So does any run if the lock would have to be waited for.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns and that has at least `units`
/// units. Nobody uses the units cut off any longer.
pub(crate) unsafe fn shrink(context: Context, unit: Unit, units: usize) {
    // SAFETY: the caller guarantees that it owns the run that starts at `unit` and that the run has
    // at least `units` units, so that the number fits.
    unsafe { unit.arena.shrink(context, unit.index, units as u32) };
}

#[cfg(test)]
mod tests {
    use core::num::NonZero;
    use core::ptr;

    use super::*;

    #[test]
    fn runs_are_disjoint_aligned_and_reused() {
        Context::enter(|waiting| {
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
        });
    }

    #[test]
    fn busy_arena_allocates_from_its_reserve() {
        Context::enter(|waiting| {
            let run = alloc(waiting, 0, 2, 1).unwrap();
            let unit = Unit::of(run.address.as_ptr()).unwrap();
            let busy = unit.arena.free_runs.acquire(waiting).unwrap();
            let [len, align] = [5, 4].map(|units| NonZero::new(units).unwrap());
            assert!(unit.arena.alloc(Context::TRYING, len, align).is_none());
            let reserved = unit.arena.alloc_reserved(len, align).unwrap();
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
        });
    }
}
