//! The barn: per node and class, free objects on their way between CPUs, or between sheaves and
//! slabs.
//!
//! Objects that one CPU frees and another allocates pass through here in batches, as a copy of
//! pointers: no object is touched. A barn is small. What does not fit is flushed to its slabs,
//! where it regains its order.
//!
//! The pointers lie in *slots* outside the barn. A class has as many slots as it needs: barns of
//! large objects hold few.

use core::ptr;
use core::slice;

use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::size_class::MAX_SMALL;
use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{AtomicPtr, AtomicUsize, Context, Lock, LockClass, Ordering, const_unless_loom};

/// Most batches that a barn holds. (`MAX_FULL_SHEAVES` of `mm/slub.c`.)
const FULL_BATCHES: usize = 10;

/// Pointers that fit a cache line.
const POINTERS: usize = 8;

/// Returns the most objects that a barn holds of a class whose batches have `len` objects of `size`
/// bytes. Barns of middle sizes hold none: their memory is more useful as pages, which serve all
/// sizes.
pub(crate) const fn room_for(len: usize, size: usize) -> usize {
    if size > MAX_SMALL { 0 } else { FULL_BATCHES * len }
}

/// A bounded stack of objects. It has no room until slots are attached.
pub(crate) struct Barn {
    /// Number of objects held. Written under the lock. Read without it, to skip a barn that has
    /// nothing to take or no room. A stale value is harmless: objects then come from slabs, or go
    /// there. (As in `barn_replace_empty_sheaf`.)
    len: AtomicUsize,
    /// Most objects held. 0 until slots are attached.
    room: AtomicUsize,
    /// The pointers to the objects held.
    slots: AtomicPtr<*mut u8>,
    lock: Lock<()>,
}

impl Barn {
    const_unless_loom! {
        pub(crate) const fn new() -> Barn {
            Barn {
                len: AtomicUsize::new(0),
                room: AtomicUsize::new(0),
                slots: AtomicPtr::new(ptr::null_mut()),
                lock: Lock::new(LockClass::Barn, ()),
            }
        }
    }

    /// Attaches `slots`, in which the barn holds up to `room` objects.
    ///
    /// # Safety
    /// `slots` is writable for `room` pointers, and from now on nobody else uses it. If the barn
    /// holds objects, these are its slots already, and it holds at most `room`.
    pub(crate) unsafe fn attach_slots(&self, slots: *mut *mut u8, room: usize) {
        self.slots.store(slots, Ordering::Relaxed);
        // Release: pairs with the Acquire in `put`.
        self.room.store(room, Ordering::Release);
    }

    pub(crate) fn raw(&self) -> &RawLock {
        self.lock.raw()
    }

    /// Returns the number of objects held. An estimate while other threads take and put.
    pub(crate) fn len(&self) -> usize {
        // Relaxed, here and where it is written: a hint. The objects that it counts are read under
        // the lock.
        self.len.load(Ordering::Relaxed)
    }

    /// Moves the objects that came last, at most `len`, into an empty batch. Moves none if the lock
    /// is busy and the context must not wait.
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
        // SAFETY: the slots hold `held` objects, and the lock protects them.
        batch.fill(unsafe { slice::from_raw_parts(self.first().add(left), held - left) });
        self.len.store(left, Ordering::Relaxed);
        counters::wrote(Line::BarnLen, 1);
    }

    /// Moves a whole batch in, if there is room for all of it. Returns whether it did; if not, the
    /// batch is unchanged.
    ///
    /// # Safety
    /// The objects are of the barn's class, in no sheaf, barn or slab, and nobody uses them.
    pub(crate) unsafe fn put(&self, context: Context, batch: &mut Batch) -> bool {
        let more = batch.objects();
        // Acquire: pairs with the Release in `attach_slots`, so that a barn with room has slots.
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
        // SAFETY: there is room for `more` behind the objects held, in slots that the lock
        // protects.
        unsafe { ptr::copy_nonoverlapping(more.as_ptr(), self.first().add(held), more.len()) };
        self.len.store(held + more.len(), Ordering::Relaxed);
        counters::wrote(Line::BarnLen, 1);
        counters::wrote(Line::BarnObjects, more.len().div_ceil(POINTERS));
        batch.clear();
        true
    }

    /// Returns the first slot. The caller holds the lock.
    fn first(&self) -> *mut *mut u8 {
        self.slots.load(Ordering::Relaxed)
    }
}
