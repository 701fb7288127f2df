//! The barn: per node and class, batches of objects on their way between CPUs, and between sheaves and slabs.
//!
//! What one CPU frees and another allocates passes here as a copy of pointers; no object is touched. It is small:
//! what does not fit goes home to its slabs, where it gets its order back.
//!
//! This file may touch `batch`.

use core::mem::MaybeUninit;

use crate::batch::{Batch, MAX_BATCH};

/// Batches a barn holds at most. (`MAX_FULL_SHEAVES` of `mm/slub.c`.)
const FULL_BATCHES: usize = if cfg!(loom) { 2 } else { 10 };

/// A bounded stack of objects. To be kept under a lock.
pub(crate) struct Barn {
    len: usize,
    objects: [MaybeUninit<*mut u8>; FULL_BATCHES * MAX_BATCH],
}

// SAFETY: the pointers are objects that nobody uses; owning them is not tied to a thread.
unsafe impl Send for Barn {}

impl Barn {
    pub(crate) const fn new() -> Barn {
        Barn { len: 0, objects: [MaybeUninit::uninit(); FULL_BATCHES * MAX_BATCH] }
    }

    /// Moves the last objects that came, at most `len`, into an empty batch.
    pub(crate) fn take(&mut self, batch: &mut Batch, len: usize) {
        let len = len.min(self.len);
        self.len -= len;
        if let Some(objects) = self.objects.get(self.len..self.len + len) {
            batch.fill(objects);
        }
    }

    /// Moves a whole batch in, if `limit` batches of `len` objects leave room for it.
    pub(crate) fn put(&mut self, batch: &mut Batch, len: usize) -> bool {
        let objects = batch.objects();
        if self.len + objects.len() > FULL_BATCHES * len {
            return false;
        }
        let Some(room) = self.objects.get_mut(self.len..self.len + objects.len()) else {
            return false;
        };
        for (to, from) in room.iter_mut().zip(objects) {
            to.write(*from);
        }
        self.len += objects.len();
        batch.clear();
        true
    }
}
