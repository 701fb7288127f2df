//! Counters of the events in the sheaves of a class, per CPU.
//!
//! A counter lies in the region of its CPU and may be read from any thread. The numbers guard
//! nothing. Those of allocations are exact when nobody allocates; others may rarely lose a count:
//! see [`count`].

use core::sync::atomic::{AtomicU64, Ordering};

use super::layout::{
    self, EVENTS, EVENTS_OFFSET, Event, MOST_COUNT, RANDOM_OFFSET, WORD, header_halves,
};
use super::region::{cpu, has_region, region_of, regions};
use crate::arch;
use crate::os;
use crate::sampling::{self, Gap};
use crate::size_class::{Class, MAX_CLASSES};

/// Adds `more` to a counter of this CPU; does nothing if the CPU has no sheaves.
///
/// Uses a single instruction without a lock prefix where the architecture has one. A count is then
/// lost only if the thread moves to another CPU right before the instruction and both CPUs count at
/// the same moment.
pub(crate) fn count(class: Class, event: Event, more: usize) {
    let cpu = cpu();
    if has_region(cpu)
        && let Some(word) = event_words(cpu, class).get(event as usize)
    {
        arch::add(word, more as u64);
    }
}

/// Objects of each class that were allocated on CPUs without a region.
static WITHOUT_REGION: [AtomicU64; MAX_CLASSES] = [const { AtomicU64::new(0) }; MAX_CLASSES];

/// Counts objects that the program got otherwise than by a pop from a sheaf.
pub(crate) fn count_beyond(class: Class, objects: usize) {
    let cpu = cpu();
    let word = match event_words(cpu, class).get(Event::Beyond as usize) {
        Some(word) if has_region(cpu) => word,
        _ => &WITHOUT_REGION[class.index() % MAX_CLASSES],
    };
    word.fetch_add(objects as u64, Ordering::Relaxed);
}

/// Returns the next count of the header of a sheaf, and whether a sample is due behind it.
pub(super) fn next_gap(class: Class) -> Gap {
    sampling::gap(class, MOST_COUNT, random)
}

/// Returns a random number from the generator of this CPU, or from a common one if the CPU has no
/// region.
pub(crate) fn random() -> u64 {
    static COMMON: AtomicU64 = AtomicU64::new(0);
    match region_of(cpu()) {
        // SAFETY: a word of a committed region that is only accessed as an atomic. Its address
        // makes the numbers of each CPU, and of each process, different ones.
        Some(base) => unsafe {
            let state: &AtomicU64 = &*base.add(RANDOM_OFFSET).cast();
            if state.load(Ordering::Relaxed) == 0 {
                state.store(base.addr() as u64 ^ os::nanoseconds() << 20, Ordering::Relaxed);
            }
            sampling::random(state)
        },
        None => sampling::random(&COMMON),
    }
}

/// Records that the header of a sheaf was granted `count` allocations.
///
/// # Safety
/// `base` is the address of a committed region.
pub(super) unsafe fn granted(base: *mut u8, class: Class, count: u32) {
    // SAFETY: the caller guarantees a region.
    let words = unsafe { words_in(base, class) };
    words[Event::Granted as usize].fetch_add(u64::from(count), Ordering::Relaxed);
}

/// Records that `first`, the first half of the header of a sheaf, was set to zero, with what was
/// left of its count.
///
/// # Safety
/// `base` is the address of a committed region.
pub(super) unsafe fn withdrawn(base: *mut u8, class: Class, first: u32) {
    // SAFETY: the caller guarantees a region.
    let words = unsafe { words_in(base, class) };
    let left = u64::from(layout::count(first));
    words[Event::Granted as usize].fetch_sub(left, Ordering::Relaxed);
}

/// Returns the number of objects of a class that the sheaf of a CPU served: exact as long as nobody
/// allocates there. May be called in any context.
pub(crate) fn hits(cpu: usize, class: Class) -> u64 {
    let Some(base) = region_of(cpu) else { return 0 };
    // SAFETY: `base` is the region of a CPU.
    let ([first, _], words) = unsafe { (header_halves(base, class), words_in(base, class)) };
    let left = layout::count(first.load(Ordering::Relaxed));
    let granted = words[Event::Granted as usize].load(Ordering::Relaxed);
    // A count that is being granted or withdrawn may be missing for a moment.
    granted.saturating_sub(u64::from(left))
}

/// Returns the number of objects of a class that were allocated on CPUs without a region.
pub(crate) fn allocated_without_region(class: Class) -> u64 {
    WITHOUT_REGION[class.index() % MAX_CLASSES].load(Ordering::Relaxed)
}

/// Returns a CPU's count of an event. May be called in any context.
pub(crate) fn counted(cpu: usize, class: Class, event: Event) -> u64 {
    event_words(cpu, class).get(event as usize).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Resets the counters of a class on all CPUs.
pub(super) fn reset(class: Class) {
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: `base` is the region of a CPU.
        let ([first, _], words) = unsafe { (header_halves(base, class), words_in(base, class)) };
        let left = layout::count(first.load(Ordering::Relaxed));
        for (event, word) in words.iter().enumerate() {
            let start = if event == Event::Granted as usize { u64::from(left) } else { 0 };
            // Words that are right are not written, so that regions never used stay untouched.
            if word.load(Ordering::Relaxed) != start {
                word.store(start, Ordering::Relaxed);
            }
        }
    }
    WITHOUT_REGION[class.index() % MAX_CLASSES].store(0, Ordering::Relaxed);
}

/// Returns the event counters of a class on a CPU: an empty slice if the CPU has no sheaves. All
/// accesses are Relaxed, as the numbers guard nothing.
fn event_words(cpu: usize, class: Class) -> &'static [AtomicU64] {
    // SAFETY: the region of a CPU.
    region_of(cpu).map_or(&[], |base| unsafe { words_in(base, class) })
}

/// Returns the event counters of a class in a region.
///
/// # Safety
/// `base` is the address of a region, which is committed if the words are written.
unsafe fn words_in(base: *mut u8, class: Class) -> &'static [AtomicU64; EVENTS] {
    let offset = EVENTS_OFFSET + class.index() * EVENTS * WORD;
    // SAFETY: the caller guarantees a region, in which the words lie. They are only accessed as
    // atomics, and a region is never unmapped.
    unsafe { &*base.add(offset).cast() }
}
