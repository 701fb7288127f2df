//! Makes arenas: reserves address space, divides it into its arrays, and commits what the first
//! run needs.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::advice::{HugePages, prefer_node};
use super::arenas::{claim, claimed};
use super::arrays::{Arrays, ENTRY_SIZE, META_SIZE, PER_UNIT};
use super::descriptor::Run;
use super::limit;
use super::reserve::{BLOCK, Reserve};
use crate::arch::FIRST;
use crate::fault::{self, Place};
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::{Context, Lock, LockClass, RawLock};

/// Bytes to ask for in the first attempt to reserve an arena. Each further attempt asks for half.
const ARENA_BYTES: usize = if cfg!(miri) { 24 << 20 } else { 256 << 30 };

/// The reserve has one in this many units of an arena, up to [`Reserve::BLOCKS`] blocks.
const RESERVE_SHARE: u32 = 16;

/// Serialises the making of arenas among contexts that may wait. Two arenas made at once do no
/// harm.
static MAKING: Lock<()> = Lock::new(LockClass::ArenaMaking, ());
/// The smallest need, in units, for which making an arena has failed since one was last made. For
/// such a need, an arena is attempted only after everything else failed.
static REFUSED: AtomicU32 = AtomicU32::new(u32::MAX);

pub(super) fn lock() -> &'static RawLock {
    MAKING.raw()
}

/// Returns whether no arena was refused for `need` units or fewer since one was last made.
pub(super) fn may_succeed(need: u32) -> bool {
    need < REFUSED.load(Ordering::Relaxed)
}

/// Makes an arena of `node` for a run of at least `need` units, unless the number of arenas is no
/// longer `seen`. Returns whether it made one, or `None` if an arena cannot be made.
#[cold]
pub(super) fn make_arena(context: Context, node: usize, need: u32, seen: usize) -> Option<bool> {
    let _making = MAKING.acquire(context);
    fault::point(Place::ArenaMaking);
    if seen == 0 {
        limit::read();
    }
    if claimed() != seen {
        return Some(false);
    }
    let made = try_make_arena(node, need);
    // Relaxed: a hint.
    match made {
        Some(()) => REFUSED.store(u32::MAX, Ordering::Relaxed),
        None => _ = REFUSED.fetch_min(need, Ordering::Relaxed),
    }
    made.map(|()| true)
}

fn try_make_arena(node: usize, need: u32) -> Option<()> {
    let (reserved, bytes) = reserve(least_bytes(need)?)?;
    // SAFETY: the reservation was made above, and nobody else uses it.
    let made = unsafe { fill(reserved, bytes, node, need) };
    if made.is_none() {
        // SAFETY: nobody uses the reservation, as no arena was made of it.
        unsafe { os::unreserve(reserved, bytes) };
    }
    made
}

/// Returns the bytes of the smallest arena with `need` consecutive units that are neither unit 0
/// nor part of the reserve.
fn least_bytes(need: u32) -> Option<usize> {
    let reserve = (need / (RESERVE_SHARE - 1)).min(Reserve::BLOCKS as u32 * BLOCK) + BLOCK;
    // The reserve also ends on a block.
    let units = need.checked_add(1)?.checked_add(reserve)?.checked_add(BLOCK)?;
    // Four units are for aligning the arrays.
    let bytes = (units as usize).checked_mul(PER_UNIT)? + 4 * UNIT;
    bytes.checked_next_multiple_of(UNIT)
}

/// Reserves at least `least` bytes. Returns the address and the number of bytes reserved.
fn reserve(least: usize) -> Option<(NonNull<u8>, usize)> {
    let mut bytes = ARENA_BYTES.max(least);
    let reserved = loop {
        if let Some(address) = os::reserve(bytes) {
            break address;
        }
        if bytes == least {
            return None;
        }
        bytes = (bytes / 2).max(least);
    };
    if bytes < ARENA_BYTES && bytes / 2 >= least && !cfg!(miri) {
        // Address space is limited: leave half of the available space to the stacks and mappings of
        // the program.
        let keep = (bytes / 2).next_multiple_of(UNIT);
        // SAFETY: nobody has used the reservation, of which this is the upper part.
        unsafe { os::unreserve(reserved.add(keep), bytes - keep) };
        bytes = keep;
    }
    Some((reserved, bytes))
}

/// Turns a reservation into an arena and publishes it. Returns `None` if the system does not commit
/// the memory that is needed, or if there are too many arenas.
///
/// # Safety
/// `reserved` is a reservation of `bytes` bytes that nobody else uses.
unsafe fn fill(reserved: NonNull<u8>, bytes: usize, node: usize, need: u32) -> Option<()> {
    // The metadata is taken from that node as well, since the owner of a run uses its metadata.
    // SAFETY: the caller guarantees that the range is one reservation.
    unsafe { prefer_node(reserved, bytes, node) };
    if HugePages::wanted() != HugePages::Always {
        // SAFETY: the caller guarantees that the range is one reservation.
        unsafe { os::prefer_huge_pages(reserved, bytes, false) };
    }
    let arrays = Arrays::within(reserved, bytes, node);
    // Unit 0 is in no run.
    // SAFETY: the caller guarantees that nobody else uses the reservation, of which nothing is
    // committed yet.
    let more = unsafe { arrays.commit_more(1, arrays.reserve, need)? };
    let (index, arena) = claim()?;
    let (base, entries, meta) = (arrays.base, arrays.entries, arrays.meta);
    let bytes = (arrays.units as usize) << UNIT_SHIFT;
    // SAFETY: this thread has claimed the arena, and `more` units were committed above.
    unsafe { arena.publish(arrays, more) };
    if index == 0 {
        FIRST.base.store(base, Ordering::Relaxed);
        FIRST.entries.store(entries, Ordering::Relaxed);
        FIRST.meta.store(meta, Ordering::Relaxed);
        // Release: pairs with the Acquire in `push_by_address` and `meta_in_first`.
        FIRST.bytes.store(bytes, Ordering::Release);
    }
    Some(())
}

impl Arrays {
    /// Divides a reservation into the arrays. Only computes addresses.
    fn within(reserved: NonNull<u8>, bytes: usize, node: usize) -> Arrays {
        // Each array starts on a unit; four units are set aside for that.
        let padding = reserved.as_ptr().align_offset(UNIT);
        let units = (bytes - 4 * UNIT) / PER_UNIT;
        let entries_bytes = (units * ENTRY_SIZE).next_multiple_of(UNIT);
        let runs_bytes = (units * size_of::<Run>()).next_multiple_of(UNIT);
        let meta_bytes = (units * META_SIZE).next_multiple_of(UNIT);
        let units = units
            .min((bytes - padding - entries_bytes - runs_bytes - meta_bytes) / UNIT)
            .min(u32::MAX as usize / 2);
        let entries = reserved.as_ptr().wrapping_add(padding);
        let runs = entries.wrapping_add(entries_bytes);
        let meta = runs.wrapping_add(runs_bytes);
        let base = meta.wrapping_add(meta_bytes);
        // The reserve starts on a block and ends on one.
        let past = ((base.addr() >> UNIT_SHIFT) + units) as u32 % BLOCK;
        let end = (units as u32).saturating_sub(past);
        let blocks = (end / RESERVE_SHARE / BLOCK).min(Reserve::BLOCKS as u32);
        Arrays {
            base,
            entries,
            runs: runs.cast(),
            meta,
            reserve: end - blocks * BLOCK,
            units: end,
            node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest arena has room for the run it is made for, wherever it lies, and is not much
    /// longer.
    #[test]
    #[cfg_attr(miri, ignore = "the arenas lie at addresses that are nobody's")]
    fn smallest_arena_has_room_for_its_run() {
        let mut need = 1;
        while need < u32::MAX / 32 {
            let bytes = least_bytes(need).unwrap();
            assert!(bytes / UNIT <= need as usize / 10 * 11 + 30, "{need} units, {bytes} bytes");
            for at in 0..u64::from(BLOCK) {
                let address = (1 << 40) + at * UNIT as u64 + 4096;
                let reserved = NonNull::without_provenance((address as usize).try_into().unwrap());
                let arrays = Arrays::within(reserved, bytes, 0);
                assert!(arrays.reserve > need, "{need} units, {arrays:?}");
                assert!(need < 64 || arrays.units > arrays.reserve, "{need} units, {arrays:?}");
            }
            need += need / 7 + 1;
        }
        assert_eq!(least_bytes(u32::MAX), None);
    }
}
