//! The free runs of an arena.
//!
//! A free run is *clean* or *dirty*. A clean run has not been touched since its pages were
//! committed or last decommitted: it reads as zero and costs no memory. Every other free run is
//! dirty. Allocations prefer dirty runs. Clean and dirty runs are not merged with each other, but a
//! long allocation may be cut from a dirty run and the clean run behind it. Free runs are kept in
//! bins by length, eight bins to an octave. They merge with their neighbours by boundary tags.
//!
//! [`FreeRuns`] lie under the arena's lock: "the lock" in the comments of this file. Their tags and
//! links are in the descriptors of their units.

use core::sync::atomic::Ordering;

use super::bins::Bins;
use super::descriptor::{NONE, RunState};
use super::dumped;
use super::units::Units;
use crate::size_class::UNIT;
use crate::sync::counters::{self, Line};

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
///
/// Functions that take units require that these are the units of the same arena, since they look
/// them up by the numbers of these free runs.
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
    pub(super) const fn new() -> FreeRuns {
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
    ///
    /// # Safety
    /// The units are those of this arena.
    pub(super) unsafe fn find(
        &mut self,
        units: &Units,
        len: u32,
        align: u32,
        may_commit: bool,
    ) -> Result<Found, u32> {
        // SAFETY: the caller passes the units of this arena.
        if let Some(start) = unsafe { self.find_one(units, RunState::Dirty, len, align) } {
            // SAFETY: a free run starts at `start`; the lock is held.
            let end = start + unsafe { units.len(start) };
            return Ok(Found { start, clean: end, end });
        }
        let room = len.saturating_add(align - 1);
        // SAFETY: the caller passes the units of this arena.
        if let Some(found) = unsafe { self.find_both(units, room, may_commit) } {
            return found;
        }
        // SAFETY: the caller passes the units of this arena.
        let start = unsafe { self.find_one(units, RunState::Clean, len, align) }.ok_or(room)?;
        // SAFETY: a free run starts at `start`; the lock is held.
        Ok(Found { start, clean: start, end: start + unsafe { units.len(start) } })
    }

    /// Finds a dirty run that has `len` units together with the clean run behind it. Only for long
    /// runs, and only among the longest dirty runs. Returns `Err` with the number of units to
    /// commit if a dirty run at the end of the committed units would do then.
    ///
    /// # Safety
    /// The units are those of this arena.
    unsafe fn find_both(
        &mut self,
        units: &Units,
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
            let clean = start + unsafe { units.len(start) };
            if clean == units.committed() && may_commit {
                // SAFETY: a free run starts at `start`; the lock is held.
                return Some(Err(len.saturating_sub(unsafe { units.len(start) })));
            }
            // SAFETY: `clean` is the first unit of a run, below `committed`; the lock is held.
            if clean < units.committed() && unsafe { (*units.run(clean)).state } == RunState::Clean
            {
                // SAFETY: a free run starts at `clean`; the lock is held.
                let end = clean + unsafe { units.len(clean) };
                if end - start >= len {
                    return Some(Ok(Found { start, clean, end }));
                }
            }
            // SAFETY: a free run starts at `start`; the lock is held.
            start = unsafe { (*units.run(start)).next };
        }
        None
    }

    /// Finds a free run of `state` that has `len` units from a multiple of `align` on, and leaves
    /// it in its bin.
    ///
    /// # Safety
    /// The units are those of this arena.
    unsafe fn find_one(
        &mut self,
        units: &Units,
        state: RunState,
        len: u32,
        align: u32,
    ) -> Option<u32> {
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
                let run = unsafe { &*units.run(start) };
                if units.aligned(start, align) + len <= start + run.len {
                    return Some(start);
                }
                start = run.next;
            }
            next = bins.first_from(bin + 1);
        }
        next.map(|bin| bins.head(bin))
    }

    /// Takes the free runs from `start` to `end` off their bins. The caller owns their units
    /// afterwards.
    ///
    /// # Safety
    /// The units are those of this arena. Runs that are in bins make up all units from `start` to
    /// `end`.
    #[inline]
    pub(super) unsafe fn remove_all(&mut self, units: &Units, start: u32, end: u32) {
        let mut at = start;
        while at < end {
            // SAFETY: the caller guarantees that a free run starts at `at`; the lock is held.
            let len = unsafe { units.len(at) };
            // SAFETY: the caller guarantees that the run at `at` is in a bin.
            unsafe { self.remove(units, at) };
            at += len;
        }
    }

    /// Puts the units from `start` to `end` into bins: those below `clean` as a dirty run, the
    /// others as a clean one.
    ///
    /// # Safety
    /// As [`FreeRuns::insert`], for each of the two runs that is not empty.
    #[inline]
    pub(super) unsafe fn insert_parts(&mut self, units: &Units, start: u32, end: u32, clean: u32) {
        let middle = clean.clamp(start, end);
        // SAFETY: the caller owns the units, and guarantees that those from `clean` on are clean.
        unsafe {
            if start < middle {
                self.insert(units, start, middle - start, RunState::Dirty);
            }
            if middle < end {
                self.insert(units, middle, end - middle, RunState::Clean);
            }
        }
    }

    /// Adds the `more` units that were committed behind the first `committed` ones.
    ///
    /// # Safety
    /// The units are those of this arena. `committed` of them are committed, and nobody else
    /// changes that number meanwhile. The next `more` units, at least one, and their metadata can
    /// be read and written.
    #[inline]
    pub(super) unsafe fn add(&mut self, units: &Units, committed: u32, more: u32) {
        // Release: pairs with the Acquire in `Unit::is_committed`, `meta_in_first` and
        // `for_each_unit`.
        units.committed.store(committed + more, Ordering::Release);
        // SAFETY: the caller guarantees that these units were committed just now, so they are
        // nobody's and read as zero.
        unsafe { self.give(units, committed, more, RunState::Clean) };
    }

    /// Adds a run to the free ones, merged with free neighbours of the same state.
    ///
    /// # Safety
    /// As [`FreeRuns::insert`].
    pub(super) unsafe fn give(
        &mut self,
        units: &Units,
        mut start: u32,
        mut len: u32,
        state: RunState,
    ) {
        self.was_refused = false;
        // No inner unit of a longer run may hold `Used`.
        // SAFETY: the caller owns the run, so its first unit is committed; the lock is held.
        unsafe { (*units.run(start)).state = RunState::Silent };
        // SAFETY: unit 0 is in no run, so there is a unit below `start`; the lock is held.
        if unsafe { (*units.run(start - 1)).state } == state {
            // SAFETY: the unit below is the last one of a free run, which has a tag; the lock is
            // held.
            let before = unsafe { (*units.run(start - 1)).len };
            start -= before;
            len += before;
            // SAFETY: a free run of these units is in a bin.
            unsafe { self.remove(units, start) };
        }
        let next = start + len;
        // SAFETY: units below `committed` have descriptors; the lock is held.
        if next < units.committed() && unsafe { (*units.run(next)).state } == state {
            // SAFETY: a free run starts at `next`; the lock is held.
            len += unsafe { (*units.run(next)).len };
            // SAFETY: a free run that starts at `next` is in a bin.
            unsafe { self.remove(units, next) };
        }
        // SAFETY: the caller owns the run, and its neighbours were just taken off their bins.
        unsafe { self.insert(units, start, len, state) };
    }

    /// Puts a run into its bin.
    ///
    /// # Safety
    /// The units are those of this arena. The caller owns the `len` units from `start` on, at least
    /// one: they are committed, in no bin and not in use. If `state` is `Clean`, they read as zero.
    pub(super) unsafe fn insert(&mut self, units: &Units, start: u32, len: u32, state: RunState) {
        // SAFETY: the lock is held, and the caller owns the units, which are committed.
        unsafe { units.set(start, len, state, state) };
        if state == RunState::Dirty {
            units.dirty.store(units.dirty() + len, Ordering::Relaxed);
        }
        let bins = self.bins(state);
        let bin = Bins::holding(len);
        let (mut previous, mut next) = (NONE, bins.head(bin));
        // The last run freed is used first, as it is warm, but not before one in a huge page, which
        // should stay in use.
        if next != NONE && units.is_huge(next) && !units.is_huge(start) {
            previous = next;
            // SAFETY: `next` is the first unit of a free run; the lock is held.
            next = unsafe { (*units.run(previous)).next };
        }
        // SAFETY: `start`, `previous` and `next` are first units of free runs; the lock is held.
        unsafe {
            (*units.run(start)).next = next;
            (*units.run(start)).previous = previous;
            if next != NONE {
                (*units.run(next)).previous = start;
            }
            if previous != NONE {
                (*units.run(previous)).next = start;
            }
        }
        if previous == NONE {
            bins.set_head(bin, start);
            counters::wrote(Line::Arena, 1);
        }
    }

    /// Takes a free run off its bin. The caller owns its units afterwards.
    ///
    /// # Safety
    /// The units are those of this arena. A run that is in a bin starts at `start`.
    unsafe fn remove(&mut self, units: &Units, start: u32) {
        // SAFETY: the caller guarantees that a free run starts at `start`; the lock is held.
        let run = unsafe { units.run(start).read() };
        if run.state == RunState::Dirty {
            units.dirty.store(units.dirty() - run.len, Ordering::Relaxed);
        }
        // SAFETY: neighbours in a bin are first units of free runs; the lock is held.
        unsafe {
            if run.next != NONE {
                (*units.run(run.next)).previous = run.previous;
            }
            if run.previous != NONE {
                (*units.run(run.previous)).next = run.next;
            }
        }
        if run.previous == NONE {
            self.bins(run.state).set_head(Bins::holding(run.len), run.next);
            counters::wrote(Line::Arena, 1);
        }
    }

    /// Lowers the window's low-water mark, and the number of units due to be decommitted, to the
    /// number of dirty units. Call after taking dirty units, once the excess is reinserted.
    #[inline]
    pub(super) fn note_least(&mut self, units: &Units) {
        self.least_dirty = self.least_dirty.min(units.dirty());
        self.unneeded = self.unneeded.min(units.dirty());
    }

    /// Takes up to `most` dirty units off the longest run, or one about as long, to be decommitted:
    /// if possible, one that does not start in a huge page. It takes the end of the run, back to a
    /// multiple of [`PIECE`] at most, so that no huge page is decommitted in parts.
    ///
    /// # Safety
    /// The units are those of this arena.
    pub(super) unsafe fn take_dirty(&mut self, units: &Units, most: u32) -> Option<Leaving> {
        let first = self.dirty_bins.head(self.dirty_bins.last()?);
        let runs = core::iter::successors(Some(first), |start| {
            // SAFETY: a free run starts at `start`; the lock is held.
            Some(unsafe { (*units.run(*start)).next }).filter(|next| *next != NONE)
        });
        let start = runs.take(LOOKS as usize).find(|start| !units.is_huge(*start)).unwrap_or(first);
        // SAFETY: a free run starts at `start`; the lock is held.
        let found = unsafe { units.len(start) };
        let past = (start + found - 1).wrapping_add(units.arrays().base_unit()) % PIECE;
        let len = found.min(most).min(past + 1);
        // SAFETY: the run at `start` is in a bin, and the units inserted again are a part of it.
        unsafe {
            self.remove(units, start);
            if found > len {
                self.insert(units, start, found - len, RunState::Dirty);
            }
        }
        self.unneeded = self.unneeded.saturating_sub(len);
        self.note_least(units);
        let start = start + (found - len);
        let end = start + len;
        // SAFETY: the lock is held, and these units were just taken off their bin.
        unsafe { units.set(start, len, RunState::Leaving, RunState::Silent) };
        // SAFETY: these units were just taken off their bin.
        let (from, to) = unsafe { self.take_clean_around(units, start, end) };
        Some(Leaving { from, start, end, to })
    }

    /// Takes the clean units on both sides of `start..end` off their bins, where they complete
    /// blocks that can be left out of core files. Returns the first unit and the end of the whole
    /// range.
    ///
    /// # Safety
    /// The units are those of this arena. The caller owns those from `start` to `end`, at least
    /// one, which are committed and in no bin.
    unsafe fn take_clean_around(&mut self, units: &Units, start: u32, end: u32) -> (u32, u32) {
        let (from, to) = dumped::blocks_around(units.arrays(), start, end);
        // SAFETY: units below `committed` have descriptors, and so has unit 0; the lock is held.
        let (below, above) = unsafe {
            let is_last = end >= units.committed();
            (units.tag(start - 1), (!is_last).then(|| units.tag(end)))
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
            // SAFETY: the lock is held. The run at `at` is a clean one in a bin and ends at
            // `start`; its units up to `from` go back to a bin.
            unsafe {
                self.remove(units, at);
                self.insert_parts(units, at, from, at);
                units.set(from, start - from, RunState::Leaving, RunState::Silent);
            }
            first = from;
        }
        if let (Some(at), true) = (above, has_above)
            && end < to
        {
            // SAFETY: the lock is held. The run at `end` is a clean one in a bin and ends at `at`;
            // its units from `to` on go back to a bin.
            unsafe {
                self.remove(units, end);
                self.insert_parts(units, to, at, to);
                units.set(end, to - end, RunState::Leaving, RunState::Silent);
            }
            last = to;
        }
        (first, last)
    }

    /// Frees the units that [`FreeRuns::take_dirty`] took: those between `start` and `end` as
    /// `state`, the others as clean.
    ///
    /// # Safety
    /// The units are those of this arena. `leaving` was taken from it, and is put back once. If
    /// `state` is `Clean`, the units between `start` and `end` were decommitted.
    pub(super) unsafe fn put_back(&mut self, units: &Units, leaving: Leaving, state: RunState) {
        let Leaving { from, start, end, to } = leaving;
        for (from, to, state) in
            [(from, start, RunState::Clean), (start, end, state), (end, to, RunState::Clean)]
        {
            if from < to {
                // SAFETY: the caller guarantees that `take_dirty` took these units, which have been
                // nobody's since, and that clean ones are clean.
                unsafe { self.give(units, from, to - from, state) };
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
