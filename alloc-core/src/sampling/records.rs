//! Records of the sampled blocks that the program holds, found by the addresses of the blocks.
//!
//! Records are numbered and lie side by side. A hash table of their numbers finds them: the number
//! of a record lies anywhere within a window of the table that starts at the hash of its address.
//! All operations work in any context, without a lock: a slot of the table is taken by one
//! exchange and freed by a store. If a window or the array is full, the block is not sampled.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::numbers::Numbers;
use super::reserved::Reserved;

/// Most records at a time. At a mean of 512 KiB, that many stand for a heap of 64 GiB.
const MOST: usize = if cfg!(miri) { 1 << 10 } else { 1 << 17 };
/// Slots of the table.
const SLOTS: usize = 4 * MOST;
/// Slots that are searched for an address. With the table a quarter full, a window is full in one
/// of 10^22 cases.
const WINDOW: usize = 32;

/// What is known of a sampled block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sample {
    pub(super) address: usize,
    /// Number of the site that allocated the block.
    pub(super) site: u32,
    /// Bytes of the block.
    pub(super) size: usize,
    /// Number of blocks that the sample stands for, with [`FRACTION`](super::gaps::FRACTION) bits
    /// behind the point.
    pub(super) weight: u64,
    /// Time of the allocation, in milliseconds.
    pub(super) born: u64,
    /// Number of [marks](super::mark) before the allocation.
    pub(super) mark: u32,
}

/// A record, or a free one in the list of these.
#[repr(C)]
struct Record {
    /// 0 in a free record. Stored last with Release, which pairs with the Acquire of [`find`].
    address: AtomicUsize,
    size: AtomicUsize,
    weight: AtomicU64,
    born: AtomicU64,
    site: AtomicU32,
    mark: AtomicU32,
    /// The next free record.
    next: AtomicU32,
}

impl Record {
    /// Returns what the record holds. `address` is that of its block.
    fn sample(&self, address: usize) -> Sample {
        Sample {
            address,
            site: self.site.load(Ordering::Relaxed),
            size: self.size.load(Ordering::Relaxed),
            weight: self.weight.load(Ordering::Relaxed),
            born: self.born.load(Ordering::Relaxed),
            mark: self.mark.load(Ordering::Relaxed),
        }
    }
}

/// The table, and the records behind it.
static TABLE: Reserved<AtomicU32> = Reserved::new();
/// The free records.
static FREE: Numbers = Numbers::new();

const TABLE_BYTES: usize = SLOTS * size_of::<AtomicU32>();
const BYTES: usize = TABLE_BYTES + MOST * size_of::<Record>();

/// Reserves the memory of the records; once is enough. Returns false if there is none.
pub(super) fn prepare() -> bool {
    TABLE.prepare_all(BYTES)
}

/// Returns the slots of the window of an address, in the order in which they are searched. None
/// before [`prepare`].
fn window(address: usize) -> impl Iterator<Item = &'static AtomicU32> {
    // The upper bits of a product depend on all bits of the address.
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    TABLE.get().into_iter().flat_map(move |table| {
        (0..WINDOW).map(move |offset| {
            let slot = (hash as usize + offset) % SLOTS;
            // SAFETY: the table has that many slots, and is never unmapped.
            unsafe { table.add(slot).as_ref() }
        })
    })
}

/// Returns the record of a number below [`MOST`].
///
/// # Safety
/// [`prepare`] returned true.
unsafe fn record(number: u32) -> &'static Record {
    // SAFETY: the caller guarantees the memory, which has that many records behind the table.
    unsafe {
        let records = TABLE.get().unwrap_unchecked().byte_add(TABLE_BYTES).cast::<Record>();
        records.add(number as usize % MOST).as_ref()
    }
}

/// Keeps a sample. Returns false if there is no room. Any context.
pub(super) fn insert(sample: &Sample) -> bool {
    if TABLE.get().is_none() {
        return false;
    }
    // SAFETY: the memory exists, as was just checked.
    let link = |number| unsafe { &record(number).next };
    let Some(number) = FREE.pop(MOST as u32, link) else { return false };
    // SAFETY: as above.
    let record = unsafe { record(number) };
    // Release: pairs with the Acquire fence in `for_each`. A thread that reads any of the stores
    // below also reads that the record had no address.
    fence(Ordering::Release);
    record.size.store(sample.size, Ordering::Relaxed);
    record.weight.store(sample.weight, Ordering::Relaxed);
    record.born.store(sample.born, Ordering::Relaxed);
    record.site.store(sample.site, Ordering::Relaxed);
    record.mark.store(sample.mark, Ordering::Relaxed);
    // Release: pairs with the Acquire in `find`.
    record.address.store(sample.address, Ordering::Release);
    let is_taken = |slot: &AtomicU32| {
        slot.load(Ordering::Relaxed) == 0
            // Release: pairs with the Acquire in `find`.
            && slot.compare_exchange(0, number + 1, Ordering::Release, Ordering::Relaxed).is_ok()
    };
    let is_kept = window(sample.address).any(is_taken);
    if !is_kept {
        record.address.store(0, Ordering::Relaxed);
        FREE.push(number, link);
    }
    is_kept
}

/// Returns the slot and the number of the record of the block at `address`.
fn find(address: usize) -> Option<(&'static AtomicU32, u32)> {
    window(address).find_map(|slot| {
        // Acquire: pairs with the Release in `insert`.
        let number = slot.load(Ordering::Acquire).checked_sub(1)?;
        // SAFETY: a table with a number in it exists.
        let found = unsafe { record(number) }.address.load(Ordering::Acquire);
        (found == address).then_some((slot, number))
    })
}

/// Returns the bytes of the block at `address`, if there is a record of it.
pub(super) fn size(address: usize) -> Option<usize> {
    // SAFETY: `find` returned a number.
    find(address).map(|(_, number)| unsafe { record(number) }.size.load(Ordering::Relaxed))
}

/// Returns whether there is a record of the block at `address`.
pub(super) fn has(address: usize) -> bool {
    find(address).is_some()
}

/// Removes and returns the sample of the block at `address`. Only one caller gets it, even if
/// several call at once. Any context.
pub(super) fn remove(address: usize) -> Option<Sample> {
    let (slot, number) = find(address)?;
    // SAFETY: `find` returned a number.
    let record = unsafe { record(number) };
    // Acquire: the loads below come after it. The winner of this exchange owns the record.
    record.address.compare_exchange(address, 0, Ordering::Acquire, Ordering::Relaxed).ok()?;
    let sample = record.sample(address);
    // The slot names no other record before this one is free.
    slot.store(0, Ordering::Release);
    // SAFETY: as above.
    FREE.push(number, |number| unsafe { &self::record(number).next });
    Some(sample)
}

/// Returns the addresses of all records.
pub(super) fn range() -> Range<usize> {
    let start = TABLE.get().map_or(0, |table| table.addr().get());
    start..start + if start == 0 { 0 } else { BYTES }
}

/// Returns a number of records that there are at most.
pub(super) fn count() -> usize {
    (FREE.taken() as usize).min(MOST)
}

/// Calls `visit` with all samples. Those that come or go meanwhile may be missing. Any context.
pub(super) fn for_each(mut visit: impl FnMut(&Sample)) {
    if TABLE.get().is_none() {
        return;
    }
    for number in 0..count() as u32 {
        // SAFETY: the memory exists, as was just checked.
        let record = unsafe { record(number) };
        // Acquire: pairs with the Release in `insert`.
        let address = record.address.load(Ordering::Acquire);
        if address == 0 {
            continue;
        }
        let sample = record.sample(address);
        // Acquire: the loads above come before the next one. A record that was free meanwhile may
        // hold parts of two samples.
        fence(Ordering::Acquire);
        if record.address.load(Ordering::Relaxed) == address {
            visit(&sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn sample(address: usize) -> Sample {
        Sample { address, site: address as u32, size: 2 * address, weight: 7, born: 8, mark: 9 }
    }

    #[test]
    fn samples_are_found_by_address_until_removed() {
        assert!(prepare() && prepare());
        let count = if cfg!(miri) { 100 } else { 20_000 };
        let addresses: Vec<_> = (1..=count).map(|number| number << 12).collect();
        for round in 0..3 {
            for address in &addresses {
                assert!(!has(*address), "round {round}");
                assert!(insert(&sample(*address)));
            }
            let mut found = Vec::new();
            for_each(|found_now| found.push((found_now.address, *found_now)));
            found.sort_unstable_by_key(|(address, _)| *address);
            for address in &addresses {
                let place = found.binary_search_by_key(address, |(address, _)| *address).unwrap();
                assert_eq!(found[place].1, sample(*address));
            }
            for address in addresses.iter().rev() {
                assert!(has(*address));
                assert_eq!(remove(*address), Some(sample(*address)));
                assert_eq!(remove(*address), None);
            }
        }
    }

    #[test]
    fn threads_insert_and_remove_at_once() {
        assert!(prepare());
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        std::thread::scope(|scope| {
            for thread in 1..=3 {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let address = (thread << 40) + ((round % 7) << 4) + 1;
                        assert!(insert(&sample(address)));
                        assert_eq!(remove(address), Some(sample(address)));
                    }
                });
            }
        });
    }
}
