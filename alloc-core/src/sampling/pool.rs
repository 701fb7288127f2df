//! Memory of sampled blocks of small sizes: slots of whole pages, apart from all slabs.
//!
//! Sampled blocks are told by their addresses: they lie together, below all arenas. A free that
//! knows the class of its block pushes it onto a sheaf like any other. No pop returns it from
//! there, as it lies below [`lowest`]: the slow path that follows frees it. A slot has one, two,
//! four pages and so on. When it is free it keeps its pages for the next sample, up to [`KEPT`] of
//! a size.
//!
//! All operations work in any context, without a lock.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::numbers::Numbers;
use super::reserved::Reserved;
use crate::arch::lowest;
use crate::os;
use crate::size_class::MAX_SMALL;

/// Slots of each size. More samples than that cannot be recorded.
const SLOTS: usize = if cfg!(miri) { 1 << 4 } else { 1 << 17 };
/// Sizes of slots: pages of 4 KiB, times powers of two, for all small sizes.
const SIZES: usize = (MAX_SMALL / (4 << 10)).ilog2() as usize + 1;
/// Free slots of a size that keep their memory.
const KEPT: u32 = 32;

/// The slots of one size.
struct Band {
    numbers: Numbers,
    /// Free slots. Those that came when there were [`KEPT`] have no memory.
    free: AtomicU32,
}

static BANDS: [Band; SIZES] =
    [const { Band { numbers: Numbers::new(), free: AtomicU32::new(0) } }; SIZES];

/// The links of all free slots, and behind them the slots. [`lowest`] is the address behind the
/// last slot.
static MEMORY: Reserved<AtomicU32> = Reserved::new();

/// Returns the bytes of the links, in whole pages.
fn links_bytes() -> usize {
    (SIZES * SLOTS * size_of::<AtomicU32>()).next_multiple_of(os::page_size())
}

/// Returns the address of the first slot, if there is a pool.
fn start() -> Option<NonNull<u8>> {
    // SAFETY: the slots lie behind the links, in the same reservation.
    MEMORY.get().map(|links| unsafe { links.cast().add(links_bytes()) })
}

/// Returns the bytes of a slot of a size.
fn slot_bytes(band: usize) -> usize {
    os::page_size() << band
}

/// Returns the offset of the first slot of a size.
fn band_start(band: usize) -> usize {
    ((1 << band) - 1) * SLOTS * os::page_size()
}

/// Reserves the pool; once is enough. Its address is as far below `arena`, an address in an arena,
/// as the system grants. Returns false if there is no address space.
pub(super) fn prepare(arena: usize) -> bool {
    let (links, bytes) = (links_bytes(), band_start(SIZES));
    let reserve = || {
        let all = links + bytes;
        let near = (1..=4).rev().find_map(|part| os::reserve_near(arena >> part, all));
        Some((near.or_else(|| os::reserve(all))?, all))
    };
    if !MEMORY.prepare(links, reserve) {
        return false;
    }
    let end = start().map_or(1, |start| start.addr().get() + bytes);
    // Release: pairs with the Acquire in `exists`.
    lowest().store(end, Ordering::Release);
    true
}

/// Returns whether there is a pool.
fn exists() -> bool {
    // Acquire: pairs with the Release in `prepare`, so that `MEMORY` is visible.
    lowest().load(Ordering::Acquire) > 1
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
    let offset = address.addr().checked_sub(start()?.addr().get())?;
    let band = (offset / (SLOTS * os::page_size()) + 1).ilog2() as usize;
    Some((band, ((offset - band_start(band)) / slot_bytes(band)) as u32))
}

/// Returns whether `address` lies in the pool.
pub(super) fn owns(address: *mut u8) -> bool {
    slot_of(address).is_some()
}

/// Returns the address of a slot.
///
/// # Safety
/// The pool exists and has the slot.
unsafe fn address_of(band: usize, number: u32) -> NonNull<u8> {
    let offset = band_start(band) + number as usize * slot_bytes(band);
    // SAFETY: the caller guarantees that the slot lies in the pool, which has a start.
    unsafe { start().unwrap_unchecked().add(offset) }
}

/// Returns the link of a slot. A number that a stray write left in a link is taken for another
/// slot, not for an address outside.
///
/// # Safety
/// The pool exists.
unsafe fn link(band: usize, number: u32) -> &'static AtomicU32 {
    let index = band * SLOTS + number as usize % SLOTS;
    // SAFETY: the caller guarantees a pool, which has that many links and is never unmapped.
    unsafe { MEMORY.get().unwrap_unchecked().add(index).as_ref() }
}

/// Takes a slot of at least `bytes` bytes. `None` if there is no slot of that size, or no memory.
pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
    if !exists() {
        return None;
    }
    let band = bytes.div_ceil(os::page_size()).next_power_of_two().ilog2() as usize;
    let Band { numbers, free } = BANDS.get(band)?;
    // SAFETY: the pool exists, as was just checked; a number is below `SLOTS`.
    unsafe {
        if let Some(number) = numbers.reused(|number| link(band, number)) {
            let _ =
                free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
            return Some(address_of(band, number));
        }
        let number = numbers.fresh(SLOTS as u32)?;
        let slot = address_of(band, number);
        // A slot that was not committed is lost until the process ends: there is no memory for it.
        os::commit(slot, slot_bytes(band)).then_some(slot)
    }
}

/// Puts back the slot that holds `block`.
///
/// # Safety
/// The slot was taken, and nobody uses it.
pub(super) unsafe fn put(block: *mut u8) {
    let Some((band, number)) = slot_of(block) else { return };
    let Some(Band { numbers, free }) = BANDS.get(band) else { return };
    // SAFETY: the pool exists, as it owns the slot, whose contents are dead.
    unsafe {
        if free.fetch_add(1, Ordering::Relaxed) >= KEPT {
            os::decommit(address_of(band, number), slot_bytes(band));
        }
        numbers.push(number, |number| link(band, number));
    }
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
