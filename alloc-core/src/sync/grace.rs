//! Grace periods: whether all readers of before are gone. (SRCU of Linux, `kernel/rcu/srcutree.c`, with polled epochs.)
//!
//! A reader counts itself in a slot, on the side that the epoch names, even or odd, and leaves there. The epoch advances when
//! the other side is empty, where the readers of the epoch before are. Both sides together were seen empty after two such steps
//! that *began* after somebody asked, and a third may have begun earlier: so a grace period ends three epochs after it began.
//!
//! A reader that is stopped between reading the epoch and counting itself may turn up on either side at any time. Its count
//! comes before its reads: if whoever advances the epoch does not see the count, the reader sees what was done before the
//! grace period began.
//!
//! Nothing here waits, so readers and those who ask may be in any context.

use super::counters::{self, Line};
use super::primitive::{AtomicUsize, Ordering, fence};

/// Epochs from the beginning of a grace period to its end.
const EPOCHS: usize = 3;

/// Readers, counted in slots so that those on different CPUs do not share a cache line.
pub(crate) struct Grace<const SLOTS: usize> {
    epoch: AtomicUsize,
    slots: [Slot; SLOTS],
    /// Readers on each side that did not survive a fork, and never leave.
    lost: [AtomicUsize; 2],
}

/// Readers on each side.
#[repr(align(64))]
struct Slot([AtomicUsize; 2]);

/// Where a reader is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    slot: usize,
    side: usize,
}

impl Ticket {
    /// The side the reader is on, 0 or 1.
    pub(crate) fn side(self) -> usize {
        self.side
    }
}

impl<const SLOTS: usize> Grace<SLOTS> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Grace<SLOTS> {
        Grace {
            epoch: AtomicUsize::new(0),
            slots: [const { Slot([AtomicUsize::new(0), AtomicUsize::new(0)]) }; SLOTS],
            lost: [AtomicUsize::new(0), AtomicUsize::new(0)],
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Grace<SLOTS> {
        Grace {
            epoch: AtomicUsize::new(0),
            slots: core::array::from_fn(|_| Slot([AtomicUsize::new(0), AtomicUsize::new(0)])),
            lost: [AtomicUsize::new(0), AtomicUsize::new(0)],
        }
    }

    /// The side on which a reader that comes now is counted, and the slot for `number`.
    #[inline]
    pub(crate) fn ticket(&self, number: usize) -> Ticket {
        // Relaxed: any epoch that ever was will do.
        Ticket { slot: number % SLOTS, side: self.epoch.load(Ordering::Relaxed) & 1 }
    }

    /// Counts a reader.
    #[inline]
    pub(crate) fn enter(&self, ticket: Ticket) {
        self.count(ticket).fetch_add(1, Ordering::Relaxed);
        // A, pairs with B and C: either whoever advances the epoch sees the count, or the reader what was done before.
        fence(Ordering::SeqCst);
    }

    /// Counts a reader out.
    #[inline]
    pub(crate) fn leave(&self, ticket: Ticket) {
        // Release: pairs with the Acquire in `advance`: the reader's reads are over.
        self.count(ticket).fetch_sub(1, Ordering::Release);
    }

    fn count(&self, ticket: Ticket) -> &AtomicUsize {
        &self.slots[ticket.slot % SLOTS].0[ticket.side & 1]
    }

    /// Begins a grace period, for what the caller did before: the epoch that ends it.
    pub(crate) fn begin(&self) -> usize {
        // B, pairs with A.
        fence(Ordering::SeqCst);
        self.epoch.load(Ordering::Relaxed).wrapping_add(EPOCHS)
    }

    /// Whether all readers are gone that were there when `end` was asked for. Helps with it as far as it goes.
    pub(crate) fn is_over(&self, end: usize) -> bool {
        loop {
            // Acquire: pairs with the Release in `advance`.
            let epoch = self.epoch.load(Ordering::Acquire);
            if end.wrapping_sub(epoch) as isize <= 0 {
                return true;
            }
            if !self.advance(epoch) {
                return false;
            }
        }
    }

    /// Begins the next epoch, if the readers of the one before this are gone.
    fn advance(&self, epoch: usize) -> bool {
        // C, pairs with A: what was done before this epoch began is seen by readers whose counts are not seen here.
        fence(Ordering::SeqCst);
        let side = epoch.wrapping_add(1) & 1;
        // Acquire: pairs with the Release in `leave`.
        let count = |slot: &Slot| slot.0[side].load(Ordering::Acquire);
        let readers = self.slots.iter().map(count).fold(0, usize::wrapping_add);
        if readers != self.lost[side].load(Ordering::Relaxed) {
            return false;
        }
        counters::wrote(Line::Epoch, 1);
        // Release: pairs with the Acquire in `is_over`. It fails where somebody else was faster.
        let _ = self.epoch.compare_exchange(
            epoch,
            epoch.wrapping_add(1),
            Ordering::Release,
            Ordering::Relaxed,
        );
        true
    }

    /// In the child of a fork: the readers that are counted are lost with their threads, but for so many on each side.
    #[cfg(not(loom))]
    pub(crate) fn reset_in_child(&self, own: [usize; 2]) {
        for (side, own) in own.into_iter().enumerate() {
            let count = |slot: &Slot| slot.0[side].load(Ordering::Relaxed);
            let all = self.slots.iter().map(count).fold(0, usize::wrapping_add);
            self.lost[side].store(all.wrapping_sub(own), Ordering::Relaxed);
        }
    }
}
