//! Closing and flushing the sheaves of any CPU, while threads may be using them there.
//!
//! [`CLOSING`] serialises closers with each other and with everything else that changes the state
//! of a region. A region that [`close`] closed stays so until [`open`]: its CPU is offline.
//! [`flush`], [`flush_all`] and [`flush_unused`] restore the state that they found.

use core::iter;
use core::sync::atomic::{AtomicU32, Ordering};

use super::layout::{
    CLOSED, SEEN_OFFSET, all_classes, empty_header, floor, header_halves, index, state_word,
};
use super::region::{CLOSING, commit_region, region_of, regions};
use super::select::{Backend, backend};
use super::{locked, rseq};
use crate::arch::OPEN;
use crate::batch::Batch;
use crate::size_class::{Class, MAX_CLASSES};
use crate::sync::Context;

/// Re-enables a CPU's region: its sheaves may be opened again. Serialised with closers: if a sheaf
/// opened while one ran, each would write one half of its header.
pub(crate) fn open(context: Context, cpu: usize) {
    let _closing = CLOSING.acquire(context);
    if let Some(base) = region_of(cpu) {
        // SAFETY: `base` is the region of a CPU.
        unsafe { reopen(base) };
    }
}

/// Reopens a region. Returns whether it was closed. An open region is only read: a store would make
/// its page resident on this thread's node, or copy the page in the child of a fork.
///
/// # Safety
/// `base` is a region.
unsafe fn reopen(base: *mut u8) -> bool {
    // SAFETY: the caller guarantees that `base` is a region.
    let state = unsafe { state_word(base) };
    let was_closed = state.load(Ordering::Relaxed) != OPEN;
    if was_closed {
        // Release: a section that reads this and opens a sheaf does so after the closer has read
        // the sheaf.
        state.store(OPEN, Ordering::Release);
    }
    was_closed
}

/// Closes all sheaves of a CPU, even while other threads use them, and passes their objects to
/// `take` in batches. No sheaf is opened there again before [`open`]. Returns false, with all
/// objects in their sheaves still, if that is impossible: the kernel cannot restart sections there,
/// a lock is not available in this context, or the region of the CPU cannot be committed.
pub(crate) fn close(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    CLOSING.acquire(context).is_some_and(|_closing| {
        // A CPU without a region gets a closed one, so that it does not get an open one later.
        if !commit_region(cpu, CLOSED) {
            return false;
        }
        let done = close_some(context, cpu, all_classes(), take);
        if !done && let Some(base) = region_of(cpu) {
            // SAFETY: `base` is the region of a CPU.
            unsafe { reopen(base) };
        }
        done
    })
}

/// As [`close`] for the sheaf of one class, which may be opened again at once.
pub(crate) fn flush(
    context: Context,
    cpu: usize,
    class: Class,
    mut take: impl FnMut(&mut Batch),
) -> bool {
    empty(context, cpu, iter::once(class), |_, batch| take(batch))
}

/// As [`close`], but all sheaves may be opened again at once.
pub(crate) fn flush_all(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    empty(context, cpu, all_classes(), take)
}

/// As [`flush_all`], at the end of a window, for the sheaves that were idle: whose level and count
/// are those of the end of the last window. With `even_busy` for all others as well. The rcu sheaf
/// is left alone. Returns whether any sheaf was flushed, or may be idle by the end of the next
/// window.
pub(crate) fn flush_unused(
    context: Context,
    cpu: usize,
    even_busy: bool,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(base) = region_of(cpu) else { return false };
    // One bit per class.
    let mut idle = [0u64; MAX_CLASSES.div_ceil(64)];
    let is_idle =
        |idle: &[u64], class: Class| idle[class.index() / 64] >> (class.index() % 64) & 1 != 0;
    let (mut any_idle, mut any_busy) = (false, false);
    for class in all_classes().filter(|class| *class != Class::RCU) {
        // SAFETY: `base` is the region of a CPU; a word of it that is only accessed as an atomic.
        let ([first, _], seen) = unsafe {
            let seen = base.add(SEEN_OFFSET + class.index() * size_of::<u32>());
            (header_halves(base, class), &*seen.cast::<AtomicU32>())
        };
        let first = first.load(Ordering::Relaxed);
        if index(first) <= floor(class) {
            continue;
        }
        let is_due = seen.load(Ordering::Relaxed) == first || even_busy;
        seen.store(first, Ordering::Relaxed);
        idle[class.index() / 64] |= u64::from(is_due) << (class.index() % 64);
        any_idle |= is_due;
        // Perhaps only the fast path used the sheaf, and it notifies nobody: ask for another
        // window.
        any_busy |= !is_due;
    }
    let classes = all_classes().filter(|class| is_idle(&idle, *class));
    (any_idle && empty(context, cpu, classes, take)) || any_busy
}

fn empty(
    context: Context,
    cpu: usize,
    classes: impl Iterator<Item = Class> + Clone,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(base) = region_of(cpu) else { return true };
    let Some(_closing) = CLOSING.acquire(context) else { return false };
    // SAFETY: `base` is the region of a CPU.
    let state = unsafe { state_word(base) };
    let before = state.load(Ordering::Relaxed);
    let done = close_some(context, cpu, classes, take);
    // Release: as in `reopen`.
    state.store(before, Ordering::Release);
    done
}

/// Closes the region of a CPU and the sheaves of `classes` in it, and passes their objects to
/// `take`. Returns false if the lock is not available or the kernel refuses to restart sections:
/// then all objects are in their sheaves, some of which may have got their full width. The caller
/// holds [`CLOSING`] and sets the state of the region afterwards.
fn close_some(
    context: Context,
    cpu: usize,
    classes: impl Iterator<Item = Class> + Clone,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let backend = backend(context);
    let Some(base) = region_of(cpu) else { return true };
    let mut batch = Batch::new();
    match backend {
        Backend::Locked => locked::close(context, cpu, classes, &mut batch, take),
        // SAFETY: `base` is the region of `cpu`, and the caller holds `CLOSING`.
        _ => unsafe { rseq::close(base, cpu, classes, &mut batch, take) },
    }
}

/// Resets the regions in a fork child, where no CPU is offline and no other thread is closing
/// sheaves: reopens every region and makes half-closed sheaves usable. If the fork interrupted this
/// thread while it was closing sheaves, everything stays as it is: the thread continues with that.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(super) unsafe fn in_child() {
    if CLOSING.raw().is_mine() {
        return;
    }
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: `base` is the region of a CPU.
        if !unsafe { reopen(base) } {
            continue;
        }
        for class in all_classes() {
            // SAFETY: `base` is the region of a CPU.
            let [top, last] = unsafe { header_halves(base, class) };
            if top.load(Ordering::Relaxed) != 0 && last.load(Ordering::Relaxed) == 0 {
                last.store((empty_header(class) >> 32) as u32, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::REGION;
    use super::*;
    use crate::os;

    /// A store to the region would end the process, except under Miri.
    #[test]
    fn open_region_is_not_written() {
        let region = os::reserve(REGION).unwrap();
        // SAFETY: the reservation is as long as a region, is this test's, and is only read after
        // `let_read`.
        unsafe {
            assert!(os::commit(region, REGION));
            state_word(region.as_ptr()).store(OPEN, Ordering::Relaxed);
            assert!(os::let_read(region, REGION));
            assert!(!reopen(region.as_ptr()), "an open region was taken for a closed one");
            os::unreserve(region, REGION);
        }
    }

    #[test]
    fn closed_region_is_reopened() {
        let mut region = std::vec![CLOSED as u64; REGION / 8];
        let base = region.as_mut_ptr().cast();
        // SAFETY: the memory is as long as a region, and its state is `CLOSED`.
        unsafe {
            assert!(reopen(base), "a closed region was taken for an open one");
            assert_eq!(state_word(base).load(Ordering::Relaxed), OPEN);
        }
    }
}
