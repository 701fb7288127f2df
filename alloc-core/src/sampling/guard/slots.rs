//! Slots: the pages of guarded blocks, and what is known of the last block of each.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::os;
use crate::sampling::reserved::{Reserved, reserve_below};
use crate::stack::capture;

/// Slots: the most guarded blocks at a time, and of those that were freed last.
pub(super) const SLOTS: usize = 512;
/// Frames of a stack that are kept.
pub(super) const FRAMES: usize = 32;

/// The pages of all slots: of each the page before it, which is inaccessible, and its own; and a
/// last inaccessible page.
static PAGES: Reserved<()> = Reserved::new();

/// What is known of the last block of a slot.
pub(super) struct Slot {
    pub(super) state: AtomicU32,
    pub(super) class: AtomicUsize,
    pub(super) size: AtomicUsize,
    pub(super) address: AtomicUsize,
    pub(super) by: [Event; 2],
}

/// An allocation or a free.
pub(super) struct Event {
    pub(super) thread: AtomicI32,
    /// In milliseconds.
    pub(super) time: AtomicU64,
    pub(super) frames: [AtomicUsize; FRAMES],
}

/// States of a slot. Never used; in use by the thread that took it; holding a block; its block was
/// freed.
pub(super) const NEW: u32 = 0;
pub(super) const BUSY: u32 = 1;
pub(super) const LIVE: u32 = 2;
pub(super) const FREED: u32 = 3;

/// Indices of [`Slot::by`].
pub(super) const ALLOCATION: usize = 0;
pub(super) const FREE: usize = 1;

pub(super) static ALL_SLOTS: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(NEW),
        class: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        address: AtomicUsize::new(0),
        by: [const { Event::new() }; 2],
    }
}; SLOTS];

impl Event {
    const fn new() -> Event {
        Event {
            thread: AtomicI32::new(0),
            time: AtomicU64::new(0),
            frames: [const { AtomicUsize::new(0) }; FRAMES],
        }
    }

    /// Records that this thread does it now, with its stack.
    #[inline(never)]
    pub(super) fn record(&self) {
        let mut frames = [0; FRAMES];
        capture(&mut frames);
        self.frames.iter().zip(frames).for_each(|(to, frame)| to.store(frame, Ordering::Relaxed));
        self.thread.store(os::thread_id(), Ordering::Relaxed);
        self.time.store(os::milliseconds(), Ordering::Relaxed);
    }
}

/// Returns the bytes of all pages.
pub(super) fn bytes() -> usize {
    (2 * SLOTS + 1) * os::page_size()
}

/// Reserves the pages below `arena`, an address in an arena; once is enough. Returns the address
/// behind them, or `None` if there is no address space.
pub(super) fn prepare(arena: usize) -> Option<usize> {
    PAGES.prepare(0, || Some((reserve_below(arena, bytes())?, bytes())), |()| {});
    Some(PAGES.get()?.addr().get() + bytes())
}

/// Returns the number of the page that holds `address`: odd for one of a slot. `None` if it is of
/// no slot and of no page between slots.
pub(super) fn page_of(address: usize) -> Option<usize> {
    let offset = address.checked_sub(PAGES.get()?.addr().get())?;
    (offset < bytes()).then(|| offset / os::page_size())
}

/// Returns the slot of a page, if it is the page of one.
pub(super) fn slot_of_page(page: usize) -> Option<&'static Slot> {
    if page.is_multiple_of(2) { None } else { ALL_SLOTS.get(page / 2) }
}

/// Returns the slot whose block in use starts at `block`.
pub(super) fn live(block: *mut u8) -> Option<&'static Slot> {
    let slot = slot_of_page(page_of(block.addr())?)?;
    // Acquire: pairs with the Release in `alloc`.
    let is_live = slot.state.load(Ordering::Acquire) == LIVE;
    (is_live && slot.address.load(Ordering::Relaxed) == block.addr()).then_some(slot)
}

/// Returns the page of a slot.
pub(super) fn page_of_slot(number: usize) -> Option<NonNull<u8>> {
    let offset = (2 * number.min(SLOTS - 1) + 1) * os::page_size();
    // SAFETY: the page of a slot lies in the reservation.
    PAGES.get().map(|pages| unsafe { pages.cast::<u8>().add(offset) })
}
