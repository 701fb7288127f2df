//! The barn: per node and class, batches of objects on their way between CPUs, and between sheaves and slabs.
//!
//! What one CPU frees and another allocates passes here as a copy of pointers; no object is touched. It is small:
//! what does not fit goes home to its slabs, where it gets its order back.
//!
//! This file may touch `sync`, `batch` and `fault`.

use core::mem::MaybeUninit;
use core::ptr;

use crate::batch::{Batch, MAX_BATCH};
use crate::fault::{self, Place};
#[cfg(not(loom))]
use crate::sync::RawLock;
use crate::sync::{AtomicUsize, Context, Lock, LockClass, Ordering};

/// Batches a barn holds at most. (`MAX_FULL_SHEAVES` of `mm/slub.c`.)
const FULL_BATCHES: usize = if cfg!(loom) { 2 } else { 10 };

/// A bounded stack of objects.
pub(crate) struct Barn {
    /// Objects held. Written under the lock; read without it, to pass by a barn that has nothing to give or no room. A
    /// stale answer is harmless: objects then come from slabs, or go there. (As in `barn_replace_empty_sheaf`.)
    len: AtomicUsize,
    objects: Lock<Objects>,
}

struct Objects([MaybeUninit<*mut u8>; FULL_BATCHES * MAX_BATCH]);

// SAFETY: the pointers are objects that nobody uses; owning them is not tied to a thread.
unsafe impl Send for Objects {}

impl Objects {
    const EMPTY: Objects = Objects([MaybeUninit::uninit(); FULL_BATCHES * MAX_BATCH]);
}

impl Barn {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Barn {
        Barn { len: AtomicUsize::new(0), objects: Lock::new(LockClass::Barn, Objects::EMPTY) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Barn {
        Barn { len: AtomicUsize::new(0), objects: Lock::new(LockClass::Barn, Objects::EMPTY) }
    }

    /// Makes zeroed memory an empty barn, most of which stays untouched.
    ///
    /// # Safety
    /// The memory is zeroed, as large and aligned as a barn, and nobody uses it.
    #[cfg(not(loom))]
    pub(crate) unsafe fn init(this: *mut Barn) {
        // SAFETY: the caller's promise; the zeroed rest is as it should be.
        unsafe { Lock::init(&raw mut (*this).objects, LockClass::Barn) };
    }

    #[cfg(not(loom))]
    pub(crate) fn raw(&self) -> &RawLock {
        self.objects.raw()
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
        let Some(objects) = self.objects.acquire(context) else { return };
        fault::point(Place::BarnTaking);
        let held = self.len();
        let left = held.saturating_sub(len);
        if let Some(objects) = objects.0.get(left..held) {
            // SAFETY: the first `held` objects are written.
            batch.fill(unsafe { &*(ptr::from_ref(objects) as *const [*mut u8]) });
        }
        self.len.store(left, Ordering::Relaxed);
    }

    /// Moves a whole batch in, if there is room for it among [`FULL_BATCHES`] of `len` objects each.
    pub(crate) fn put(&self, context: Context, batch: &mut Batch, len: usize) -> bool {
        let more = batch.objects();
        let full = |held| held + more.len() > FULL_BATCHES * len;
        if full(self.len()) {
            return false;
        }
        let Some(mut objects) = self.objects.acquire(context) else { return false };
        fault::point(Place::BarnPutting);
        let held = self.len();
        if full(held) {
            return false;
        }
        for (to, from) in objects.0.iter_mut().skip(held).zip(more) {
            to.write(*from);
        }
        self.len.store(held + more.len(), Ordering::Relaxed);
        batch.clear();
        true
    }
}
