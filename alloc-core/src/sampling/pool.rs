//! Memory of sampled blocks of small sizes: slots of whole pages, apart from all slabs.
//!
//! Sampled blocks are told by their addresses: they lie together, below all arenas. A free that
//! knows the class of its block pushes it onto a sheaf like any other. No pop returns it from
//! there, as it lies below [`lowest`]: the slow path that follows frees it. A slot has one, two,
//! four pages and so on. When it is free it keeps its pages for the next sample, up to [`KEPT`] of
//! a size. Where address space is limited, there are fewer slots: see [`prepare`].
//!
//! All operations work in any context, without a lock.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::numbers::Numbers;
use super::reserved::{Reserved, reserve_below};
use crate::arch::lowest;
use crate::os;
use crate::size_class::MAX_SMALL;

/// Most slots of each size, a power of two. More samples than there are slots cannot be recorded.
const MOST_SLOTS: usize = if cfg!(miri) { 1 << 4 } else { 1 << 17 };
/// Least slots of each size: at a mean of 512 KiB, enough for a heap of 128 MiB.
const LEAST_SLOTS: usize = if cfg!(miri) { 1 << 4 } else { 1 << 8 };
/// The pool takes at most one part in this number of the address space that is free.
const SHARE: usize = 4;
/// Sizes of slots: pages of 4 KiB, times powers of two, for all small sizes.
const SIZES: usize = (MAX_SMALL / (4 << 10)).ilog2() as usize + 1;
/// Free slots of a size that keep their memory.
const KEPT: u32 = 32;

/// The slots of one size.
struct Band {
    numbers: Numbers,
    /// Free slots. Those that came when there were [`KEPT`] have no memory.
    free: AtomicU32,
    /// Slots from this number on were given up.
    end: AtomicU32,
}

impl Band {
    const fn new() -> Band {
        Band { numbers: Numbers::new(), free: AtomicU32::new(0), end: AtomicU32::new(u32::MAX) }
    }
}

static BANDS: [Band; SIZES] = [const { Band::new() }; SIZES];

/// The number of slots of each size, the links of all free slots, and behind them the slots.
/// [`lowest`] is the address behind the last slot.
static MEMORY: Reserved<AtomicU32> = Reserved::new();

/// Returns the bytes of the links, with the number before them, in whole pages.
fn links_bytes(slots: usize) -> usize {
    ((1 + SIZES * slots) * size_of::<AtomicU32>()).next_multiple_of(os::page_size())
}

/// Returns the bytes of a slot of a size.
fn slot_bytes(band: usize) -> usize {
    os::page_size() << band
}

/// The pool, once it is prepared.
#[derive(Clone, Copy)]
struct Pool {
    links: NonNull<AtomicU32>,
    /// Slots of each size, a power of two.
    slots: usize,
}

/// Returns the pool, if there is one.
fn pool() -> Option<Pool> {
    // SAFETY: the memory begins with the number of slots, which was stored before anybody saw it.
    MEMORY.get().map(|links| unsafe {
        Pool { links, slots: links.as_ref().load(Ordering::Relaxed) as usize }
    })
}

impl Pool {
    /// Returns the address of the first slot.
    fn start(self) -> NonNull<u8> {
        // SAFETY: the slots lie behind the links, in the same reservation.
        unsafe { self.links.cast().add(links_bytes(self.slots)) }
    }

    /// Returns the offset of the first slot of a size.
    fn band_start(self, band: usize) -> usize {
        band_start(self.slots, band)
    }

    /// Returns the address of a slot.
    ///
    /// # Safety
    /// The pool has the slot.
    unsafe fn address_of(self, band: usize, number: u32) -> NonNull<u8> {
        let offset = self.band_start(band) + number as usize * slot_bytes(band);
        // SAFETY: the caller guarantees that the slot lies in the pool.
        unsafe { self.start().add(offset) }
    }

    /// Returns the link of a slot of a size below [`SIZES`]. A number that a stray write left in a
    /// link is taken for another slot, not for an address outside.
    fn link(self, band: usize, number: u32) -> &'static AtomicU32 {
        let index = 1 + band * self.slots + number as usize % self.slots;
        // SAFETY: the memory has that many words before the slots, and is never unmapped.
        unsafe { self.links.add(index).as_ref() }
    }
}

/// Returns the offset of the first slot of a size, in a pool with this number of slots.
fn band_start(slots: usize, band: usize) -> usize {
    ((1 << band) - 1) * slots * os::page_size()
}

/// Reserves the pool; once is enough. Its address is as far below `arena`, an address in an arena,
/// as the system grants. Where address space is limited, the pool has fewer slots, so that it
/// leaves most of what is free to the program. Returns false if even [`LEAST_SLOTS`] are too many.
pub(super) fn prepare(arena: usize) -> bool {
    if exists() {
        return true;
    }
    let bytes = |slots| links_bytes(slots) + band_start(slots, SIZES);
    let halves = core::iter::successors(Some(MOST_SLOTS), |slots| Some(slots / 2));
    let mut useful = halves.take_while(|slots| *slots >= LEAST_SLOTS);
    let Some(slots) = useful.find(|slots| os::may_reserve(SHARE * bytes(*slots))) else {
        return false;
    };
    let reserve = || {
        let all = bytes(slots);
        Some((reserve_below(arena, all)?, all))
    };
    let store = |number: &AtomicU32| number.store(slots as u32, Ordering::Relaxed);
    if !MEMORY.prepare(links_bytes(slots), reserve, store) {
        return false;
    }
    // Another thread's pool may have another number of slots.
    let Some(pool) = pool() else { return false };
    let end = pool.start().addr().get() + pool.band_start(SIZES);
    // Relaxed: a thread that holds a block of the pool has seen the pool. `fetch_max`, as guarded
    // blocks may lie higher.
    lowest().fetch_max(end, Ordering::Relaxed);
    true
}

/// Returns the addresses of the pool, with its links.
pub(super) fn range() -> Range<usize> {
    pool().map_or(0..0, |pool| {
        pool.links.addr().get()..pool.start().addr().get() + pool.band_start(SIZES)
    })
}

/// Returns whether there is a pool.
fn exists() -> bool {
    MEMORY.get().is_some()
}

/// Returns whether a block may be of the pool. False for nearly all others, and always if there is
/// no pool.
#[inline(always)]
pub(crate) fn may_own(block: *mut u8) -> bool {
    // Relaxed: the owner of a block of the pool has seen the pool.
    block.addr() < lowest().load(Ordering::Relaxed)
}

/// Returns the size and the number of the slot that holds `address`. `None` if the address is not
/// of the pool.
fn slot_of(address: *mut u8) -> Option<(usize, u32)> {
    if !may_own(address) {
        return None;
    }
    let pool = pool()?;
    let offset = address.addr().checked_sub(pool.start().addr().get())?;
    // The sizes have 1, 2, 4 times this number of bytes, and so on. Shifts, as these are powers of
    // two.
    let first_bytes = (pool.slots * os::page_size()).ilog2();
    let band = ((offset >> first_bytes) + 1).ilog2() as usize;
    let number = ((offset - pool.band_start(band)) >> slot_bytes(band).ilog2()) as u32;
    // Relaxed: the owner of a slot got it before the others were given up, or knows of that.
    let is_kept = number < BANDS.get(band)?.end.load(Ordering::Relaxed);
    is_kept.then_some((band, number))
}

/// Returns whether `address` lies in the pool.
pub(super) fn owns(address: *mut u8) -> bool {
    slot_of(address).is_some()
}

/// Takes a slot of at least `bytes` bytes. `None` if there is no slot of that size, or no memory.
pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
    let pool = pool().filter(|_| exists())?;
    let band = bytes.div_ceil(os::page_size()).next_power_of_two().ilog2() as usize;
    let Band { numbers, free, .. } = BANDS.get(band)?;
    // SAFETY: a number is below that of the slots.
    unsafe {
        if let Some(number) = numbers.reused(|number| pool.link(band, number)) {
            let _ =
                free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
            return Some(pool.address_of(band, number));
        }
        let number = numbers.fresh(pool.slots as u32)?;
        let slot = pool.address_of(band, number);
        // A slot that was not committed is lost until the process ends: there is no memory for it.
        os::commit(slot, slot_bytes(band)).then_some(slot)
    }
}

/// Unmaps the address space of slots that were never used, except for [`LEAST_SLOTS`] of each size.
/// Other memory may lie there afterwards.
pub(super) fn give_up() {
    let Some(pool) = pool().filter(|_| exists()) else { return };
    for (band, Band { numbers, free, end }) in BANDS.iter().enumerate() {
        let all = pool.slots as u32;
        let first = numbers.take_fresh(all);
        let kept = all.min(first.saturating_add(LEAST_SLOTS as u32));
        let bytes = |slots: u32| slots as usize * slot_bytes(band);
        // SAFETY: nobody else has these slots. They lie in the pool, and those that are kept get
        // their memory before anybody can take them.
        unsafe {
            if kept < all {
                end.store(kept, Ordering::Relaxed);
                os::unreserve(pool.address_of(band, kept), bytes(all - kept));
            }
            if kept > first && os::commit(pool.address_of(band, first), bytes(kept - first)) {
                free.fetch_add(kept - first, Ordering::Relaxed);
                (first..kept).for_each(|number| {
                    numbers.push(number, |number| pool.link(band, number));
                });
            }
        }
    }
}

/// Puts back the slot that holds `block`.
///
/// # Safety
/// The slot was taken, and nobody uses it.
pub(super) unsafe fn put(block: *mut u8) {
    let (Some(pool), Some((band, number))) = (pool(), slot_of(block)) else { return };
    let Some(Band { numbers, free, .. }) = BANDS.get(band) else { return };
    if free.fetch_add(1, Ordering::Relaxed) >= KEPT {
        // SAFETY: the pool owns the slot, whose contents are dead.
        unsafe { os::decommit(pool.address_of(band, number), slot_bytes(band)) };
    }
    numbers.push(number, |number| pool.link(band, number));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn slots_are_disjoint_writable_and_reused() {
        let here = &raw const BANDS;
        if !prepare(here.addr()) {
            std::println!("skipped: there is no address space for the pool");
            return;
        }
        assert!(prepare(here.addr()));
        for bytes in [1, 4096, 5000, 20_000, MAX_SMALL] {
            let count = if cfg!(miri) { 3 } else { 100 };
            let mut all: Vec<_> = (0..count).map(|_| take(bytes).unwrap()).collect();
            for slot in &all {
                assert!(may_own(slot.as_ptr()) && owns(slot.as_ptr()));
                // SAFETY: the slot is this test's, and has that many bytes.
                unsafe { slot.write_bytes(1, bytes) };
            }
            all.sort_unstable();
            assert!(all.windows(2).all(|two| two[0].addr().get() + bytes <= two[1].addr().get()));
            for slot in &all {
                // SAFETY: the slot was taken above, and is put back once.
                unsafe { put(slot.as_ptr()) };
            }
            let again = take(bytes).unwrap();
            assert!(all.contains(&again));
            // SAFETY: as above.
            unsafe { put(again.as_ptr()) };
        }
        assert_eq!(take(MAX_SMALL * 100), None);
        assert!(!owns(here.cast_mut().cast()));
    }
}
