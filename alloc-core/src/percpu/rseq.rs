//! The backend of restartable sequences. Sections of `arch` operate a sheaf, and a closer takes the
//! steps that `arch` describes.
//!
//! [`pop`] and [`push`] are the fast path. They do not look at the selected backend: sections miss
//! on a thread without a registration, on a CPU without a region, and while rseq is not in use.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::events;
use super::layout::{
    CLOSED, Due, TOPS_OFFSET, WORD, empty_header, first_header, floor, header_halves, index,
    mark_offset, state_word, wider,
};
use super::region::{has_region, region_of};
use crate::arch::{self, COUNTED};
use crate::batch::{Batch, MAX_BATCH};
use crate::fault::{self, Place};
use crate::os;
use crate::sampling::{self, Gap};
use crate::size_class::Class;
use crate::sync::counters::{self, Line};
use crate::sync::spin_or_yield;

/// Pops an object from this CPU's sheaf. Returns null if the sheaf is empty, its count is used up,
/// or rseq is not in use.
#[inline(always)]
pub(crate) fn pop(class: Class) -> *mut u8 {
    // SAFETY: the index of a `Class` is the number of a sheaf.
    unsafe { arch::pop(class.index()) }
}

/// Grants the header of this CPU's sheaf another count instead of its present one. Returns what was
/// due then.
pub(super) fn count_anew(class: Class) -> Due {
    let Gap { count, end } = events::next_gap(class);
    if arch::cpu().is_none() {
        return Due::Nothing;
    }
    let (index, first) = (class.index(), count * COUNTED);
    // SAFETY: the number of a sheaf, and the thread has a CPU number. The mark is in no sheaf.
    let (before, mark, base) =
        unsafe { arch::recount(index, first, mark_offset(class), end as u8) };
    if base.is_null() {
        return Due::Nothing;
    }
    // SAFETY: the section returned the region of the CPU that it ran on.
    unsafe {
        events::granted(base, class, count);
        events::withdrawn(base, class, before);
    }
    Due::of(before, mark)
}

/// Pops up to `len` objects from this CPU's sheaf into `to`, and counts them. Returns the number of
/// objects: 0 if the count of the sheaf is too small for them.
///
/// # Safety
/// `to` is writable for `len` pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(class: Class, to: *mut *mut u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    // SAFETY: the number of a sheaf and its floor; the caller guarantees that `to` is writable.
    unsafe { arch::pop_bulk(class.index(), floor(class) as usize, to, len, COUNTED + 1) }
}

/// As [`pop_bulk`], for objects that do not go to the program and are not counted.
///
/// # Safety
/// As [`pop_bulk`].
pub(super) unsafe fn drain(class: Class, to: *mut *mut u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    // SAFETY: the number of a sheaf and its floor; the caller guarantees that `to` is writable.
    unsafe { arch::pop_bulk(class.index(), floor(class) as usize, to, len, 1) }
}

/// Pushes the first of `objects` onto this CPU's sheaf, as many as fit. Returns their number.
///
/// # Safety
/// As [`push`], for each of the objects.
#[inline]
pub(crate) unsafe fn push_bulk(class: Class, objects: &[*mut u8]) -> usize {
    if objects.is_empty() {
        return 0;
    }
    // SAFETY: the number of a sheaf; the caller guarantees that the objects are of `class` and
    // unused.
    unsafe { arch::push_bulk(class.index(), objects.as_ptr(), objects.len()) }
}

/// Pushes an object onto this CPU's sheaf. Returns false if the sheaf is full, the object is a
/// sampled one, or rseq is not in use.
///
/// # Safety
/// The object is of that class and nobody uses it.
#[inline(always)]
pub(crate) unsafe fn push(class: Class, object: *mut u8) -> bool {
    // SAFETY: the number of a sheaf; the caller guarantees that the object is of `class` and
    // unused.
    unsafe { arch::push(class.index(), object) }
}

/// As [`push`], but also returns false if the object is one of the topmost two already. May,
/// rarely, return false for an object that is not.
///
/// # Safety
/// As [`push`].
#[inline]
pub(crate) unsafe fn push_once(class: Class, object: *mut u8) -> bool {
    // SAFETY: the number of a sheaf; the caller guarantees that the object is of `class` and
    // unused.
    unsafe { arch::push_once(class.index(), object) }
}

/// Pushes the first of `objects` onto this CPU's sheaf, as many as fit. Opens the sheaf if it is
/// closed. Returns the number of objects pushed.
///
/// # Safety
/// The objects are of that class and nobody uses them.
pub(super) unsafe fn fill(class: Class, objects: &[*mut u8]) -> usize {
    let Some(base) = arch::cpu().filter(|cpu| has_region(*cpu)).and_then(region_of) else {
        return 0;
    };
    // If the thread has moved to a CPU without a region, or with a closed sheaf, nothing is pushed.
    // SAFETY: the region of a CPU; the number and header of a sheaf; the caller guarantees that the
    // objects are of `class` and unused; the slice is readable for its length.
    unsafe {
        if header_halves(base, class)[1].load(Ordering::Relaxed) == 0 {
            let Gap { count, end } = events::next_gap(class);
            let header = first_header(class, count);
            let base = arch::open(class.index(), header, mark_offset(class), end as u8);
            if !base.is_null() {
                events::granted(base, class, count);
            }
        }
        arch::push_bulk(class.index(), objects.as_ptr(), objects.len())
    }
}

/// Widens this CPU's sheaf. Returns its new width, or `None` if the CPU has no region.
pub(super) fn widen(class: Class) -> Option<u32> {
    arch::cpu().and_then(region_of).map(|base| {
        // SAFETY: `base` is the region of a CPU.
        let width = wider(class, unsafe { header_halves(base, class) }[1]);
        // SAFETY: `width` is at most the capacity, and the sheaf has words for that. If the thread
        // has moved, the other CPU's sheaf grows, or none.
        unsafe { arch::widen(class.index(), floor(class) + width) };
        width
    })
}

/// Failed attempts to restart sections after which the kernel is taken to refuse permanently.
const RESTARTS: u32 = 100;

/// Closes the region of a CPU and the sheaves of `classes` in it, and passes their objects to
/// `take` in `batch`. Returns false if the kernel refuses to restart sections: then all objects are
/// in their sheaves, some of which may have got their full width.
///
/// # Safety
/// `base` is the region of that CPU, and the caller holds the lock
/// [`CLOSING`](super::region::CLOSING).
pub(super) unsafe fn close(
    base: *mut u8,
    cpu: usize,
    classes: impl Iterator<Item = Class> + Clone,
    batch: &mut Batch,
    mut take: impl FnMut(Class, &mut Batch),
) -> bool {
    // SeqCst in this function: each store must be visible to every section that begins after the
    // next `restart_sections_on`, whose system call is a full barrier here and on that CPU. Relaxed
    // stores would do beside it; the path is cold, and SeqCst says that the order matters.
    //
    // By halves: sections that may be running store the first half only, once the region is closed.
    // SAFETY: the caller guarantees that `base` is the region of `cpu`.
    let half = |class: Class, number: usize| unsafe { header_halves(base, class)[number] };
    // SAFETY: the caller guarantees that `base` is the region of `cpu`.
    unsafe { state_word(base) }.store(CLOSED, Ordering::SeqCst);
    // After the first restart no section opens a sheaf; after the second, none pushes.
    if !os::restart_sections_on(cpu) {
        return false;
    }
    for class in classes.clone() {
        half(class, 1).store(0, Ordering::SeqCst);
    }
    fault::point(Place::SheavesClosing);
    if !os::restart_sections_on(cpu) {
        for class in classes.filter(|class| half(*class, 0).load(Ordering::Relaxed) != 0) {
            half(class, 1).store((empty_header(class) >> 32) as u32, Ordering::SeqCst);
        }
        return false;
    }
    // SAFETY: a word of the region that is only used here, and the caller holds `CLOSING`.
    let tops = |class: Class| unsafe {
        &*base.add(TOPS_OFFSET + class.index() * size_of::<u32>()).cast::<AtomicU32>()
    };
    for class in classes.clone() {
        tops(class).store(0, Ordering::Relaxed);
    }
    loop {
        let mut all_closed = true;
        for class in classes.clone() {
            let top = half(class, 0).swap(0, Ordering::SeqCst);
            counters::wrote(Line::Sheaves, 1);
            if top != 0 {
                tops(class).store(top, Ordering::Relaxed);
                all_closed = false;
            }
        }
        if all_closed {
            break;
        }
        fault::point(Place::SheavesClosing);
        // A pop that was running may still have stored its `top`. Then the sheaf holds one object
        // less, and another round is needed.
        let restarted = (0..RESTARTS).any(|_| {
            os::restart_sections_on(cpu) || {
                spin_or_yield();
                false
            }
        });
        if !restarted {
            // The kernel helped before and refuses now: a filter was added. Everything is restored.
            // A pop that was running stores its `top`, one less, before or after that.
            for class in classes {
                let [top, last] = [half(class, 0), half(class, 1)];
                let before = tops(class).load(Ordering::Relaxed);
                let back = top.compare_exchange(0, before, Ordering::SeqCst, Ordering::Relaxed);
                if before != 0 || back.is_err() {
                    last.store((empty_header(class) >> 32) as u32, Ordering::SeqCst);
                }
            }
            return false;
        }
    }
    for class in classes {
        let first = tops(class).load(Ordering::Relaxed);
        // SAFETY: the caller guarantees that `base` is the region of `cpu`; it is committed, as the
        // state was stored.
        unsafe { events::withdrawn(base, class, first) };
        let mut top = index(first) as usize;
        let floor = floor(class) as usize;
        while top > floor {
            let len = (top - floor).min(MAX_BATCH);
            top -= len;
            // SAFETY: words of the sheaf above its floor, which nobody else uses while it is
            // closed.
            unsafe {
                batch.fill_with(len, |to, len| {
                    ptr::copy_nonoverlapping(base.add((top + 1) * WORD).cast(), to, len);
                    len
                });
            }
            sampling::free_among(batch);
            fault::point(Place::SheavesClosed);
            take(class, batch);
        }
    }
    true
}
