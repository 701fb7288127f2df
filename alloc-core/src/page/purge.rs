//! Purging: free memory goes back to the system, a piece at a time.
//!
//! While the system takes a piece, the piece is in no bin and no arena's lock is held, so everybody else can allocate and free.
//! Whoever has one in hand holds [`PURGING`]. So there is one at a time, a fork waits for it, and an allocation that would be
//! refused can make sure that nothing is in hand when it tries for the last time.
//!
//! Only contexts that may wait purge: others could not be sure to get the arena's lock again, to give the piece back.

use super::limit;
use super::{Allocation, Arena, Leaving, RunState, alloc_without_trim, arenas, dirty};
use crate::fault::{self, Place};
use crate::size_class::UNIT;
use crate::sync::{Context, Guard, Lock, LockClass, RawLock};

/// The most units that the system is asked to take at once. Other threads that want this lock, or that of the address space, wait
/// no longer than this takes.
pub(super) const PIECE: u32 = (8 << 20) / UNIT as u32;

/// FreeRuns on their way to the system: in no bin, and not in use.
#[derive(Clone, Copy)]
struct Piece {
    arena: &'static Arena,
    leaving: Leaving,
}

/// The right to take memory out of all lists in order to give it back to the system.
pub(crate) struct Purging(Guard<'static, InHand>);

/// What the holder of the lock has in hand. Written under the arena's lock, too, so that it is true whenever that can be taken.
pub(crate) struct InHand(Option<Piece>);

static PURGING: Lock<InHand> = Lock::new(LockClass::Purging, InHand(None));

/// The lock of [`Purging`]. The child of a fork may have it, whoever had it: see [`in_child`].
pub(crate) fn lock() -> &'static RawLock {
    PURGING.raw()
}

impl Purging {
    /// Waits for the right to purge; `None` in a context that may not.
    pub(crate) fn begin(context: Context) -> Option<Purging> {
        if !context.may_wait() {
            return None;
        }
        let mut in_hand = PURGING.acquire(context)?;
        in_hand.give_back(context);
        Some(Purging(in_hand))
    }

    /// Gives up to `most` dirty units of an arena back to the system; how many. `None` where the arena has none, or the system
    /// refuses.
    fn purge_piece(&mut self, context: Context, arena: &'static Arena, most: u32) -> Option<u32> {
        let Purging(in_hand) = self;
        let mut units = arena.state.acquire(context)?;
        let leaving = units.take_dirty(arena, most)?;
        let Leaving { from, start, end, to } = leaving;
        in_hand.0 = Some(Piece { arena, leaving });
        drop(units);
        fault::point(Place::ArenaPurging);
        // SAFETY: the run was taken off the bins and is not in use, so it is ours alone.
        let is_clean = unsafe { arena.decommit(start, end - start) };
        if is_clean {
            arena.left_out.leave_out(arena.arrays(), from, to);
        }
        // It fails only in the child of a fork, where a thread that is not there had the arena's lock: nobody gets at the arena
        // any more, nor at the piece that stays noted.
        let mut units = arena.state.acquire(context)?;
        units.put_back(arena, leaving, if is_clean { RunState::Clean } else { RunState::Dirty });
        units.was_refused = !is_clean;
        in_hand.0 = None;
        drop(units);
        if is_clean {
            limit::uncharge(end - start);
        }
        is_clean.then_some(end - start)
    }

    /// Gives all that is dirty back to the system; how many bytes.
    fn purge_all(&mut self, context: Context) -> usize {
        arenas()
            .map(|arena| purge(arena.dirty(), |most| self.purge_piece(context, arena, most)))
            .sum()
    }
}

impl InHand {
    /// In the child of a fork that did not wait for the lock: what a thread had in hand that is not there goes back to the bins.
    fn give_back(&mut self, context: Context) {
        let Some(Piece { arena, leaving }) = self.0 else { return };
        if let Some(mut units) = arena.state.acquire(context) {
            units.put_back(arena, leaving, RunState::Dirty);
            self.0 = None;
        }
    }
}

/// Has `purge_piece` give back `most` units, piece by piece, for as long as it gives back any; how many bytes.
fn purge(most: u32, mut purge_piece: impl FnMut(u32) -> Option<u32>) -> usize {
    let mut left = most;
    while left > 0
        && let Some(purged) = purge_piece(left)
    {
        left -= purged;
    }
    (most - left) as usize * UNIT
}

/// As [`Purging::purge_piece`], for who purges nothing else meanwhile.
fn purge_piece(context: Context, arena: &'static Arena, most: u32) -> Option<u32> {
    Purging::begin(context)?.purge_piece(context, arena, most)
}

/// Gives back all that is dirty; how many bytes. Nothing in a context that may not wait.
///
/// Bytes are those of free ranges: some of them may never have been touched since the program got them.
pub(crate) fn trim(context: Context) -> usize {
    // What a fork left in hand is dirty from here on.
    if Purging::begin(context).is_none() {
        return 0;
    }
    arenas().map(|arena| purge(arena.dirty(), |most| purge_piece(context, arena, most))).sum()
}

/// Gives back what is dirty beyond `keep` bytes; how many bytes.
pub(crate) fn trim_to(context: Context, keep: usize) -> usize {
    let mut left = dirty().saturating_sub(keep).div_ceil(UNIT) as u32;
    let mut purged = 0;
    for arena in arenas() {
        let some = left.min(arena.dirty());
        left -= some;
        purged += purge(some, |most| purge_piece(context, arena, most));
    }
    purged
}

/// Ends a window: what was dirty all through it is unneeded.
fn end_window(context: Context) {
    // As in `trim`.
    drop(Purging::begin(context));
    for arena in arenas() {
        if let Some(mut units) = arena.state.acquire(context) {
            units.unneeded = units.unneeded.max(units.least_dirty);
            units.least_dirty = arena.dirty();
        }
    }
}

/// Gives back what is unneeded, up to so many bytes; how many.
fn purge_unneeded(context: Context, most: usize) -> usize {
    if !context.may_wait() {
        return 0;
    }
    let mut left = most;
    for arena in arenas() {
        // Each piece anew: others may need what was unneeded, or purge it.
        while left >= UNIT
            && let Some(unneeded) = arena.state.acquire(context).map(|units| units.unneeded)
            && let some @ 1.. = unneeded.min(u32::try_from(left / UNIT).unwrap_or(u32::MAX))
            && let Some(purged) = purge_piece(context, arena, some)
        {
            left -= purged as usize * UNIT;
        }
    }
    most - left
}

/// Ends a window, and gives back what was dirty all through it or a former one, up to so many bytes; how many.
pub(crate) fn decay(context: Context, most: usize) -> usize {
    end_window(context);
    purge_unneeded(context, most)
}

/// As [`alloc`](super::alloc), where that has failed: gives back all that is free first, and tries when nobody has anything in hand.
pub(crate) fn alloc_after_trim(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let mut purging = Purging::begin(context)?;
    purging.purge_all(context);
    alloc_without_trim(context, node, units, align)
}

/// In the child of a fork: what another thread was giving back to the system, if the fork did not wait for it, is free again.
pub(crate) fn in_child() {
    if let Some(mut in_hand) = PURGING.acquire(Context::TRYING) {
        in_hand.give_back(Context::TRYING);
    }
}
