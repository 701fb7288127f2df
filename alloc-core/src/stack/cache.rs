//! A cache of rules: from a return address to the short form of the rules there.
//!
//! A library may be unloaded, and another one loaded at the same address. So each entry has a hash
//! of all that the tables say of its function, and counts only while that is unchanged. The hash
//! also covers the other words of the entry. So an entry that is read while another thread, or the
//! code that a signal handler interrupted, is writing it is not taken for valid, and neither is one
//! that was being written when the process forked. There is no lock.

use core::sync::atomic::{AtomicU64, Ordering};

use super::rules::Short;
use super::tables::{Tables, mix};

/// Number of entries. They take memory from their first use on.
const ENTRIES: usize = 2048;

/// A return address, the place of its function in the index of the tables, the rules, and the hash.
#[repr(align(32))]
struct Entry([AtomicU64; 4]);

static ENTRIES_BY_ADDRESS: [Entry; ENTRIES] =
    [const { Entry([const { AtomicU64::new(0) }; 4]) }; ENTRIES];

fn entry(address: usize) -> &'static Entry {
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let index = hash >> (u64::BITS - ENTRIES.ilog2());
    // The index is below the length.
    ENTRIES_BY_ADDRESS.get(index as usize).unwrap_or(&ENTRIES_BY_ADDRESS[0])
}

fn check(tables: &Tables, words: [u64; 3]) -> Option<u64> {
    let [_, place, _] = words;
    Some(words.into_iter().fold(tables.hash(place as usize)?, mix))
}

/// Returns the rules at a return address in the image of these tables.
#[inline]
pub(super) fn get(address: usize, tables: &Tables) -> Option<Short> {
    // Relaxed: the hash detects words that were stored by different threads.
    let [own, place, rules, hash] =
        entry(address).0.each_ref().map(|word| word.load(Ordering::Relaxed));
    let is_valid = own == address as u64 && check(tables, [own, place, rules]) == Some(hash);
    is_valid.then(|| Short::unpack(rules))
}

/// Stores the rules at a return address in the function at this place of the tables.
pub(super) fn set(address: usize, tables: &Tables, place: usize, rules: Short) {
    let Some(rules) = rules.pack() else { return };
    let words = [address as u64, place as u64, rules];
    let Some(hash) = check(tables, words) else { return };
    let [own, place, rules] = words;
    for (to, word) in entry(address).0.iter().zip([own, place, rules, hash]) {
        // Relaxed: as in `get`.
        to.store(word, Ordering::Relaxed);
    }
}
