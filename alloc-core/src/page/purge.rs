//! Purging: decommits free memory, a piece at a time.
//!
//! A low-water mark decides which dirty runs return to the system: units that stayed dirty through
//! a whole window are decommitted at its end. (This is the working-set estimate of FreeBSD's UMA,
//! applied to pages.) `reclaim` decides when windows end and how long they are.
//!
//! While the system takes a piece, the piece is in no bin and no arena's lock is held, so all other
//! threads can allocate and free. The thread that has taken a piece holds [`PURGING`]. So there is
//! one piece at a time, a fork waits for it, and an allocation that would be refused can make sure
//! that no piece is missing when it tries for the last time.
//!
//! Only contexts that may wait purge. Any other might fail to get the arena's lock again, which it
//! needs to return the piece to the bins.

use core::sync::atomic::Ordering;

use super::arena::Arena;
use super::arenas::arenas;
use super::descriptor::RunState;
use super::free_runs::Leaving;
use super::limit;
use super::placement::alloc_without_trim;
use super::runs::Allocation;
use crate::fault::{self, Place};
use crate::size_class::UNIT;
use crate::sync::{Context, Guard, Lock, LockClass, RawLock};

/// Units that are being decommitted: in no bin, and not in use.
#[derive(Clone, Copy)]
struct Piece {
    arena: &'static Arena,
    leaving: Leaving,
}

/// The right to take memory off all lists in order to decommit it.
pub(crate) struct Purging(Guard<'static, InHand>);

/// The piece that the holder of the lock has taken off the bins. Also written under the arena's
/// lock, so that it is correct whenever that lock can be taken.
pub(crate) struct InHand(Option<Piece>);

static PURGING: Lock<InHand> = Lock::new(LockClass::Purging, InHand(None));

/// Returns the lock of [`Purging`]. In the child of a fork it is free, even if it was held: see
/// [`in_child`].
pub(crate) fn lock() -> &'static RawLock {
    PURGING.raw()
}

impl Purging {
    /// Waits for the right to purge. Returns `None` in a context that must not wait.
    pub(crate) fn begin(context: Context) -> Option<Purging> {
        if !context.may_wait() {
            return None;
        }
        let mut in_hand = PURGING.acquire(context)?;
        in_hand.give_back(context);
        Some(Purging(in_hand))
    }

    /// Decommits up to `most` dirty units of an arena and returns their number. Returns `None` if
    /// the arena has none, or if the system refuses.
    fn purge_piece(&mut self, context: Context, arena: &'static Arena, most: u32) -> Option<u32> {
        let Purging(in_hand) = self;
        let mut free = arena.free_runs.acquire(context)?;
        // SAFETY: both are of this arena.
        let leaving = unsafe { free.take_dirty(&arena.units, most)? };
        let Leaving { from, start, end, to } = leaving;
        in_hand.0 = Some(Piece { arena, leaving });
        drop(free);
        fault::point(Place::ArenaPurging);
        // SAFETY: the run was taken off the bins and is not in use, so nobody else has it.
        let is_clean = unsafe { arena.decommit(start, end - start) };
        if is_clean {
            // SAFETY: the units lie in this arena, and no other thread has them.
            unsafe { arena.left_out.leave_out(arena.units.arrays(), from, to) };
        }
        // This fails only in the child of a fork, where the arena's lock was held by a thread that
        // does not exist in the child. Nobody can reach the arena then, nor the piece, which stays
        // recorded.
        let mut free = arena.free_runs.acquire(context)?;
        let state = if is_clean { RunState::Clean } else { RunState::Dirty };
        // SAFETY: the units were taken above, and were decommitted if they count as clean.
        unsafe { free.put_back(&arena.units, leaving, state) };
        free.was_refused = !is_clean;
        in_hand.0 = None;
        drop(free);
        if is_clean {
            limit::uncharge(end - start);
        }
        is_clean.then_some(end - start)
    }

    /// Decommits all dirty memory. Returns the bytes decommitted.
    fn purge_all(&mut self, context: Context) -> usize {
        arenas()
            .map(|arena| purge(arena.units.dirty(), |most| self.purge_piece(context, arena, most)))
            .sum()
    }
}

impl InHand {
    /// Returns a recorded piece to the bins. There is one only in the child of a fork that did not
    /// wait for the lock: the thread that took the piece does not exist in the child.
    fn give_back(&mut self, context: Context) {
        let Some(Piece { arena, leaving }) = self.0 else { return };
        if let Some(mut free) = arena.free_runs.acquire(context) {
            // SAFETY: the recorded units were taken, and are forgotten once they are back.
            unsafe { free.put_back(&arena.units, leaving, RunState::Dirty) };
            self.0 = None;
        }
    }
}

/// Decommits up to `most` units piece by piece, until `purge_piece` returns `None`. Returns the
/// bytes decommitted.
fn purge(most: u32, mut purge_piece: impl FnMut(u32) -> Option<u32>) -> usize {
    let mut left = most;
    while left > 0
        && let Some(purged) = purge_piece(left)
    {
        left -= purged;
    }
    (most - left) as usize * UNIT
}

/// As [`Purging::purge_piece`], for a caller that releases `PURGING` after each piece.
fn purge_piece(context: Context, arena: &'static Arena, most: u32) -> Option<u32> {
    Purging::begin(context)?.purge_piece(context, arena, most)
}

/// Decommits all dirty memory, unless the context must not wait. Returns the bytes decommitted.
///
/// The result counts free ranges, of which the program may never have touched some.
pub(crate) fn trim(context: Context) -> usize {
    // This makes a piece that a fork left behind dirty again.
    if Purging::begin(context).is_none() {
        return 0;
    }
    arenas().map(|arena| purge(arena.units.dirty(), |most| purge_piece(context, arena, most))).sum()
}

/// Trims all free memory at once if the soft limit is exceeded. Does nothing in a context that must
/// not wait. Call after frees, and after allocating a clean run.
#[inline]
pub(crate) fn keep_limit(context: Context) {
    if limit::is_soft_exceeded() {
        trim(context);
    }
}

/// Decommits the dirty memory beyond `keep` bytes. Returns the bytes decommitted.
pub(crate) fn trim_to(context: Context, keep: usize) -> usize {
    let mut left = dirty().saturating_sub(keep).div_ceil(UNIT) as u32;
    let mut purged = 0;
    for arena in arenas() {
        let some = left.min(arena.units.dirty());
        left -= some;
        purged += purge(some, |most| purge_piece(context, arena, most));
    }
    purged
}

/// Ends a window: memory that stayed dirty all through it is due to be decommitted.
pub(crate) fn end_window(context: Context) {
    // As in `trim`.
    drop(Purging::begin(context));
    for arena in arenas() {
        if let Some(mut free) = arena.free_runs.acquire(context) {
            free.unneeded = free.unneeded.max(free.least_dirty);
            free.least_dirty = arena.units.dirty();
        }
    }
}

/// Returns the bytes of dirty free memory, which the system still counts as ours. The sum is a
/// guess while other threads allocate and free.
pub(crate) fn dirty() -> usize {
    arenas().map(|arena| arena.units.dirty.load(Ordering::Relaxed) as usize * UNIT).sum()
}

/// Returns whether there is memory to purge. Waits for frees in progress, so that they count, too.
/// Runs that the system refused to decommit count only after something else is freed, so that they
/// are not offered to it again and again.
pub(crate) fn is_dirty(context: Context) -> bool {
    arenas().any(|arena| {
        let free = arena.free_runs.acquire(context);
        free.is_some_and(|free| arena.units.dirty() > 0 && !free.was_refused)
    })
}

/// Returns the bytes that are due to be decommitted. Runs that the system refused to decommit do
/// not count, as in [`is_dirty`].
pub(crate) fn due(context: Context) -> usize {
    let units = |arena: &Arena| {
        let free = arena.free_runs.acquire(context).filter(|free| !free.was_refused);
        free.map_or(0, |free| free.unneeded)
    };
    arenas().map(|arena| units(arena) as usize * UNIT).sum()
}

/// Decommits units that are due, up to `most` bytes. Returns the bytes decommitted.
pub(crate) fn purge_due(context: Context, most: usize) -> usize {
    if !context.may_wait() {
        return 0;
    }
    let mut left = most;
    for arena in arenas() {
        // Read the number before each piece: other threads may allocate units that were due, or
        // purge them.
        while left >= UNIT
            && let Some(unneeded) = arena.free_runs.acquire(context).map(|free| free.unneeded)
            && let some @ 1.. = unneeded.min(u32::try_from(left / UNIT).unwrap_or(u32::MAX))
            && let Some(purged) = purge_piece(context, arena, some)
        {
            left -= purged as usize * UNIT;
        }
    }
    most - left
}

/// Allocates as [`alloc_without_trim`] does, for a request that was refused. Decommits all free
/// memory first, and then tries while no other thread has a piece.
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

/// In the child of a fork: frees the piece that another thread was decommitting, if the fork did
/// not wait for that thread.
pub(crate) fn in_child() {
    if let Some(mut in_hand) = PURGING.acquire(Context::TRYING) {
        in_hand.give_back(Context::TRYING);
    }
}
