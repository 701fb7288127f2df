//! Caches as allocators of collections, through the `Allocator` trait of `allocator-api2`.

use core::alloc::Layout;
use core::ptr::{self, NonNull};

use allocator_api2::alloc::{AllocError, Allocator};

use crate::cache::Cache;

/// Available with the feature `allocator-api2`. A cache serves every layout that fits its own with
/// one object, all bytes of which may be used. It serves a layout of size 0 without an object. A
/// larger or more strictly aligned layout is refused: a collection that outgrows its object returns
/// an error, or ends the process, as when memory runs out.
///
/// Two kinds of cache refuse every layout but the empty one: caches with a constructor, and caches
/// with [`TYPESAFE_BY_RCU`](crate::cache::CacheFlags::TYPESAFE_BY_RCU). Their free objects must be
/// left in a state that collections know nothing of.
///
/// ```
/// use allocator_api2::vec::Vec;
/// use hayloft_core::cache::Cache;
/// use std::alloc::Layout;
///
/// let lines = Cache::builder("lines", Layout::new::<[u8; 80]>()).build()?;
/// let mut line = Vec::new_in(&lines);
/// line.extend_from_slice(b"at most eighty bytes, in one object");
/// assert!(line.try_reserve(80).is_err());
/// drop(line);
/// lines.destroy()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// SAFETY: an object stays in place until it is freed, even if the cache is moved, or dropped first.
// The object is at least as large and as aligned as the layout. A layout that fits a block has size
// 0 if and only if the block is not an object.
unsafe impl Allocator for Cache {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        if !self.serves(layout) {
            return Err(AllocError);
        }
        self.alloc().map(|object| self.whole(object)).map_err(|_| AllocError)
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the caller guarantees that `block` is a live block of this allocator; a block
            // of a non-empty layout is an object of this cache.
            unsafe { self.free(block) };
        }
    }

    #[inline]
    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 || !self.serves(new) {
            // If `new` does not fit an object, `allocate` refuses it as well.
            return self.allocate(new);
        }
        Ok(self.whole(block))
    }

    #[inline]
    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller guarantees what `grow` requires: `block` is live, and `old` fits it.
        let block = unsafe { self.grow(block, old, new)? };
        // SAFETY: the range lies in the returned block, which is at least `old.size()` bytes long.
        unsafe { block.cast::<u8>().add(old.size()).write_bytes(0, block.len() - old.size()) };
        Ok(block)
    }

    #[inline]
    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() == 0 {
            // SAFETY: the caller guarantees that `block` is live and that `old` fits it.
            unsafe { self.deallocate(block, old) };
            return Ok(empty(new));
        }
        if !self.serves(new) {
            return Err(AllocError);
        }
        Ok(self.whole(block))
    }
}

impl Cache {
    /// Returns whether an object can serve a non-empty `layout`.
    #[inline]
    fn serves(&self, layout: Layout) -> bool {
        layout.size() <= self.layout().size()
            && layout.align() <= self.layout().align()
            && !self.keeps_contents()
    }

    /// Returns all bytes of an object.
    #[inline]
    fn whole(&self, object: NonNull<u8>) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(object, self.layout().size())
    }
}

/// Returns the block that serves a layout of size 0: an aligned address without memory.
fn empty(layout: Layout) -> NonNull<[u8]> {
    // SAFETY: an alignment is never 0.
    let nothing = unsafe { NonNull::new_unchecked(ptr::without_provenance_mut(layout.align())) };
    NonNull::slice_from_raw_parts(nothing, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheFlags;
    use allocator_api2::boxed::Box;
    use allocator_api2::vec::Vec;
    use hashbrown::HashMap;

    fn cache(name: &str, size: usize) -> Cache {
        let layout = Layout::from_size_align(size, 16).unwrap();
        Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build().unwrap()
    }

    #[test]
    fn each_collection_takes_one_object() {
        let cache = cache("collections", 1024);
        let boxed = Box::new_in([1u64; 100], &cache);
        let mut words = Vec::<u64, _>::new_in(&cache);
        words.push(2);
        let at = words.as_ptr();
        words.extend(3..130);
        assert_eq!((words.as_ptr(), words.len()), (at, 128));
        assert!(words.iter().copied().eq(2..130));
        assert!(words.try_reserve(1).is_err());
        words.truncate(5);
        words.shrink_to_fit();
        assert_eq!((words.as_ptr(), &*words), (at, &[2, 3, 4, 5, 6][..]));

        let mut map = HashMap::<u32, u32, _, _>::new_in(&cache);
        for key in 0..50 {
            map.insert(key, key * key);
        }
        assert!((0..50).all(|key| map[&key] == key * key));
        assert!(map.try_reserve(1000).is_err());
        assert_eq!((cache.stats().in_use, boxed[99]), (3, 1));
        drop((boxed, words, map));
        cache.destroy().unwrap();
    }

    #[test]
    fn zero_size_blocks_take_no_object() {
        let cache = cache("nothing", 64);
        let empty = Box::new_in((), &cache);
        let nothing = cache.allocate(Layout::new::<[u16; 0]>()).unwrap();
        assert!(nothing.is_empty() && nothing.cast::<u16>().is_aligned());
        let (old, new) = (Layout::new::<[u16; 0]>(), Layout::new::<[u16; 4]>());
        // SAFETY: each call passes a live block together with the layout that fits it.
        unsafe {
            let block = cache.grow_zeroed(nothing.cast(), old, new).unwrap();
            assert!(block.len() == 64 && (*block.as_ptr()).iter().all(|byte| *byte == 0));
            block.cast::<[u8; 64]>().write([7; 64]);
            let block = cache.grow_zeroed(block.cast(), new, Layout::new::<[u16; 5]>()).unwrap();
            let bytes: &[u8] = &*block.as_ptr();
            assert_eq!((&bytes[..8], &bytes[8..]), (&[7; 8][..], &[0; 56][..]));
            assert_eq!(cache.stats().in_use, 1);
            let shrunk = Allocator::shrink(&cache, block.cast(), Layout::new::<[u16; 5]>(), old);
            assert!(shrunk.unwrap().is_empty());
        }
        drop(empty);
        cache.destroy().unwrap();
    }

    #[test]
    fn unsuitable_layouts_and_caches_are_refused() {
        let small = cache("refusing", 64);
        for (size, align) in [(65, 1), (16, 32)] {
            assert!(small.allocate(Layout::from_size_align(size, align).unwrap()).is_err());
        }
        let word = Layout::new::<u64>();
        let constructed = Cache::builder("constructed", word).ctor(|_| ()).build().unwrap();
        let looked_at = Cache::builder("looked at", word).flags(CacheFlags::TYPESAFE_BY_RCU);
        let looked_at = looked_at.build().unwrap();
        assert!(constructed.allocate(word).is_err() && looked_at.allocate(word).is_err());
        for cache in [small, constructed, looked_at] {
            cache.destroy().unwrap();
        }
    }

    /// A collection may own its cache.
    #[test]
    fn collection_can_own_its_cache() {
        let mut words = Vec::<u8, _>::new_in(cache("moving", 64));
        words.extend(0..64);
        let moved = words;
        assert_eq!((moved[63], moved.allocator().stats().in_use), (63, 1));
    }
}
