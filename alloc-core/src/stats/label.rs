//! What caches are called and how their slabs are cut, for all to read without the cache mutex.
//!
//! Who has the mutex writes; who reads and finds that the version changed meanwhile, or is odd, reads again, and does without in the
//! end: it may be a handler that interrupted the writing. (A *seqlock*, `include/linux/seqlock.h`.)

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::Name;
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

/// Says what a class is from now on. Under the cache mutex.
pub(crate) fn publish(number: usize, label: &Label) {
    let Some(shared) = LABELS.get(number) else { return };
    let version = shared.version.load(Ordering::Relaxed);
    shared.version.store(version.wrapping_add(1), Ordering::Relaxed);
    // Release: who sees any of what follows sees the odd version, too. Pairs with the fence in `of_cache`.
    fence(Ordering::Release);
    for (to, from) in shared.name.iter().zip(label.name.0.chunks_exact(size_of::<u64>())) {
        let mut word = [0; size_of::<u64>()];
        word.copy_from_slice(from);
        to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
    }
    let numbers = [label.object_size, label.stride, label.objects, label.units];
    for (to, from) in shared.numbers.iter().zip(numbers) {
        to.store(from, Ordering::Relaxed);
    }
    shared.sharers.store(label.sharers, Ordering::Relaxed);
    // Release: pairs with the Acquire in `of_cache`.
    shared.version.store(version.wrapping_add(2), Ordering::Release);
}

/// Says how many caches share a class from now on. Under the cache mutex.
pub(crate) fn publish_sharers(number: usize, sharers: usize) {
    if let Some(shared) = LABELS.get(number) {
        // Relaxed: a number that guards nothing.
        shared.sharers.store(sharers, Ordering::Relaxed);
    }
}

/// What the class of a cache is; `None` where it is nobody's, or is being written.
pub(super) fn of_cache(number: usize) -> Option<Label> {
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
