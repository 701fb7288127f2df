//! The barn: per node and class, batches of objects on their way between CPUs, and between sheaves and slabs.
//!
//! What one CPU frees and another allocates passes here as a copy of pointers; no object is touched. It is small:
//! what does not fit goes home to its slabs, where it gets its order back.
//!
//! Its objects lie on a *slots* apart from it, which is as long as its class needs: barns of large objects hold few.
//!
//! This file may touch `sync`, `batch`, `size_class` and `fault`.

use core::ptr;
use core::slice;

use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::size_class::MAX_SMALL;
#[cfg(not(loom))]
use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{AtomicPtr, AtomicUsize, Context, Lock, LockClass, Ordering};

/// Batches a barn holds at most. (`MAX_FULL_SHEAVES` of `mm/slub.c`.)
const FULL_BATCHES: usize = 10;

/// Pointers that fit a cache line.
const POINTERS: usize = 8;

/// Returns the most objects that a barn holds of a class whose batches are of `len` objects of `size` bytes. Those of middle sizes
/// hold none: the memory is better kept as pages, which serve all sizes.
pub(crate) const fn room_for(len: usize, size: usize) -> usize {
    if size > MAX_SMALL { 0 } else { FULL_BATCHES * len }
}

/// A bounded stack of objects. It holds none before it is furnished.
pub(crate) struct Barn {
    /// Objects held. Written under the lock; read without it, to pass by a barn that has nothing to give or no room. A
    /// stale answer is harmless: objects then come from slabs, or go there. (As in `barn_replace_empty_sheaf`.)
    len: AtomicUsize,
    /// Most objects held; 0 as long as there is no slots.
    room: AtomicUsize,
    /// Where the objects are.
    slots: AtomicPtr<*mut u8>,
    lock: Lock<()>,
}

impl Barn {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Barn {
        Barn {
            len: AtomicUsize::new(0),
            room: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
            lock: Lock::new(LockClass::Barn, ()),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Barn {
        Barn {
            len: AtomicUsize::new(0),
            room: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
            lock: Lock::new(LockClass::Barn, ()),
        }
    }

    /// Has the barn hold up to `room` objects, on `slots`.
    ///
    /// # Safety
    /// From now on nobody else uses the slots, which is writable for `room` pointers. A barn that has objects has this slots, and
    /// no more than `room`.
    pub(crate) unsafe fn attach_slots(&self, slots: *mut *mut u8, room: usize) {
        self.slots.store(slots, Ordering::Relaxed);
        // Release: pairs with the Acquire in `put`.
        self.room.store(room, Ordering::Release);
    }

    #[cfg(not(loom))]
    pub(crate) fn raw(&self) -> &RawLock {
        self.lock.raw()
    }

    /// Objects held; a guess while others take and put.
    pub(crate) fn len(&self) -> usize {
        // Relaxed, here and where it is written: a hint; what it counts is read under the lock.
        self.len.load(Ordering::Relaxed)
    }

    /// Moves the last objects that came, at most `len`, into an empty batch.
    pub(crate) fn take(&self, context: Context, batch: &mut Batch, len: usize) {
        if self.len() == 0 {
            return;
        }
        let Some(_lock) = self.lock.acquire(context) else { return };
        fault::point(Place::BarnTaking);
        let held = self.len();
        if held == 0 {
            return;
        }
        let left = held.saturating_sub(len);
        // SAFETY: the slots holds `held` objects, and is ours under the lock.
        batch.fill(unsafe { slice::from_raw_parts(self.first().add(left), held - left) });
        self.len.store(left, Ordering::Relaxed);
        counters::wrote(Line::BarnLen, 1);
    }

    /// Moves a whole batch in, if there is room for it.
    pub(crate) fn put(&self, context: Context, batch: &mut Batch) -> bool {
        let more = batch.objects();
        // Acquire: pairs with the Release in `attach_slots`: where there is room, there is a slots.
        let is_full = |held| held + more.len() > self.room.load(Ordering::Acquire);
        if is_full(self.len()) {
            return false;
        }
        let Some(_lock) = self.lock.acquire(context) else { return false };
        fault::point(Place::BarnPutting);
        let held = self.len();
        if is_full(held) {
            return false;
        }
        // SAFETY: there is room for so many behind those held, on a slots that is ours under the lock.
        unsafe { ptr::copy_nonoverlapping(more.as_ptr(), self.first().add(held), more.len()) };
        self.len.store(held + more.len(), Ordering::Relaxed);
        counters::wrote(Line::BarnLen, 1);
        counters::wrote(Line::BarnObjects, more.len().div_ceil(POINTERS));
        batch.clear();
        true
    }

    /// The first place of the slots; for those who hold the lock.
    fn first(&self) -> *mut *mut u8 {
        self.slots.load(Ordering::Relaxed)
    }
}
