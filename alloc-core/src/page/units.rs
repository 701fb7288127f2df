//! The descriptors of an arena's units, and the counts that go with them.
//!
//! Runs are described by *boundary tags*: the descriptors of a run's first and last unit both hold
//! its length and state. Free runs (`free_runs`) are made of these alone.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::arrays::Arrays;
use super::chunks::{CHUNK, Chunks};
use super::descriptor::{NONE, Run, RunState};
use super::reserve::BLOCK;
use crate::sync::counters::{self, Line};

/// The units of an arena: where they and their descriptors are, how many are committed, and how
/// many are dirty. "The lock" is that of the arena's free runs.
pub(super) struct Units {
    arrays: UnsafeCell<Arrays>,
    /// Number of units, from the bottom, that are readable and writable. Written under the lock and
    /// the arena's `committing`.
    pub(super) committed: AtomicU32,
    /// Number of units in dirty free runs. Written under the lock.
    pub(super) dirty: AtomicU32,
    pub(super) chunks: Chunks,
}

// SAFETY: `set_arrays` alone writes `arrays`, while no other thread uses the units. All other
// fields are atomic.
unsafe impl Sync for Units {}

impl Units {
    pub(super) const fn new() -> Units {
        Units {
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
            dirty: AtomicU32::new(0),
            chunks: Chunks::new(),
        }
    }

    /// Sets the arrays of an arena that is made.
    ///
    /// # Safety
    /// Nobody else uses the units, and no reference to the arrays exists.
    pub(super) unsafe fn set_arrays(&self, arrays: Arrays) {
        // SAFETY: the caller guarantees that nobody else uses the arrays.
        unsafe { *self.arrays.get() = arrays };
    }

    #[inline(always)]
    pub(super) fn arrays(&self) -> &Arrays {
        // SAFETY: `set_arrays` alone writes the arrays, while no reference to them exists.
        unsafe { &*self.arrays.get() }
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
    pub(super) unsafe fn len(&self, start: u32) -> u32 {
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

    /// Returns the number of the chunk that holds unit `index`.
    #[inline]
    fn chunk(&self, index: u32) -> usize {
        ((index + self.arrays().base_unit() % CHUNK) / CHUNK) as usize
    }

    /// Returns the first unit of a chunk, and the unit behind its last one. The part of a chunk
    /// that lies below unit 1 does not count.
    pub(super) fn units_of(&self, chunk: usize) -> (u32, u32) {
        let (start, past) = (chunk as u32 * CHUNK, self.arrays().base_unit() % CHUNK);
        (start.saturating_sub(past).max(1), start + CHUNK - past)
    }

    /// Returns whether unit `index` lies in a huge page that a chunk became.
    #[inline]
    pub(super) fn is_huge(&self, index: u32) -> bool {
        self.chunks.is_huge(self.chunk(index))
    }

    /// Records for their chunks that memory of the units from `start` to `end`, at least one,
    /// returned to the system.
    pub(super) fn note_decommit(&self, start: u32, end: u32) {
        let chunks = self.chunk(start)..=self.chunk(end - 1);
        for number in chunks.take_while(|number| Chunks::numbers().contains(number)) {
            let (first, behind) = self.units_of(number);
            self.chunks.decommitted(number, start <= first && behind <= end);
        }
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
    pub(super) unsafe fn set(&self, start: u32, len: u32, first: RunState, last: RunState) {
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
