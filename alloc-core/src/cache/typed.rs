//! Caches of values of one type, which own their values through boxes.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::builder::CacheError;
use super::flags::CacheFlags;
use super::untyped::{Cache, DestroyError};
use crate::path::objects::AllocError;

/// A cache of values of one type, each owned by a [`CacheBox`].
///
/// ```
/// use hayloft_core::cache::TypedCache;
///
/// let packets = TypedCache::new("typed packets")?;
/// let mut packet = packets.alloc([0u8; 1500]).map_err(|(error, _)| error)?;
/// packet[0] = 0x45;
/// drop(packet);
/// packets.destroy()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TypedCache<T> {
    cache: Cache,
    _values: PhantomData<fn() -> T>,
}

impl<T> TypedCache<T> {
    /// Creates a cache for values of type `T`.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn new(name: &str) -> Result<TypedCache<T>, CacheError> {
        TypedCache::with_flags(name, CacheFlags::default())
    }

    /// As [`TypedCache::new`], with flags.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn with_flags(name: &str, flags: CacheFlags) -> Result<TypedCache<T>, CacheError> {
        let cache = Cache::builder(name, Layout::new::<T>()).flags(flags).build()?;
        Ok(TypedCache { cache, _values: PhantomData })
    }

    /// Moves a value into an object of the cache.
    ///
    /// # Errors
    /// If there is no memory. The error returns the value.
    #[inline(always)]
    pub fn alloc(&self, value: T) -> Result<CacheBox<'_, T>, (AllocError, T)> {
        match self.cache.alloc() {
            Ok(object) => {
                let value_at: NonNull<T> = object.cast();
                // SAFETY: the object has the layout of `T` and belongs to this call alone.
                unsafe { value_at.write(value) };
                Ok(CacheBox { value: value_at, cache: self, _owned: PhantomData })
            }
            Err(error) => Err((error, value)),
        }
    }

    /// Returns the untyped cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Destroys the cache. No box exists, since boxes borrow the cache; only objects of forgotten
    /// boxes are in use.
    ///
    /// # Errors
    /// As [`Cache::destroy`].
    pub fn destroy(self) -> Result<(), DestroyError> {
        self.cache.destroy()
    }
}

/// A value in an object of a [`TypedCache`]. Dropping the box drops the value and frees the object.
pub struct CacheBox<'a, T> {
    value: NonNull<T>,
    cache: &'a TypedCache<T>,
    _owned: PhantomData<T>,
}

// SAFETY: the box owns its value, and the cache may be used from any thread.
unsafe impl<T: Send> Send for CacheBox<'_, T> {}
// SAFETY: a shared box gives only `&T`, and the cache may be used from any thread.
unsafe impl<T: Sync> Sync for CacheBox<'_, T> {}

impl<T> CacheBox<'_, T> {
    /// Moves the value out and frees the object.
    #[must_use]
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the value is moved out, and nobody uses the object any longer.
        unsafe {
            let value = this.value.read();
            this.cache.cache.free(this.value.cast());
            value
        }
    }
}

impl<T> Deref for CacheBox<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the box owns the value.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for CacheBox<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the box owns the value.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for CacheBox<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the box owns the value, and is the last user of the object.
        unsafe {
            self.value.drop_in_place();
            self.cache.cache.free(self.value.cast());
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for CacheBox<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}
