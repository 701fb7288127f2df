//! Hayloft as a Rust global allocator.
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;
//!
//! let words: Vec<String> = ["no", "other", "line"].map(String::from).to_vec();
//! assert_eq!(words.join(" "), "no other line");
//! ```
//!
//! # Environment
//! Read once, at the start; a value that makes no sense is named in a line on stderr and ignored, and so is a name that is none of
//! these. An empty value means that the variable is not set. In programs that run with rights that their user
//! does not have (set-uid), all are ignored. The README of the repository has their ranges.
//!
//! | variable | says |
//! |---|---|
//! | `HAYLOFT_BACKEND` | how per-CPU caches are operated: `rseq` (the default where the kernel has restartable sequences) or `fallback` (a try-lock per CPU) |
//! | `HAYLOFT_LIMIT` | the most that there may be, as `512M`: beyond 7/8 of it, or the first part of `400M:512M`, free memory goes back at once |
//! | `HAYLOFT_DECAY_MS` | how long memory may stay unneeded before it goes back to the system: 300 by default, 0 for as little as can be |
//! | `HAYLOFT_BACKGROUND` | which programs have a thread for that: those that have several threads or hold 256 MiB (the default), all (`1`) or none (`0`, frees do it) |
//! | `HAYLOFT_PRESSURE` | whether all of it goes back where the kernel says that memory is short: `1` (the default), `0`, or the path of a file that says so |
//! | `HAYLOFT_THP` | when huge pages are asked for: `auto` (the default, from a heap of 1 GiB on, and for blocks of 8 MiB), `always` or `never` |
//! | `HAYLOFT_STATS` | where statistics are written, how and when: see [`report`] |
//! | `HAYLOFT_STATS_SHM` | `1`: they are shown to `hayloft-top` |
//! | `HAYLOFT_IRQ` | how work that was queued for a CPU is run: `hard` (the default, in a signal handler), `threaded` or `none` |
//! | `HAYLOFT_IRQ_SIGNAL` | the real-time signal for it |
//! | `HAYLOFT_SYSFS`, `HAYLOFT_FAULT`, `HAYLOFT_PAGE_SIZE` | for tests: where nodes are read from, system calls that are to fail, larger pages |
//!
//! # Features
//! None is on unless it is asked for.
//!
//! | feature | adds |
//! |---|---|
//! | `allocator-api2` | `Allocator` of that crate for [`Hayloft`], and for caches, so that `hashbrown`'s collections and others take them |
//! | `serde` | statistics can be serialised, and be had as JSON |
//! | `usdt` | probes for tracers, a `nop` each until one is used: `docs/tracing.md` |
//! | `valgrind` | memcheck is told of blocks, which are 16 bytes longer then: `docs/valgrind.md` |

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "allocator-api2")]
mod allocator;

// Its example is one of the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use alloc_core::{cache, kmalloc};

pub use alloc_core::{report, stats};
use core::alloc::{GlobalAlloc, Layout};

/// Gives all memory back to the system that no block in use needs, at once; how many bytes it got. Without it the same happens
/// after a while. Not for signal handlers.
pub fn trim() -> usize {
    cache::trim()
}

/// Numbers of the whole allocator, and by them those of its caches, CPUs and nodes. In any context, a signal handler included.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;
///
/// let many: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
/// let stats = alloc_global::stats();
/// assert!(stats.caches().any(|cache| cache.in_use >= many.len()));
/// print!("{}", stats.slabinfo());
/// ```
#[must_use]
pub fn stats() -> stats::Stats {
    stats::gather()
}

/// The allocator: a unit, to be named in a `#[global_allocator]`.
///
/// All instances are one allocator. Out of memory is a null pointer, never an abort or a panic. A layout of size 0 is
/// served with memory of its own. Resizing happens in place where the size class or the neighbouring pages allow it,
/// and large blocks are moved by remapping their pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hayloft;

impl Hayloft {
    /// Allocates for `layout`, and says how many bytes there are: those beyond the layout's size may be used, too. The block is
    /// freed or resized by a layout of any size from the one asked for to that.
    ///
    /// ```
    /// use alloc_global::Hayloft;
    /// use std::alloc::{GlobalAlloc, Layout};
    ///
    /// let layout = Layout::from_size_align(100, 8).unwrap();
    /// let (block, size) = Hayloft.alloc_excess(layout);
    /// assert!(!block.is_null() && size >= 100);
    /// let layout = Layout::from_size_align(size, 8).unwrap();
    /// // SAFETY: allocated just now, and not used any more.
    /// unsafe { Hayloft.dealloc(block, layout) };
    /// ```
    #[inline]
    #[must_use]
    pub fn alloc_excess(&self, layout: Layout) -> (*mut u8, usize) {
        (kmalloc::alloc(layout), kmalloc::good_size(layout))
    }

    /// Bytes that a block may use.
    ///
    /// # Safety
    /// `block` was allocated by this allocator, and not freed.
    #[must_use]
    pub unsafe fn usable_size(&self, block: *mut u8) -> usize {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::usable_size(block) }
    }

    /// Makes a block at least `new_size` bytes large without moving it, or leaves it as it is and returns false. Then `layout`
    /// with that size is its layout.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    pub unsafe fn grow_in_place(&self, block: *mut u8, layout: Layout, new_size: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::grow_in_place(block, layout, new_size) }
    }
}

// SAFETY: `kmalloc` hands out disjoint blocks that fit their layouts, keeps what `realloc` must keep, and does not
// unwind.
unsafe impl GlobalAlloc for Hayloft {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        kmalloc::alloc(layout)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::free(block, layout) }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        kmalloc::alloc_zeroed(layout)
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { kmalloc::realloc(block, layout, new_size) }
    }
}
