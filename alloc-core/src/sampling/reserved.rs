//! Memory of the sampler that is reserved once, when sampling first begins, and never returned.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::os;

/// Reserves address space as far below `arena`, an address in an arena, as the system grants.
/// `None` if it grants none below.
pub(super) fn reserve_below(arena: usize, bytes: usize) -> Option<NonNull<u8>> {
    let near = (1..=4).rev().find_map(|part| os::reserve_near(arena >> part, bytes));
    near.or_else(|| {
        let anywhere = os::reserve(bytes)?;
        if cfg!(miri) || anywhere.addr().get() < arena {
            return Some(anywhere);
        }
        // SAFETY: a whole reservation that nobody uses.
        unsafe { os::unreserve(anywhere, bytes) };
        None
    })
}

/// The start of memory that reads as zero at first: null until [`Reserved::prepare`].
pub(super) struct Reserved<T>(AtomicPtr<T>);

impl<T> Reserved<T> {
    pub(super) const fn new() -> Reserved<T> {
        Reserved(AtomicPtr::new(ptr::null_mut()))
    }

    /// Returns the start of the memory, or `None` if it was not prepared.
    #[inline]
    pub(super) fn get(&self) -> Option<NonNull<T>> {
        // Acquire: pairs with the Release in `prepare`, so that the memory is committed.
        NonNull::new(self.0.load(Ordering::Acquire))
    }

    /// Takes the memory that `reserve` returns, commits its first `committed` bytes, and passes its
    /// start to `fill`; once is enough. `reserve` returns a whole reservation and its bytes.
    /// Returns false if there is none.
    pub(super) fn prepare(
        &self,
        committed: usize,
        reserve: impl FnOnce() -> Option<(NonNull<u8>, usize)>,
        fill: impl FnOnce(&T),
    ) -> bool {
        if self.get().is_some() {
            return true;
        }
        let Some((memory, bytes)) = reserve() else { return false };
        // SAFETY: a whole reservation, which nobody else knows until it is published. Committed
        // memory reads as zero, which is a `T`.
        unsafe {
            os::prefer_huge_pages(memory, bytes, false);
            let start = memory.as_ptr().cast();
            let is_first = os::commit(memory, committed) && {
                fill(&*start);
                self.0
                    .compare_exchange(ptr::null_mut(), start, Ordering::Release, Ordering::Relaxed)
                    .is_ok()
            };
            if !is_first {
                os::unreserve(memory, bytes);
            }
        }
        self.get().is_some()
    }

    /// As [`Reserved::prepare`], for `bytes` bytes anywhere, all of them committed.
    pub(super) fn prepare_all(&self, bytes: usize) -> bool {
        let bytes = bytes.next_multiple_of(os::page_size());
        self.prepare(bytes, || Some((os::reserve(bytes)?, bytes)), |_| {})
    }
}
