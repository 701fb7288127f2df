//! Empty slabs between their lists and `page`.
//!
//! No run is freed under the lock of the lists. Empty slabs that leave the lists are chained
//! through their descriptors, and the holder of the lock frees the runs after releasing it.

use core::ptr;

use super::descriptor::Slab;

/// Empty slabs that left their lists. Their runs must be freed, after the lock is released.
pub(crate) struct Emptied(*mut Slab);

impl Emptied {
    pub(crate) const fn new() -> Emptied {
        Emptied(ptr::null_mut())
    }

    /// Adds a slab.
    ///
    /// # Safety
    /// The caller alone has the slab.
    #[inline]
    pub(super) unsafe fn push(&mut self, slab: *mut Slab) {
        // SAFETY: the caller guarantees that it alone has the slab.
        unsafe {
            Slab::abandon(slab);
            (*slab).next = self.0;
        }
        self.0 = slab;
    }

    /// Removes a slab and returns the base address of its run.
    pub(crate) fn pop(&mut self) -> Option<*mut u8> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the slabs in here are on no list, and have no objects out.
        unsafe {
            let slab = self.0;
            self.0 = (*slab).next;
            Some((*slab).identity.base)
        }
    }
}
