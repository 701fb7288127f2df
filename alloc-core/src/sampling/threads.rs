//! Sums of each thread: of the samples that it takes, and of those that it finds to be freed. They
//! lie in the thread's own block of memory, so any context may use them.

use core::sync::atomic::{AtomicU64, Ordering};

use super::sums::add_bytes;
use crate::arch;

/// Bytes, and their variance as the bits of an `f64`.
type Words = &'static [AtomicU64; 2];

/// Returns the words of what this thread allocated, and of what it freed.
fn words() -> [Words; 2] {
    let [allocated, freed] = &arch::locals().sampled;
    [allocated, freed]
}

pub(super) fn allocated(size: usize, weight: u64) {
    add_bytes(words()[0], 0, size, weight);
}

pub(super) fn freed(size: usize, weight: u64) {
    add_bytes(words()[1], 0, size, weight);
}

/// Notes that a block grew or shrank.
pub(super) fn resized(old: usize, new: usize, weight: u64) {
    let [allocated, freed] = words();
    if new > old {
        add_bytes(allocated, old, new, weight);
    } else {
        add_bytes(freed, new, old, weight);
    }
}

/// Bytes, and their variance.
pub(crate) type Bytes = (u64, f64);

/// Returns the bytes that this thread has allocated, and those that it has freed.
pub(crate) fn read() -> [Bytes; 2] {
    words().map(|words| {
        let [bytes, variance] = [&words[0], &words[1]].map(|word| word.load(Ordering::Relaxed));
        (bytes, f64::from_bits(variance))
    })
}
