//! All arenas, in the order in which they were claimed.
//!
//! Nearly always there is one arena per node, of 256 GiB. More are made where a limit on address
//! space made the first one small. Arenas are never unmade.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::arena::Arena;

const MAX_ARENAS: usize = 64;
/// Only published arenas leave this file, except by [`claim`].
static ARENAS: [Arena; MAX_ARENAS] = [const { Arena::new() }; MAX_ARENAS];
/// Number of arenas claimed so far, including those that are not published yet.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of arenas claimed so far, including those that are not published yet.
pub(super) fn claimed() -> usize {
    // Relaxed: only the number matters.
    CLAIMED.load(Ordering::Relaxed)
}

/// Returns an arena for the caller alone to publish, and its number. Returns `None` if all are
/// claimed.
pub(super) fn claim() -> Option<(usize, &'static Arena)> {
    let claim = |claimed: usize| (claimed < MAX_ARENAS).then_some(claimed + 1);
    // Relaxed: only the number matters; `bytes` publishes the arena.
    let index = CLAIMED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).ok()?;
    Some((index, ARENAS.get(index)?))
}

/// Returns the number of committed units of the arena that was claimed first.
#[inline(always)]
pub(super) fn committed_of_first() -> &'static AtomicU32 {
    // SAFETY: `ARENAS` has an element 0. By a pointer, since a reference to the array would make
    // Miri look at all of it.
    unsafe { &(*(&raw const ARENAS).cast::<Arena>()).units.committed }
}

/// Returns the published arenas.
#[inline]
pub(super) fn arenas() -> impl Iterator<Item = &'static Arena> {
    // A hint: an arena's contents are read only after its `bytes`.
    let claimed = claimed();
    // SAFETY: `CLAIMED` never exceeds `MAX_ARENAS`. By pointers, since a reference to the array
    // would make Miri look at all of it.
    let arena = |index| unsafe { &*(&raw const ARENAS).cast::<Arena>().add(index) };
    // Acquire: pairs with the Release in `publish`.
    (0..claimed).map(arena).filter(|arena: &&Arena| arena.bytes.load(Ordering::Acquire) > 0)
}

/// Returns the published arenas of a node.
#[inline]
pub(super) fn arenas_of(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.units.arrays().node == node)
}

/// Returns the published arenas of all other nodes.
#[inline]
pub(super) fn arenas_beside(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.units.arrays().node != node)
}
