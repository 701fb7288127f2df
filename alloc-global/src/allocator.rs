//! The `Allocator` trait of `allocator-api2` for `Hayloft`, for collections with an allocator
//! parameter.

use core::alloc::{GlobalAlloc as _, Layout};
use core::ptr::{self, NonNull};

use allocator_api2::alloc::{AllocError, Allocator};
use hayloft_core::kmalloc;

use crate::Hayloft;

/// Requires the feature `allocator-api2`.
///
/// The length of a returned block is the number of usable bytes: the size of its class, or what its
/// pages hold. A zeroed block is only as long as requested. A layout of size 0 takes no memory. A
/// block is resized in place if its class or the neighbouring pages allow it.
///
/// ```
/// use hayloft::Hayloft;
/// use hashbrown::HashMap;
///
/// let mut map = HashMap::new_in(Hayloft);
/// map.insert("some", "hay");
/// assert_eq!(map["some"], "hay");
/// ```
// SAFETY: live blocks are disjoint and do not move until they are freed. All instances are one
// allocator. Every layout that fits a block has the class the block was allocated from, and has
// size 0 if and only if the block has.
unsafe impl Allocator for Hayloft {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        let (start, size) = self.alloc_excess(layout);
        block(start, size)
    }

    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        // SAFETY: the layout is not empty.
        block(unsafe { self.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the caller guarantees that `block` is live and that `layout` fits it.
            unsafe { self.dealloc(block.as_ptr(), layout) };
        }
    }

    #[inline]
    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller guarantees that `block` is live and that `old` fits it.
        unsafe { self.resize(block, old, new) }
    }

    #[inline]
    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller guarantees that `block` is live and that `old` fits it. The cleared
        // bytes lie in the new block, which has at least `new.size()` bytes.
        unsafe {
            let block = self.resize(block, old, new)?.cast::<u8>();
            block.add(old.size()).write_bytes(0, new.size() - old.size());
            Ok(NonNull::slice_from_raw_parts(block, new.size()))
        }
    }

    #[inline]
    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller guarantees that `block` is live and that `old` fits it.
        unsafe { self.resize(block, old, new) }
    }
}

impl Hayloft {
    /// Changes a block's layout from `old` to `new`, keeping its contents up to the lesser size.
    /// Returns the new block, which may be at another address.
    ///
    /// # Errors
    /// If there is no memory. The old block is then unchanged.
    ///
    /// # Safety
    /// `old_block` is live and `old` fits it. On success, `old_block` is not used afterwards.
    #[inline]
    unsafe fn resize(
        self,
        old_block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller guarantees that `old_block` is live and that `old` fits it. The copied
        // bytes lie within both blocks.
        unsafe {
            if old.size() > 0 && new.size() > 0 && old.align() == new.align() {
                let whole = kmalloc::whole(new).size();
                return block(self.realloc(old_block.as_ptr(), old, whole), whole);
            }
            let resized = self.allocate(new)?;
            resized.cast::<u8>().copy_from_nonoverlapping(old_block, old.size().min(new.size()));
            self.deallocate(old_block, old);
            Ok(resized)
        }
    }
}

/// Returns the block of `size` bytes at `address`, or an error if `address` is null.
#[inline]
fn block(address: *mut u8, size: usize) -> Result<NonNull<[u8]>, AllocError> {
    let address = NonNull::new(address).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(address, size))
}

/// Returns a dangling, aligned block of 0 bytes.
fn empty(layout: Layout) -> NonNull<[u8]> {
    // SAFETY: an alignment is never 0.
    let nothing = unsafe { NonNull::new_unchecked(ptr::without_provenance_mut(layout.align())) };
    NonNull::slice_from_raw_parts(nothing, 0)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use allocator_api2::boxed::Box;
    use allocator_api2::vec::Vec;
    use hashbrown::HashMap;
    use std::string::{String, ToString};

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn collections_can_use_hayloft() {
        let mut map = HashMap::<String, Vec<usize, Hayloft>, _, _>::new_in(Hayloft);
        for number in 0..if cfg!(miri) { 100usize } else { 10_000 } {
            let digits = map.entry(number.to_string()).or_insert_with(|| Vec::new_in(Hayloft));
            digits.extend((0..number % 50).map(|digit| digit * number));
        }
        let kept = map.len() / 2;
        map.retain(|_, digits| digits.len() >= 25);
        map.shrink_to_fit();
        assert_eq!(map.len(), kept);
        for (number, digits) in &map {
            let number: usize = number.parse().unwrap();
            assert!((0..number % 50).map(|digit| digit * number).eq(digits.iter().copied()));
        }
        let mut bytes = Vec::new_in(Hayloft);
        bytes.extend(0..200u8);
        let boxed: Box<[u8], Hayloft> = bytes.into_boxed_slice();
        assert_eq!(boxed[199], 199);
        let nothing = Box::new_in((), Hayloft);
        assert_eq!(*nothing, ());
    }

    #[test]
    fn returned_length_may_be_used() {
        let block = Hayloft.allocate(layout(100, 1)).unwrap();
        assert_eq!(block.len(), kmalloc::good_size(layout(100, 1)));
        // SAFETY: the block is live. It may be freed with any size from the requested one up to the
        // returned length.
        unsafe {
            block.cast::<u8>().write_bytes(1, block.len());
            Hayloft.deallocate(block.cast(), layout(block.len(), 1));
        }
    }

    #[test]
    #[cfg_attr(feature = "valgrind", ignore = "blocks move then")]
    fn blocks_are_resized_in_place() {
        // SAFETY: each block is live, and has the layout it is resized or freed with.
        unsafe {
            let block = Hayloft.allocate(layout(100, 8)).unwrap();
            let len = block.len();
            let grown = Hayloft.grow(block.cast(), layout(100, 8), layout(len, 8)).unwrap();
            let shrunk = Hayloft.shrink(grown.cast(), layout(len, 8), layout(100, 8)).unwrap();
            assert_eq!((block.cast::<u8>(), len), (shrunk.cast(), grown.len()));
            assert_eq!(block.cast::<u8>(), grown.cast());
            Hayloft.deallocate(shrunk.cast(), layout(100, 8));

            let pages = Hayloft.allocate(layout(5_000_000, 8)).unwrap();
            let fewer = Hayloft.shrink(pages.cast(), layout(5_000_000, 8), layout(100_000, 8));
            let fewer = fewer.unwrap();
            assert!(fewer.len() < pages.len() && pages.cast::<u8>() == fewer.cast());
            Hayloft.deallocate(fewer.cast(), layout(100_000, 8));
        }
    }

    #[test]
    fn resizing_keeps_contents() {
        let layouts = [
            layout(0, 1),
            layout(10, 1),
            layout(40, 64),
            layout(33, 8),
            layout(40_000, 8),
            layout(70_000, 1 << 17),
            layout(500, 4096),
            layout(20, 2),
            layout(0, 32),
        ];
        let mut block = Hayloft.allocate(layouts[0]).unwrap();
        for (old, new) in layouts.into_iter().zip(layouts.into_iter().skip(1)) {
            // SAFETY: `block` is live, has the layout `old`, and is initialised up to its size.
            unsafe {
                let (grows, kept) = (new.size() >= old.size(), old.size().min(new.size()));
                block = match grows {
                    true => Hayloft.grow_zeroed(block.cast(), old, new).unwrap(),
                    false => Hayloft.shrink(block.cast(), old, new).unwrap(),
                };
                assert!(block.cast::<u8>().addr().get().is_multiple_of(new.align()));
                let bytes = &mut *block.as_ptr();
                assert!(bytes[..kept].iter().all(|byte| *byte == 7));
                assert!(!grows || bytes[kept..].iter().all(|byte| *byte == 0));
                bytes.fill(7);
            }
        }
        assert!(block.is_empty());
    }

    #[test]
    fn allocate_zeroed_clears_the_whole_length() {
        for size in [0, 1, 100, 40_000] {
            // SAFETY: both blocks are live and have this layout.
            unsafe {
                let dirty = Hayloft.allocate(layout(size, 8)).unwrap();
                dirty.cast::<u8>().write_bytes(1, dirty.len());
                Hayloft.deallocate(dirty.cast(), layout(size, 8));
                let zeroed = Hayloft.allocate_zeroed(layout(size, 8)).unwrap();
                assert!((*zeroed.as_ptr()).iter().all(|byte| *byte == 0));
                Hayloft.deallocate(zeroed.cast(), layout(size, 8));
            }
        }
        assert!(Hayloft.allocate(layout(isize::MAX as usize, 1)).is_err());
    }
}
