//! Bytes that a thread has allocated and freed.
//!
//! ```
//! use hayloft_core::{profile, thread};
//!
//! profile::start(profile::DEFAULT_MEAN);
//! let before = thread::allocated();
//! // ... a query ...
//! let during = thread::allocated().since(before);
//! println!("{} bytes, give or take {}", during.bytes, during.error);
//! ```
//!
//! These are estimates from the samples of [`profile`](crate::profile): each sample adds the bytes
//! that it stands for to the sums of the thread that takes it, so allocations cost what they cost
//! without. Without samples they are 0.
//!
//! With the feature `thread-totals` they are exact, and also count without samples, for blocks that
//! the program allocates and frees by `GlobalAlloc`. Each allocation and each free then adds to a
//! counter of its thread.
//!
//! A block that is resized counts as freed and allocated again. In estimates, one that is not
//! copied counts only what it grows or shrinks by.

use core::alloc::Layout;
use core::sync::atomic::AtomicU64;
#[cfg(feature = "thread-totals")]
use core::sync::atomic::Ordering;

use crate::sampling::root;
use crate::sampling::threads::{self, Bytes};

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Total {
    /// The bytes: of the size classes of blocks, rather than those requested.
    pub bytes: u64,
    /// Standard error of `bytes`; 0 if they are exact. The right number lies within one standard
    /// error in 68 of 100 cases, and within two in 95.
    pub error: u64,
    /// Square of the error. Those of several threads, or parts of the time, add up.
    pub variance: f64,
}

impl Total {
    fn new((bytes, variance): Bytes) -> Total {
        Total { bytes, error: root(variance), variance }
    }

    /// Returns the bytes since `earlier`, with their own error.
    #[must_use]
    pub fn since(self, earlier: Total) -> Total {
        let variance = (self.variance - earlier.variance).max(0.0);
        Total::new((self.bytes.saturating_sub(earlier.bytes), variance))
    }
}

/// Returns the bytes that this thread has allocated so far. In the child of a fork, the thread
/// continues the number of its parent's. May be called in any context.
#[must_use]
pub fn allocated() -> Total {
    let [estimated, _] = threads::read();
    Total::new(exact(|words| &words[0]).unwrap_or(estimated))
}

/// Returns the bytes that this thread has freed so far, whoever allocated them. May be called in
/// any context.
///
/// An estimate counts what the thread finds to be freed. Rust's `dealloc` does not look whether a
/// block was sampled, so the next thread finds it that takes the block from the sheaf of the CPU,
/// or flushes the sheaf. Sums over all threads are right. C's `free` sees it at once, and so it is
/// with blocks above 32 KiB.
#[must_use]
pub fn freed() -> Total {
    let [_, estimated] = threads::read();
    Total::new(exact(|words| &words[1]).unwrap_or(estimated))
}

/// Returns an exact number, if there is one.
fn exact(number: impl FnOnce(&[AtomicU64; 2]) -> &AtomicU64) -> Option<Bytes> {
    #[cfg(feature = "thread-totals")]
    return Some((number(&crate::arch::locals().exact).load(Ordering::Relaxed), 0.0));
    #[cfg(not(feature = "thread-totals"))]
    {
        let _ = number;
        None
    }
}

/// Counts a block that the program gets, unless it is null. Returns the block.
#[doc(hidden)]
#[inline(always)]
pub fn note_allocated(block: *mut u8, layout: Layout) -> *mut u8 {
    #[cfg(feature = "thread-totals")]
    if !block.is_null() {
        add(|words| &words[0], layout);
    }
    let _ = layout;
    block
}

/// Counts a block that the program frees.
#[doc(hidden)]
#[inline(always)]
pub fn note_freed(layout: Layout) {
    #[cfg(feature = "thread-totals")]
    add(|words| &words[1], layout);
    let _ = layout;
}

/// Counts a block of `layout` that has become one of `size` bytes, as a free and an allocation,
/// unless it is null. Returns the block.
#[doc(hidden)]
#[inline(always)]
pub fn note_resized(block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    #[cfg(feature = "thread-totals")]
    if !block.is_null()
        && let Ok(new) = Layout::from_size_align(size, layout.align())
    {
        add(|words| &words[1], layout);
        add(|words| &words[0], new);
    }
    let _ = (layout, size);
    block
}

/// Adds to a counter the bytes of the class of a layout: the same for all layouts of a block.
#[cfg(feature = "thread-totals")]
#[inline(always)]
fn add(number: impl FnOnce(&[AtomicU64; 2]) -> &AtomicU64, layout: Layout) {
    let words = &crate::arch::locals().exact;
    crate::arch::add(number(words), crate::front::kmalloc::good_size(layout) as u64);
}
