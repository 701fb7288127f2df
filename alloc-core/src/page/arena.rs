//! An arena and its free runs.
//!
//! A free run is *clean* or *dirty*. A clean run has not been touched since its pages were
//! committed or last decommitted: it reads as zero and costs no memory. Every other free run is
//! dirty. Allocations prefer dirty runs. Clean and dirty runs are not merged with each other, but a
//! long allocation may be cut from a dirty run and the clean run behind it. Free runs are kept in
//! bins by length, eight bins to an octave. They merge with their neighbours by boundary tags: the
//! descriptors of a run's first and last unit both hold its length and state.
//!
//! The arena's lock, [`Arena::state`], covers all of this, except that committing and purging,
//! which take time, run without it. "The lock" in the comments of this file is that one. The last
//! part of an arena is its *reserve*, which needs no lock.
//!
//! [`Arena`] holds [`FreeRuns`] under the lock, and `FreeRuns` keeps its tags, links and counts in
//! the descriptors and fields of the arena. So both are in one module. `runs` holds the operations
//! on runs in use, and committing.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::arrays::Arrays;
use super::bins::Bins;
use super::descriptor::{NONE, Run, RunState};
use super::dumped::{self, LeftOut};
use super::reserve::{BLOCK, Reserve};
use crate::size_class::UNIT;
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Lock, LockClass, RawLock};

pub(super) struct Arena {
    /// Bytes of all units, or only of those below the address space that was given up. 0 until the
    /// arena is published with Release, which pairs with the Acquire of every reader.
    pub(super) bytes: AtomicUsize,
    pub(super) arrays: UnsafeCell<Arrays>,
    /// Number of units, from the bottom, that are readable and writable. Written under both locks.
    pub(super) committed: AtomicU32,
    /// The unit behind the last one that may be committed: the first of the reserve, or a lower one
    /// after address space was given up. Written under `committing`.
    pub(super) end: AtomicU32,
    /// The unit behind the last one of the reserve: the end of the arena, or a lower one after
    /// address space was given up.
    pub(super) behind: AtomicU32,
    /// Number of units in dirty free runs. Written under `state`.
    pub(super) dirty: AtomicU32,
    pub(super) state: Lock<FreeRuns>,
    /// Held while units are committed, without holding `state`, so that other threads can allocate
    /// from the existing free runs meanwhile.
    pub(super) committing: Lock<()>,
    pub(super) reserve: Reserve,
    pub(super) left_out: LeftOut,
}

// SAFETY: `arrays` is written by the thread that claimed the arena, before `bytes` publishes it,
// and only read afterwards. All other fields are atomic or protected by a lock.
unsafe impl Sync for Arena {}

impl Arena {
    pub(super) const fn new() -> Arena {
        Arena {
            bytes: AtomicUsize::new(0),
            arrays: UnsafeCell::new(Arrays {
                base: ptr::null_mut(),
                entries: ptr::null_mut(),
                runs: ptr::null_mut(),
                meta: ptr::null_mut(),
                reserve: 0,
                units: 0,
                node: 0,
            }),
            committed: AtomicU32::new(0),
            end: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            dirty: AtomicU32::new(0),
            state: Lock::new(LockClass::Arena, FreeRuns::new()),
            committing: Lock::new(LockClass::Committing, ()),
            reserve: Reserve::new(),
            left_out: LeftOut::new(),
        }
    }

    #[inline(always)]
    pub(super) fn arrays(&self) -> &Arrays {
        // SAFETY: an arena is reachable only after it was published, and `arrays` is not written
        // afterwards.
        unsafe { &*self.arrays.get() }
    }

    /// Returns whether more than `units` units are left to commit, by the length of the arena. A
    /// guess while other threads commit.
    #[inline]
    pub(super) fn has_room(&self, units: u32) -> bool {
        self.end() - self.committed() > units
    }

    /// Returns whether unit `index` lies in the reserve.
    #[inline]
    pub(super) fn is_of_reserve(&self, index: usize) -> bool {
        let behind = self.behind.load(Ordering::Relaxed) as usize;
        (self.arrays().reserve as usize..behind).contains(&index)
    }

    /// Returns the unit behind the last one that may be committed.
    #[inline]
    pub(super) fn end(&self) -> u32 {
        self.end.load(Ordering::Relaxed)
    }

    /// Returns whether the arena's locks could be taken. A guess in a context that must not wait
    /// for them.
    #[inline]
    pub(super) fn may_be_had(&self, context: Context) -> bool {
        let is_free =
            |lock: &RawLock| if context.may_wait() { !lock.is_abandoned() } else { lock.is_free() };
        is_free(self.state.raw()) && is_free(self.committing.raw())
    }

    /// Returns the descriptor of a unit, which is valid only if the arena has that unit. Use it
    /// under the lock.
    #[inline]
    pub(super) fn run(&self, index: u32) -> *mut Run {
        self.arrays().runs.wrapping_add(index as usize)
    }

    /// Returns the boundary tag of a unit: state and length of the run that starts or ends there.
    /// Leaves out its marks, which the owner of a run in use changes without the lock.
    ///
    /// # Safety
    /// The unit is committed, and either the lock is held or the caller owns the run.
    #[inline]
    pub(super) unsafe fn tag(&self, index: u32) -> (RunState, u32) {
        // SAFETY: the caller guarantees that the unit is committed and that nobody changes its tag
        // meanwhile.
        unsafe { ((*self.run(index)).state, (*self.run(index)).len) }
    }

    /// Returns the length in units of the run in use that starts at unit `index`, or `None` if none
    /// does.
    ///
    /// # Safety
    /// The unit is committed.
    #[inline]
    pub(super) unsafe fn used_len(&self, index: u32) -> Option<u32> {
        // SAFETY: the caller guarantees that the unit is committed.
        let (state, len) = unsafe { self.tag(index) };
        (state == RunState::Used).then_some(len)
    }

    /// Returns the length in units of the free run that starts at `start`.
    ///
    /// # Safety
    /// `start` is the first unit of a run that is in a bin or about to be put into one. The lock is
    /// held.
    unsafe fn len(&self, start: u32) -> u32 {
        // SAFETY: the caller guarantees that a free run starts there, whose units are all
        // committed.
        unsafe { (*self.run(start)).len }
    }

    /// Returns the first unit from `start` on whose address is a multiple of `align` units.
    #[inline]
    pub(super) fn aligned(&self, start: u32, align: u32) -> u32 {
        start + (start.wrapping_add(self.arrays().base_unit()).wrapping_neg() & (align - 1))
    }

    /// Returns the block of the reserve that holds unit `index`, if the reserve does.
    #[inline]
    pub(super) fn reserved_block(&self, index: u32) -> Option<usize> {
        let arrays = self.arrays();
        (arrays.reserve..arrays.units)
            .contains(&index)
            .then(|| ((index - arrays.reserve) / BLOCK) as usize)
    }

    /// Returns the number of units in dirty free runs. Call under the lock.
    #[inline]
    pub(super) fn dirty(&self) -> u32 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Returns the number of units, from the bottom, that are readable and writable. Exact under
    /// the lock only.
    #[inline]
    pub(super) fn committed(&self) -> u32 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Writes the descriptors of a run in use.
    ///
    /// # Safety
    /// `len` is at least 1, and all units are committed and belong to nobody else. The lock is
    /// held, or the units are of the reserve.
    #[inline]
    pub(super) unsafe fn set_used(&self, start: u32, len: u32) {
        // SAFETY: the caller guarantees that the units are committed and that nobody else uses
        // their descriptors.
        unsafe {
            self.set(start, len, RunState::Used, RunState::Silent);
            (*self.run(start)).next = NONE;
        }
    }

    /// Writes the boundary tags of a run: `first` on its first unit, `last` on its last one.
    ///
    /// # Safety
    /// `len` is at least 1, and all units are committed and belong to nobody else. The lock is
    /// held, or the units are of the reserve.
    unsafe fn set(&self, start: u32, len: u32, first: RunState, last: RunState) {
        counters::wrote(Line::Arena, if len > 1 { 2 } else { 1 });
        // Write the first unit last, as it may be the only one.
        for (index, state) in [(start + len - 1, last), (start, first)] {
            // SAFETY: the caller guarantees that both units are committed and belong to nobody
            // else.
            unsafe {
                (*self.run(index)).len = len;
                (*self.run(index)).state = state;
            }
        }
    }
}

/// Consecutive free units: dirty from `start` to `clean`, clean from there to `end`.
pub(super) struct Found {
    pub(super) start: u32,
    pub(super) clean: u32,
    pub(super) end: u32,
}

/// Largest number of runs to look at in one search.
const LOOKS: u32 = 32;
/// Length in units from which on a run may be cut from a dirty and a clean run together: the dirty
/// part has its pages already.
const BOTH_FROM: u32 = (1 << 20) / UNIT as u32;
/// Most units to decommit at once. Other threads that wait for `purge::PURGING`, or for the
/// kernel's lock of the address space, wait no longer than that takes.
const PIECE: u32 = (8 << 20) / UNIT as u32;

/// The free runs of an arena.
pub(super) struct FreeRuns {
    /// Lowest number of dirty units in this window.
    pub(super) least_dirty: u32,
    /// Number of dirty units that stayed idle through a former window and are due to be
    /// decommitted.
    pub(super) unneeded: u32,
    /// Whether the system refused the last decommit, and nothing was freed since.
    pub(super) was_refused: bool,
    dirty_bins: Bins,
    clean_bins: Bins,
}

impl FreeRuns {
    const fn new() -> FreeRuns {
        FreeRuns {
            least_dirty: 0,
            unneeded: 0,
            was_refused: false,
            dirty_bins: Bins::new(),
            clean_bins: Bins::new(),
        }
    }

    fn bins(&mut self, state: RunState) -> &mut Bins {
        if state == RunState::Dirty { &mut self.dirty_bins } else { &mut self.clean_bins }
    }

    /// Finds consecutive free units among which `len` units start at a multiple of `align`, and
    /// leaves them in their bins. Prefers a dirty run; then, if `len` is long, a dirty run with the
    /// clean run behind it; then a clean run.
    ///
    /// # Errors
    /// Returns the number of units to commit first. With `may_commit`, that may be returned
    /// although a clean run is long enough, where committing lets a dirty run be used.
    pub(super) fn find(
        &mut self,
        arena: &Arena,
        len: u32,
        align: u32,
        may_commit: bool,
    ) -> Result<Found, u32> {
        if let Some(start) = self.find_one(arena, RunState::Dirty, len, align) {
            // SAFETY: a free run starts at `start`; the lock is held.
            let end = start + unsafe { arena.len(start) };
            return Ok(Found { start, clean: end, end });
        }
        let room = len.saturating_add(align - 1);
        if let Some(found) = self.find_both(arena, room, may_commit) {
            return found;
        }
        let start = self.find_one(arena, RunState::Clean, len, align).ok_or(room)?;
        // SAFETY: a free run starts at `start`; the lock is held.
        Ok(Found { start, clean: start, end: start + unsafe { arena.len(start) } })
    }

    /// Finds a dirty run that has `len` units together with the clean run behind it. Only for long
    /// runs, and only among the longest dirty runs. Returns `Err` with the number of units to
    /// commit if a dirty run at the end of the committed units would do then.
    fn find_both(
        &mut self,
        arena: &Arena,
        len: u32,
        may_commit: bool,
    ) -> Option<Result<Found, u32>> {
        if len < BOTH_FROM {
            return None;
        }
        let mut start = self.dirty_bins.head(self.dirty_bins.last()?);
        for _ in 0..LOOKS {
            if start == NONE {
                break;
            }
            // SAFETY: a free run starts at `start`; the lock is held.
            let clean = start + unsafe { arena.len(start) };
            if clean == arena.committed() && may_commit {
                // SAFETY: a free run starts at `start`; the lock is held.
                return Some(Err(len.saturating_sub(unsafe { arena.len(start) })));
            }
            // SAFETY: `clean` is the first unit of a run, below `committed`; the lock is held.
            if clean < arena.committed() && unsafe { (*arena.run(clean)).state } == RunState::Clean
            {
                // SAFETY: a free run starts at `clean`; the lock is held.
                let end = clean + unsafe { arena.len(clean) };
                if end - start >= len {
                    return Some(Ok(Found { start, clean, end }));
                }
            }
            // SAFETY: a free run starts at `start`; the lock is held.
            start = unsafe { (*arena.run(start)).next };
        }
        None
    }

    /// Finds a free run of `state` that has `len` units from a multiple of `align` on, and leaves
    /// it in its bin.
    fn find_one(&mut self, arena: &Arena, state: RunState, len: u32, align: u32) -> Option<u32> {
        let bins = self.bins(state);
        // Any run of this bin and of all bins behind it fits.
        let sure = Bins::fitting(len.saturating_add(align - 1));
        if align == 1
            && let Some(bin) = bins.first_from(sure)
        {
            return Some(bins.head(bin));
        }
        // Lower bins may hold a run that is just long enough, or that starts at the right multiple:
        // a short search of them pays.
        let mut looks = 0;
        let mut next = bins.first_from(Bins::holding(len));
        while let Some(bin) = next.filter(|bin| *bin < sure) {
            let mut start = bins.head(bin);
            while start != NONE && looks < LOOKS {
                looks += 1;
                // SAFETY: runs in bins are committed; the lock is held.
                let run = unsafe { &*arena.run(start) };
                if arena.aligned(start, align) + len <= start + run.len {
                    return Some(start);
                }
                start = run.next;
            }
            next = bins.first_from(bin + 1);
        }
        next.map(|bin| bins.head(bin))
    }

    /// Takes the free runs from `start` to `end` off their bins.
    #[inline]
    pub(super) fn remove_all(&mut self, arena: &Arena, start: u32, end: u32) {
        let mut at = start;
        while at < end {
            // SAFETY: a free run starts at `at`; the lock is held.
            let len = unsafe { arena.len(at) };
            self.remove(arena, at);
            at += len;
        }
    }

    /// Puts the units from `start` to `end` into bins: those below `clean` as a dirty run, the
    /// others as a clean one.
    #[inline]
    pub(super) fn insert_parts(&mut self, arena: &Arena, start: u32, end: u32, clean: u32) {
        let middle = clean.clamp(start, end);
        if start < middle {
            self.insert(arena, start, middle - start, RunState::Dirty);
        }
        if middle < end {
            self.insert(arena, middle, end - middle, RunState::Clean);
        }
    }

    /// Adds the `more` units that were committed behind the first `committed` ones.
    #[inline]
    pub(super) fn add(&mut self, arena: &Arena, committed: u32, more: u32) {
        // Release: pairs with the Acquire in `Unit::is_committed`, in `meta_at` and in
        // `for_each_unit`.
        arena.committed.store(committed + more, Ordering::Release);
        self.give(arena, committed, more, RunState::Clean);
    }

    /// Adds a run to the free ones, merged with free neighbours of the same state.
    pub(super) fn give(&mut self, arena: &Arena, mut start: u32, mut len: u32, state: RunState) {
        self.was_refused = false;
        // No inner unit of a longer run may hold `Used`.
        // SAFETY: `start` is the first unit of a run and committed; the lock is held.
        unsafe { (*arena.run(start)).state = RunState::Silent };
        // SAFETY: unit 0 is in no run, so there is a unit below `start`; the lock is held.
        if unsafe { (*arena.run(start - 1)).state } == state {
            // SAFETY: the unit below is the last one of a free run, which has a tag; the lock is
            // held.
            let before = unsafe { (*arena.run(start - 1)).len };
            start -= before;
            len += before;
            self.remove(arena, start);
        }
        let next = start + len;
        // SAFETY: units below `committed` have descriptors; the lock is held.
        if next < arena.committed() && unsafe { (*arena.run(next)).state } == state {
            // SAFETY: a free run starts at `next`; the lock is held.
            len += unsafe { (*arena.run(next)).len };
            self.remove(arena, next);
        }
        self.insert(arena, start, len, state);
    }

    pub(super) fn insert(&mut self, arena: &Arena, start: u32, len: u32, state: RunState) {
        // SAFETY: the lock is held, and the caller passes committed units that are in no bin and
        // not in use.
        unsafe { arena.set(start, len, state, state) };
        if state == RunState::Dirty {
            arena.dirty.store(arena.dirty() + len, Ordering::Relaxed);
        }
        let bins = self.bins(state);
        let bin = Bins::holding(len);
        let next = bins.head(bin);
        // SAFETY: `start` and `next` are first units of free runs; the lock is held.
        unsafe {
            (*arena.run(start)).next = next;
            (*arena.run(start)).previous = NONE;
            if next != NONE {
                (*arena.run(next)).previous = start;
            }
        }
        bins.set_head(bin, start);
        counters::wrote(Line::Arena, 1);
    }

    /// Takes a free run off its bin. Returns its state.
    fn remove(&mut self, arena: &Arena, start: u32) -> RunState {
        // SAFETY: a free run starts at `start`; the lock is held.
        let run = unsafe { arena.run(start).read() };
        if run.state == RunState::Dirty {
            arena.dirty.store(arena.dirty() - run.len, Ordering::Relaxed);
        }
        // SAFETY: neighbours in a bin are first units of free runs; the lock is held.
        unsafe {
            if run.next != NONE {
                (*arena.run(run.next)).previous = run.previous;
            }
            if run.previous != NONE {
                (*arena.run(run.previous)).next = run.next;
            }
        }
        if run.previous == NONE {
            self.bins(run.state).set_head(Bins::holding(run.len), run.next);
            counters::wrote(Line::Arena, 1);
        }
        run.state
    }

    /// Lowers the window's low-water mark, and the number of units due to be decommitted, to the
    /// number of dirty units. Call after taking dirty units, once the excess is reinserted.
    #[inline]
    pub(super) fn note_least(&mut self, arena: &Arena) {
        self.least_dirty = self.least_dirty.min(arena.dirty());
        self.unneeded = self.unneeded.min(arena.dirty());
    }

    /// Takes up to `most` dirty units off the longest run, or one about as long, to be decommitted.
    /// It takes the end of the run, back to a multiple of [`PIECE`] at most, so that
    /// no huge page is decommitted in parts.
    pub(super) fn take_dirty(&mut self, arena: &Arena, most: u32) -> Option<Leaving> {
        let start = self.dirty_bins.head(self.dirty_bins.last()?);
        // SAFETY: a free run starts at `start`; the lock is held.
        let found = unsafe { arena.len(start) };
        let past = (start + found - 1).wrapping_add(arena.arrays().base_unit()) % PIECE;
        let len = found.min(most).min(past + 1);
        self.remove(arena, start);
        if found > len {
            self.insert(arena, start, found - len, RunState::Dirty);
        }
        self.unneeded = self.unneeded.saturating_sub(len);
        self.note_least(arena);
        let start = start + (found - len);
        let end = start + len;
        // SAFETY: the lock is held, and these units were just taken off their bin.
        unsafe { arena.set(start, len, RunState::Leaving, RunState::Silent) };
        let (from, to) = self.take_clean_around(arena, start, end);
        Some(Leaving { from, start, end, to })
    }

    /// Takes the clean units on both sides of `start..end` off their bins, where they complete
    /// blocks that can be left out of core files. Returns the first unit and the end of the whole
    /// range.
    fn take_clean_around(&mut self, arena: &Arena, start: u32, end: u32) -> (u32, u32) {
        let (from, to) = dumped::blocks_around(arena.arrays(), start, end);
        // SAFETY: units below `committed` have descriptors, and so has unit 0; the lock is held.
        let (below, above) = unsafe {
            let is_last = end >= arena.committed();
            (arena.tag(start - 1), (!is_last).then(|| arena.tag(end)))
        };
        let below = (below.0 == RunState::Clean).then(|| start - below.1);
        let above = above.filter(|run| run.0 == RunState::Clean).map(|run| end + run.1);
        let has_below =
            from.is_some_and(|from| from == start || below.is_some_and(|at| at <= from));
        let has_above = to == end || above.is_some_and(|at| at >= to);
        let is_one = from.is_none_or(|from| from + dumped::BLOCK >= end);
        if is_one && !(has_below && has_above) {
            return (start, end);
        }
        let (mut first, mut last) = (start, end);
        if let (Some(from), Some(at), true) = (from, below, has_below)
            && from < start
        {
            self.remove(arena, at);
            self.insert_parts(arena, at, from, at);
            // SAFETY: the lock is held, and these units were just taken off their bin.
            unsafe { arena.set(from, start - from, RunState::Leaving, RunState::Silent) };
            first = from;
        }
        if let (Some(at), true) = (above, has_above)
            && end < to
        {
            self.remove(arena, end);
            self.insert_parts(arena, to, at, to);
            // SAFETY: the lock is held, and these units were just taken off their bin.
            unsafe { arena.set(end, to - end, RunState::Leaving, RunState::Silent) };
            last = to;
        }
        (first, last)
    }

    /// Frees the units that [`FreeRuns::take_dirty`] took: those between `start` and `end` as
    /// `state`, the others as clean.
    pub(super) fn put_back(&mut self, arena: &Arena, leaving: Leaving, state: RunState) {
        let Leaving { from, start, end, to } = leaving;
        for (from, to, state) in
            [(from, start, RunState::Clean), (start, end, state), (end, to, RunState::Clean)]
        {
            if from < to {
                self.give(arena, from, to - from, state);
            }
        }
    }
}

/// Units that are being decommitted: dirty from `start` to `end`, with clean ones around them from
/// `from` to `to`.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) from: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) to: u32,
}

#[cfg(test)]
mod tests;
