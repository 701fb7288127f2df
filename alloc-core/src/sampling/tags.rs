//! Tags: names of parts of the program, the one that a thread is in, and the sums of each.
//!
//! Names are interned: the first use of a name gives it a number, which it keeps for the life of
//! the process. The names with one hash form a chain. All operations work in any context: an entry
//! is linked by one exchange once it is complete. The current tag of a thread is a word that exists
//! as long as the thread does; it is read when a sample is taken, and by nobody else.

use core::cell::UnsafeCell;
use core::iter;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::chains::{self, Chains};
use super::numbers::Numbers;
use super::reserved::Reserved;
use super::sums::{self, Balance};
use crate::arch;

/// Most names.
pub(crate) const MOST: usize = if cfg!(miri) { 1 << 4 } else { 1 << 10 };
/// Bytes of a name that are kept: as many as of a cache's name.
pub(crate) const MOST_BYTES: usize = 32;
/// Chains.
const CHAINS: usize = 1 << 8;

/// A name and its sums.
#[repr(C)]
struct Entry {
    /// The next tag of the chain, or the next entry that is not linked.
    next: AtomicU32,
    /// Bytes of the name. It does not change once the entry is linked.
    len: AtomicU32,
    name: UnsafeCell<[u8; MOST_BYTES]>,
    sums: Balance,
}

/// All tags, by the hashes of their names. The number of a tag is that of its entry plus one.
static ALL: Chains<CHAINS> = Chains::new();
/// Memory of the entries.
static ENTRIES: Reserved<Entry> = Reserved::new();
/// Entries that are not linked.
static FREE: Numbers = Numbers::new();
/// Uses of names for which there was no entry.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Sums of what was allocated without a tag.
static UNTAGGED: Balance = Balance::new();

/// Returns the entry of a number below [`MOST`].
///
/// # Safety
/// The memory is prepared.
unsafe fn at(number: u32) -> &'static Entry {
    // SAFETY: the caller guarantees the memory, which has that many entries and is never unmapped.
    unsafe { ENTRIES.get().unwrap_unchecked().add(number as usize % MOST).as_ref() }
}

/// Returns the name of an entry.
///
/// # Safety
/// The entry is linked.
unsafe fn name_of(entry: &'static Entry) -> &'static str {
    let len = entry.len.load(Ordering::Relaxed) as usize;
    // SAFETY: the caller guarantees a linked entry: its name is complete, and does not change.
    unsafe {
        let name: &[u8; MOST_BYTES] = &*entry.name.get();
        core::str::from_utf8_unchecked(name.get_unchecked(..len))
    }
}

/// Returns the number of the tag with this name, which is cut to [`MOST_BYTES`] and at a zero byte.
/// Makes the tag if there is none. Returns 0 for the empty name, and also, after counting the loss,
/// if there is no room.
pub(crate) fn intern(name: &str) -> u32 {
    let name = name.split('\0').next().unwrap_or_default();
    let end = (0..=name.len().min(MOST_BYTES)).rev().find(|end| name.is_char_boundary(*end));
    let name = name.get(..end.unwrap_or(0)).unwrap_or_default();
    if name.is_empty() {
        return 0;
    }
    find(name).unwrap_or_else(|| {
        LOST.fetch_add(1, Ordering::Relaxed);
        0
    })
}

fn find(name: &str) -> Option<u32> {
    let hash = chains::hash(name.len() as u64, name.bytes().map(u64::from));
    let found = ALL.find(hash, link, |tag| self::name(tag) == name, || Some(make(name)? + 1))?;
    if let Some(spare) = found.spare {
        FREE.push(spare - 1, free_link);
    }
    Some(found.number)
}

/// Returns the link of a tag.
fn link(tag: u32) -> &'static AtomicU32 {
    free_link(tag - 1)
}

/// Returns the link of an entry that [`make`] found memory for.
fn free_link(number: u32) -> &'static AtomicU32 {
    // SAFETY: the memory is prepared before an entry is popped.
    &unsafe { at(number) }.next
}

/// Makes an entry that is not linked yet. Returns its number.
fn make(name: &str) -> Option<u32> {
    if !ENTRIES.prepare_all(MOST * size_of::<Entry>()) {
        return None;
    }
    let number = FREE.pop(MOST as u32, free_link)?;
    // SAFETY: the memory exists, as was just checked.
    let entry = unsafe { at(number) };
    // SAFETY: the entry is this caller's until it is linked or pushed; the name fits.
    unsafe { entry.name.get().cast::<u8>().copy_from_nonoverlapping(name.as_ptr(), name.len()) };
    entry.len.store(name.len() as u32, Ordering::Relaxed);
    Some(number)
}

/// Returns the number of uses of names that became no tags, as there were too many.
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Returns the name of a tag: the empty one for 0.
pub(crate) fn name(number: u32) -> &'static str {
    match number.checked_sub(1) {
        // SAFETY: a number other than 0 comes from `intern`, so the entry is linked.
        Some(index) => unsafe { name_of(at(index)) },
        None => "",
    }
}

/// Returns the sums of a tag.
pub(super) fn sums(number: u32) -> &'static Balance {
    match number.checked_sub(1) {
        // SAFETY: a number other than 0 comes from `intern`, so the memory exists.
        Some(index) => &unsafe { at(index) }.sums,
        None => &UNTAGGED,
    }
}

/// Returns the tag that this thread is in.
pub(crate) fn current() -> u32 {
    arch::locals().tag.load(Ordering::Relaxed)
}

/// Makes this thread be in a tag. Returns the one that it was in.
pub(crate) fn replace(number: u32) -> u32 {
    let word = &arch::locals().tag;
    // A handler that comes between leaves the word as it found it.
    let before = word.load(Ordering::Relaxed);
    word.store(number, Ordering::Relaxed);
    before
}

/// Returns all tags, 0 first, with their sums.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, sums::Estimate)> {
    iter::once(0).chain(ALL.all(link)).map(|number| (name(number), sums(number).read()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn names_have_one_number_each() {
        let count = if cfg!(miri) { 3 } else { 300 };
        let names: Vec<String> = (0..count).map(|one| format!("name {one}")).collect();
        let intern_all = || names.iter().map(|name| intern(name)).collect::<Vec<_>>();
        let all: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(intern_all)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|numbers| *numbers == all[0]));
        for (name, number) in names.iter().zip(&all[0]) {
            assert!(*number != 0 && super::name(*number) == name);
        }
        let long = "é".repeat(MOST_BYTES);
        let number = intern(&format!("x{long}"));
        assert_eq!(number, intern(&format!("x{long} and more")));
        assert_eq!(super::name(number).len(), MOST_BYTES - 1);
        assert_eq!((intern(""), intern("\0a"), super::name(0)), (0, 0, ""));
        assert_eq!(super::name(intern("a\0b")), "a");
    }

    #[test]
    fn threads_have_a_tag_each() {
        let before = replace(5);
        assert_eq!((before, current()), (0, 5));
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(replace(6), 0));
        });
        assert_eq!(replace(before), 5);
    }
}
