//! Slabs: runs cut into objects of one class, with a free bit per object.
//!
//! This file holds the slabs of a class on a node: their lock, the slabs that arrive while the lock
//! is busy, and the counts that are read without it. The table lists the modules below this file
//! from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `partial` | the lists of partial slabs |
//! | `emptied` `lent` `check` | empty slabs off the lists; slabs being punched; debug checks |
//! | `descriptor` | the metadata of a slab |
//! | `bitmap` | the free objects of a slab |
//! | `shape` | layout and policy of the slabs of a class |
//! | `lists` `entry` `middle` | numbers of lists; what C's `free` reads; states of middle sizes |
//!
//! *Arrival.* A new slab is private to its maker until it *arrives* at the lists, after its maker
//! has cut objects from it. The maker lists it at once. If the lock is busy and the maker must not
//! wait, it queues the slab as an arrival, and the next holder of the lock lists it. Until then the
//! slab is not freed, even if it is empty.
//!
//! *Locking.* A descriptor is read and written under the lock of its [`Slabs`]. The exception is
//! `identity`, which does not change while objects of the slab are out.

mod bitmap;
#[cfg(debug_assertions)]
mod check;
mod descriptor;
mod emptied;
mod entry;
mod lent;
mod lists;
mod middle;
mod partial;
mod shape;
#[cfg(all(test, not(loom), not(miri)))]
mod testing;

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Llist, Lock, LockClass, const_unless_loom};
pub(crate) use descriptor::{Misuse, Slab};
pub(crate) use emptied::Emptied;
pub(crate) use entry::Entry;
pub(crate) use entry::{CLASS, IN_UNIT};
pub(crate) use lists::LISTS;
pub(crate) use partial::Counts;
use partial::Partial;
pub(crate) use shape::{MIN_EMPTY, Shape, define, shape};

/// The slabs of a class on a node. (`kmem_cache_node` of `mm/slub.c`, without its barn.)
pub(crate) struct Slabs {
    partial: Lock<Partial>,
    arrivals: Llist<Slab>,
    counts: PublicCounts,
}

/// A copy of the [`Counts`], as of the last release of the lock, for reading without the lock.
/// Nothing relies on it, so loom need not know its atomics.
struct PublicCounts {
    slabs: AtomicUsize,
    partial: AtomicUsize,
    free: AtomicUsize,
}

impl PublicCounts {
    const fn new() -> PublicCounts {
        PublicCounts {
            slabs: AtomicUsize::new(0),
            partial: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
        }
    }
}

/// The partial slabs under their lock. Publishes the counts when it is dropped.
pub(crate) struct Held<'a> {
    partial: Guard<'a, Partial>,
    counts: &'a PublicCounts,
}

impl Deref for Held<'_> {
    type Target = Partial;

    fn deref(&self) -> &Partial {
        &self.partial
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Partial {
        &mut self.partial
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Counts { slabs, partial, free } = self.partial.counts();
        // Relaxed: nothing relies on the copy. The lock is still held.
        self.counts.slabs.store(slabs, Ordering::Relaxed);
        self.counts.partial.store(partial, Ordering::Relaxed);
        self.counts.free.store(free, Ordering::Relaxed);
    }
}

impl Slabs {
    const_unless_loom! {
        pub(crate) const fn new() -> Slabs {
            Slabs {
                partial: Lock::new(LockClass::Slabs, Partial::new()),
                arrivals: Llist::new(),
                counts: PublicCounts::new(),
            }
        }
    }

    /// Returns the counts as of the last release of the lock. Any context.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            slabs: self.counts.slabs.load(Ordering::Relaxed),
            partial: self.counts.partial.load(Ordering::Relaxed),
            free: self.counts.free.load(Ordering::Relaxed),
        }
    }

    /// Locks the partial slabs, and lists the slabs that arrived meanwhile. Returns `None` if the
    /// lock is busy and the context must not wait, or if a fork abandoned the lock.
    pub(crate) fn lock(&self, context: Context) -> Option<Held<'_>> {
        let mut partial = Held { partial: self.partial.acquire(context)?, counts: &self.counts };
        for slab in self.arrivals.take() {
            counters::wrote(Line::Arrivals, 1);
            // SAFETY: arrivals are slabs of this class and node, and the lock is held.
            unsafe { partial.add(slab) };
        }
        Some(partial)
    }

    pub(crate) fn raw(&self) -> &RawLock {
        self.partial.raw()
    }

    /// Lists a new slab at once, or if the lock is busy and the context must not wait, when the
    /// lock is acquired next.
    ///
    /// # Safety
    /// The slab is new, of this class and node, and the caller no longer uses it.
    pub(crate) unsafe fn arrive(&self, context: Context, slab: *mut Slab) {
        let listed = self.lock(context);
        // SAFETY: the caller guarantees that the slab is new, and of this class and node.
        unsafe {
            match listed {
                Some(mut partial) => partial.add(slab),
                None => {
                    counters::wrote(Line::Arrivals, 1);
                    self.arrivals.add(slab);
                }
            }
        }
    }
}
