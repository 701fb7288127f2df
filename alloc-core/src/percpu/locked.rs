//! The fallback backend: a try-lock per CPU, for kernels without rseq, other architectures, and
//! Miri.
//!
//! Headers and words are those of the other backend, and change under the lock only. Pushes and
//! pops never wait for it: a signal handler that finds the lock held by the thread it interrupted
//! goes on to barn and slabs. A closer waits for it, if its context may wait.
//!
//! A fork may come between two stores to a header. So a push that opens a sheaf, and a closer,
//! store its halves in such an order that the sheaf is valid in between, or is one that
//! `remote::in_child` repairs.

use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use super::events;
use super::layout::{
    CLOSED, Due, LOCK_OFFSET, WORD, count, first_header, floor, header_halves, index, mark_offset,
    state_word, wider,
};
use super::region::{has_region, region_of, regions};
use crate::arch::{COUNTED, OPEN};
use crate::batch::{Batch, MAX_BATCH};
use crate::fault::{self, Place};
use crate::os;
use crate::sampling::{self, Gap};
use crate::size_class::Class;
use crate::sync::{Context, Guard, Lock, LockClass, RawLock};

/// Pops an object from this CPU's sheaf. Returns null if the sheaf is empty, its count is used up,
/// or its lock is held.
pub(super) fn pop(class: Class) -> *mut u8 {
    Region::lock().map_or(ptr::null_mut(), |region| region.pop(class))
}

/// Grants the header of this CPU's sheaf another count instead of its present one. Returns what was
/// due then: nothing if its lock is held.
pub(super) fn count_anew(class: Class) -> Due {
    Region::lock().map_or(Due::Nothing, |region| region.count_anew(class))
}

/// Pushes an object onto this CPU's sheaf. Returns false if the sheaf is full or its lock is held.
///
/// # Safety
/// The object is of that class and nobody uses it.
pub(super) unsafe fn push(class: Class, object: *mut u8) -> bool {
    // SAFETY: the caller guarantees that the object is of `class` and unused.
    Region::lock().is_some_and(|region| unsafe { region.push(class, object) })
}

/// Pushes the first of `objects` onto this CPU's sheaf, as many as fit. Opens the sheaf if it is
/// closed. Returns the number of objects pushed.
///
/// # Safety
/// The objects are of that class and nobody uses them.
pub(super) unsafe fn fill(class: Class, objects: &[*mut u8]) -> usize {
    has_region(os::current_cpu());
    let region = Region::lock();
    let fits = |object: &&*mut u8| {
        // SAFETY: the caller guarantees that the objects are of `class` and unused.
        region.as_ref().is_some_and(|region| unsafe { region.push(class, **object) })
    };
    objects.iter().take_while(fits).count()
}

/// Pops up to `len` objects from this CPU's sheaf into `to`, without counting them. Returns the
/// number of objects.
///
/// # Safety
/// `to` is writable for `len` pointers.
pub(super) unsafe fn drain(class: Class, to: *mut *mut u8, len: usize) -> usize {
    // SAFETY: the caller guarantees that `to` is writable.
    Region::lock().map_or(0, |region| unsafe { region.drain(class, to, len) })
}

/// Widens this CPU's sheaf. Returns its new width, or `None` if the lock is held or the CPU has no
/// region.
pub(super) fn widen(class: Class) -> Option<u32> {
    Region::lock().map(|region| {
        let floor = floor(class);
        let [_, last] = region.header(class);
        let width = wider(class, last);
        // As with rseq, a closed sheaf stays closed and no sheaf becomes narrower: it may hold
        // objects up to its present end.
        if (1..floor + width).contains(&last.load(Ordering::Relaxed)) {
            last.store(floor + width, Ordering::Relaxed);
        }
        width
    })
}

/// Returns whether an object is one of the topmost two of this CPU's sheaf, on the locked backend.
pub(crate) fn is_on_top(class: Class, object: *mut u8) -> bool {
    Region::lock().is_some_and(|region| region.is_on_top(class, object))
}

/// Closes the region of a CPU and the sheaves of `classes` in it, and passes their objects to
/// `take` in `batch`. Returns false, with all objects in their sheaves still, if the lock of the
/// region is not available in this context.
pub(super) fn close(
    context: Context,
    cpu: usize,
    classes: impl Iterator<Item = Class>,
    batch: &mut Batch,
    mut take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(region) = Region::lock_of(cpu, context) else { return false };
    region.state().store(CLOSED, Ordering::Relaxed);
    for class in classes {
        loop {
            // SAFETY: `drain` writes at most `len` pointers, for which the batch has room.
            unsafe { batch.fill_with(MAX_BATCH, |to, len| region.drain(class, to, len)) };
            if batch.len() == 0 {
                break;
            }
            sampling::free_among(batch);
            fault::point(Place::SheavesClosed);
            take(class, batch);
        }
        // `last` first, as with rseq. The order matters to a fork child created in between, which
        // opens half-closed sheaves: see `remote::in_child`.
        let [top, last] = region.header(class);
        last.store(0, Ordering::Release);
        fault::point(Place::SheavesClosing);
        let first = top.swap(0, Ordering::Release);
        // SAFETY: the region of a CPU.
        unsafe { events::withdrawn(region.base, class, first) };
    }
    true
}

/// Visits the locks of all regions.
pub(super) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: `base` is a committed region, whose lock word starts as zero, a free lock.
        let lock: &Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        visit(LockClass::Sheaves, lock.raw());
    }
}

/// A CPU's region, with its try-lock held.
struct Region {
    base: *mut u8,
    _lock: Guard<'static, ()>,
}

impl Region {
    fn lock() -> Option<Region> {
        let region = Region::lock_of(os::current_cpu(), Context::TRYING)?;
        fault::point(Place::SheavesLocked);
        Some(region)
    }

    fn lock_of(cpu: usize, context: Context) -> Option<Region> {
        let base = region_of(cpu)?;
        // SAFETY: `base` is a committed region, whose lock word starts as zero, a free lock.
        let lock: &'static Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        Some(Region { base, _lock: lock.acquire(context)? })
    }

    /// Returns the word that says whether sheaves may be opened in the region.
    fn state(&self) -> &AtomicUsize {
        // SAFETY: `base` is the region of a CPU.
        unsafe { state_word(self.base) }
    }

    /// Returns the halves of a header, which only the holder of the lock changes.
    fn header(&self, class: Class) -> [&AtomicU32; 2] {
        // SAFETY: `base` is the region of a CPU.
        unsafe { header_halves(self.base, class) }
    }

    /// Returns the address of a word.
    ///
    /// # Safety
    /// `index` lies in the region, as all indices from headers do.
    unsafe fn word(&self, index: u32) -> *mut *mut u8 {
        // SAFETY: the caller guarantees that the word lies in the region.
        unsafe { self.base.add(index as usize * WORD).cast() }
    }

    fn pop(&self, class: Class) -> *mut u8 {
        let [top_at, last_at] = self.header(class);
        let first = top_at.load(Ordering::Relaxed);
        let is_empty = last_at.load(Ordering::Relaxed) == 0 || index(first) == floor(class);
        if is_empty || count(first) == 0 {
            return ptr::null_mut();
        }
        // SAFETY: the lock is held, and the word belongs to the sheaf.
        let object = unsafe { *self.word(index(first)) };
        if sampling::may_own(object) {
            return ptr::null_mut();
        }
        top_at.store(first - COUNTED - 1, Ordering::Relaxed);
        object
    }

    fn count_anew(&self, class: Class) -> Due {
        let [top_at, last_at] = self.header(class);
        let first = top_at.load(Ordering::Relaxed);
        if last_at.load(Ordering::Relaxed) == 0 {
            return Due::Nothing;
        }
        let Gap { count, end } = events::next_gap(class);
        // SAFETY: a byte of the region that is only accessed as an atomic, or by sections.
        let mark_at: &AtomicU8 = unsafe { &*self.base.add(mark_offset(class)).cast() };
        let mark = mark_at.swap(end as u8, Ordering::Relaxed);
        top_at.store(index(first) + count * COUNTED, Ordering::Relaxed);
        // SAFETY: the region of a CPU.
        unsafe {
            events::granted(self.base, class, count);
            events::withdrawn(self.base, class, first);
        }
        Due::of(first, mark)
    }

    /// Returns whether an object is one of the topmost two.
    fn is_on_top(&self, class: Class, object: *mut u8) -> bool {
        let (first, floor) = (self.header(class)[0].load(Ordering::Relaxed), floor(class));
        let top = index(first);
        let topmost = floor.max(top.saturating_sub(2)) + 1..=top;
        // SAFETY: the lock is held, and the words belong to the sheaf.
        topmost.into_iter().any(|index| unsafe { *self.word(index) } == object)
    }

    /// # Safety
    /// As the function [`push`].
    unsafe fn push(&self, class: Class, object: *mut u8) -> bool {
        let [top_at, last_at] = self.header(class);
        if last_at.load(Ordering::Relaxed) == 0 && self.state().load(Ordering::Relaxed) == OPEN {
            let Gap { count, end } = events::next_gap(class);
            let header = first_header(class, count);
            // SAFETY: the region of a CPU; a byte of it that is only accessed as an atomic, or by
            // sections.
            unsafe {
                events::granted(self.base, class, count);
                let mark_at: &AtomicU8 = &*self.base.add(mark_offset(class)).cast();
                mark_at.store(end as u8, Ordering::Relaxed);
            }
            top_at.store(header as u32, Ordering::Relaxed);
            // Release, here and below, keeps the stores in this order for the child of a fork in
            // between.
            last_at.store((header >> 32) as u32, Ordering::Release);
        }
        let first = top_at.load(Ordering::Relaxed);
        if index(first) >= last_at.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the lock is held, and the word belongs to the sheaf.
        unsafe { *self.word(index(first) + 1) = object };
        top_at.store(first + 1, Ordering::Release);
        true
    }

    /// # Safety
    /// `to` is writable for `len` pointers.
    unsafe fn drain(&self, class: Class, to: *mut *mut u8, len: usize) -> usize {
        let [top_at, _] = self.header(class);
        let first = top_at.load(Ordering::Relaxed);
        let len = len.min(index(first).saturating_sub(floor(class)) as usize);
        let below = first - len as u32;
        // SAFETY: the lock is held, and the words belong to the sheaf; the caller guarantees that
        // `to` is writable.
        unsafe { ptr::copy_nonoverlapping(self.word(index(below) + 1), to, len) };
        top_at.store(below, Ordering::Relaxed);
        len
    }
}
