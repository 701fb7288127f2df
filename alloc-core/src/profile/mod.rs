//! Heap profiles: which stacks allocated the memory that is in use, and how much of it.
//!
//! [`start`] samples allocations at random, one in each `mean` bytes on average. Each sample has a
//! weight, the number of blocks that it stands for, so sums are unbiased. The sums of a stack with
//! `n` samples have a relative standard deviation of about 1/√n. [`write`] writes the sums of all
//! stacks since the start as a profile in the format of `pprof`. `HAYLOFT_PROFILE` does both for
//! any program: see [`report`](crate::report).
//!
//! Sampling works in any context, signal handlers included, and takes no lock. While it is off it
//! costs nothing.
//!
//! | module | holds |
//! |---|---|
//! | this one | starting and stopping; what a profile says |
//! | `leaks` | what is in use at the end, as text |
//! | [`pprof`] | the file format: samples, locations, strings, in a stream |
//! | `reach` `suppressions` `symbols` | what the program reaches; known leaks; exported names |
//! | `mappings` | mappings of the process; those of code with build IDs |
//! | `gzip` | compression |
//! | `scratch` | memory for the duration of a call |
//!
//! A module imports only from lower rows.
//!
//! [`pprof::write`] is complete in itself: it takes what to write as arguments and keeps no state
//! between calls, so it may run in any context, also in several threads and interrupted by itself.

mod gzip;
pub(crate) mod leaks;
mod mappings;
pub mod pprof;
mod reach;
mod scratch;
pub(crate) mod suppressions;
mod symbols;

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::Layout;
use core::ffi::c_int;
use core::fmt::Write as _;
use core::slice;

use crate::front::kmalloc;
use crate::os::{self, Line};
use crate::page;
use crate::path::objects;
use crate::sampling;
use crate::stats;
use pprof::{Description, Label, LabelValue};
use scratch::{Scratch, Zeroed};

/// Mean bytes between samples of a profile that was requested without any: 512 KiB. A heap of 1 GiB
/// is then known to 2 %, and sampling costs less than 1 % of the time.
pub const DEFAULT_MEAN: usize = sampling::DEFAULT_MEAN;

/// Starts sampling, with `mean` bytes between samples on average: from 1, which samples all blocks,
/// to 2^40. Another mean may be set while sampling. Returns false if there is no memory for
/// samples. Not for signal handlers.
///
/// Blocks that were allocated before are in no profile.
///
/// ```
/// use hayloft_core::profile;
///
/// if profile::start(profile::DEFAULT_MEAN) {
///     // ...
///     let file = profile::to_vec().expect("there is memory");
///     assert!(file.starts_with(&[0x1f, 0x8b]));
///     profile::stop();
/// }
/// ```
pub fn start(mean: usize) -> bool {
    // There is an arena then, below which sampled blocks lie.
    let layout = Layout::new::<usize>();
    let block = kmalloc::alloc(layout);
    if block.is_null() {
        return false;
    }
    // SAFETY: the block was allocated above, with this layout.
    unsafe { kmalloc::free(block, layout) };
    let Some(arena) = page::any_arena() else { return false };
    let started = sampling::start(mean, arena.addr());
    objects::renew_counts();
    started
}

/// Stops sampling. The profile of the blocks that were sampled stays, and the frees of these blocks
/// still count.
pub fn stop() {
    sampling::stop();
}

/// Returns the mean bytes between samples, or `None` while there is no sampling.
#[must_use]
pub fn mean() -> Option<usize> {
    sampling::mean().map(|mean| mean as usize)
}

/// Returns the number of samples that were lost, as there was no memory for them.
#[must_use]
pub fn missed() -> u64 {
    sampling::missed()
}

/// Types and units of the values of a profile: blocks and bytes allocated so far, in use, and in
/// use when the program had the most; and how long the freed blocks lived, all together.
pub const TYPES: [(&str, &str); 7] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
    ("peak_objects", "count"),
    ("peak_space", "bytes"),
    ("lifetime", "milliseconds"),
];

/// Types and units of the values of a profile of growth: the blocks and bytes that were allocated
/// since a [mark], and are in use.
pub const GROWTH_TYPES: [(&str, &str); 2] = [("inuse_objects", "count"), ("inuse_space", "bytes")];

/// Writes a profile of all samples so far, in the format of `pprof`, to `sink`, which returns false
/// if it failed. Returns false then, or if there is no memory for the buffers. May be called in any
/// context.
///
/// Flushes the sheaves of all CPUs first, since sampled blocks that are freed may lie there and
/// would count as in use. In a context that must not wait it may be unable to.
///
/// Objects of [caches](crate::cache) are not sampled. Each cache has a sample with its exact
/// numbers since it was created, with its name in the place of a stack.
pub fn write(sink: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    write_as(&TYPES, sink, |writer| {
        let mut more = true;
        sampling::for_each(|place, sums| {
            let values = [
                sums.allocs,
                sums.alloc_bytes,
                sums.live,
                sums.live_bytes,
                sums.peak,
                sums.peak_bytes,
                sums.lifetimes,
            ];
            if more && values.iter().any(|value| *value != 0) {
                more = add(writer, &place, &values);
            }
        });
        for cache in stats::object_caches() {
            let mut name = Line::<96>::new();
            // The text fits.
            let _ = write!(name, "object cache {}", cache.name);
            let name = core::str::from_utf8(name.as_bytes()).unwrap_or_default();
            let (allocs, live) = (cache.events.allocs as i64, cache.in_use as i64);
            let size = cache.object_size as i64;
            // Their peak and their lifetimes are not known.
            let values = [allocs, allocs * size, live, live * size, 0, 0, 0];
            more = more && writer.named_sample(name, &values);
        }
    })
}

/// A moment, from [`mark`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark(u32);

impl Mark {
    /// Returns the mark of a number from [`Mark::number`].
    #[must_use]
    pub fn from_number(number: u32) -> Mark {
        Mark(number)
    }

    /// Returns a number for this mark, which is not 0.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Marks this moment, for [`write_growth`]. May be called in any context.
#[must_use]
pub fn mark() -> Mark {
    Mark(sampling::mark())
}

/// Writes a profile as [`write`] does, of the blocks that were allocated after `mark` and are in
/// use. Its values are [`GROWTH_TYPES`]. A block that was resized since counts as allocated when it
/// was made.
///
/// The difference of two profiles says by how much each stack grew. This says what stayed: where a
/// stack replaces its blocks, or frees old ones and leaks new ones, the difference is 0.
///
/// ```
/// use hayloft_core::profile;
///
/// assert!(profile::start(1));
/// let mark = profile::mark();
/// let kept = hayloft_core::by_address::alloc(100);
/// let mut file = Vec::new();
/// assert!(profile::write_growth(mark, &mut |part| {
///     file.extend_from_slice(part);
///     true
/// }));
/// # unsafe { hayloft_core::by_address::free(kept) };
/// profile::stop();
/// ```
pub fn write_growth(mark: Mark, sink: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    let Some(mut sums) = Scratch::<sampling::Sum>::new(sampling::sites()) else { return false };
    write_as(&GROWTH_TYPES, sink, |writer| {
        sampling::add_since(mark.0, &mut sums);
        let mut more = true;
        sampling::for_each_number(|number, place| {
            let sum = sums.get(number as usize).copied().unwrap_or_default();
            if more && sum.bytes() != 0 {
                more = add(writer, &place, &[sum.blocks(), sum.bytes()]);
            }
        });
    })
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for sampling::Sum {}

/// Adds the values of a site to a profile. Returns false if further ones are useless.
fn add(writer: &mut pprof::Writer<'_>, place: &Place, values: &[i64]) -> bool {
    let label = Label { key: "tag", value: LabelValue::Text(place.tag) };
    let labels = if place.tag.is_empty() { &[][..] } else { slice::from_ref(&label) };
    writer.sample(place.frames, values, labels)
}

/// Writes a profile with values of these types.
fn write_as(
    types: &[(&str, &str)],
    sink: &mut dyn FnMut(&[u8]) -> bool,
    samples: impl FnOnce(&mut pprof::Writer<'_>),
) -> bool {
    objects::renew_counts();
    let mut comment = Line::<96>::new();
    // The text fits.
    let _ = write!(
        comment,
        "Hayloft {}, process {}; {} samples lost",
        env!("CARGO_PKG_VERSION"),
        os::process_id(),
        missed()
    );
    let description = Description {
        types,
        default_type: "inuse_space",
        period: mean().unwrap_or(0) as u64,
        time: pprof::now(),
        duration: 0,
        comments: &[core::str::from_utf8(comment.as_bytes()).unwrap_or_default()],
    };
    pprof::write(&description, sink, samples)
}

/// Writes a profile as [`write_growth`] does, to an open file. Returns false if that fails.
pub fn write_growth_to(mark: Mark, file: c_int) -> bool {
    write_growth(mark, &mut |part| os::write_all(file, part))
}

/// Returns a profile as [`write`] writes it, or `None` if there is no memory for it. Allocates by
/// the program's allocator. A service serves it:
///
/// ```
/// # fn respond(kind: &str, content: Vec<u8>) {}
/// # let path = "/debug/pprof/heap";
/// match path {
///     "/debug/pprof/heap" => {
///         let profile = hayloft_core::profile::to_vec().expect("there is memory");
///         respond("application/octet-stream", profile);
///     }
///     // ...
/// #   _ => {}
/// }
/// ```
#[must_use]
pub fn to_vec() -> Option<Vec<u8>> {
    collect(write)
}

/// Returns a profile as [`write_growth`] writes it, or `None` if there is no memory for it.
#[must_use]
pub fn growth_to_vec(mark: Mark) -> Option<Vec<u8>> {
    collect(|sink| write_growth(mark, sink))
}

/// Returns what `write` writes to a sink, or `None` if it fails.
fn collect(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool) -> Option<Vec<u8>> {
    let mut file = Vec::new();
    let mut sink = |part: &[u8]| {
        let has_room = file.try_reserve(part.len()).is_ok();
        if has_room {
            file.extend_from_slice(part);
        }
        has_room
    };
    write(&mut sink).then_some(file)
}

/// Writes a profile as [`write`] does, to an open file. Returns false if that fails.
pub fn write_to(file: c_int) -> bool {
    write(&mut |part| os::write_all(file, part))
}

/// Calls `visit` with each stack and tag, and their [sums](Sums), as [`write`] writes them. May be
/// called in any context.
pub fn for_each(visit: impl FnMut(Place, Sums)) {
    objects::renew_counts();
    sampling::for_each(visit);
}

pub use crate::sampling::{Place, Sums};
