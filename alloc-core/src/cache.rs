//! Object caches: objects of one kind that are cut, cached and freed together. (`mm/slab_common.c`
//! of Linux.)
//!
//! A [`Cache`] has a class of its own, whose objects take the same path as those of `kmalloc`: a
//! sheaf per CPU, a barn, slabs. The state that a constructor gives an object is kept while the
//! object is free, as is memory that readers of [`rcu`] may still look at. So the word that links a
//! free object into a list lies behind the object. It costs each object of a cache 8 bytes.
//!
//! Caches of like objects share a class, unless one of them has a special property; the class
//! counts such *aliases*.
//!
//! # The order of destruction
//!
//! 1. wait for frees that wait for readers;
//! 2. prevent CPU hotplug;
//! 3. take the cache mutex;
//! 4. wait for deferred frees, which needs both: the wait has room for one waiter, and visits the
//!    CPUs online;
//! 5. if other caches share the class, skip the next two steps;
//! 6. flush sheaves and barns to the slabs, and return empty slabs to pages;
//! 7. refuse, with the cache usable as before, if the program still has objects;
//! 8. drop the reference to the class.
//!
//! The kernel once waited for deferred frees (4) first, and two threads that destroyed caches at
//! once could lose a wake-up: `models/irq_work.rs` shows it.
//!
//! The module is part of the control plane: it allocates and sleeps, except to allocate and free
//! objects.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

extern crate std;

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop, MaybeUninit};
use core::ops::{BitOr, Deref, DerefMut};
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

use crate::cpu::{self, CpusReadGuard};
use crate::objects;
use crate::os;
use crate::percpu;
use crate::rcu;
use crate::size_class::{Class, MAX_CACHES, MAX_SMALL, MAX_SMALL_ALIGN};
use crate::slab::{self, Shape};
use crate::stats::{self, Label, Name};
use crate::sync::{Context, ControlGuard, ControlMutex, LockClass};
use crate::watch::{self, WATCHED};

pub use crate::objects::{AllocError, DeferredFrees, deferred_frees};
pub use crate::stats::CacheStats;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Bytes of the word that links free objects.
const WORD: usize = size_of::<usize>();

/// Serialises changes to the set of caches, and waits for deferred frees. (`slab_mutex`.)
static SLAB_MUTEX: ControlMutex = ControlMutex::new(LockClass::SlabMutex);

/// A guard of the cache mutex.
#[derive(Debug)]
struct SlabMutexGuard {
    _guard: ControlGuard,
}

/// Acquires the cache mutex. The order, after the hotplug lock, is fixed by the argument: in the
/// other order, a thread that changes CPUs and one that changes caches could deadlock.
fn slab_mutex(_cpus: &CpusReadGuard) -> SlabMutexGuard {
    SlabMutexGuard { _guard: SLAB_MUTEX.lock() }
}

/// Returns whether the cache mutex is held at the moment of the call.
pub(crate) fn mutex_is_held() -> bool {
    SLAB_MUTEX.is_held()
}

/// Waits until every free deferred before this call is done.
///
/// It empties the list of each CPU itself, since the thread that added the first block to a list
/// may be stopped, for any time, before it queues the CPU's irq work. Then it waits for the irq
/// work, in a place for one waiter: of two callers at once, one would lose its wake-up and sleep
/// forever. So its arguments prove that the caller holds the mutex and, since a CPU that comes or
/// goes moves its list, the hotplug lock. (`defer_free_barrier` of `mm/slub.c`, which took
/// neither.)
fn defer_free_barrier(_caches: &SlabMutexGuard, cpus: &CpusReadGuard) {
    // The boot list still has the blocks deferred before there were CPUs, if no CPU thread could be
    // created.
    objects::deferred_barrier(None);
    for cpu in cpus.online() {
        objects::deferred_barrier(Some(cpu));
    }
}

/// Waits until every block freed before this call, in whatever context, is actually free: no free
/// remains deferred. Starts the CPU threads (see [`cpu`]). Not for signal handlers.
pub fn barrier() {
    let cpus = cpu::read_lock();
    let caches = slab_mutex(&cpus);
    defer_free_barrier(&caches, &cpus);
}

/// Returns all memory to the system that no live object needs: flushes sheaves and barns to slabs,
/// and decommits empty slabs and free pages. Returns the number of bytes decommitted, some of which
/// may never have been touched. Empty slabs of a cache with [`CacheFlags::TYPESAFE_BY_RCU`] stay:
/// see [`Cache::shrink`]. Not for signal handlers. (`malloc_trim`.)
pub fn trim() -> usize {
    let _caches = SLAB_MUTEX.lock();
    rcu::setting_aside(|| objects::trim(rcu::set_aside))
}

/// Ends a decay window: memory that was idle throughout the window moves a step further towards the
/// system, as it does after a third of `HAYLOFT_DECAY_MS`. Returns whether more memory can be
/// returned. For tests, which must not depend on time.
#[cfg(feature = "fault-points")]
pub fn end_window() -> bool {
    objects::end_window_now()
}

/// As [`end_window`], but decommits the memory that is due in `slices` parts, one after the other,
/// as the reclaiming thread does during a window. Calls `between` after each part. For tests.
#[cfg(feature = "fault-points")]
pub fn end_window_in_slices(slices: u32, between: impl FnMut()) {
    objects::end_window_in_slices(slices, between);
}

/// Resets the cache mutex in a fork child: nobody except this thread can hold it.
pub(crate) fn in_child() {
    SLAB_MUTEX.reset_in_child();
}

/// Special properties of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFlags(u32);

impl CacheFlags {
    /// Shares its class with no other cache. (`SLAB_NO_MERGE`.)
    pub const NO_MERGE: CacheFlags = CacheFlags(1);
    /// Memory of an object remains memory of such an object, free or not, while a reader of [`rcu`]
    /// may look at it. The object itself may be reallocated at once. Not merged.
    /// (`SLAB_TYPESAFE_BY_RCU`.)
    pub const TYPESAFE_BY_RCU: CacheFlags = CacheFlags(2);
    /// Objects read as zero when they are allocated. (`__GFP_ZERO`.)
    pub const ZERO: CacheFlags = CacheFlags(4);
    /// Objects start on a cache line, or on the fraction of a line that they fill.
    /// (`SLAB_HWCACHE_ALIGN`.)
    pub const HWCACHE_ALIGN: CacheFlags = CacheFlags(8);
    /// [`Cache::destroy`] panics instead of refusing if objects are in use.
    pub const PANIC_ON_LEAK: CacheFlags = CacheFlags(16);

    /// Returns whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: CacheFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for CacheFlags {
    type Output = CacheFlags;

    fn bitor(self, other: CacheFlags) -> CacheFlags {
        CacheFlags(self.0 | other.0)
    }
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

/// Properties of a cache's class, guarded by the cache mutex.
#[derive(Clone, Copy)]
struct Entry {
    /// Number of caches that share the class; 0 if the class is unused.
    references: usize,
    /// Bytes of an object.
    size: usize,
    /// Bytes from one object to the next.
    stride: usize,
    /// Whether other caches may share the class.
    mergeable: bool,
}

struct Entries(UnsafeCell<[Entry; MAX_CACHES]>);

// SAFETY: only the holder of the cache mutex accesses the entries.
unsafe impl Sync for Entries {}

static ENTRIES: Entries = {
    const NOBODYS: Entry = Entry { references: 0, size: 0, stride: 0, mergeable: false };
    Entries(UnsafeCell::new([NOBODYS; MAX_CACHES]))
};

/// A name in the list of all names. One store links it and one unlinks it, so the list is intact in
/// the child of a fork at any moment.
struct Named {
    name: Box<str>,
    next: *mut Named,
}

impl Named {
    /// Copies a name to the heap of the program. Returns `None` if there is no memory.
    fn new(name: &str) -> Option<Box<Named>> {
        let mut copy = String::new();
        copy.try_reserve_exact(name.len()).ok()?;
        copy.push_str(name);
        let mut room = Vec::new();
        room.try_reserve_exact(1).ok()?;
        room.push(Named { name: copy.into_boxed_str(), next: ptr::null_mut() });
        // SAFETY: a slice of one element has the layout of the element.
        Some(unsafe { Box::from_raw(Box::into_raw(room.into_boxed_slice()).cast()) })
    }
}

struct Names(UnsafeCell<*mut Named>);

// SAFETY: only the holder of the cache mutex accesses the list.
unsafe impl Sync for Names {}

static NAMES: Names = Names(UnsafeCell::new(ptr::null_mut()));

impl SlabMutexGuard {
    fn entries(&mut self) -> &mut [Entry; MAX_CACHES] {
        // SAFETY: the mutex is held, and its guard is exclusively borrowed.
        unsafe { &mut *ENTRIES.0.get() }
    }

    fn entry(&mut self, class: Class) -> &mut Entry {
        let number = class.cache_index().unwrap_or(0);
        &mut self.entries()[number]
    }

    /// Adds `more` to the number of caches that share a class.
    fn change_references(&mut self, class: Class, more: isize) {
        let entry = self.entry(class);
        entry.references = entry.references.saturating_add_signed(more);
        let references = entry.references;
        if let Some(number) = class.cache_index() {
            stats::publish_sharers(number, references);
        }
    }

    /// Returns the link to the first name that `is_it` accepts, or else the link that ends the
    /// list.
    fn find(&mut self, is_it: impl Fn(&Named) -> bool) -> *mut *mut Named {
        let mut link = NAMES.0.get();
        // SAFETY: the mutex is held, and names in the list are valid.
        unsafe {
            while !(*link).is_null() && !is_it(&**link) {
                link = &raw mut (**link).next;
            }
        }
        link
    }
}

/// The description of a cache to create.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder<'a> {
    name: &'a str,
    layout: Layout,
    flags: CacheFlags,
    constructor: Option<fn(NonNull<u8>)>,
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

/// A cache of objects of one layout.
///
/// ```
/// use alloc_core::cache::Cache;
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
/// # let cache = alloc_core::cache::Cache::builder("gone", layout).build().unwrap();
/// cache.destroy().unwrap();
/// let _ = cache.alloc();
/// ```
///
/// Dropping a cache destroys it. If objects are still in use, it prints a warning to stderr, and
/// their memory is leaked.
pub struct Cache {
    class: Class,
    /// Bytes to zero in an object that is allocated.
    zeroed: usize,
    named: *mut Named,
    layout: Layout,
    flags: CacheFlags,
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
    /// Returns a builder of a cache for objects of `layout`.
    pub fn builder(name: &str, layout: Layout) -> Builder<'_> {
        Builder { name, layout, flags: CacheFlags::default(), constructor: None }
    }

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
            Some(object) => Ok(self.prepared(objects::checked_out(object, self.class))),
            None => alloc_slow(self.class).map(|object| self.prepared(object)),
        }
    }

    /// Allocates an object without ever waiting. Returns `None` when only waiting could provide an
    /// object, or when there is none.
    #[inline(always)]
    #[must_use]
    pub fn alloc_nolock(&self) -> Option<NonNull<u8>> {
        match NonNull::new(percpu::pop(self.class)) {
            Some(object) => Some(self.prepared(objects::checked_out(object, self.class))),
            None => alloc_slow_nolock(self.class).map(|object| self.prepared(object)),
        }
    }

    #[inline(always)]
    fn prepared(&self, object: NonNull<u8>) -> NonNull<u8> {
        watch::allocated(object.as_ptr(), self.layout.size(), WATCHED && self.keeps_contents());
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
        objects::checked_in(object, self.class);
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
        objects::checked_in(object, self.class);
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
            self.prepared(objects::checked_out(object, self.class));
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
            objects.iter().for_each(|object| objects::checked_in(*object, self.class));
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
    Context::enter(|context| objects::alloc_object(context, class))
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
    Context::enter(|context| unsafe { objects::alloc_bulk(context, class, to, len) })
}

/// # Safety
/// As [`Cache::free_bulk`], for objects of `class`.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_bulk_slow(class: Class, objects: &[*mut u8]) {
    // SAFETY: the caller guarantees live objects of `class`, each listed once.
    Context::enter(|context| unsafe { objects::free_bulk(context, class, objects) });
}

/// A cache of values of one type, each owned by a [`CacheBox`].
///
/// ```
/// use alloc_core::cache::TypedCache;
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
    fn objects_come_and_go() {
        let cache = Cache::builder("roads", Layout::new::<[usize; 3]>())
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
