//! A cache of objects of one layout: allocating, freeing, shrinking and destroying.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

extern crate std;

use core::alloc::Layout;
use core::fmt;
use core::mem::{self, ManuallyDrop, MaybeUninit};
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::vec::Vec;

use super::flags::CacheFlags;
use super::registry::{Named, defer_free_barrier, slab_mutex};
use crate::cpu;
use crate::front::instrument::{object_handed_out, object_taken_back};
use crate::os;
use crate::path::objects::{self, AllocError};
use crate::percpu;
use crate::rcu;
use crate::size_class::Class;
use crate::slab;
use crate::stats::{self, CacheStats, Name};
use crate::sync::Context;
use crate::watch::WATCHED;

/// A cache of objects of one layout.
///
/// ```
/// use hayloft_core::cache::Cache;
/// use std::alloc::Layout;
///
/// let cache = Cache::builder("plain packets", Layout::new::<[u64; 16]>()).build()?;
/// let packet = cache.alloc()?;
/// // SAFETY: allocated just now from this cache, and no longer used.
/// unsafe { cache.free(packet) };
/// cache.destroy()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A destroyed cache can be neither used nor destroyed again:
///
/// ```compile_fail,E0382
/// # let layout = std::alloc::Layout::new::<u64>();
/// # let cache = hayloft_core::cache::Cache::builder("gone", layout).build().unwrap();
/// cache.destroy().unwrap();
/// let _ = cache.alloc();
/// ```
///
/// Dropping a cache destroys it. If objects are still in use, it prints a warning to stderr, and
/// their memory is leaked.
pub struct Cache {
    pub(super) class: Class,
    /// Bytes to zero in an object that is allocated.
    pub(super) zeroed: usize,
    pub(super) named: *mut Named,
    pub(super) layout: Layout,
    pub(super) flags: CacheFlags,
}

// SAFETY: each object is handed out to one caller, on whatever thread, and the name is only read.
unsafe impl Send for Cache {}
// SAFETY: each object is handed out to one caller, on whatever thread, and the name is only read.
unsafe impl Sync for Cache {}

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cache")
            .field("name", &self.name())
            .field("layout", &self.layout)
            .field("flags", &self.flags)
            .finish()
    }
}

impl Cache {
    /// Returns the name of the cache.
    #[must_use]
    pub fn name(&self) -> &str {
        // SAFETY: the name lives as long as the cache and is never written.
        unsafe { &(*self.named).name }
    }

    /// Returns the layout that the cache was created for.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns whether objects must be freed in a certain state.
    pub(crate) fn keeps_contents(&self) -> bool {
        slab::shape(self.class).keeps_contents()
    }

    /// Allocates an object. May be called in a signal handler, where it behaves like
    /// [`Cache::alloc_nolock`].
    ///
    /// # Errors
    /// If there is no memory, or the constructor panics.
    #[inline(always)]
    pub fn alloc(&self) -> Result<NonNull<u8>, AllocError> {
        match NonNull::new(percpu::pop(self.class)) {
            Some(object) => Ok(self.prepared(object)),
            None => alloc_slow(self.class).map(|object| self.prepared(object)),
        }
    }

    /// Allocates an object without ever waiting. Returns `None` when only waiting could provide an
    /// object, or when there is none.
    #[inline(always)]
    #[must_use]
    pub fn alloc_nolock(&self) -> Option<NonNull<u8>> {
        match NonNull::new(percpu::pop(self.class)) {
            Some(object) => Some(self.prepared(object)),
            None => alloc_slow_nolock(self.class).map(|object| self.prepared(object)),
        }
    }

    #[inline(always)]
    fn prepared(&self, object: NonNull<u8>) -> NonNull<u8> {
        let is_defined = WATCHED && self.keeps_contents();
        object_handed_out(object.as_ptr(), self.layout.size(), is_defined);
        if self.zeroed > 0 {
            // SAFETY: the object has room for the layout, and is not handed out yet.
            unsafe { object.write_bytes(0, self.zeroed) };
        }
        object
    }

    /// Frees an object. May be called in a signal handler.
    ///
    /// # Safety
    /// The object is of this cache and nobody uses it any longer. In debug builds, an object that
    /// is of another class or already free ends the process with a message.
    #[inline(always)]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        let object = object.as_ptr();
        object_taken_back(object, self.class);
        // SAFETY: the caller guarantees a live object of this cache, and thus of its class.
        unsafe {
            if !percpu::push(self.class, object) {
                objects::free_slow(self.class, object);
            }
        }
    }

    /// Frees an object without ever waiting. A free that is impossible now is deferred.
    ///
    /// # Safety
    /// As [`Cache::free`].
    #[inline(always)]
    pub unsafe fn free_nolock(&self, object: NonNull<u8>) {
        let object = object.as_ptr();
        object_taken_back(object, self.class);
        // SAFETY: the caller guarantees a live object of this cache, and thus of its class.
        unsafe {
            if !percpu::push(self.class, object) {
                Context::without_waiting(|| objects::free_slow(self.class, object));
            }
        }
    }

    /// Fills `room` with newly allocated objects. Returns their number, which is less than the
    /// length of `room` only if there is no memory or the constructor panics.
    pub fn alloc_bulk(&self, room: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let to: *mut *mut u8 = room.as_mut_ptr().cast();
        // SAFETY: `room` is writable for its length, and a pointer to an object is never null.
        let mut count = unsafe { percpu::pop_bulk(self.class, to, room.len()) };
        if count < room.len() {
            // SAFETY: the rest of `room` is writable for its length, and a pointer to an object is
            // never null.
            count += unsafe { alloc_bulk_slow(self.class, to.add(count), room.len() - count) };
        }
        for object in room.iter().take(count) {
            // SAFETY: the first `count` elements were written above.
            let object = unsafe { object.assume_init() };
            self.prepared(object);
        }
        count
    }

    /// Frees objects.
    ///
    /// # Safety
    /// As [`Cache::free`], for each of them.
    pub unsafe fn free_bulk(&self, objects: &[NonNull<u8>]) {
        // SAFETY: `NonNull<u8>` has the layout of `*mut u8`.
        let objects: &[*mut u8] = unsafe { mem::transmute(objects) };
        if cfg!(debug_assertions) || WATCHED {
            objects.iter().for_each(|object| object_taken_back(*object, self.class));
        }
        // SAFETY: the caller guarantees live objects of this cache, each listed once.
        unsafe {
            let count = percpu::push_bulk(self.class, objects);
            if count < objects.len() {
                free_bulk_slow(self.class, &objects[count..]);
            }
        }
    }

    /// Frees an object once all present readers have left; until then its contents stay. Does not
    /// wait, and may be called in any context.
    ///
    /// # Safety
    /// As [`Cache::free`], except that readers of [`rcu`] may still use the object. Readers that
    /// start after the call cannot find it.
    #[inline]
    pub unsafe fn free_rcu(&self, object: NonNull<u8>) {
        // SAFETY: the caller guarantees an object of this cache that only readers use.
        unsafe { rcu::free(self.class, object.as_ptr()) };
    }

    /// As [`Cache::free_rcu`], without ever waiting for a lock.
    ///
    /// # Safety
    /// As [`Cache::free_rcu`].
    pub unsafe fn free_rcu_nolock(&self, object: NonNull<u8>) {
        // SAFETY: the caller guarantees an object of this cache that only readers use.
        Context::without_waiting(|| unsafe { rcu::free(self.class, object.as_ptr()) });
    }

    /// Frees memory of this cache that no live object needs: flushes sheaves and barns to the
    /// slabs, and returns empty slabs to pages. Returns the bytes of these slabs. With
    /// [`CacheFlags::TYPESAFE_BY_RCU`] it waits for readers. (`kmem_cache_shrink`.)
    pub fn shrink(&self) -> usize {
        let cpus = cpu::read_lock();
        let _caches = slab_mutex(&cpus);
        objects::flush(self.class);
        self.shed()
    }

    /// Returns empty slabs to pages. Returns their bytes.
    fn shed(&self) -> usize {
        objects::shed(self.class, || {
            if self.flags.contains(CacheFlags::TYPESAFE_BY_RCU) {
                rcu::synchronize();
            }
        })
    }

    /// Returns the statistics of this cache, including the caches that share its class. May be
    /// called in any context. (`/proc/slabinfo`.)
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let stats = stats::of_class(self.class).unwrap_or_default();
        CacheStats { name: Name::new(self.name()), object_size: self.layout.size(), ..stats }
    }

    /// Destroys the cache, in the order that this module documents. Objects freed before the call,
    /// by whatever function, are free when it returns. Taking `self` ensures that nobody uses the
    /// cache meanwhile. Not for readers and signal handlers.
    ///
    /// # Errors
    /// If the program still has objects of this cache, and no other cache shares its class. The
    /// error lists the objects.
    ///
    /// # Panics
    /// Instead of the error, with [`CacheFlags::PANIC_ON_LEAK`].
    pub fn destroy(self) -> Result<(), DestroyError> {
        let cache = ManuallyDrop::new(self);
        let Err(objects) = cache.end() else { return Ok(()) };
        let error = DestroyError { cache: ManuallyDrop::into_inner(cache), objects };
        assert!(!error.cache.flags.contains(CacheFlags::PANIC_ON_LEAK), "{error}");
        Err(error)
    }

    /// Ends the cache, or returns the objects in use. If sheaves could not be flushed, the list is
    /// empty.
    fn end(&self) -> Result<(), Vec<NonNull<u8>>> {
        let gathered = rcu::wait_for_all();
        let cpus = cpu::read_lock();
        let mut caches = slab_mutex(&cpus);
        defer_free_barrier(&caches, &cpus);
        if caches.entry(self.class).references == 1 {
            let flushed = objects::flush(self.class) && gathered;
            self.shed();
            if objects::census(self.class).counts.slabs > 0 {
                let mut out = Vec::new();
                if flushed {
                    objects::for_each_out(self.class, &mut |object| {
                        if out.try_reserve(1).is_ok() {
                            out.push(object);
                        }
                    });
                }
                return Err(out);
            }
        }
        caches.change_references(self.class, -1);
        let link = caches.find(|named| ptr::eq(named, self.named));
        // SAFETY: the mutex is held, and the name is in the list. Once it is unlinked, it belongs
        // to this call alone.
        unsafe {
            *link = (*self.named).next;
            drop(Box::from_raw(self.named));
        }
        Ok(())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Err(objects) = self.end() {
            os::warn(format_args!(
                "cache {} was dropped with {} objects in use, which keep their memory",
                self.name(),
                objects.len()
            ));
        }
    }
}

#[cold]
#[inline(never)]
extern "C" fn alloc_slow(class: Class) -> Result<NonNull<u8>, AllocError> {
    objects::alloc_object(class, None)
}

#[cold]
#[inline(never)]
extern "C" fn alloc_slow_nolock(class: Class) -> Option<NonNull<u8>> {
    Context::without_waiting(|| alloc_slow(class).ok())
}

/// # Safety
/// `to` is writable for `len` pointers.
#[cold]
#[inline(never)]
unsafe extern "C" fn alloc_bulk_slow(class: Class, to: *mut *mut u8, len: usize) -> usize {
    // SAFETY: the caller guarantees that `to` is writable for `len` pointers.
    unsafe { objects::alloc_bulk(class, to, len) }
}

/// # Safety
/// As [`Cache::free_bulk`], for objects of `class`.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_bulk_slow(class: Class, objects: &[*mut u8]) {
    // SAFETY: the caller guarantees live objects of `class`, each listed once.
    unsafe { objects::free_bulk(class, objects) };
}

/// The error of a cache that was not destroyed and remains usable.
pub struct DestroyError {
    cache: Cache,
    objects: Vec<NonNull<u8>>,
}

// SAFETY: the addresses are only reported, never dereferenced.
unsafe impl Send for DestroyError {}
// SAFETY: the addresses are only reported, never dereferenced.
unsafe impl Sync for DestroyError {}

impl DestroyError {
    /// Returns the number of live objects. It is 0 if the kernel cannot take objects from the
    /// sheaves of other CPUs (before 5.10, or on CPUs that this thread may not run on). If memory
    /// is short, objects that there was no room to list are missing.
    #[must_use]
    pub fn live(&self) -> usize {
        self.objects.len()
    }

    /// Returns the addresses of the live objects.
    #[must_use]
    pub fn objects(&self) -> &[NonNull<u8>] {
        &self.objects
    }

    /// Returns the cache, which is usable as before.
    #[must_use]
    pub fn into_cache(self) -> Cache {
        self.cache
    }
}

impl fmt::Debug for DestroyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DestroyError")
            .field("cache", &self.cache.name())
            .field("objects", &self.objects)
            .finish()
    }
}

impl fmt::Display for DestroyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.cache.name();
        match self.live() {
            0 => write!(formatter, "the kernel cannot flush the sheaves of cache {name}"),
            live => write!(formatter, "cache {name} has {live} objects in use"),
        }
    }
}

impl core::error::Error for DestroyError {}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = if cfg!(miri) { 70 } else { 2000 };

    fn make(object: NonNull<u8>) {
        // SAFETY: the object has room for three words.
        unsafe { object.cast::<[usize; 3]>().write([1, 2, 3]) };
    }

    /// Objects are allocated and freed by every function, in a cache whose free objects must not be
    /// touched.
    #[test]
    fn every_function_allocates_and_frees_objects() {
        let cache = Cache::builder("mixed", Layout::new::<[usize; 3]>())
            .flags(CacheFlags::TYPESAFE_BY_RCU)
            .ctor(make)
            .build()
            .unwrap();
        let mut room = [MaybeUninit::uninit(); COUNT];
        for _ in 0..2 {
            assert_eq!(cache.alloc_bulk(&mut room), COUNT);
            // SAFETY: all elements were written.
            let objects = room.map(|object| unsafe { object.assume_init() });
            // SAFETY: the objects are constructed ones of this cache, each freed once.
            unsafe {
                assert!(
                    objects.iter().all(|object| object.cast::<[usize; 3]>().read() == [1, 2, 3])
                );
                let (bulk, single) = objects.split_at(COUNT / 2);
                cache.free_bulk(bulk);
                let reading = rcu::read_lock();
                single.iter().for_each(|object| cache.free_rcu(*object));
                drop(reading);
            }
            let object = cache.alloc_nolock().unwrap();
            // SAFETY: the object is a constructed one of this cache, freed once.
            unsafe { cache.free_nolock(object) };
        }
        let error = {
            let object = cache.alloc().unwrap();
            let error = cache.destroy().unwrap_err();
            assert_eq!(error.objects(), [object]);
            error
        };
        let (object, cache) = (error.objects()[0], error.into_cache());
        // SAFETY: the object is a constructed one of this cache, freed once.
        unsafe { cache.free(object) };
        cache.destroy().unwrap();
    }
}
