//! The runs of one arena: allocating, freeing, resizing and clearing them.
//!
//! A run is cut from the arena's free runs, behind which more units are committed if need be, or
//! from its reserve. The reserve needs no lock. It serves contexts that must not wait for the lock,
//! and any context once nothing else is left.
//!
//! Committing takes time, so it runs under `committing` and without the arena's lock. Whole pages
//! of metadata are decommitted with the runs that they describe.
//!
//! The owner of a run alone changes its marks: [`SPARSE`] if it gets no huge pages, [`MOVED`] if
//! its pages were moved into it. When the run is freed, or a part of it, its memory is made like
//! that of any other run.

use core::mem;
use core::num::NonZero;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::advice::{HugePages, prefer_node};
use super::arena::Arena;
use super::arrays::META_SIZE;
use super::decommit::decommit;
use super::descriptor::{MOVED, NONE, RunState, SPARSE};
use super::limit;
use super::reserve::BLOCK;
use crate::fault::{self, Place};
use crate::os::{self, Renewed};
use crate::size_class::UNIT_SHIFT;
use crate::sync::Context;
use crate::watch;

/// A run that was allocated.
pub(crate) struct Allocation {
    pub(crate) address: NonNull<u8>,
    /// Whether the run reads as zero.
    pub(crate) zeroed: bool,
    /// Number of units at the start of the run that may hold anything. The others read as zero and
    /// take no memory yet.
    pub(crate) dirty: usize,
}

/// Number of runs in use whose pages were moved into them.
pub(super) static MOVES: AtomicU32 = AtomicU32::new(0);

/// Returns the number of runs in use whose pages were moved into them.
pub(crate) fn moves() -> u32 {
    MOVES.load(Ordering::Relaxed)
}

impl Arena {
    /// Makes the [`Allocation`] of a run that leaves the arena. Its first `dirty` units may hold
    /// anything.
    fn handed_out(&self, start: u32, len: u32, dirty: u32) -> Allocation {
        let (address, zeroed) = (self.units.arrays().address(start), dirty == 0);
        watch::make_accessible(address.as_ptr(), (len as usize) << UNIT_SHIFT, zeroed);
        Allocation { address, zeroed, dirty: dirty as usize }
    }

    /// Allocates a run of `len` units whose address is a multiple of `align` units, a power of two,
    /// and commits units for it if need be.
    pub(super) fn alloc(
        &self,
        context: Context,
        len: NonZero<u32>,
        align: NonZero<u32>,
    ) -> Option<Allocation> {
        let (len, align) = (len.get(), align.get());
        let mut may_commit = true;
        let (mut free, found) = loop {
            let mut free = self.free_runs.acquire(context)?;
            fault::point(Place::ArenaAllocating);
            // SAFETY: both are of this arena.
            match unsafe { free.find(&self.units, len, align, may_commit) } {
                Ok(found) => break (free, found),
                Err(_) if !may_commit => return None,
                Err(more) => {
                    let committed = self.units.committed();
                    drop(free);
                    may_commit = self.commit_more(context, committed, more);
                }
            }
        };
        let start = self.units.aligned(found.start, align);
        let end = start + len;
        let clean = found.clean.clamp(start, end);
        if !limit::charge(end - clean) {
            return None;
        }
        // SAFETY: `find` left these free units in their bins, and the lock is held since. Those
        // around the run go back to bins, and those from `found.clean` on are clean.
        unsafe {
            free.remove_all(&self.units, found.start, found.end);
            free.insert_parts(&self.units, found.start, start, found.clean);
            free.insert_parts(&self.units, end, found.end, found.clean);
        }
        free.note_least(&self.units);
        // SAFETY: the lock is held, and these units were just taken off their bins.
        unsafe { self.units.set_used(start, len) };
        // SAFETY: `start` is the first unit of the run that was just taken.
        unsafe { (*self.units.run(start)).marks = 0 };
        drop(free);
        // SAFETY: the units are of the run that was just taken.
        unsafe { self.left_out.take_in(self.units.arrays(), clean, end) };
        Some(self.handed_out(start, len, clean - start))
    }

    /// Frees a run as `state`. Returns false, and the run is still the caller's, if the lock would
    /// have to be waited for.
    ///
    /// # Safety
    /// `start` is the first unit of a run from [`Arena::alloc`] or [`Arena::alloc_reserved`], and
    /// nobody uses the run any longer. If `state` is `Clean`, the run was not touched since its
    /// pages were last decommitted or moved away.
    pub(super) unsafe fn free(&self, context: Context, start: u32, state: RunState) -> bool {
        // SAFETY: the caller guarantees that a run in use starts at `start`, which is committed
        // then; nobody else changes its descriptor.
        let Some(len) = (unsafe { self.units.used_len(start) }) else {
            self.misused(context, start)
        };
        watch::make_noaccess(
            self.units.arrays().address(start).as_ptr(),
            (len as usize) << UNIT_SHIFT,
        );
        // SAFETY: a run in use starts at `start`, and the caller owns it.
        let marks = unsafe { mem::take(&mut (*self.units.run(start)).marks) };
        // SAFETY: the caller guarantees that it owns the run and that its contents are dead.
        let state = unsafe { self.unmark(marks, start, len, state) };
        if marks & MOVED != 0 {
            MOVES.fetch_sub(1, Ordering::Relaxed);
        }
        let Some(state) = state else {
            // The run stays in use, so that nobody is given its addresses.
            limit::uncharge(len);
            return true;
        };
        if let Some(block) = self.units.reserved_block(start) {
            // SAFETY: the caller guarantees that it owns the run and that its contents are dead.
            unsafe {
                (*self.units.run(start)).state = RunState::Silent;
                self.decommit(start, len);
            }
            // SAFETY: the blocks are those of the run, which the caller owns.
            unsafe { self.reserve.give(block, len.div_ceil(BLOCK) as usize) };
            limit::uncharge(len);
            return true;
        }
        let Some(mut free) = self.free_runs.acquire(context) else { return false };
        fault::point(Place::ArenaFreeing);
        // A double free may race on two threads, so look again under the lock.
        // SAFETY: the unit is committed: it held the start of a run in use above.
        let Some(len) = (unsafe { self.units.used_len(start) }) else {
            drop(free);
            self.misused(context, start);
        };
        // SAFETY: a run in use starts at `start`, which nobody uses any longer, as the caller
        // guarantees. It is clean if the caller or `unmark` says so.
        unsafe { free.give(&self.units, start, len, state) };
        if state == RunState::Clean {
            limit::uncharge(len);
        }
        true
    }

    /// Decommits a run, which reads as zero from then on, and the whole pages of metadata that
    /// describe it. Returns false if the kernel refused.
    ///
    /// # Safety
    /// The caller alone owns the run, and its contents and metadata are dead.
    pub(super) unsafe fn decommit(&self, start: u32, len: u32) -> bool {
        // SAFETY: the caller guarantees that it alone owns the run and that its metadata is dead.
        unsafe { self.decommit_metadata(start, len) };
        // SAFETY: the caller guarantees that it alone owns the run and that its contents are dead.
        unsafe { self.decommit_units(start, len) }
    }

    /// Decommits units, which read as zero from then on. Returns false if the kernel refused.
    ///
    /// # Safety
    /// The caller alone owns the units, and their contents are dead.
    unsafe fn decommit_units(&self, start: u32, len: u32) -> bool {
        let (address, bytes) = (self.units.arrays().address(start), (len as usize) << UNIT_SHIFT);
        // SAFETY: the caller guarantees that it alone owns the units, with dead contents.
        let done = unsafe { decommit(address, bytes) };
        if done {
            self.units.note_decommit(start, start + len);
        }
        done
    }

    /// Makes a run read as zero by decommitting its memory, unless it is `zeroed` already. The run
    /// gets no huge pages unless `HAYLOFT_THP=always`. Returns false if the system refused.
    ///
    /// # Safety
    /// `start` is the first unit of a run from [`Arena::alloc`] or [`Arena::alloc_reserved`], and
    /// the contents of the run are dead.
    pub(super) unsafe fn clear(&self, start: u32, zeroed: bool) -> bool {
        // SAFETY: the caller guarantees that a run from `alloc` with dead contents starts at
        // `start`.
        unsafe {
            let (address, run) = (self.units.arrays().address(start), self.units.run(start));
            let len = (*run).len;
            if HugePages::wanted() != HugePages::Always {
                (*run).marks |= SPARSE;
                os::prefer_huge_pages(address, (len as usize) << UNIT_SHIFT, false);
            }
            zeroed || self.decommit_units(start, len)
        }
    }

    /// Makes the memory of a run with `marks`, or of a part of it, like that of any other run: maps
    /// moved pages anew, decommits sparse ones, and sets the advice on huge pages. Returns `Clean`
    /// if the memory reads as zero afterwards, and otherwise `state`. Returns `None` if the memory
    /// was lost: nobody may touch it any longer.
    ///
    /// # Safety
    /// The caller owns the run, and the contents of the part are dead.
    unsafe fn unmark(&self, marks: u32, start: u32, len: u32, state: RunState) -> Option<RunState> {
        let (address, bytes) = (self.units.arrays().address(start), (len as usize) << UNIT_SHIFT);
        let mut state = state;
        if marks & MOVED != 0 {
            // SAFETY: the caller guarantees that it owns these units and that their contents are
            // dead.
            match unsafe { os::renew(address, bytes) } {
                Renewed::Anew => {
                    // SAFETY: these units lie in this arena, which is one reservation.
                    unsafe { prefer_node(address, bytes, self.units.arrays().node) };
                    self.units.note_decommit(start, start + len);
                    state = RunState::Clean;
                }
                // These units stay a mapping of their own.
                Renewed::Kept => state = RunState::Dirty,
                Renewed::Lost => return None,
            }
        }
        // SAFETY: the caller guarantees that it owns these units and that their contents are dead.
        if marks & SPARSE != 0 && unsafe { self.decommit_units(start, len) } {
            // Pages written here and there would be in the way of huge pages.
            state = RunState::Clean;
        }
        if marks != 0 {
            // SAFETY: these units lie in this arena.
            unsafe { os::prefer_huge_pages(address, bytes, HugePages::are_for(len, start)) };
        }
        Some(state)
    }

    /// Decommits the whole pages of metadata that describe a run.
    ///
    /// # Safety
    /// The caller alone owns the run, and its metadata is dead.
    unsafe fn decommit_metadata(&self, start: u32, len: u32) {
        let meta = self.units.arrays().meta;
        let page = os::page_size();
        let first = (meta.addr() + start as usize * META_SIZE).next_multiple_of(page);
        let end = (meta.addr() + (start + len) as usize * META_SIZE) & !(page - 1);
        // SAFETY: the caller guarantees that the metadata of the run is dead. Pages that also
        // describe other units lie outside of `first..end`.
        unsafe {
            if first < end {
                let first = NonNull::new_unchecked(meta.add(first - meta.addr()));
                decommit(first, end - first.addr().get());
            }
        }
    }

    /// As [`Arena::alloc`], from the reserve and without a lock. The run may hold anything.
    pub(super) fn alloc_reserved(
        &self,
        len: NonZero<u32>,
        align: NonZero<u32>,
    ) -> Option<Allocation> {
        let (len, align) = (len.get(), align.get());
        let arrays = self.units.arrays();
        let (count, align) = (len.div_ceil(BLOCK) as usize, align.div_ceil(BLOCK) as usize);
        let room = (arrays.units - arrays.reserve) / BLOCK;
        let past = (arrays.reserve.wrapping_add(self.units.arrays().base_unit()) / BLOCK) as usize;
        if !limit::charge(len) {
            return None;
        }
        let taken = self.reserve.take(count, align, past, room as usize);
        let Some(block) = taken else {
            limit::uncharge(len);
            return None;
        };
        let start = arrays.reserve + block as u32 * BLOCK;
        // Commit whole blocks, so that the metadata of all units of a block is committed, or of
        // none.
        // SAFETY: these blocks were just taken from the reserve of this arena.
        if !unsafe { arrays.commit(start, start + count as u32 * BLOCK, false) } {
            // SAFETY: the blocks were taken above, and nobody uses them.
            unsafe { self.reserve.give(block, count) };
            limit::uncharge(len);
            return None;
        }
        // SAFETY: the blocks were taken and committed above.
        unsafe { self.reserve.set_committed(block, count) };
        // SAFETY: these units are committed, and their blocks were just taken from the reserve.
        unsafe { self.units.set_used(start, len) };
        // SAFETY: `start` is the first unit of the run that was just taken.
        unsafe { (*self.units.run(start)).marks = 0 };
        Some(self.handed_out(start, len, len))
    }

    /// Extends a run to at least `len` units without moving it. Returns false if that is
    /// impossible.
    ///
    /// # Safety
    /// `start` is the first unit of a run from [`Arena::alloc`] or [`Arena::alloc_reserved`] that
    /// the caller owns.
    pub(super) unsafe fn grow(&self, context: Context, start: u32, len: u32) -> bool {
        // SAFETY: the caller guarantees that a run in use starts at `start`; nobody else changes
        // its descriptor.
        let old = unsafe { (*self.units.run(start)).len };
        if len <= old {
            // All of the run is used from now on.
            // SAFETY: a run in use starts at `start`, and the caller owns it.
            unsafe { (*self.units.run(start)).next = NONE };
            return true;
        }
        if self.units.reserved_block(start).is_some() {
            return false;
        }
        let (next, end) = (start + old, start + len);
        // A clean and a dirty run may follow each other, so several free runs may be needed.
        let (mut free, free_end, last, fresh) = loop {
            let Some(free) = self.free_runs.acquire(context) else { return false };
            fault::point(Place::ArenaGrowing);
            let (mut at, mut last, mut fresh) = (next, RunState::Silent, 0);
            while at < end && at < self.units.committed() {
                // SAFETY: `at` is the first unit of a run, below `committed`; the lock is held.
                let (state, len) = unsafe { self.units.tag(at) };
                match state {
                    RunState::Silent | RunState::Used | RunState::Leaving => return false,
                    RunState::Dirty => {}
                    RunState::Clean => fresh += len.min(end - at),
                }
                at += len;
                last = state;
            }
            if at >= end {
                break (free, at, last, fresh);
            }
            drop(free);
            if !self.commit_more(context, at, end - at) {
                return false;
            }
        };
        if !limit::charge(fresh) {
            return false;
        }
        // SAFETY: the loop above found free runs from `next` to `free_end`, and the lock is held
        // since. The last one is of state `last`, and its units behind `end` go back to a bin.
        unsafe {
            free.remove_all(&self.units, next, free_end);
            if free_end > end {
                free.insert(&self.units, end, free_end - end, last);
            }
        }
        free.note_least(&self.units);
        // SAFETY: the lock is held; the caller owns the run, and the units behind it were just
        // taken off their bins.
        unsafe { self.units.set_used(start, len) };
        drop(free);
        // SAFETY: the units now belong to the caller's run.
        unsafe { self.left_out.take_in(self.units.arrays(), next, end) };
        true
    }

    /// Commits at least `room` units behind the first `committed` ones. Does nothing if another
    /// thread has committed some already. Returns false if committing is impossible.
    fn commit_more(&self, context: Context, committed: u32, room: u32) -> bool {
        let Some(_committing) = self.committing.acquire(context) else { return false };
        if self.units.committed() != committed {
            return true;
        }
        fault::point(Place::ArenaCommitting);
        // SAFETY: `committing` is held, so nobody else commits or gives up the units behind the
        // committed ones.
        let more = unsafe { self.units.arrays().commit_more(committed, self.end(), room) };
        let Some(more) = more else { return false };
        let Some(mut free) = self.free_runs.acquire(context) else { return false };
        // SAFETY: these units were committed above, with `committing` held.
        unsafe { free.add(&self.units, committed, more) };
        true
    }

    /// Shortens a run to `len` units, at least one, without moving it, if that is possible.
    ///
    /// # Safety
    /// `start` is the first unit of a run from [`Arena::alloc`] or [`Arena::alloc_reserved`] that
    /// the caller owns. Nobody uses the units cut off any longer.
    pub(super) unsafe fn shrink(&self, context: Context, start: u32, len: u32) {
        // SAFETY: the caller guarantees that a run in use starts at `start`; nobody else changes
        // its descriptor.
        let (old, marks) =
            unsafe { ((*self.units.run(start)).len, (*self.units.run(start)).marks) };
        if old <= len || self.units.reserved_block(start).is_some() {
            return;
        }
        // `unmark` may lose the units cut off, and the lock must be held to say so. The run of a
        // context that must not wait for the lock stays as long as it was.
        if marks != 0 && !context.may_wait() {
            return;
        }
        // SAFETY: the caller guarantees that it owns the run and that nobody uses the units cut
        // off.
        let state = unsafe { self.unmark(marks, start + len, old - len, RunState::Dirty) };
        let Some(mut free) = self.free_runs.acquire(context) else { return };
        fault::point(Place::ArenaShrinking);
        // Write the tag of the new end first: freeing the rest looks at its neighbours.
        // SAFETY: the lock is held, and the caller owns the run.
        unsafe { self.units.set_used(start, len) };
        match state {
            // SAFETY: the caller guarantees that nobody uses the units cut off. They are clean if
            // `unmark` says so.
            Some(state) => unsafe { free.give(&self.units, start + len, old - len, state) },
            // The rest is a run that stays in use, so that nobody is given its addresses.
            // SAFETY: the lock is held, and these units were part of the caller's run.
            None => unsafe {
                self.units.set_used(start + len, old - len);
                (*self.units.run(start + len)).marks = 0;
            },
        }
        if state != Some(RunState::Dirty) {
            limit::uncharge(old - len);
        }
    }
}
