//! All arenas, in the order in which they were claimed.
//!
//! Nearly always there is one arena per node, of 256 GiB. More are made where a limit on address
//! space made the first one small. Arenas are never unmade.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::arena::Arena;

pub(super) const MAX_ARENAS: usize = 64;
pub(super) static ARENAS: [Arena; MAX_ARENAS] = [const { Arena::new() }; MAX_ARENAS];
/// Number of arenas claimed so far, including those that are not published yet.
pub(super) static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Returns the published arenas.
#[inline]
pub(super) fn arenas() -> impl Iterator<Item = &'static Arena> {
    // Relaxed: a hint; an arena's contents are read only after its `bytes`.
    let claimed = CLAIMED.load(Ordering::Relaxed);
    // SAFETY: `CLAIMED` never exceeds `MAX_ARENAS`. By pointers, since a reference to the array
    // would make Miri look at all of it.
    let arena = |index| unsafe { &*(&raw const ARENAS).cast::<Arena>().add(index) };
    // Acquire: pairs with the Release in `fill`.
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
