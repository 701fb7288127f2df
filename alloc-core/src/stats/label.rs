//! What caches are called and how their slabs are cut, for all to read without the cache mutex.
//!
//! Who has the mutex writes; who reads and finds that the version changed meanwhile, or is odd, reads again, and does without in the
//! end: it may be a handler that interrupted the writing. (A *seqlock*, `include/linux/seqlock.h`.)

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::Name;
use crate::os;
use crate::size_class::MAX_CACHES;

/// Attempts to read while somebody writes.
const ATTEMPTS: usize = 8;

/// What is known of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) name: Name,
    pub(crate) object_size: usize,
    pub(crate) stride: usize,
    /// Objects of a slab.
    pub(crate) objects: usize,
    /// Units of a slab.
    pub(crate) units: usize,
    /// Caches that share the class; 0 where it is nobody's.
    pub(crate) sharers: usize,
}

const NAME_WORDS: usize = Name::LEN / size_of::<u64>();

struct Shared {
    version: AtomicU32,
    name: [AtomicU64; NAME_WORDS],
    /// Size, stride, objects, units.
    numbers: [AtomicUsize; 4],
    sharers: AtomicUsize,
}

static LABELS: [Shared; MAX_CACHES] = [const {
    Shared {
        version: AtomicU32::new(0),
        name: [const { AtomicU64::new(0) }; NAME_WORDS],
        numbers: [const { AtomicUsize::new(0) }; 4],
        sharers: AtomicUsize::new(0),
    }
}; MAX_CACHES];

/// Says what a class is from now on; by another name, where another class has one that would be shown as the same. Under the cache
/// mutex.
pub(crate) fn publish(number: usize, label: &Label) {
    let Some(shared) = LABELS.get(number) else { return };
    let name = distinct(label.name, number);
    // It is odd already in the child of a fork that interrupted the writing.
    let odd = shared.version.load(Ordering::Relaxed) | 1;
    shared.version.store(odd, Ordering::Relaxed);
    // Release: who sees any of what follows sees the odd version, too. Pairs with the fence in `read`.
    fence(Ordering::Release);
    for (to, from) in shared.name.iter().zip(name.0.chunks_exact(size_of::<u64>())) {
        let mut word = [0; size_of::<u64>()];
        word.copy_from_slice(from);
        to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
    }
    let numbers = [label.object_size, label.stride, label.objects, label.units];
    for (to, from) in shared.numbers.iter().zip(numbers) {
        to.store(from, Ordering::Relaxed);
    }
    shared.sharers.store(label.sharers, Ordering::Relaxed);
    // Release: pairs with the Acquire in `read`.
    shared.version.store(odd.wrapping_add(1), Ordering::Release);
}

/// A name, or as much of it as there is room for before `~NUMBER`, if another class is called so: names are cut off, and a class keeps
/// the name of a cache that is gone. Under the cache mutex.
fn distinct(name: Name, number: usize) -> Name {
    // Relaxed: it is written under the mutex.
    let is_used =
        |other: &usize| *other != number && LABELS[*other].sharers.load(Ordering::Relaxed) > 0;
    let is_taken = |name: &Name| {
        let mut others = (0..MAX_CACHES).filter(is_used).filter_map(read);
        others.any(|other| name.plain().eq(other.name.plain()))
    };
    let mut shown = name;
    let mut attempt = 0;
    while is_taken(&shown) && attempt < MAX_CACHES {
        let mut mark = os::Line::<{ Name::LEN }>::new();
        // It has room for both numbers.
        let _ = match attempt {
            0 => write!(mark, "~{number}"),
            _ => write!(mark, "~{number}~{attempt}"),
        };
        shown = name.marked(Name(mark.into_bytes()).as_str());
        attempt += 1;
    }
    shown
}

/// Says how many caches share a class from now on. Under the cache mutex.
pub(crate) fn publish_sharers(number: usize, sharers: usize) {
    if let Some(shared) = LABELS.get(number) {
        // Relaxed: a number that guards nothing.
        shared.sharers.store(sharers, Ordering::Relaxed);
    }
}

/// What the class of a cache is; `None` where it is nobody's, or is being written.
pub(super) fn read(number: usize) -> Option<Label> {
    let shared = LABELS.get(number)?;
    for _ in 0..ATTEMPTS {
        // Acquire: pairs with the Release in `publish`: what is read below is at least as new.
        let version = shared.version.load(Ordering::Acquire);
        let sharers = shared.sharers.load(Ordering::Relaxed);
        let mut name = Name::default();
        for (to, from) in name.0.chunks_exact_mut(size_of::<u64>()).zip(&shared.name) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        }
        let [object_size, stride, objects, units] =
            [0, 1, 2, 3].map(|index: usize| shared.numbers[index].load(Ordering::Relaxed));
        // Acquire: pairs with the fence in `publish`: if any of that is newer, so is the version.
        fence(Ordering::Acquire);
        if version.is_multiple_of(2) && shared.version.load(Ordering::Relaxed) == version {
            let label = Label { name, object_size, stride, objects, units, sharers };
            return Some(label).filter(|label| label.sharers > 0);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn label(name: &str) -> Label {
        let name = Name::new(name);
        Label { name, object_size: 1, stride: 8, objects: 1, units: 1, sharers: 1 }
    }

    /// Publishes a label as the last class but so many, which no other test has; how it is shown.
    fn shown(from_last: usize, name: &str) -> String {
        let number = MAX_CACHES - 1 - from_last;
        publish(number, &label(name));
        read(number).unwrap().name.to_string()
    }

    #[test]
    fn names_that_would_be_the_same_are_told_apart() {
        let long = "a name that is longer than the room for it";
        assert_eq!(shown(0, long), long[..32]);
        let mark = std::format!("~{}", MAX_CACHES - 2);
        assert_eq!(shown(1, long), std::format!("{}{mark}", &long[..32 - mark.len()]));
        assert_eq!(shown(0, long), long[..32], "it is its own");
        assert_eq!(shown(2, "told apart"), "told apart");
        assert_eq!(shown(3, "told_apart"), std::format!("told_apart~{}", MAX_CACHES - 4));
        // By a cache that is really called like that.
        let mark = std::format!("told apart~{}", MAX_CACHES - 6);
        assert_eq!(shown(4, &mark), mark);
        assert_eq!(shown(5, "told apart"), mark + &std::format!("~{}", 1));
        for from_last in 0..6 {
            publish_sharers(MAX_CACHES - 1 - from_last, 0);
        }
    }

    #[test]
    fn what_a_fork_left_half_written_can_be_written() {
        let number = MAX_CACHES - 10;
        LABELS[number].version.store(7, Ordering::Relaxed);
        assert!(read(number).is_none());
        publish(number, &label("whole"));
        assert_eq!(read(number).unwrap().name.as_str(), "whole");
        assert_eq!(LABELS[number].version.load(Ordering::Relaxed), 8);
        publish_sharers(number, 0);
    }
}
