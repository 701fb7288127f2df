//! Sheaves: a stack of free objects per CPU and class, used without taking a lock.
//!
//! The stacks lie in regions of `1 << REGION_SHIFT` bytes, one for each CPU the kernel may ever
//! have. All regions are reserved at once; each is committed when its CPU is first used. `arch`
//! describes their format. Two backends operate them:
//!
//! - *rseq*: restartable sequences, on threads that the C library or this allocator has registered.
//!   On a thread without a registration every operation misses, and the thread works on barn and
//!   slabs.
//! - *locked*: a try-lock per CPU, for kernels without rseq, other architectures, and Miri.
//!
//! The fast path, [`pop`] and [`push`], does not look at the backend: it is that of rseq, and
//! misses while rseq is not in use. A slow path asks for the [`backend`] and works through it.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | this one | the operations of slow paths: each is a `match` over the backends |
//! | `remote` | closing and flushing the sheaves of any CPU |
//! | `rseq` `locked` | the backends |
//! | `select` | the selection of the backend; registration of threads |
//! | `observed` | classes of which slow paths see each free |
//! | `events` `allowance` | counters, and bytes of middle sizes, per CPU |
//! | `region` | regions: reserved, committed, found by CPU |
//! | `layout` | offsets in a region, headers of sheaves |

mod allowance;
mod events;
mod layout;
mod locked;
mod observed;
mod region;
mod remote;
mod rseq;
mod select;

use core::sync::atomic::Ordering;

use crate::batch::{Batch, MAX_BATCH};
use crate::fault::{self, Place};
use crate::sampling;
use crate::size_class::Class;
use crate::sync::{LockClass, RawLock};
pub(crate) use allowance::{refund, set_allowance, spend};
pub(crate) use events::{allocated_without_region, count, count_beyond, counted, hits, random};
pub(crate) use layout::{Due, Event, MAX_CACHE_BATCH, batch_len, batch_len_for, capacity};
use layout::{all_classes, first_width, floor, header_halves, index};
pub(crate) use locked::is_on_top;
pub(crate) use observed::observe;
use region::{CLOSING, region_of};
pub(crate) use region::{cpu, own_memory, regions};
pub(crate) use remote::{close, flush, flush_all, flush_unused, open};
pub(crate) use rseq::{pop, pop_bulk, push, push_bulk, push_once};
use select::is_locked;
pub(crate) use select::{Backend, backend};

/// Configures a cache class's sheaves for objects of `size` bytes and resets its event counters. A
/// sheaf left open by the class's previous owner keeps its width until it is next closed; that is
/// safe, since a width never exceeds the words reserved for the sheaf.
///
/// # Safety
/// The class is one of an object cache, and nobody uses it: its sheaves are empty.
pub(crate) unsafe fn define(class: Class, size: usize) {
    layout::define(class, size);
    events::reset(class);
}

/// The operations of slow paths. While no backend is selected, they miss as those of rseq do.
impl Backend {
    /// As the function [`pop`], through this backend.
    pub(crate) fn pop(self, class: Class) -> *mut u8 {
        match self {
            Backend::Locked => locked::pop(class),
            _ => rseq::pop(class),
        }
    }

    /// Grants the header of this CPU's sheaf another count if the present one is below `least`.
    /// Returns what was due then.
    pub(crate) fn count_anew(self, class: Class, least: usize) -> Due {
        let Some(base) = region_of(cpu()) else { return Due::Nothing };
        // SAFETY: `base` is the region of a CPU.
        let [first, _] = unsafe { header_halves(base, class) };
        // If the thread moves on, the count of the other CPU is exchanged although it is not used
        // up, which changes neither its mean nor the sum of all counts.
        if layout::count(first.load(Ordering::Relaxed)) as usize >= least {
            return Due::Nothing;
        }
        match self {
            Backend::Locked => locked::count_anew(class),
            _ => rseq::count_anew(class),
        }
    }

    /// As the function [`push`], through this backend.
    ///
    /// # Safety
    /// As [`push`].
    pub(crate) unsafe fn push(self, class: Class, object: *mut u8) -> bool {
        // SAFETY: the caller guarantees that the object is of `class` and unused.
        unsafe {
            match self {
                Backend::Locked => locked::push(class, object),
                _ => rseq::push(class, object),
            }
        }
    }

    /// Pushes as many objects of the batch as fit onto this CPU's sheaf and drops these from the
    /// batch. Opens the sheaf if it is closed.
    ///
    /// # Safety
    /// The objects are of that class and nobody uses them.
    pub(crate) unsafe fn fill(self, class: Class, batch: &mut Batch) {
        fault::point(Place::SheafFilling);
        // SAFETY: the caller guarantees that the objects are of `class` and unused.
        let moved = unsafe {
            match self {
                Backend::Locked => locked::fill(class, batch.objects()),
                _ => rseq::fill(class, batch.objects()),
            }
        };
        batch.skip_first(moved);
    }

    /// Doubles the width of this CPU's sheaf, up to its capacity, after it proved too small.
    /// Returns the number of objects to move at once from now on: half the new width. So a class
    /// that is used once keeps few objects in its sheaf, and a busy class many. The sheaf of an
    /// observed class stays as it is.
    pub(crate) fn widen(self, class: Class) -> usize {
        let width = match self {
            _ if observed::is_observed(class) => None,
            Backend::Locked => locked::widen(class),
            _ => rseq::widen(class),
        };
        (width.map_or(first_width(class), |width| width as usize) / 2).max(1)
    }

    /// Moves up to `len` objects of this CPU's sheaf into an empty batch, without counting them.
    pub(crate) fn drain(self, class: Class, batch: &mut Batch, len: usize) {
        // SAFETY: both `drain` functions write the number of objects that they return.
        unsafe {
            batch.fill_with(len, |to, len| match self {
                Backend::Locked => locked::drain(class, to, len),
                _ => rseq::drain(class, to, len),
            });
        }
        if sampling::has_apart() {
            sampling::free_among(batch);
        }
        fault::point(Place::SheafDrained);
    }

    /// Frees sampled blocks at the top of this CPU's sheaf, which hide other objects from a pop.
    /// May leave an object in the empty batch `rest` that no longer fits into the sheaf.
    pub(crate) fn free_sampled(self, class: Class, rest: &mut Batch) {
        // A bound, for where the lock of the fallback is held by the thread that this one
        // interrupted.
        for _ in 0..MAX_BATCH {
            if rest.len() > 0 || held(cpu(), class) == 0 {
                break;
            }
            self.drain(class, rest, 1);
        }
        if rest.len() > 0 {
            // SAFETY: the object has just left the sheaf of `class`.
            unsafe { self.fill(class, rest) };
        }
    }
}

/// Visits every lock of this layer.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::Closing, CLOSING.raw());
    if is_locked() {
        locked::for_each_lock(visit);
    }
}

/// Resets the selection of the backend and the regions in a fork child, where no CPU is offline.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(crate) unsafe fn without_cpus() {
    select::in_child();
    // SAFETY: the caller guarantees that this is the child of a fork, with one thread.
    unsafe { remote::in_child() };
}

/// Returns whether any sheaf holds objects on a CPU: a guess while they are in use.
pub(crate) fn has_any(cpu: usize) -> bool {
    all_classes().any(|class| held(cpu, class) > 0)
}

/// Returns the number of objects in the sheaf of a class on a CPU: a guess while it is in use.
pub(crate) fn held(cpu: usize, class: Class) -> usize {
    let Some(base) = region_of(cpu) else { return 0 };
    // SAFETY: `base` is the region of a CPU.
    let [top, _] = unsafe { header_halves(base, class) };
    index(top.load(Ordering::Relaxed)).saturating_sub(floor(class)) as usize
}
