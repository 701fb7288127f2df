//! Caches that share their class with no other, and objects with checked contents.

use std::ptr::NonNull;

use crate::sizes::layout;
use hayloft_core::cache::{Cache, CacheFlags};

/// Creates a cache of objects of `size` bytes that is not merged with others.
///
/// # Panics
///
/// If it cannot be created.
#[must_use]
pub fn unmerged(name: &str, size: usize) -> Cache {
    Cache::builder(name, layout(size, 8)).flags(CacheFlags::NO_MERGE).build().expect("a cache")
}

/// Allocates `count` objects, each filled with its own number.
///
/// # Panics
///
/// If there is no memory.
#[must_use]
pub fn alloc_filled(cache: &Cache, count: usize) -> Vec<NonNull<u8>> {
    let size = cache.layout().size();
    let fill = |number: usize| {
        let object = cache.alloc().expect("memory");
        // SAFETY: the object was just allocated and is `size` bytes long.
        unsafe { object.write_bytes(number as u8, size) };
        object
    };
    (0..count).map(fill).collect()
}

/// Checks the contents written by [`alloc_filled`], and frees each object with `free`.
///
/// # Panics
///
/// If an object was overwritten.
pub fn check_and_free(cache: &Cache, objects: &[NonNull<u8>], free: impl Fn(NonNull<u8>)) {
    let size = cache.layout().size();
    for (number, object) in objects.iter().enumerate() {
        // SAFETY: the object is live, `size` bytes long and filled.
        let bytes = unsafe { std::slice::from_raw_parts(object.as_ptr(), size) };
        assert!(bytes.iter().all(|byte| *byte == number as u8), "object {number} was overwritten");
        free(*object);
    }
}
