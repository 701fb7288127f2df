//! Names of caches and the layout of their slabs, readable by all without the cache mutex.
//!
//! The holder of the mutex writes. A reader that finds the version odd, or changed during the read,
//! tries again. In the end it does without the label, since it may be a handler that interrupted
//! the writer. (A *seqlock*, `include/linux/seqlock.h`.)

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::Name;
use crate::os;
use crate::size_class::MAX_CACHES;

/// Attempts to read while a writer is active.
const ATTEMPTS: usize = 8;

/// Description of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) name: Name,
    pub(crate) object_size: usize,
    pub(crate) stride: usize,
    /// Number of objects in a slab.
    pub(crate) objects: usize,
    /// Number of units in a slab.
    pub(crate) units: usize,
    /// Number of caches that share the class; 0 if the class is unused.
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

/// Publishes the label of a class. The name is changed if that of another class would look the
/// same. Call under the cache mutex.
pub(crate) fn publish(number: usize, label: &Label) {
    let Some(shared) = LABELS.get(number) else { return };
    let name = distinct(label.name, number);
    // In the child of a fork that interrupted the writing, the version is already odd.
    let odd = shared.version.load(Ordering::Relaxed) | 1;
    shared.version.store(odd, Ordering::Relaxed);
    // Release: a reader that sees any of the following stores also sees the odd version. Pairs with
    // the fence in `read`.
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

/// Returns `name`, or if another class shows that name, as much of it as fits before `~NUMBER`.
/// Names can be equal since long ones are cut off, and since a class keeps the name of a destroyed
/// cache. Call under the cache mutex.
fn distinct(name: Name, number: usize) -> Name {
    // Relaxed: it is only written under the mutex.
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
        // There is room for both numbers.
        let _ = match attempt {
            0 => write!(mark, "~{number}"),
            _ => write!(mark, "~{number}~{attempt}"),
        };
        shown = name.marked(Name(mark.into_bytes()).as_str());
        attempt += 1;
    }
    shown
}

/// Publishes the number of caches that share a class. Call under the cache mutex.
pub(crate) fn publish_sharers(number: usize, sharers: usize) {
    if let Some(shared) = LABELS.get(number) {
        // Relaxed: the number guards no other memory.
        shared.sharers.store(sharers, Ordering::Relaxed);
    }
}

/// Returns the label of a cache's class. `None` if the class is unused or its label is being
/// written.
pub(super) fn read(number: usize) -> Option<Label> {
    let shared = LABELS.get(number)?;
    for _ in 0..ATTEMPTS {
        // Acquire: pairs with the Release in `publish`, so that the values read below are at least
        // as new.
        let version = shared.version.load(Ordering::Acquire);
        let sharers = shared.sharers.load(Ordering::Relaxed);
        let mut name = Name::default();
        for (to, from) in name.0.chunks_exact_mut(size_of::<u64>()).zip(&shared.name) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        }
        let [object_size, stride, objects, units] =
            [0, 1, 2, 3].map(|index: usize| shared.numbers[index].load(Ordering::Relaxed));
        // Acquire: pairs with the fence in `publish`. If any of the values is newer, so is the
        // version.
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

    /// Publishes a label for the class `from_last` places before the last, which no other test
    /// uses. Returns the name that is shown.
    fn shown(from_last: usize, name: &str) -> String {
        let number = MAX_CACHES - 1 - from_last;
        publish(number, &label(name));
        read(number).unwrap().name.to_string()
    }

    #[test]
    fn equal_names_get_distinct_suffixes() {
        let long = "a name that is longer than the room for it";
        assert_eq!(shown(0, long), long[..32]);
        let mark = std::format!("~{}", MAX_CACHES - 2);
        assert_eq!(shown(1, long), std::format!("{}{mark}", &long[..32 - mark.len()]));
        assert_eq!(shown(0, long), long[..32], "a label conflicts with itself");
        assert_eq!(shown(2, "told apart"), "told apart");
        assert_eq!(shown(3, "told_apart"), std::format!("told_apart~{}", MAX_CACHES - 4));
        // Another cache really has that name.
        let mark = std::format!("told apart~{}", MAX_CACHES - 6);
        assert_eq!(shown(4, &mark), mark);
        assert_eq!(shown(5, "told apart"), mark + &std::format!("~{}", 1));
        for from_last in 0..6 {
            publish_sharers(MAX_CACHES - 1 - from_last, 0);
        }
    }

    #[test]
    fn label_half_written_at_a_fork_can_be_rewritten() {
        let number = MAX_CACHES - 10;
        LABELS[number].version.store(7, Ordering::Relaxed);
        assert!(read(number).is_none());
        publish(number, &label("whole"));
        assert_eq!(read(number).unwrap().name.as_str(), "whole");
        assert_eq!(LABELS[number].version.load(Ordering::Relaxed), 8);
        publish_sharers(number, 0);
    }
}
