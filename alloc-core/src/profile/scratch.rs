//! Memory for the duration of a call, taken from the system and returned to it: the heap that a
//! profile describes must not change meanwhile, and a stack has no room.
//!
//! A fork child keeps the memory of a call that another thread was in, unused.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut, Range};
use core::ptr::NonNull;
use core::slice;

use crate::os;

/// Types of which zeros are a valid value, without a destructor.
///
/// # Safety
/// A value whose bytes are all zero is valid.
pub(super) unsafe trait Zeroed: Copy {}

// SAFETY: zero is a number.
unsafe impl Zeroed for u8 {}
// SAFETY: as above.
unsafe impl Zeroed for u32 {}

/// Values in pages of their own, at first all zero.
pub(super) struct Scratch<T: Zeroed> {
    start: NonNull<T>,
    count: usize,
    _owned: PhantomData<T>,
}

// SAFETY: the values are owned, as in a box.
unsafe impl<T: Zeroed + Send> Send for Scratch<T> {}
// SAFETY: as above; shared, it gives out shared references only.
unsafe impl<T: Zeroed + Sync> Sync for Scratch<T> {}

impl<T: Zeroed> Scratch<T> {
    /// Takes the memory of `count` values, which is committed but not touched. `None` if the system
    /// has none.
    pub(super) fn new(count: usize) -> Option<Scratch<T>> {
        const { assert!(align_of::<T>() <= 4096) };
        let len = Self::len(count)?;
        let start = os::reserve(len)?;
        // SAFETY: the reservation was just made, and nobody else knows it.
        unsafe {
            if !os::commit(start, len) {
                os::unreserve(start, len);
                return None;
            }
        }
        Some(Scratch { start: start.cast(), count, _owned: PhantomData })
    }

    /// Returns the addresses of the memory.
    pub(super) fn range(&self) -> Range<usize> {
        let start = self.start.addr().get();
        start..start + Self::len(self.count).unwrap_or(0)
    }

    /// Returns the first value.
    pub(super) fn only(&mut self) -> &mut T {
        // SAFETY: there is memory for one value at least, zeros are valid, and the borrow is
        // exclusive.
        unsafe { self.start.as_mut() }
    }

    /// Returns the bytes of whole pages for `count` values.
    fn len(count: usize) -> Option<usize> {
        count.max(1).checked_mul(size_of::<T>().max(1))?.checked_next_multiple_of(os::page_size())
    }
}

impl<T: Zeroed> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory is committed, this one's, and holds `count` values: zeros are valid.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> Drop for Scratch<T> {
    fn drop(&mut self) {
        let Some(len) = Self::len(self.count) else { return };
        // SAFETY: the reservation is of this length, and its owner is gone.
        unsafe { os::unreserve(self.start.cast(), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: zero is a number.
    unsafe impl Zeroed for u64 {}

    #[test]
    fn scratch_memory_is_zero_and_writable() {
        let mut words = Scratch::<u64>::new(1000).unwrap();
        assert!(words.len() == 1000 && words.iter().all(|word| *word == 0));
        words.iter_mut().zip(1..).for_each(|(word, number)| *word = number);
        assert_eq!(words.iter().sum::<u64>(), 500_500);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Scratch::<u64>::new(usize::MAX).is_none());
        assert!(Scratch::<u64>::new(usize::MAX / 8).is_none());
    }
}
