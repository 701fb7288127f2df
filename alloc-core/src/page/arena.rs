//! An arena: its units, its free runs under their lock, and its reserve.
//!
//! The lock of the free runs covers them and the descriptors of their units, except that committing
//! and purging, which take time, run without it. The last part of an arena is its *reserve*, which
//! needs no lock. `runs` holds the operations on runs in use, and committing.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::arrays::Arrays;
use super::dumped::LeftOut;
use super::free_runs::FreeRuns;
use super::reserve::Reserve;
use super::units::Units;
use crate::size_class::UNIT_SHIFT;
use crate::sync::{Context, Lock, LockClass, RawLock};

pub(super) struct Arena {
    /// Bytes of all units, or only of those below the address space that was given up. 0 until the
    /// arena is published with Release, which pairs with the Acquire of every reader.
    pub(super) bytes: AtomicUsize,
    pub(super) units: Units,
    /// The unit behind the last one that may be committed: the first of the reserve, or a lower one
    /// after address space was given up. Written under `committing`.
    pub(super) end: AtomicU32,
    /// The unit behind the last one of the reserve: the end of the arena, or a lower one after
    /// address space was given up.
    pub(super) behind: AtomicU32,
    pub(super) free_runs: Lock<FreeRuns>,
    /// Held while units are committed, without the lock of the free runs, so that other threads
    /// can allocate from these meanwhile.
    pub(super) committing: Lock<()>,
    pub(super) reserve: Reserve,
    pub(super) left_out: LeftOut,
}

impl Arena {
    pub(super) const fn new() -> Arena {
        Arena {
            bytes: AtomicUsize::new(0),
            units: Units::new(),
            end: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            free_runs: Lock::new(LockClass::Arena, FreeRuns::new()),
            committing: Lock::new(LockClass::Committing, ()),
            reserve: Reserve::new(),
            left_out: LeftOut::new(),
        }
    }

    /// Makes this an arena of `arrays`, of whose units the `committed` ones from unit 1 on are
    /// committed, and lets other threads use it.
    ///
    /// # Safety
    /// The caller has claimed the arena, and nobody else uses it yet. The arrays are those of a
    /// reservation that nobody else uses. The committed units, at least one, and their metadata can
    /// be read and written.
    pub(super) unsafe fn publish(&self, arrays: Arrays, committed: u32) {
        let bytes = (arrays.units as usize) << UNIT_SHIFT;
        self.end.store(arrays.reserve, Ordering::Relaxed);
        self.behind.store(arrays.units, Ordering::Relaxed);
        // SAFETY: the caller guarantees that nobody else uses the arena.
        unsafe { self.units.set_arrays(arrays) };
        if let Some(mut free) = self.free_runs.acquire(Context::TRYING) {
            // SAFETY: the caller guarantees that these units are committed. Unit 0 is in no run.
            unsafe { free.add(&self.units, 1, committed) };
        }
        // Release: pairs with the Acquire in `arenas`.
        self.bytes.store(bytes, Ordering::Release);
    }

    /// Returns whether more than `units` units are left to commit, by the length of the arena. A
    /// guess while other threads commit.
    #[inline]
    pub(super) fn has_room(&self, units: u32) -> bool {
        self.end() - self.units.committed() > units
    }

    /// Returns whether unit `index` lies in the reserve.
    #[inline]
    pub(super) fn is_of_reserve(&self, index: usize) -> bool {
        let behind = self.behind.load(Ordering::Relaxed) as usize;
        (self.units.arrays().reserve as usize..behind).contains(&index)
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
        is_free(self.free_runs.raw()) && is_free(self.committing.raw())
    }
}
