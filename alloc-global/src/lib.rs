//! The Hayloft memory allocator as a Rust `#[global_allocator]`.
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;
//!
//! let words: Vec<String> = ["no", "other", "line"].map(String::from).to_vec();
//! assert_eq!(words.join(" "), "no other line");
//! ```
//!
//! Programs need no other crate of the project: object caches are in [`cache`], allocation that
//! never waits in [`nolock`], readers without locks in [`rcu`], work for a CPU in [`irq_work`],
//! heap profiles in [`profile`], names for what allocates in [`tag`](mod@tag), bytes of threads in
//! [`thread`].
//!
//! # Environment
//! The variables are read once, at the start. An invalid value is ignored and reported in a line on
//! stderr, and so is an unknown name that begins with `HAYLOFT_`. An empty value means that the
//! variable is not set. Set-uid programs, and others with rights that their user lacks, ignore all
//! of them. `docs/settings.md` in the repository has all defaults and ranges. A program can build
//! the same settings in, with [`settings!`].
//!
//! - `HAYLOFT_BACKEND`: how sheaves are operated: `rseq` (the default where the kernel has
//!   restartable sequences) or `fallback` (a try-lock per CPU).
//! - `HAYLOFT_LIMIT`: the most memory to hold, as `512M`. Beyond 7/8 of it, or the first part of
//!   `400M:512M`, free memory returns to the system at once.
//! - `HAYLOFT_DECAY_MS`: milliseconds that memory may stay idle before it returns to the system:
//!   300 by default, 0 for the shortest possible time.
//! - `HAYLOFT_BACKGROUND`: which programs have a thread that decommits idle memory: those with
//!   several threads or 256 MiB held (the default), all (`1`) or none (`0`, frees do it).
//! - `HAYLOFT_PRESSURE`: whether all idle memory returns when memory is short, as the kernel
//!   reports it: `1` (the default), `0`, or the path of a file with such reports.
//! - `HAYLOFT_THP`: when to request huge pages: `auto` (the default: from a heap of 1 GiB on, for
//!   blocks of 8 MiB, and for other memory that stays in use), `always` or `never`.
//! - `HAYLOFT_STATS`: statistics when the program ends, at intervals, or at a signal: see
//!   [`report`].
//! - `HAYLOFT_PROFILE`: heap profiles when the program ends, at intervals, or at a signal: see
//!   [`report`].
//! - `HAYLOFT_LEAKS`: what is still in use when the program ends: see [`report`].
//! - `HAYLOFT_GUARD`: one allocation in this many is guarded against overflows and use after free:
//!   `docs/guards.md`.
//! - `HAYLOFT_STATS_SHM`: show statistics to `hayloft-top`, with `1`.
//! - `HAYLOFT_VERBOSE`: at the start, a line with the version, the backend, the limit and the
//!   settings that are not at their defaults, with `1`.
//! - `HAYLOFT_IRQ`: how the CPU's thread runs work that was queued for a CPU: `hard` (the default,
//!   in a signal handler), `threaded` or `none`.
//! - `HAYLOFT_IRQ_SIGNAL`: the signal for irq work.
//! - `HAYLOFT_SYSFS`: for tests: the directory that the nodes are read from.
//! - `HAYLOFT_FAULT`: for tests: system calls to fail.
//! - `HAYLOFT_PAGE_SIZE`: for tests: pretend that pages have this size.
//!
//! # Features
//! None is enabled by default.
//!
//! | feature | adds |
//! |---|---|
//! | `allocator-api2` | that crate's `Allocator` for [`Hayloft`] and for caches |
//! | `serde` | statistics can be serialised, and written as JSON |
//! | `thread-totals` | numbers of [`thread`] are exact |
//! | `tracing` | `TagLayer`: a [tag](mod@tag) for each span |
//! | `usdt` | probes for tracers, each a `nop` until it is used: `docs/tracing.md` |
//! | `valgrind` | reports blocks to memcheck, and makes each 16 bytes longer: `docs/valgrind.md` |

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "allocator-api2")]
mod allocator;
#[cfg(feature = "tracing")]
mod layer;

// Runs the example of the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use core::alloc::{GlobalAlloc, Layout};

use hayloft_core::kmalloc;

pub use hayloft_core::tag::{self, tag};
pub use hayloft_core::{cache, cpu, heap, irq_work, nolock, profile, rcu, report, stats, thread};

#[cfg(feature = "tracing")]
pub use layer::TagLayer;

/// What [`settings!`] expands to.
#[doc(hidden)]
pub use hayloft_core::settings::{ProgramSettings, check as check_settings};

/// Builds settings into a program: those of the [environment](crate#environment), by their names
/// without the prefix, in lower case.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;
///
/// hayloft::settings!("limit=512M", "decay_ms=0");
///
/// assert!(Vec::<u8>::new().try_reserve(1 << 30).is_err());
/// ```
///
/// The environment overrides them. With `"environment=0"` the program ignores all variables.
///
/// Unknown names and words that are not of the form `NAME=VALUE` do not compile, nor do most
/// invalid values. Values that only the running program can judge are reported as those of the
/// environment are: paths, lists, and what depends on the system.
///
/// ```compile_fail
/// hayloft::settings!("limti=512M");
/// ```
/// ```compile_fail
/// hayloft::settings!("limit=512X");
/// ```
///
/// The macro defines the symbol `hayloft_conf`, so a program may have it once, best in its main
/// file. A value contains no white space. On architectures other than x86-64 and AArch64 it has no
/// effect.
#[macro_export]
macro_rules! settings {
    ($($setting:literal),+ $(,)?) => {
        const _: () = {
            $($crate::check_settings($setting);)+
            #[used]
            #[unsafe(export_name = "hayloft_conf")]
            static SETTINGS: $crate::ProgramSettings =
                $crate::ProgramSettings::new(::core::concat!($($setting, " ",)+ "\0"));
        };
    };
}

/// Releases all idle memory to the system at once. Returns the number of bytes. Without this call
/// idle memory is released after a while (`HAYLOFT_DECAY_MS`). Must not be called in signal
/// handlers.
pub fn trim() -> usize {
    heap::trim()
}

/// Returns the statistics of the whole allocator. Their methods return those of its caches, CPUs
/// and nodes. May be called in any context, signal handlers included.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;
///
/// let many: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
/// let stats = hayloft::stats();
/// assert!(stats.caches().any(|cache| cache.in_use >= many.len()));
/// println!("{stats}");
/// print!("{}", stats.slabinfo());
/// ```
#[must_use]
pub fn stats() -> stats::Stats {
    stats::gather()
}

/// The allocator, a unit struct for `#[global_allocator]`.
///
/// All instances are one allocator. Allocations that fail return a null pointer; they never abort
/// or panic. A layout of size 0 gets memory of its own. Blocks are resized in place where the size
/// class or the neighbouring pages allow it. Large blocks move by remapping their pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hayloft;

impl Hayloft {
    /// Allocates memory for `layout`. Returns the block and the number of its usable bytes, which
    /// may exceed the layout's size. The block may be freed or resized with a layout of any size
    /// from the requested one up to the returned one.
    ///
    /// ```
    /// use hayloft::Hayloft;
    /// use std::alloc::{GlobalAlloc, Layout};
    ///
    /// let layout = Layout::from_size_align(100, 8).unwrap();
    /// let (block, size) = Hayloft.alloc_excess(layout);
    /// assert!(!block.is_null() && size >= 100);
    /// let layout = Layout::from_size_align(size, 8).unwrap();
    /// // SAFETY: the block was just allocated and is not used again; `size` is its usable size.
    /// unsafe { Hayloft.dealloc(block, layout) };
    /// ```
    #[inline]
    #[must_use]
    pub fn alloc_excess(&self, layout: Layout) -> (*mut u8, usize) {
        let whole = kmalloc::whole(layout);
        // SAFETY: `kmalloc` serves layouts of any size.
        (unsafe { self.alloc(whole) }, whole.size())
    }

    /// Returns the number of usable bytes of a block.
    ///
    /// # Safety
    /// `block` was allocated by this allocator and is live.
    #[must_use]
    pub unsafe fn usable_size(&self, block: *mut u8) -> usize {
        // SAFETY: the caller guarantees that `block` is a live block of this allocator.
        unsafe { kmalloc::usable_size(block) }
    }

    /// Grows a block to at least `new_size` bytes without moving it. Returns whether it could. On
    /// success the block's layout is `layout` with `new_size`; otherwise the block is unchanged.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    pub unsafe fn grow_in_place(&self, block: *mut u8, layout: Layout, new_size: usize) -> bool {
        // SAFETY: the caller guarantees that `block` is live and has `layout`.
        let grown = unsafe { kmalloc::grow_in_place(block, layout, new_size) };
        if grown {
            thread::note_resized(block, layout, new_size);
        }
        grown
    }
}

// SAFETY: `kmalloc` hands out disjoint blocks that fit their layouts, preserves contents in
// `realloc`, and does not unwind.
unsafe impl GlobalAlloc for Hayloft {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        thread::note_allocated(kmalloc::alloc(layout), layout)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        thread::note_freed(layout);
        // SAFETY: the caller guarantees that `block` is live and has `layout`.
        unsafe { kmalloc::free(block, layout) }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        thread::note_allocated(kmalloc::alloc_zeroed(layout), layout)
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `block` is live and has `layout`, and that `new_size`
        // is valid for its alignment.
        let new = unsafe { kmalloc::realloc(block, layout, new_size) };
        thread::note_resized(new, layout, new_size)
    }
}
