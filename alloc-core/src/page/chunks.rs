//! Chunks: the parts of an arena, of 2 MiB each, that one huge page can hold.
//!
//! For each chunk of the part of an arena that gets no huge pages at first touch, this file
//! records how many decay windows in a row all of it was in use, or that it is a huge page.
//! `collapse` decides by that.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::advice::HUGE_FROM;
use crate::size_class::UNIT;

/// Units of a chunk.
pub(super) const CHUNK: u32 = (2 << 20) / UNIT as u32;

/// Chunks that are recorded. The first one usually begins below the arena.
const COUNT: usize = if cfg!(miri) { 8 } else { (HUGE_FROM / CHUNK) as usize + 1 };

/// Windows that a chunk must be calm before it becomes a huge page: one more than idle memory
/// takes to return to the system. Each failure and each split doubles that.
const WAIT: u32 = 4;
/// Most doublings of [`WAIT`].
const MOST_DOUBLINGS: u8 = 5;
/// Doublings up to which it is worth keeping the reclaim thread for a calm chunk.
const PENDING_DOUBLINGS: u8 = 2;

/// Stands for a huge page, in place of a number of windows.
const HUGE: u8 = u8::MAX;

/// Huge pages that were split so far, as a part of their memory returned to the system.
static SPLITS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of huge pages of [`Chunks`] that were split so far. May be called in any
/// context.
pub(crate) fn splits() -> u64 {
    SPLITS.load(Ordering::Relaxed)
}

/// The chunks of an arena. All accesses are relaxed: what is recorded guards nothing, and a number
/// that is lost in a race of two threads costs a huge page or a few windows.
pub(super) struct Chunks {
    /// Windows in a row in which a chunk was *calm*: all its units were in use at the end, and
    /// none of its memory had returned to the system. Or [`HUGE`].
    calm: [AtomicU8; COUNT],
    /// How often the wait of a chunk was doubled.
    doublings: [AtomicU8; COUNT],
}

impl Chunks {
    pub(super) const fn new() -> Chunks {
        Chunks {
            calm: [const { AtomicU8::new(0) }; COUNT],
            doublings: [const { AtomicU8::new(0) }; COUNT],
        }
    }

    /// Returns the numbers of all chunks.
    pub(super) fn numbers() -> core::ops::Range<usize> {
        0..COUNT
    }

    /// Returns whether a chunk is a huge page. One that is not recorded is none.
    #[inline]
    pub(super) fn is_huge(&self, number: usize) -> bool {
        self.calm.get(number).is_some_and(|calm| calm.load(Ordering::Relaxed) == HUGE)
    }

    fn calm(&self, number: usize) -> u8 {
        self.calm.get(number).map_or(0, |calm| calm.load(Ordering::Relaxed))
    }

    fn set_calm(&self, number: usize, windows: u8) {
        if let Some(calm) = self.calm.get(number) {
            calm.store(windows, Ordering::Relaxed);
        }
    }

    fn doublings(&self, number: usize) -> u8 {
        self.doublings.get(number).map_or(0, |doublings| doublings.load(Ordering::Relaxed))
    }

    fn set_doublings(&self, number: usize, count: u8) {
        if let Some(doublings) = self.doublings.get(number) {
            doublings.store(count.min(MOST_DOUBLINGS), Ordering::Relaxed);
        }
    }

    /// Ends a window for a chunk, of which all units are in use or not. Returns whether the chunk
    /// is worth a further window.
    pub(super) fn end_window(&self, number: usize, is_in_use: bool) -> bool {
        match self.calm(number) {
            HUGE => false,
            _ if !is_in_use => {
                self.set_calm(number, 0);
                false
            }
            calm => {
                self.set_calm(number, (calm + 1).min(HUGE - 1));
                self.doublings(number) <= PENDING_DOUBLINGS
            }
        }
    }

    /// Returns the number of a chunk that has been calm for long enough to become a huge page.
    pub(super) fn due(&self) -> Option<usize> {
        Chunks::numbers().find(|number| {
            let calm = self.calm(*number);
            calm != HUGE && u32::from(calm) >= WAIT << self.doublings(*number)
        })
    }

    /// Records that a chunk is a huge page.
    pub(super) fn set_huge(&self, number: usize) {
        self.set_calm(number, HUGE);
    }

    /// Makes a chunk wait for twice as long as the last time, from now on.
    pub(super) fn put_back(&self, number: usize) {
        self.set_calm(number, 0);
        self.set_doublings(number, self.doublings(number) + 1);
    }

    /// Records that memory of a chunk returned to the system: all of it, or only a part.
    pub(super) fn decommitted(&self, number: usize, is_whole: bool) {
        let was_huge = self.is_huge(number);
        match is_whole {
            true => {
                self.set_calm(number, 0);
                self.set_doublings(number, 0);
            }
            false if was_huge => {
                self.put_back(number);
                SPLITS.fetch_add(1, Ordering::Relaxed);
            }
            false => self.set_calm(number, 0),
        }
    }

    /// Records that any huge page may be one no longer.
    pub(super) fn doubt(&self) {
        for calm in &self.calm {
            if calm.load(Ordering::Relaxed) == HUGE {
                calm.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the windows until the chunk is due.
    fn windows_until_due(chunks: &Chunks, number: usize) -> usize {
        (0..1000)
            .take_while(|_| {
                let is_due = chunks.due() == Some(number);
                if !is_due {
                    chunks.end_window(number, true);
                }
                !is_due
            })
            .count()
    }

    #[test]
    fn calm_chunks_become_due_and_failures_double_the_wait() {
        let chunks = Chunks::new();
        for doublings in [0, 1, 2, 3, 4, 5, 5, 5] {
            assert_eq!(windows_until_due(&chunks, 3), (WAIT as usize) << doublings);
            chunks.put_back(3);
        }
        chunks.decommitted(3, true);
        assert_eq!(windows_until_due(&chunks, 3), WAIT as usize);
        chunks.set_huge(3);
        assert!(chunks.is_huge(3) && !chunks.is_huge(2) && chunks.due().is_none());
        assert!(!chunks.end_window(3, true), "there is no more to do for a huge page");
    }

    #[test]
    fn use_and_decommits_interrupt_the_calm() {
        let chunks = Chunks::new();
        for interrupt in [
            (|chunks| _ = chunks.end_window(1, false)) as fn(&Chunks),
            |chunks| chunks.decommitted(1, false),
            |chunks| chunks.decommitted(1, true),
        ] {
            (1..WAIT).for_each(|_| assert!(chunks.end_window(1, true)));
            interrupt(&chunks);
            assert_eq!(windows_until_due(&chunks, 1), WAIT as usize);
            chunks.decommitted(1, true);
        }
    }

    #[test]
    fn huge_pages_in_use_in_part_stay_until_a_part_returns() {
        let chunks = Chunks::new();
        chunks.set_huge(1);
        chunks.end_window(1, false);
        assert!(chunks.is_huge(1), "a free unit splits no huge page");
        chunks.decommitted(1, false);
        assert!(!chunks.is_huge(1));
        assert_eq!(windows_until_due(&chunks, 1), 2 * WAIT as usize);
        chunks.set_huge(1);
        chunks.doubt();
        assert!(!chunks.is_huge(1));
    }

    /// A chunk that never becomes a huge page keeps no thread forever.
    #[test]
    fn hopeless_chunks_are_soon_worth_no_window() {
        let chunks = Chunks::new();
        let mut windows = 0;
        while chunks.end_window(1, true) {
            windows += 1;
            if chunks.due().is_some() {
                chunks.put_back(1);
            }
            assert!(windows < 50, "the chunk is worth a window after {windows}");
        }
    }
}
