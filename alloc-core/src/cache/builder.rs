//! Creating a cache: the description of a cache, the class that it gets or shares, and errors.

extern crate std;

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use std::boxed::Box;

use super::flags::CacheFlags;
use super::registry::{Entry, Named, slab_mutex};
use super::untyped::Cache;
use crate::cpu;
use crate::path::objects;
use crate::size_class::{Class, MAX_SMALL, MAX_SMALL_ALIGN};
use crate::slab::Shape;
use crate::stats::{self, Label, Name};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Bytes of the word that links free objects.
const WORD: usize = size_of::<usize>();

/// The description of a cache to create.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder<'a> {
    name: &'a str,
    layout: Layout,
    flags: CacheFlags,
    constructor: Option<fn(NonNull<u8>)>,
}

impl Cache {
    /// Returns a builder of a cache for objects of `layout`.
    pub fn builder(name: &str, layout: Layout) -> Builder<'_> {
        Builder { name, layout, flags: CacheFlags::default(), constructor: None }
    }
}

impl Builder<'_> {
    /// Adds flags.
    pub fn flags(mut self, flags: CacheFlags) -> Self {
        self.flags = self.flags | flags;
        self
    }

    /// Makes `constructor` initialise each object once, when its slab is created. The program must
    /// free an object in the state that the constructor left. The constructor may run in any
    /// context that allocates. Not merged.
    pub fn ctor(mut self, constructor: fn(NonNull<u8>)) -> Self {
        self.constructor = Some(constructor);
        self
    }

    /// Creates the cache. Starts the CPU threads (see [`cpu`]).
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn build(self) -> Result<Cache, CacheError> {
        let Builder { name, layout, flags, constructor } = self;
        let kept = flags.contains(CacheFlags::TYPESAFE_BY_RCU);
        if layout.size() == 0 {
            return Err(CacheError::ZeroSize);
        }
        if name.is_empty() {
            return Err(CacheError::NoName);
        }
        if flags.contains(CacheFlags::ZERO) && (kept || constructor.is_some()) {
            return Err(CacheError::Contradiction);
        }
        let (size, stride, align) = measures(layout, flags).ok_or(CacheError::TooLarge)?;
        let mergeable = !kept && constructor.is_none() && !flags.contains(CacheFlags::NO_MERGE);
        if name.starts_with(stats::SIZE_CLASS) {
            return Err(CacheError::NameTaken);
        }
        let named = Named::new(name).ok_or(CacheError::OutOfMemory)?;

        let cpus = cpu::read_lock();
        let mut caches = slab_mutex(&cpus);
        let end = caches.find(|named| &*named.name == name);
        // SAFETY: the mutex is held, so the link is valid.
        if unsafe { !(*end).is_null() } {
            return Err(CacheError::NameTaken);
        }
        // An existing class fits if its objects are large and aligned enough, and waste less than a
        // word more.
        let fits = |entry: &Entry| {
            entry.references > 0
                && entry.mergeable
                && (size..size + WORD).contains(&entry.size)
                && entry.stride.is_multiple_of(align)
        };
        let shared = caches.entries().iter().position(fits).filter(|_| mergeable);
        let free = || caches.entries().iter().position(|entry| entry.references == 0);
        let number = shared.or_else(free).ok_or(CacheError::TooMany)?;
        let class = Class::from_cache_index(number).ok_or(CacheError::TooMany)?;
        if shared.is_none() {
            let shape = Shape::for_cache(stride, size, kept, constructor);
            // SAFETY: no cache uses the class.
            if !unsafe { objects::define(class, shape) } {
                return Err(CacheError::OutOfMemory);
            }
            *caches.entry(class) = Entry { references: 0, size, stride, mergeable };
            let (objects, units) = (shape.objects(), shape.units as usize);
            let label = Label {
                name: Name::new(name),
                object_size: size,
                stride,
                objects,
                units,
                sharers: 0,
            };
            stats::publish(number, &label);
        }
        caches.change_references(class, 1);
        let named = Box::into_raw(named);
        // SAFETY: the mutex is still held, so the link is valid.
        unsafe { *end = named };
        let zeroed = if flags.contains(CacheFlags::ZERO) { layout.size() } else { 0 };
        Ok(Cache { class, zeroed, named, layout, flags })
    }
}

/// Returns the bytes of an object up to its link word, the bytes from one object to the next, and
/// the alignment of objects. Returns `None` if the object is too large.
fn measures(layout: Layout, flags: CacheFlags) -> Option<(usize, usize, usize)> {
    let mut align = layout.align().max(WORD);
    if flags.contains(CacheFlags::HWCACHE_ALIGN) {
        let mut line = CACHE_LINE;
        while layout.size() <= line / 2 {
            line /= 2;
        }
        align = align.max(line);
    }
    let size = layout.size().checked_next_multiple_of(WORD)?;
    let stride = size.checked_add(WORD)?.checked_next_multiple_of(align)?;
    (stride <= MAX_SMALL && align <= MAX_SMALL_ALIGN).then_some((size, stride, align))
}

/// The reason why a cache could not be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// The objects have size 0 and need no cache.
    ZeroSize,
    /// An object with the word behind it exceeds 32 KiB, or its alignment exceeds 4096 bytes.
    TooLarge,
    /// The name is empty.
    NoName,
    /// Another cache has the name, or it starts with `kmalloc-`, as the names of size classes do.
    NameTaken,
    /// [`CacheFlags::ZERO`] would undo the constructor's work, or change memory that readers look
    /// at.
    Contradiction,
    /// There are 255 caches with classes of their own.
    TooMany,
    /// There is no memory.
    OutOfMemory,
}

impl fmt::Display for CacheError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            CacheError::ZeroSize => "objects of size 0 need no cache",
            CacheError::TooLarge => "the objects are too large for a cache",
            CacheError::NoName => "a cache needs a name",
            CacheError::NameTaken => "another cache has that name",
            CacheError::Contradiction => "objects cannot be both zeroed and kept as they are",
            CacheError::TooMany => "there are too many caches",
            CacheError::OutOfMemory => "out of memory",
        })
    }
}

impl core::error::Error for CacheError {}
