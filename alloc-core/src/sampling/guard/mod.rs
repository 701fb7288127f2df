//! Guarded blocks: a few blocks chosen at random, each on a page of its own between pages that
//! nobody may access. An access beyond such a block, or after it was freed, faults at once, and a
//! free finds what was written beside the block on its page.
//!
//! The slots lie below all arenas, like those of [`pool`](super::pool). So a free knows a guarded
//! block by its address, as it does a sampled one. A block lies at the end of its page or at the
//! start, at random: at the end a read or write beyond it faults, at the start one before it. The
//! rest of the page is filled with a pattern that the free checks. The page of a freed block is
//! inaccessible until its slot is used again, which is long after, as slots are used in turn.
//!
//! | module | holds |
//! |---|---|
//! | this one | choosing, allocating and freeing guarded blocks |
//! | `report` | messages: what is wrong, with which block, and stacks |
//! | `slots` | pages, and what is known of the last block of each |
//!
//! A module imports only from lower rows.
//!
//! All operations work in any context, without a lock and without a heap.

mod report;
mod slots;

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use self::report::{Misuse, explain, misused};
use self::slots::{
    ALL_SLOTS, ALLOCATION, BUSY, FREE, FREED, LIVE, NEW, SLOTS, live, page_of, page_of_slot,
    prepare,
};
use crate::os;
use crate::settings::{self, Name};
use crate::size_class::{Class, REDZONE};

/// Bytes of a block that can be guarded, at most.
const MOST_BYTES: usize = 4096;

/// Least number of milliseconds between two guarded blocks, unless the setting is [`ALL`]: at most
/// a hundred blocks a second, of some 20 µs each.
const PAUSE: u64 = 10;
/// Most guarded blocks in use at a time, unless the setting is [`ALL`]. Each keeps a page.
const MOST_IN_USE: u32 = 64;

/// Mean number of allocations from one to be guarded to the next; 0 if none is, and [`UNREAD`]
/// before the setting was read. Relaxed: the number guards nothing.
static MEAN: AtomicU32 = AtomicU32::new(UNREAD);
const UNREAD: u32 = u32::MAX;
/// The mean at which all allocations are guarded, as long as there is room.
const ALL: u32 = 1;
/// The time from which on a block may be guarded, in milliseconds.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// Guarded blocks so far, and those in use. Relaxed: statistics.
static GUARDED: AtomicU64 = AtomicU64::new(0);
static IN_USE: AtomicU32 = AtomicU32::new(0);

/// Returns the mean number of allocations of a class on a CPU from one to be guarded to the next;
/// `None` if blocks of this class are not guarded.
#[inline]
pub(super) fn mean(class: Class) -> Option<u32> {
    // Miri has no inaccessible pages. Blocks that end in their size have it behind that of their
    // class.
    if cfg!(miri) || REDZONE != 0 || class.size() > MOST_BYTES {
        return None;
    }
    let mean = match MEAN.load(Ordering::Relaxed) {
        UNREAD => read_setting(),
        mean => mean,
    };
    (mean > 0).then_some(mean)
}

#[cold]
fn read_setting() -> u32 {
    let mean = settings::number(Name::Guard).unwrap_or(0);
    MEAN.store(mean, Ordering::Relaxed);
    mean
}

/// Returns whether to guard an allocation that no sheaf counts. True only if the setting is
/// [`ALL`]: a growing program makes many such allocations, and the counted ones suffice for
/// sampling.
pub(super) fn is_hit(class: Class) -> bool {
    mean(class) == Some(ALL)
}

/// Returns whether a block may be guarded now.
pub(super) fn is_due() -> bool {
    if MEAN.load(Ordering::Relaxed) == ALL {
        return true;
    }
    let now = os::milliseconds();
    let next = NEXT.load(Ordering::Relaxed);
    // One of the threads that come at once wins.
    let wins =
        || NEXT.compare_exchange(next, now + PAUSE, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    IN_USE.load(Ordering::Relaxed) < MOST_IN_USE && now >= next && wins()
}

/// Returns the number of guarded blocks so far, and of those in use.
pub(crate) fn counts() -> (u64, u64) {
    (GUARDED.load(Ordering::Relaxed), IN_USE.load(Ordering::Relaxed).into())
}

/// Returns whether `block` is of a slot, or lies between slots.
pub(super) fn owns(block: *mut u8) -> bool {
    page_of(block.addr()).is_some()
}

/// Returns the bytes of the block in use that starts at `block`.
pub(super) fn size(block: *mut u8) -> Option<usize> {
    live(block).map(|slot| slot.size.load(Ordering::Relaxed))
}

/// Returns the class that serves the block in use that starts at `block`.
pub(super) fn class_of(block: *mut u8) -> Option<Class> {
    Class::from_index(live(block)?.class.load(Ordering::Relaxed))
}

/// The slot that is tried first for the next block.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Allocates a guarded block for `layout`, which `class` serves, a small one that has a [`mean`].
/// `arena` is an address in an arena. Returns the block with the address behind all slots, or
/// `None` if there is no slot or no memory.
pub(super) fn alloc(
    class: Class,
    layout: Layout,
    random: u64,
    arena: usize,
) -> Option<(NonNull<u8>, usize)> {
    let end = prepare(arena)?;
    let first = TURN.fetch_add(1, Ordering::Relaxed);
    let (number, slot) = (0..SLOTS).find_map(|turn| {
        let number = first.wrapping_add(turn) % SLOTS;
        let slot = ALL_SLOTS.get(number)?;
        let state = slot.state.load(Ordering::Relaxed);
        // Acquire: pairs with the Release in `free`.
        let take =
            || slot.state.compare_exchange(state, BUSY, Ordering::Acquire, Ordering::Relaxed);
        (matches!(state, NEW | FREED) && take().is_ok()).then_some((number, slot))
    })?;
    let bytes = os::page_size();
    let page = page_of_slot(number)?;
    // SAFETY: a page of the reservation.
    if !unsafe { os::commit(page, bytes) } {
        slot.state.store(NEW, Ordering::Release);
        return None;
    }
    os::explain_faults(explain);
    // At the end of the page, as close as the alignment permits, or at its start.
    let size = layout.size().max(1);
    let at_end = (bytes - size) & !(layout.align() - 1);
    let offset = if random & 1 == 0 { at_end } else { 0 };
    // SAFETY: the block lies on the page, which is this thread's.
    let block = unsafe {
        fill(page, 0..offset);
        fill(page, offset + size..bytes);
        page.add(offset)
    };
    slot.class.store(class.index(), Ordering::Relaxed);
    slot.size.store(size, Ordering::Relaxed);
    slot.address.store(block.addr().get(), Ordering::Relaxed);
    slot.by[ALLOCATION].record();
    // Release: pairs with the Acquire in `live`.
    slot.state.store(LIVE, Ordering::Release);
    GUARDED.fetch_add(1, Ordering::Relaxed);
    IN_USE.fetch_add(1, Ordering::Relaxed);
    Some((block, end))
}

/// Frees a guarded block. Ends the process with a report if none in use starts there, or if
/// something was written beside it.
///
/// # Safety
/// [`owns`] returned true. Nobody uses the block.
pub(super) unsafe fn free(block: *mut u8) {
    let Some(slot) = live(block) else { misused(Misuse::Free, block.addr()) };
    // Acquire: the loads below come after it. The winner owns the slot.
    if slot.state.compare_exchange(LIVE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
        misused(Misuse::Free, block.addr());
    }
    let bytes = os::page_size();
    // SAFETY: the block lies on the page of its slot.
    let page = unsafe {
        NonNull::new_unchecked(ptr::with_exposed_provenance_mut::<u8>(block.addr() & !(bytes - 1)))
    };
    let (start, size) = (block.addr() - page.addr().get(), slot.size.load(Ordering::Relaxed));
    slot.by[FREE].record();
    for range in [0..start, start + size..bytes] {
        // SAFETY: the page is accessible, and its slot is this thread's.
        if let Some(offset) = unsafe { first_change(page, range) } {
            slot.state.store(LIVE, Ordering::Release);
            misused(Misuse::Written, page.addr().get() + offset);
        }
    }
    // SAFETY: the page of a slot, whose block is dead. If the kernel refuses, accesses to the block
    // go unnoticed.
    unsafe { os::forbid(page, bytes) };
    IN_USE.fetch_sub(1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `alloc`.
    slot.state.store(FREED, Ordering::Release);
}

/// Ends the process with a report, as a guarded block is resized or measured that is not in use.
pub(super) fn not_in_use(block: *mut u8) -> ! {
    misused(Misuse::Use, block.addr())
}

/// Returns the byte that fills a page beside a block.
fn pattern(offset: usize) -> u8 {
    0xaa ^ (offset as u8 & 7)
}

/// Fills a part of a page with the pattern.
///
/// # Safety
/// The page is accessible, and this thread's; the range lies in it.
unsafe fn fill(page: NonNull<u8>, range: Range<usize>) {
    // SAFETY: the caller guarantees the page.
    range.for_each(|offset| unsafe { page.add(offset).write(pattern(offset)) });
}

/// Returns the offset of the first byte in a part of a page that is not as [`fill`] left it.
///
/// # Safety
/// As [`fill`].
unsafe fn first_change(page: NonNull<u8>, mut range: Range<usize>) -> Option<usize> {
    // SAFETY: the caller guarantees the page. Another thread might write there in error.
    range.find(|offset| unsafe { page.add(*offset).read_volatile() } != pattern(*offset))
}
