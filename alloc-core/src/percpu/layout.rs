//! What lies where in a CPU's region, and the arithmetic of sheaf headers.
//!
//! A region has `1 << REGION_SHIFT` bytes. `arch` fixes its first part, which sections read; the
//! rest is fixed here:
//!
//! ```text
//! 0                 null: the word that a pop from a closed sheaf reads               arch
//! STATE             whether sheaves may be opened                                     arch
//! HEADERS           a header per sheaf: `top` and `last`, 32 bits each                arch
//! LOCK_OFFSET       the try-lock of the locked backend
//! SEEN_OFFSET       per class: the header's first half at the end of the last decay window
//! TOPS_OFFSET       per class: the `top` of a sheaf that is being closed
//! MARKS_OFFSET      per class: what is due when the count of the header is used up
//! RANDOM_OFFSET     state of a generator of random numbers
//! ALLOWANCE_OFFSET  bytes of middle sizes that may still enter the sheaves
//! EVENTS_OFFSET     per class: a counter for each kind of event
//! SHEAVES_OFFSET    per class: the floor, which holds null, and a word for each object
//! ```
//!
//! A sheaf's *capacity* is the most objects that it ever holds; its *width*, at most the capacity,
//! is the number that it holds before it is full. A header counts in words from the start of the
//! region: `top` and `last` are `floor` plus the number of objects, and `floor` plus the width.
//! `top` is the lower part of the header's first half ([`index`]), and the upper part the
//! [`count`].
//!
//! The place of a sheaf's words never changes, and there are enough of them for the largest
//! capacity that its class may have. So no header, old or new, points beyond them.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::arch::{COUNTED, HEADERS, OPEN, REGION_SHIFT, STATE};
use crate::batch::MAX_BATCH;
use crate::sampling::End;
use crate::size_class::{Class, MAX_CLASSES};
use crate::sync::Lock;
use crate::variants::enumerated;

pub(super) const REGION: usize = 1 << REGION_SHIFT;
/// State of a region in which no sheaf may be opened.
pub(super) const CLOSED: usize = OPEN + 1;

pub(super) const WORD: usize = 8;
/// Byte offset of the locked backend's try-lock: behind the headers.
pub(super) const LOCK_OFFSET: usize = HEADERS + MAX_CLASSES * WORD;
/// Byte offset of a word per sheaf with the first half of its header when `remote::flush_unused`
/// last looked.
pub(super) const SEEN_OFFSET: usize = LOCK_OFFSET + size_of::<Lock<()>>();
/// Byte offset of a word per sheaf in which `rseq::close` keeps its `top`. On the stack, which may
/// be a small one, this array would be a third of all that a slow path uses.
pub(super) const TOPS_OFFSET: usize = SEEN_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of the allowance that `allowance::spend` draws on.
pub(super) const ALLOWANCE_OFFSET: usize = RANDOM_OFFSET + WORD;
/// Byte offset of a byte per sheaf: the [`End`](crate::sampling::End) of the gap that its header
/// counts.
pub(super) const MARKS_OFFSET: usize = TOPS_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of the state of [`random`](crate::sampling::random).
pub(super) const RANDOM_OFFSET: usize = (MARKS_OFFSET + MAX_CLASSES).next_multiple_of(WORD);
/// Number of kinds of events.
pub(super) const EVENTS: usize = Event::ALL.len();
/// Byte offset of the event counters: for each class, one word per kind of event.
pub(super) const EVENTS_OFFSET: usize = ALLOWANCE_OFFSET + WORD;

/// Byte offset of the first sheaf's words.
pub(super) const SHEAVES_OFFSET: usize = EVENTS_OFFSET + MAX_CLASSES * EVENTS * WORD;

enumerated! {
    /// An event that is counted per CPU and class.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Event {
        /// An allocation was granted to the header of the sheaf. The allocations that the sheaf
        /// served are these, less those that are left in the header's count.
        Granted,
        /// An object was allocated otherwise than by a pop from the sheaf.
        Beyond,
        /// The sheaf was empty and was refilled.
        Refill,
        /// The sheaf was full and half of its objects left it.
        Flush,
        /// The barn was empty at a refill: the objects came from slabs.
        BarnEmpty,
        /// The barn was full at a flush: the objects went to slabs.
        BarnFull,
        /// No slab had objects for a refill either: a new slab was made.
        NewSlab,
    }
}

/// Returns the most objects that a sheaf holds, by their size in bytes.
///
/// A random walk of allocations and frees takes O(capacity²) steps to empty or fill a sheaf, so
/// misses fall quadratically with capacity, while idle memory grows only linearly. (Compare
/// `calculate_sheaf_capacity` of `mm/slub.c`.) `objects` also bounds the bytes of middle sizes that
/// all sheaves of a CPU hold together.
const fn capacity_for(size: usize) -> usize {
    match size {
        ..=128 => 256,
        129..=512 => 64,
        513..=4096 => 32,
        _ => 16,
    }
}

/// Most objects in a sheaf of an object cache: each such sheaf has this number of words in a
/// region.
const MAX_CACHE_CAPACITY: usize = 92;

/// Returns the largest value of [`batch_len`] for classes of objects of `size` bytes.
pub(crate) const fn batch_len_for(size: usize) -> usize {
    capacity_for(size) / 2
}

/// Largest value of [`batch_len`] for classes of object caches.
pub(crate) const MAX_CACHE_BATCH: usize = MAX_CACHE_CAPACITY / 2;

/// Headers of all sheaves when open, empty, and at full capacity. Those of size classes never
/// change. A cache class's header is written when the cache is made, while the class's sheaves are
/// empty.
static EMPTY_HEADERS: [AtomicU64; MAX_CLASSES] = {
    let mut headers = [const { AtomicU64::new(0) }; MAX_CLASSES];
    let mut word = SHEAVES_OFFSET / WORD;
    let mut index = 0;
    while index < MAX_CLASSES {
        let words = match Class::from_index(index) {
            Some(class) => capacity_for(class.size()),
            None => MAX_CACHE_CAPACITY,
        };
        assert!(words / 2 <= MAX_BATCH);
        headers[index] = AtomicU64::new(header(word, words));
        word += words + 1;
        index += 1;
    }
    assert!(word * WORD <= REGION && REGION / WORD <= COUNTED as usize);
    headers
};

/// Returns the index of the topmost word from the first half of a header.
#[inline]
pub(super) const fn index(first: u32) -> u32 {
    first % COUNTED
}

/// Returns the count from the first half of a header: the number of objects that may still be
/// popped before a slow path.
#[inline]
pub(super) const fn count(first: u32) -> u32 {
    first / COUNTED
}

/// What was due when the header of a sheaf was granted another count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// The sheaf is closed, or its count was large enough: a pop that missed found no object.
    Nothing,
    /// A new count: a pop that missed may be tried again.
    Count,
    /// A sample, and a new count.
    Sample,
    /// A block to be guarded, and a new count.
    Guarded,
}

impl Due {
    /// Returns what was due, by the first half of the header of an open sheaf and its mark.
    pub(super) fn of(first: u32, mark: u8) -> Due {
        const SAMPLE: u8 = End::Sample as u8;
        const GUARDED: u8 = End::Guarded as u8;
        match mark {
            // A count that was not used up yet was replaced at random.
            _ if count(first) > 0 => Due::Count,
            SAMPLE => Due::Sample,
            GUARDED => Due::Guarded,
            _ => Due::Count,
        }
    }
}

/// The most that a header can count.
pub(super) const MOST_COUNT: u32 = u32::MAX / COUNTED;

/// Returns the header of an empty sheaf above the word `floor`, with a count of 0.
const fn header(floor: usize, capacity: usize) -> u64 {
    floor as u64 | ((floor + capacity) as u64) << 32
}

/// Returns the header of an open and empty sheaf at full capacity, with a count of 0.
#[inline]
pub(super) fn empty_header(class: Class) -> u64 {
    // Relaxed: a thread gets an object's class from the thread that defined it, and that orders
    // this load after the store.
    EMPTY_HEADERS.get(class.index()).map_or(0, |header| header.load(Ordering::Relaxed))
}

/// Sets the capacity of a cache class's sheaves, which must be empty, for objects of `size` bytes.
pub(super) fn define(class: Class, size: usize) {
    let capacity = capacity_for(size).min(MAX_CACHE_CAPACITY);
    if let Some(word) = EMPTY_HEADERS.get(class.index()) {
        word.store(header(floor(class) as usize, capacity), Ordering::Relaxed);
    }
}

/// Returns the index of the word below a sheaf.
#[inline]
pub(super) fn floor(class: Class) -> u32 {
    empty_header(class) as u32
}

/// Returns the most objects that a sheaf of this class holds.
pub(crate) fn capacity(class: Class) -> usize {
    let header = empty_header(class);
    ((header >> 32) - (header & u64::from(u32::MAX))) as usize
}

/// Divisor of the capacity that gives a newly opened sheaf's width.
const FIRST_PART: usize = 8;

/// Returns the width, in objects, of a newly opened sheaf. The rcu sheaf starts at full capacity:
/// its objects come seldom, but all at once.
#[inline]
pub(super) fn first_width(class: Class) -> usize {
    let capacity = capacity(class);
    if class == Class::RCU { capacity } else { (capacity / FIRST_PART).max(capacity.min(2)) }
}

/// Returns the header of a newly opened sheaf with this count.
#[inline]
pub(super) fn first_header(class: Class, count: u32) -> u64 {
    header(floor(class) as usize, first_width(class)) | u64::from(count * COUNTED)
}

/// Returns the number of objects moved at once between a full-capacity sheaf and the layers behind
/// it. It is half a sheaf, so that neither an allocation nor a free right after the move misses.
#[inline]
pub(crate) fn batch_len(class: Class) -> usize {
    capacity(class) / 2
}

/// Returns the byte offset of a sheaf's mark in a region.
pub(super) const fn mark_offset(class: Class) -> usize {
    MARKS_OFFSET + class.index()
}

/// Returns the byte offset of a sheaf's header in a region.
const fn header_offset(class: Class) -> usize {
    HEADERS + class.index() * WORD
}

/// Returns the width to which a sheaf that ends at `last` is widened: twice its width, at most its
/// capacity. For a closed sheaf, returns the width at which it is opened.
#[inline]
pub(super) fn wider(class: Class, last: &AtomicU32) -> u32 {
    // A guess: sections may be running.
    let width = last.load(Ordering::Relaxed).saturating_sub(floor(class));
    if width == 0 { first_width(class) as u32 } else { (2 * width).min(capacity(class) as u32) }
}

/// Returns all classes, including those of object caches and the rcu class.
#[inline]
pub(super) fn all_classes() -> impl Iterator<Item = Class> + Clone {
    (0..MAX_CLASSES).filter_map(Class::any_from_index)
}

/// Returns the word of a region that says whether sheaves may be opened in it.
///
/// # Safety
/// `base` is the address of a region.
#[inline]
pub(super) unsafe fn state_word<'a>(base: *mut u8) -> &'a AtomicUsize {
    // SAFETY: the caller guarantees that `base` is a region. The word is only accessed as an
    // atomic, or by sections.
    unsafe { &*base.add(STATE).cast() }
}

/// Returns the halves of a sheaf's header: `top` with the count, and `last`. Other threads than the
/// sheaf's user read them, too.
///
/// # Safety
/// `base` is the address of a region.
#[inline]
pub(super) unsafe fn header_halves<'a>(base: *mut u8, class: Class) -> [&'a AtomicU32; 2] {
    // SAFETY: the caller guarantees that `base` is a region, in which the header lies. It is only
    // accessed as atomics, or by sections.
    unsafe {
        let top: *const AtomicU32 = base.add(header_offset(class)).cast();
        [&*top, &*top.add(1)]
    }
}

#[cfg(test)]
mod tests {
    use core::ops::Range;
    use std::vec::Vec;

    use super::*;

    /// Returns the words of a sheaf at full capacity, its floor included.
    fn words(class: Class) -> Range<u64> {
        let header = empty_header(class);
        (header & u64::from(u32::MAX))..(header >> 32) + 1
    }

    #[test]
    fn parts_of_a_region_are_disjoint() {
        let parts = [
            STATE..STATE + WORD,
            HEADERS..LOCK_OFFSET,
            LOCK_OFFSET..LOCK_OFFSET + size_of::<Lock<()>>(),
            SEEN_OFFSET..SEEN_OFFSET + MAX_CLASSES * size_of::<u32>(),
            TOPS_OFFSET..TOPS_OFFSET + MAX_CLASSES * size_of::<u32>(),
            MARKS_OFFSET..MARKS_OFFSET + MAX_CLASSES,
            RANDOM_OFFSET..RANDOM_OFFSET + WORD,
            ALLOWANCE_OFFSET..ALLOWANCE_OFFSET + WORD,
            EVENTS_OFFSET..SHEAVES_OFFSET,
        ];
        for (part, next) in parts.iter().zip(&parts[1..]) {
            assert!(part.end <= next.start, "{part:?} {next:?}");
        }
        assert!(SHEAVES_OFFSET.is_multiple_of(WORD) && ALLOWANCE_OFFSET.is_multiple_of(WORD));
    }

    #[test]
    fn sheaves_are_disjoint_and_lie_in_the_region() {
        let all: Vec<_> = all_classes().map(words).collect();
        assert_eq!(all.len(), MAX_CLASSES);
        assert!(all.is_sorted_by(|one, next| one.end <= next.start));
        assert!(all[0].start as usize * WORD >= SHEAVES_OFFSET);
        assert!(all[MAX_CLASSES - 1].end as usize * WORD <= REGION);
    }

    #[test]
    fn sheaves_widen_up_to_their_capacity() {
        for class in all_classes() {
            let header = first_header(class, 17);
            let last = AtomicU32::new((header >> 32) as u32);
            let mut width = first_width(class) as u32;
            assert!(width >= 1 && index(header as u32) == floor(class));
            assert_eq!(count(header as u32), 17);
            assert_eq!(last.load(Ordering::Relaxed) - floor(class), width);
            while (width as usize) < capacity(class) {
                let wide = wider(class, &last);
                assert!(wide > width && wide as usize <= capacity(class), "{}", class.index());
                last.store(floor(class) + wide, Ordering::Relaxed);
                width = wide;
            }
            assert_eq!(wider(class, &last), width, "a full sheaf stays as wide as it is");
            assert_eq!(wider(class, &AtomicU32::new(0)) as usize, first_width(class));
        }
    }

    #[test]
    fn half_a_sheaf_fits_into_a_batch() {
        for class in all_classes() {
            assert!((1..=MAX_BATCH).contains(&batch_len(class)), "{}", class.index());
        }
    }
}
