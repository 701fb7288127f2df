//! Counters of what happens to the sheaves of a class, per CPU.
//!
//! A counter lies in the region of its CPU and may be read from any thread. The numbers guard
//! nothing, and a count may rarely be lost: see [`count`].

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

use super::layout::{EVENTS, EVENTS_OFFSET, Event, WORD};
use super::region::{cpu, has_region, region_of, regions};
use crate::arch;
use crate::size_class::Class;

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

/// Counts objects that a sheaf served to the program.
#[inline(always)]
pub(crate) fn count_hits(class: Class, objects: usize) {
    if cfg!(feature = "counters") && objects > 0 {
        count(class, Event::Hit, objects);
    }
}

/// Returns a CPU's count of an event. May be called in any context.
pub(crate) fn counted(cpu: usize, class: Class, event: Event) -> u64 {
    event_words(cpu, class).get(event as usize).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Resets the counters of a class on all CPUs.
pub(super) fn reset(class: Class) {
    // Words that are zero are not written, so that regions never used stay untouched.
    (0..regions())
        .flat_map(|cpu| event_words(cpu, class))
        .filter(|word| word.load(Ordering::Relaxed) != 0)
        .for_each(|word| word.store(0, Ordering::Relaxed));
}

/// Returns the event counters of a class on a CPU: an empty slice if the CPU has no sheaves. All
/// accesses are Relaxed, as the numbers guard nothing.
fn event_words(cpu: usize, class: Class) -> &'static [AtomicU64] {
    let offset = EVENTS_OFFSET + class.index() * EVENTS * WORD;
    // SAFETY: the words lie in the CPU's region and are only accessed as atomics.
    region_of(cpu)
        .map_or(&[], |base| unsafe { slice::from_raw_parts(base.add(offset).cast(), EVENTS) })
}
