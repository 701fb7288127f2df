//! Grace periods: detects that all earlier readers have left. (SRCU of Linux,
//! `kernel/rcu/srcutree.c`, with polled epochs.)
//!
//! A reader counts itself in a slot, on the even or the odd side according to the epoch, and leaves
//! on the same side. The epoch advances when the other side, which has the readers of the previous
//! epoch, is empty. After two advances that *began* after a request, both sides have been seen
//! empty. A further advance may have begun before the request. So a grace period ends three epochs
//! after its beginning.
//!
//! A reader that is stopped between reading the epoch and counting itself may appear on either side
//! at any time. It counts itself before its reads: if the thread that advances the epoch does not
//! see the count, the reader sees everything done before the grace period began.
//!
//! Nothing here waits, so readers and requesters may be in any context.

use super::counters::{self, Line};
use super::primitive::{AtomicUsize, Ordering, fence};
use super::{array_of, const_unless_loom};

/// Epochs from the beginning of a grace period to its end.
const EPOCHS: usize = 3;

/// Readers, counted in slots so that readers on different CPUs do not share a cache line.
pub(crate) struct Grace<const SLOTS: usize> {
    epoch: AtomicUsize,
    slots: [Slot; SLOTS],
    /// Readers on each side that did not survive a fork, and so never leave.
    lost: [AtomicUsize; 2],
}

/// Number of readers on each side.
#[repr(align(64))]
struct Slot([AtomicUsize; 2]);

/// The place where a reader is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    slot: usize,
    side: usize,
}

impl Ticket {
    /// Returns the side of the reader, 0 or 1.
    pub(crate) fn side(self) -> usize {
        self.side
    }
}

impl<const SLOTS: usize> Grace<SLOTS> {
    const_unless_loom! {
        pub(crate) const fn new() -> Grace<SLOTS> {
            Grace {
                epoch: AtomicUsize::new(0),
                slots: array_of![Slot([AtomicUsize::new(0), AtomicUsize::new(0)]); SLOTS],
                lost: [AtomicUsize::new(0), AtomicUsize::new(0)],
            }
        }
    }

    /// Returns the place to count a reader that enters now: the slot for `number`, and the side of
    /// the current epoch.
    #[inline]
    pub(crate) fn ticket(&self, number: usize) -> Ticket {
        // Relaxed: the side of any past epoch is valid.
        Ticket { slot: number % SLOTS, side: self.epoch.load(Ordering::Relaxed) & 1 }
    }

    /// Counts a reader in.
    #[inline]
    pub(crate) fn enter(&self, ticket: Ticket) {
        self.count(ticket).fetch_add(1, Ordering::Relaxed);
        // A, pairs with B and C: either the thread that advances the epoch sees the count, or the
        // reader sees what was done before.
        fence(Ordering::SeqCst);
    }

    /// Counts a reader out.
    #[inline]
    pub(crate) fn leave(&self, ticket: Ticket) {
        // Release: pairs with the Acquire in `advance`. The reader's reads are over.
        self.count(ticket).fetch_sub(1, Ordering::Release);
    }

    fn count(&self, ticket: Ticket) -> &AtomicUsize {
        &self.slots[ticket.slot % SLOTS].0[ticket.side & 1]
    }

    /// Begins a grace period for what the caller did before. Returns the epoch that ends it.
    pub(crate) fn begin(&self) -> usize {
        // B, pairs with A.
        fence(Ordering::SeqCst);
        self.epoch.load(Ordering::Relaxed).wrapping_add(EPOCHS)
    }

    /// Returns whether all readers have left that were present when `begin` returned `end`.
    /// Advances the epoch as far as possible.
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

    /// Begins the next epoch, if all readers of the previous one have left. Returns whether they
    /// have.
    fn advance(&self, epoch: usize) -> bool {
        // C, pairs with A: a reader whose count is not seen here sees what was done before this
        // epoch began.
        fence(Ordering::SeqCst);
        let side = epoch.wrapping_add(1) & 1;
        // Acquire: pairs with the Release in `leave`.
        let count = |slot: &Slot| slot.0[side].load(Ordering::Acquire);
        let readers = self.slots.iter().map(count).fold(0, usize::wrapping_add);
        if readers != self.lost[side].load(Ordering::Relaxed) {
            return false;
        }
        counters::wrote(Line::Epoch, 1);
        // Release: pairs with the Acquire in `is_over`. The exchange fails if another thread was
        // faster.
        let _ = self.epoch.compare_exchange(
            epoch,
            epoch.wrapping_add(1),
            Ordering::Release,
            Ordering::Relaxed,
        );
        true
    }

    /// Resets the counts in a fork child: all readers except `own` on each side were lost with
    /// their threads.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread. That thread has `own` readers.
    pub(crate) unsafe fn reset_in_child(&self, own: [usize; 2]) {
        for (side, own) in own.into_iter().enumerate() {
            let count = |slot: &Slot| slot.0[side].load(Ordering::Relaxed);
            let all = self.slots.iter().map(count).fold(0, usize::wrapping_add);
            self.lost[side].store(all.wrapping_sub(own), Ordering::Relaxed);
        }
    }
}
