//! The cache mutex and the state that it guards: the names of all caches and the classes in use.
//!
//! Only the guard of the mutex gives access to the list of names and to the properties of classes.
//! A [`Cache`](super::Cache) also points to its own name, which no one changes.

extern crate std;

use core::cell::UnsafeCell;
use core::ptr;
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

use crate::cpu::CpusReadGuard;
use crate::path::objects;
use crate::size_class::{Class, MAX_CACHES};
use crate::stats;
use crate::sync::{ControlGuard, ControlMutex, LockClass};

/// Serialises changes to the set of caches, and waits for deferred frees. (`slab_mutex`.)
static SLAB_MUTEX: ControlMutex = ControlMutex::new(LockClass::SlabMutex);

/// A guard of the cache mutex.
#[derive(Debug)]
pub(crate) struct SlabMutexGuard {
    _guard: ControlGuard,
}

/// Acquires the cache mutex. The order, after the hotplug lock, is fixed by the argument: in the
/// other order, a thread that changes CPUs and one that changes caches could deadlock.
#[inline]
pub(crate) fn slab_mutex(_cpus: &CpusReadGuard) -> SlabMutexGuard {
    SlabMutexGuard { _guard: SLAB_MUTEX.lock() }
}

/// Acquires the cache mutex for a caller that does not acquire the hotplug lock while it holds the
/// mutex, so the order does not matter.
pub(crate) fn slab_mutex_alone() -> SlabMutexGuard {
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
pub(crate) fn defer_free_barrier(_caches: &SlabMutexGuard, cpus: &CpusReadGuard) {
    // The boot list still has the blocks deferred before there were CPUs, if no CPU thread could be
    // created.
    objects::deferred_barrier(None);
    for cpu in cpus.online() {
        objects::deferred_barrier(Some(cpu));
    }
}

/// Resets the cache mutex in a fork child: nobody except this thread can hold it.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(crate) unsafe fn in_child() {
    // SAFETY: the caller guarantees that this is the child of a fork, with one thread.
    unsafe { SLAB_MUTEX.reset_in_child() };
}

/// Properties of a cache's class, guarded by the cache mutex.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Number of caches that share the class; 0 if the class is unused.
    pub(super) references: usize,
    /// Bytes of an object.
    pub(super) size: usize,
    /// Bytes from one object to the next.
    pub(super) stride: usize,
    /// Whether other caches may share the class.
    pub(super) mergeable: bool,
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
pub(super) struct Named {
    pub(super) name: Box<str>,
    pub(super) next: *mut Named,
}

impl Named {
    /// Copies a name to the heap of the program. Returns `None` if there is no memory.
    pub(super) fn new(name: &str) -> Option<Box<Named>> {
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
    #[inline]
    pub(super) fn entries(&mut self) -> &mut [Entry; MAX_CACHES] {
        // SAFETY: the mutex is held, and its guard is exclusively borrowed.
        unsafe { &mut *ENTRIES.0.get() }
    }

    #[inline]
    pub(super) fn entry(&mut self, class: Class) -> &mut Entry {
        let number = class.cache_index().unwrap_or(0);
        &mut self.entries()[number]
    }

    /// Adds `more` to the number of caches that share a class.
    pub(super) fn change_references(&mut self, class: Class, more: isize) {
        let entry = self.entry(class);
        entry.references = entry.references.saturating_add_signed(more);
        let references = entry.references;
        if let Some(number) = class.cache_index() {
            stats::publish_sharers(number, references);
        }
    }

    /// Returns the link to the first name that `is_it` accepts, or else the link that ends the
    /// list.
    pub(super) fn find(&mut self, is_it: impl Fn(&Named) -> bool) -> *mut *mut Named {
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
