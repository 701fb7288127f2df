//! Object caches: objects of one kind, cut, kept and given back together. (`mm/slab_common.c` of Linux.)
//!
//! A [`Cache`] has a class of its own, whose objects take the same road as those of `kmalloc`: a sheaf per CPU, a barn, slabs.
//! What a constructor made of an object is kept while it is free. So is what readers of [`rcu`] may still look at:
//! the word that links a free object into a list lies behind it, which costs each object of a cache 8 bytes.
//!
//! Caches of like objects share a class, unless something about one of them is special; what is counted then is the *alias*.
//!
//! # The order of destruction
//!
//! 1. wait for frees that wait for readers;
//! 2. keep CPUs from coming and going;
//! 3. take the cache mutex;
//! 4. wait for deferred frees, which needs both: the wait is in a place for one waiter, and goes through the CPUs online;
//! 5. drop the reference; who shares the class with others is done here;
//! 6. take what sheaves and barns hold to the slabs, and these back to pages;
//! 7. refuse, with the cache as it was, if the program has objects still.
//!
//! Once the kernel waited for deferred frees (4) first, and two that destroyed caches at once could lose a wake-up:
//! `models/irq_work.rs` shows it.
//!
//! This file may touch everything in the crate. It is of the control plane: it allocates and sleeps, but for allocating and
//! freeing objects.

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

/// Serialises what changes the set of caches, and those who wait for deferred frees. (`slab_mutex`.)
static SLAB_MUTEX: ControlMutex = ControlMutex::new(LockClass::SlabMutex);

/// The cache mutex, held.
#[derive(Debug)]
struct SlabMutexGuard {
    _guard: ControlGuard,
}

/// Takes the cache mutex. In this order, after the hotplug lock: the other way round, who changes CPUs and who changes
/// caches could wait for each other.
fn slab_mutex(_cpus: &CpusReadGuard) -> SlabMutexGuard {
    SlabMutexGuard { _guard: SLAB_MUTEX.lock() }
}

/// Whether the cache mutex is held, at the time of asking.
pub(crate) fn mutex_is_held() -> bool {
    SLAB_MUTEX.is_held()
}

/// Waits until all that was deferred before this call is freed.
///
/// It empties the list of each CPU by itself, because whoever added the first block to a list may be stopped before it
/// queued the CPU's irq work, for as long as a thread can be stopped. Then it waits for the irq work, in a place for one
/// waiter: two callers at once would lose a wake-up, and one of them sleep for ever. So it asks for the mutex, and because a
/// CPU that comes or goes moves its list, for the hotplug lock, by type. (`defer_free_barrier` of `mm/slub.c`, which took
/// neither.)
fn defer_free_barrier(_caches: &SlabMutexGuard, cpus: &CpusReadGuard) {
    // What was deferred before there were CPUs is there still, if none could be had.
    objects::deferred_barrier(None);
    for cpu in cpus.online() {
        objects::deferred_barrier(Some(cpu));
    }
}

/// Waits until all that was freed before this call, in whatever context, is free in earnest: nothing is put off any more.
/// Starts the machine (see [`cpu`]). Not for handlers.
pub fn barrier() {
    let cpus = cpu::read_lock();
    let caches = slab_mutex(&cpus);
    defer_free_barrier(&caches, &cpus);
}

/// Gives all memory back to the system that no object in use needs: what CPUs and nodes keep goes to the slabs, empty slabs and
/// free pages to the system; how many bytes that are, of which some may never have been touched. Empty slabs of a cache with [`CacheFlags::TYPESAFE_BY_RCU`] stay: see
/// [`Cache::shrink`]. Not for handlers. (`malloc_trim`.)
pub fn trim() -> usize {
    let _caches = SLAB_MUTEX.lock();
    rcu::setting_aside(|| objects::trim(rcu::set_aside))
}

/// Ends a window of decay: what was not needed since the one before goes a step further towards the system, as it does after
/// a third of `HAYLOFT_DECAY_MS`. Whether there is more to be given back. For tests, which should not depend on time.
#[cfg(feature = "fault-points")]
pub fn end_window() -> bool {
    objects::end_window_now()
}

/// As [`end_window`], but returns what is due to the system in `slices` parts, one after the other,
/// as the thread does in the course of a window. Calls `between` after each. For tests.
#[cfg(feature = "fault-points")]
pub fn end_window_in_slices(slices: u32, between: impl FnMut()) {
    objects::end_window_in_slices(slices, between);
}

/// In the child of a fork: nobody has the cache mutex but this thread.
pub(crate) fn in_child() {
    SLAB_MUTEX.reset_in_child();
}

/// What is special about a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFlags(u32);

impl CacheFlags {
    /// Shares its class with no other cache. (`SLAB_NO_MERGE`.)
    pub const NO_MERGE: CacheFlags = CacheFlags(1);
    /// Memory of an object stays memory of such an object, free or not, as long as a reader of [`rcu`] might look
    /// at it; the object itself may be allocated again at once. Not merged. (`SLAB_TYPESAFE_BY_RCU`.)
    pub const TYPESAFE_BY_RCU: CacheFlags = CacheFlags(2);
    /// Objects read as zero when they are allocated. (`__GFP_ZERO`.)
    pub const ZERO: CacheFlags = CacheFlags(4);
    /// Objects start on a cache line, or on the part of one that they fill. (`SLAB_HWCACHE_ALIGN`.)
    pub const HWCACHE_ALIGN: CacheFlags = CacheFlags(8);
    /// [`Cache::destroy`] panics if there are objects in use, instead of refusing.
    pub const PANIC_ON_LEAK: CacheFlags = CacheFlags(16);

    /// Whether all of `flags` are among these.
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

/// Why a cache was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// Objects of size 0 need no cache.
    ZeroSize,
    /// An object with the word behind it is larger than 32 KiB, or aligned to more than 4096 bytes.
    TooLarge,
    /// The name is empty.
    NoName,
    /// Another cache has that name, or it starts with `kmalloc-`, as those of size classes do.
    NameTaken,
    /// [`CacheFlags::ZERO`] would undo what a constructor made, or what readers look at.
    Contradiction,
    /// There are 255 caches that share nothing.
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

/// Why a cache was not destroyed; it is as it was.
pub struct DestroyError {
    cache: Cache,
    objects: Vec<NonNull<u8>>,
}

// SAFETY: the addresses are only told.
unsafe impl Send for DestroyError {}
// SAFETY: as above.
unsafe impl Sync for DestroyError {}

impl DestroyError {
    /// How many objects the program has; 0 where the kernel (before 5.10, or on CPUs that this thread may not run on) cannot take
    /// objects from the sheaves of other CPUs. Where memory is short, those that there was room to list.
    #[must_use]
    pub fn live(&self) -> usize {
        self.objects.len()
    }

    /// Their addresses.
    #[must_use]
    pub fn objects(&self) -> &[NonNull<u8>] {
        &self.objects
    }

    /// The cache, which works on.
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

/// What is known of the class of a cache, under the cache mutex.
#[derive(Clone, Copy)]
struct Entry {
    /// Caches that share the class; 0 where it is nobody's.
    references: usize,
    /// Bytes that objects have, and from one to the next.
    size: usize,
    stride: usize,
    /// Others may share the class.
    mergeable: bool,
}

struct Entries(UnsafeCell<[Entry; MAX_CACHES]>);

// SAFETY: used by who has the cache mutex.
unsafe impl Sync for Entries {}

static ENTRIES: Entries = {
    const NOBODYS: Entry = Entry { references: 0, size: 0, stride: 0, mergeable: false };
    Entries(UnsafeCell::new([NOBODYS; MAX_CACHES]))
};

/// A name in the list of all. It is linked and unlinked by one store each, so that a fork at any moment leaves it whole.
struct Named {
    name: Box<str>,
    next: *mut Named,
}

impl Named {
    /// On the heap of the program; `None` where there is no memory.
    fn new(name: &str) -> Option<Box<Named>> {
        let mut copy = String::new();
        copy.try_reserve_exact(name.len()).ok()?;
        copy.push_str(name);
        let mut room = Vec::new();
        room.try_reserve_exact(1).ok()?;
        room.push(Named { name: copy.into_boxed_str(), next: ptr::null_mut() });
        // SAFETY: a slice of one has the layout of that one.
        Some(unsafe { Box::from_raw(Box::into_raw(room.into_boxed_slice()).cast()) })
    }
}

struct Names(UnsafeCell<*mut Named>);

// SAFETY: used by who has the cache mutex.
unsafe impl Sync for Names {}

static NAMES: Names = Names(UnsafeCell::new(ptr::null_mut()));

impl SlabMutexGuard {
    fn entries(&mut self) -> &mut [Entry; MAX_CACHES] {
        // SAFETY: the mutex is held, and its guard borrowed.
        unsafe { &mut *ENTRIES.0.get() }
    }

    fn entry(&mut self, class: Class) -> &mut Entry {
        let number = class.cache_index().unwrap_or(0);
        &mut self.entries()[number]
    }

    /// So many more caches share a class.
    fn change_references(&mut self, class: Class, more: isize) {
        let entry = self.entry(class);
        entry.references = entry.references.saturating_add_signed(more);
        let references = entry.references;
        if let Some(number) = class.cache_index() {
            stats::publish_sharers(number, references);
        }
    }

    /// The link that names `name`, or that which ends the list.
    fn find(&mut self, is_it: impl Fn(&Named) -> bool) -> *mut *mut Named {
        let mut link = NAMES.0.get();
        // SAFETY: the mutex is held; names in the list are valid.
        unsafe {
            while !(*link).is_null() && !is_it(&**link) {
                link = &raw mut (**link).next;
            }
        }
        link
    }
}

/// Describes a cache that is to be made.
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

    /// Has each object made by `constructor` when its slab is, once; who frees an object leaves it in the state in which the
    /// constructor did. It may run in whatever context allocates. Not merged.
    pub fn ctor(mut self, constructor: fn(NonNull<u8>)) -> Self {
        self.constructor = Some(constructor);
        self
    }

    /// Makes the cache. Starts the machine (see [`cpu`]).
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
        // SAFETY: a link of the list, and the mutex is held.
        if unsafe { !(*end).is_null() } {
            return Err(CacheError::NameTaken);
        }
        // A class will do whose objects are as long and as aligned, and waste less than a word more.
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
            // SAFETY: the class is nobody's.
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
        // SAFETY: as above.
        unsafe { *end = named };
        let zeroed = if flags.contains(CacheFlags::ZERO) { layout.size() } else { 0 };
        Ok(Cache { class, zeroed, named, layout, flags })
    }
}

/// Bytes of an object up to the word that links it, from one object to the next, and their alignment; `None` for what is too
/// large.
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
/// // SAFETY: allocated just now from this cache, and not used any more.
/// unsafe { cache.free(packet) };
/// cache.destroy()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A cache that is destroyed cannot be used, nor destroyed again:
///
/// ```compile_fail,E0382
/// # let cache = alloc_core::cache::Cache::builder("gone", std::alloc::Layout::new::<u64>()).build().unwrap();
/// cache.destroy().unwrap();
/// let _ = cache.alloc();
/// ```
///
/// Dropping a cache destroys it; if objects are in use still, it says so on stderr, and leaves them their memory for good.
pub struct Cache {
    class: Class,
    /// Bytes to be zeroed in an object that is allocated.
    zeroed: usize,
    named: *mut Named,
    layout: Layout,
    flags: CacheFlags,
}

// SAFETY: objects are handed out to one caller each, whichever thread it is on; the name is only read.
unsafe impl Send for Cache {}
// SAFETY: as above.
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
    /// Describes a cache of objects of `layout`.
    pub fn builder(name: &str, layout: Layout) -> Builder<'_> {
        Builder { name, layout, flags: CacheFlags::default(), constructor: None }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        // SAFETY: the name is there as long as the cache is, and not written.
        unsafe { &(*self.named).name }
    }

    /// The layout that it was made for.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether who frees an object has to leave it in a certain state.
    pub(crate) fn keeps_contents(&self) -> bool {
        slab::shape(self.class).keeps_contents()
    }

    /// Allocates an object. In a signal handler too; then it does what [`Cache::alloc_nolock`] does.
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

    /// Allocates an object without ever waiting; `None` when it could only be had by waiting, or not at all.
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
            // SAFETY: the object has room for the layout.
            unsafe { object.write_bytes(0, self.zeroed) };
        }
        object
    }

    /// Frees an object. In a signal handler too.
    ///
    /// # Safety
    /// The object is of this cache and nobody uses it any more. In debug builds one of another class, or one that is free
    /// already, ends the process with a message.
    #[inline(always)]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        let object = object.as_ptr();
        objects::checked_in(object, self.class);
        // SAFETY: the caller's promise.
        unsafe {
            if !percpu::push(self.class, object) {
                objects::free_slow(self.class, object);
            }
        }
    }

    /// Frees an object without ever waiting: what cannot be freed now is freed later.
    ///
    /// # Safety
    /// As [`Cache::free`].
    #[inline(always)]
    pub unsafe fn free_nolock(&self, object: NonNull<u8>) {
        let object = object.as_ptr();
        objects::checked_in(object, self.class);
        // SAFETY: the caller's promise.
        unsafe {
            if !percpu::push(self.class, object) {
                Context::without_waiting(|| objects::free_slow(self.class, object));
            }
        }
    }

    /// Allocates as many objects as there is room for; how many there were. Fewer only where there is no memory, or the
    /// constructor panics.
    pub fn alloc_bulk(&self, room: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let to: *mut *mut u8 = room.as_mut_ptr().cast();
        // SAFETY: the room is writable for its length; a pointer to an object is not null.
        let mut count = unsafe { percpu::pop_bulk(self.class, to, room.len()) };
        if count < room.len() {
            // SAFETY: as above, for the rest.
            count += unsafe { alloc_bulk_slow(self.class, to.add(count), room.len() - count) };
        }
        for object in room.iter().take(count) {
            // SAFETY: written above.
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
        // SAFETY: a pointer that is not null is a pointer.
        let objects: &[*mut u8] = unsafe { mem::transmute(objects) };
        if cfg!(debug_assertions) || WATCHED {
            objects.iter().for_each(|object| objects::checked_in(*object, self.class));
        }
        // SAFETY: the caller's promise.
        unsafe {
            let count = percpu::push_bulk(self.class, objects);
            if count < objects.len() {
                free_bulk_slow(self.class, &objects[count..]);
            }
        }
    }

    /// Frees an object once all readers of before are gone; until then it stays as it is. Does not wait, in any context.
    ///
    /// # Safety
    /// As [`Cache::free`], but for readers of [`rcu`], and no reader that comes now can find the object.
    #[inline]
    pub unsafe fn free_rcu(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { rcu::free(self.class, object.as_ptr()) };
    }

    /// As [`Cache::free_rcu`], without ever waiting for a lock.
    ///
    /// # Safety
    /// As [`Cache::free_rcu`].
    pub unsafe fn free_rcu_nolock(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        Context::without_waiting(|| unsafe { rcu::free(self.class, object.as_ptr()) });
    }

    /// Gives memory back that no object in use needs: takes what CPUs and nodes keep to the slabs, and empty slabs back to
    /// pages; how many bytes these had. With [`CacheFlags::TYPESAFE_BY_RCU`] it waits for readers. (`kmem_cache_shrink`.)
    pub fn shrink(&self) -> usize {
        let cpus = cpu::read_lock();
        let _caches = slab_mutex(&cpus);
        objects::flush(self.class);
        self.shed()
    }

    /// Gives empty slabs back.
    fn shed(&self) -> usize {
        objects::shed(self.class, || {
            if self.flags.contains(CacheFlags::TYPESAFE_BY_RCU) {
                rcu::synchronize();
            }
        })
    }

    /// What there is of this cache, and of those that it shares a class with. In any context. (`/proc/slabinfo`.)
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let stats = stats::of_class(self.class).unwrap_or_default();
        CacheStats { name: Name::new(self.name()), object_size: self.layout.size(), ..stats }
    }

    /// Destroys the cache, in the order that this module tells. Objects that were freed before by whatever road are free in
    /// the end. Nobody uses the cache meanwhile, which its being taken here ensures. Not for readers and handlers.
    ///
    /// # Errors
    /// If the program has objects of this cache still, and no other cache shares its class: how many, and which.
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

    /// Ends the cache, or says which objects are in use: none of them where sheaves could not be flushed.
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
        // SAFETY: the mutex is held; the name is in the list, and nobody else's once it is not.
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
    // SAFETY: the caller's promise.
    Context::enter(|context| unsafe { objects::alloc_bulk(context, class, to, len) })
}

/// # Safety
/// As [`Cache::free_bulk`], for objects of `class`.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_bulk_slow(class: Class, objects: &[*mut u8]) {
    // SAFETY: the caller's promise.
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
    /// Makes a cache for values of type `T`.
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

    /// Puts a value in an object of the cache.
    ///
    /// # Errors
    /// If there is no memory; the value comes back.
    #[inline(always)]
    pub fn alloc(&self, value: T) -> Result<CacheBox<'_, T>, (AllocError, T)> {
        match self.cache.alloc() {
            Ok(object) => {
                let value_at: NonNull<T> = object.cast();
                // SAFETY: an object of the layout of `T`, and the caller's alone.
                unsafe { value_at.write(value) };
                Ok(CacheBox { value: value_at, cache: self, _owned: PhantomData })
            }
            Err(error) => Err((error, value)),
        }
    }

    /// The cache itself.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Destroys the cache. All boxes are gone, since they borrow it; only those that were forgotten are in use.
    ///
    /// # Errors
    /// As [`Cache::destroy`].
    pub fn destroy(self) -> Result<(), DestroyError> {
        self.cache.destroy()
    }
}

/// A value in an object of a [`TypedCache`], dropped and freed with this.
pub struct CacheBox<'a, T> {
    value: NonNull<T>,
    cache: &'a TypedCache<T>,
    _owned: PhantomData<T>,
}

// SAFETY: the box owns its value, and the cache can be used from any thread.
unsafe impl<T: Send> Send for CacheBox<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for CacheBox<'_, T> {}

impl<T> CacheBox<'_, T> {
    /// Takes the value out, and frees the object.
    #[must_use]
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the value is moved out, and the object not used any more.
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
        // SAFETY: the box owns the value, and is the last to use the object.
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
        // SAFETY: an object of three words.
        unsafe { object.cast::<[usize; 3]>().write([1, 2, 3]) };
    }

    /// Objects come and go by every road, in a cache of whose objects nothing may be touched while they are free.
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
            // SAFETY: all are written.
            let objects = room.map(|object| unsafe { object.assume_init() });
            // SAFETY: objects of this cache, freed once; constructed.
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
            // SAFETY: as above.
            unsafe { cache.free_nolock(object) };
        }
        let error = {
            let object = cache.alloc().unwrap();
            let error = cache.destroy().unwrap_err();
            assert_eq!(error.objects(), [object]);
            error
        };
        let (object, cache) = (error.objects()[0], error.into_cache());
        // SAFETY: as above.
        unsafe { cache.free(object) };
        cache.destroy().unwrap();
    }
}
