//! A batch: some object pointers on the stack of a thread that moves them between a sheaf, a barn
//! and slabs.
//!
//! Slabs cut objects in ascending order of address, and fill a batch from its end towards its
//! start. A batch is emptied from its end. So the object that was cut first is used first, and
//! objects allocated in succession are neighbours in memory.

use core::mem::MaybeUninit;
use core::slice;

/// Most objects that a batch holds.
pub(crate) const MAX_BATCH: usize = if cfg!(loom) { 4 } else { 128 };

/// The object pointers `objects[start..end]`.
pub(crate) struct Batch {
    start: usize,
    end: usize,
    objects: [MaybeUninit<*mut u8>; MAX_BATCH],
}

impl Batch {
    /// Returns an empty batch.
    #[inline]
    pub(crate) fn new() -> Batch {
        Batch {
            start: MAX_BATCH,
            end: MAX_BATCH,
            objects: [const { MaybeUninit::uninit() }; MAX_BATCH],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn objects(&self) -> &[*mut u8] {
        // SAFETY: `start <= end <= MAX_BATCH`, and the slots between were written.
        unsafe { slice::from_raw_parts(self.objects.as_ptr().add(self.start).cast(), self.len()) }
    }

    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (MAX_BATCH, MAX_BATCH);
    }

    /// Adds an object in front. There must be a free slot in front.
    #[inline]
    pub(crate) fn push_first(&mut self, object: *mut u8) {
        debug_assert!(self.start > 0);
        if let Some(slot) = self.objects.get_mut(self.start.wrapping_sub(1)) {
            slot.write(object);
            self.start -= 1;
        }
    }

    /// Adds objects in front, until the batch holds `len`. `fill` receives the slots for them,
    /// writes them from the last one down, and returns the number of slots that it left unwritten.
    ///
    /// # Safety
    /// `fill` writes all its slots except the first ones, whose number it returns.
    #[inline]
    pub(crate) unsafe fn fill_in_front(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [MaybeUninit<*mut u8>]) -> usize,
    ) {
        let more = len.saturating_sub(self.len()).min(self.start);
        let first = self.start - more;
        if let Some(room) = self.objects.get_mut(first..self.start) {
            self.start = first + fill(room).min(more);
        }
    }

    /// Removes the last object and returns it.
    #[inline]
    pub(crate) fn pop_last(&mut self) -> Option<*mut u8> {
        let (last, rest) = self.objects().split_last()?;
        let last = *last;
        self.end = self.start + rest.len();
        Some(last)
    }

    /// Removes the first `count` objects, which were moved elsewhere.
    #[inline]
    pub(crate) fn skip_first(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.clear();
        }
    }

    /// Replaces the contents with a copy of `objects`, at most the first [`MAX_BATCH`] of them.
    #[inline]
    pub(crate) fn fill(&mut self, objects: &[*mut u8]) {
        let len = objects.len().min(MAX_BATCH);
        for (to, from) in self.objects.iter_mut().zip(objects) {
            to.write(*from);
        }
        self.hold_first(len);
    }

    /// Replaces the contents with objects that `fill` writes. `fill` receives the address of slots
    /// for `len` objects, and returns the number of objects that it wrote.
    ///
    /// # Safety
    /// `fill` writes as many objects as it returns, from its first slot on.
    #[inline]
    pub(crate) unsafe fn fill_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(*mut *mut u8, usize) -> usize,
    ) {
        let written = fill(self.objects.as_mut_ptr().cast(), len.min(MAX_BATCH));
        self.hold_first(written);
    }

    /// Keeps only the objects for which `keep` returns true, in their order.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(*mut u8) -> bool) {
        let mut kept = self.start;
        for place in self.start..self.end {
            // SAFETY: places from `start` to `end` are initialised.
            let object = unsafe { self.objects.get_unchecked(place).assume_init() };
            if keep(object) {
                // SAFETY: `kept` is at most `place`, a place of the batch.
                unsafe { self.objects.get_unchecked_mut(kept).write(object) };
                kept += 1;
            }
        }
        self.end = kept;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Sets the contents to the first `len` slots. An empty batch is left with room in front.
    fn hold_first(&mut self, len: usize) {
        (self.start, self.end) = if len > 0 { (0, len) } else { (MAX_BATCH, MAX_BATCH) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::ptr;
    use std::vec::Vec;

    use super::*;

    /// Returns pointers that are only compared.
    fn objects(numbers: impl IntoIterator<Item = usize>) -> Vec<*mut u8> {
        numbers.into_iter().map(ptr::without_provenance_mut).collect()
    }

    #[test]
    fn objects_leave_from_the_end() {
        let mut batch = Batch::new();
        assert!(batch.len() == 0 && batch.pop_last().is_none());
        batch.fill(&objects(1..4));
        let popped: Vec<_> = core::iter::from_fn(|| batch.pop_last()).collect();
        assert_eq!(popped, objects([3, 2, 1]));
    }

    #[test]
    fn more_objects_than_fit_are_left_out() {
        let mut batch = Batch::new();
        batch.fill(&objects(0..MAX_BATCH + 1));
        assert_eq!(batch.objects(), objects(0..MAX_BATCH));
    }

    #[test]
    fn skipped_objects_leave_room_in_front() {
        let mut batch = Batch::new();
        batch.fill(&objects(0..MAX_BATCH));
        batch.skip_first(3);
        batch.push_first(objects([99])[0]);
        assert_eq!(batch.objects()[..2], objects([99, 3]));
        assert_eq!(batch.len(), MAX_BATCH - 2);
        batch.skip_first(usize::MAX - MAX_BATCH);
        assert_eq!(batch.len(), 0);
        batch.push_first(objects([7])[0]);
        assert_eq!(batch.objects(), objects([7]));
    }

    #[test]
    fn objects_cut_from_a_slab_come_in_front() {
        let mut batch = Batch::new();
        // Writes all slots except the first `left` ones, in ascending order of the objects.
        let cut = |batch: &mut Batch, len: usize, left: usize| {
            let fill = |slots: &mut [MaybeUninit<*mut u8>]| {
                let count = slots.len();
                for (at, slot) in slots.iter_mut().enumerate().skip(left) {
                    slot.write(ptr::without_provenance_mut(count - at));
                }
                left
            };
            // SAFETY: all slots except the first `left` are written.
            unsafe { batch.fill_in_front(len, fill) };
        };
        cut(&mut batch, 3, 0);
        assert_eq!(batch.objects(), objects([3, 2, 1]));
        assert_eq!(batch.pop_last(), Some(objects([1])[0]), "the first object cut is used first");
        cut(&mut batch, 5, 1);
        assert_eq!(batch.objects(), objects([2, 1, 3, 2]));
        cut(&mut batch, 2, 0);
        assert_eq!(batch.len(), 4, "a batch that is long enough stays");
        // There is room in front for fewer than requested.
        cut(&mut batch, MAX_BATCH + 5, 0);
        assert_eq!(batch.len(), MAX_BATCH - 1);
    }
}
