//! The blocks of an arena's reserve: a bitmap of the taken ones, without a lock, for contexts that
//! must not wait for one.
//!
//! A block is taken before it is committed, and stays committed when it is freed. So a second
//! bitmap records which blocks can be read.
//!
//! Blocks are taken from the bottom, in runs. A run within a word of the bitmap takes one
//! compare-exchange. A longer run consists of whole words, which are taken one after the other; if
//! one of them has blocks taken already, the words before it are freed again.

use crate::sync::counters::{self, Line};
use crate::sync::{AtomicU64, Ordering, array_of, const_unless_loom};

/// Units of a block of the reserve: the longest slab of a small size.
pub(super) const BLOCK: u32 = 4;

const WORD: usize = u64::BITS as usize;
const WORDS: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    8
} else {
    1024
};

/// A bit for each block.
struct Bits([AtomicU64; WORDS]);

impl Bits {
    const_unless_loom! {
        const fn new() -> Bits {
            Bits(array_of![AtomicU64::new(0); WORDS])
        }
    }

    fn word(&self, block: usize) -> &AtomicU64 {
        &self.0[block / WORD % WORDS]
    }

    /// Returns the word that holds `block`, and a mask of as many of the `count` blocks from it on
    /// as are in that word.
    fn part(&self, block: usize, count: usize) -> (&AtomicU64, u64) {
        let bit = block % WORD;
        let len = count.min(WORD - bit);
        (self.word(block), (u64::MAX >> (WORD - len)) << bit)
    }

    /// Calls `change` for each word that holds any of the `count` blocks from `first` on, with the
    /// word and a mask of these blocks.
    fn each_part(&self, first: usize, count: usize, change: impl Fn(&AtomicU64, u64)) {
        let mut done = 0;
        while done < count {
            let (word, mask) = self.part(first + done, count - done);
            counters::wrote(Line::Reserve, 1);
            change(word, mask);
            done += mask.count_ones() as usize;
        }
    }
}

/// The blocks that are taken, and those that are committed.
pub(crate) struct Reserve {
    taken: Bits,
    committed: Bits,
}

impl Reserve {
    /// Largest number of blocks in a reserve.
    pub(super) const BLOCKS: usize = WORDS * WORD;

    const_unless_loom! {
        pub(crate) const fn new() -> Reserve {
            Reserve { taken: Bits::new(), committed: Bits::new() }
        }
    }

    /// Takes `count` consecutive blocks of the first `room` ones and returns the number of the
    /// first. That number plus `past` is a multiple of `align`, a power of two. Rarely finds a run
    /// that is both longer than a word and aligned.
    pub(crate) fn take(
        &self,
        count: usize,
        align: usize,
        past: usize,
        room: usize,
    ) -> Option<usize> {
        let mut first = 0;
        while first + count <= room {
            let fits =
                (first + past) & (align - 1) == 0 && (count > WORD || first % WORD + count <= WORD);
            if fits && self.take_at(first, count) {
                return Some(first);
            }
            // Long runs start on a word, short ones on the next free block.
            let taken = self.taken.word(first).load(Ordering::Relaxed) >> (first % WORD);
            let next = (taken.trailing_ones() as usize).clamp(1, WORD - first % WORD);
            first += if count > WORD { WORD } else { next };
        }
        None
    }

    fn take_at(&self, first: usize, count: usize) -> bool {
        let mut done = 0;
        while done < count {
            let (word, mask) = self.taken.part(first + done, count - done);
            // Acquire: pairs with the Release of `give`, so that the last owner is done with the
            // blocks.
            let taken = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, |bits| {
                (bits & mask == 0).then_some(bits | mask)
            });
            counters::wrote(Line::Reserve, usize::from(taken.is_ok()));
            if taken.is_err() {
                // SAFETY: the blocks before this word were taken above.
                unsafe { self.give(first, done) };
                return false;
            }
            done += mask.count_ones() as usize;
        }
        true
    }

    /// Frees `count` blocks from `first` on.
    ///
    /// # Safety
    /// The caller has taken these blocks, and nobody uses them any longer.
    pub(crate) unsafe fn give(&self, first: usize, count: usize) {
        // Release: pairs with the Acquire of `take_at`.
        self.taken.each_part(first, count, |word, mask| {
            word.fetch_and(!mask, Ordering::Release);
        });
    }

    /// Takes permanently those of the blocks `kept..all` that lie behind the last taken one.
    /// Returns the first of them.
    pub(crate) fn give_up(&self, kept: usize, all: usize) -> usize {
        let mut end = all;
        while end > kept {
            let first = kept.max((end - 1) / WORD * WORD);
            let (word, mask) = self.taken.part(first, end - first);
            // Acquire: as in `take_at`.
            let taken = word.fetch_or(mask, Ordering::Acquire) & mask;
            let behind = u64::BITS - taken.leading_zeros();
            if behind > 0 {
                // Restore the bits in front of the last taken block.
                word.fetch_and(
                    taken | !mask | !(u64::MAX >> (WORD as u32 - behind)),
                    Ordering::Release,
                );
                let rest = first / WORD * WORD + behind as usize;
                self.clear_bits(rest, end - rest);
                return rest;
            }
            self.clear_bits(first, end - first);
            end = first;
        }
        end
    }

    /// Marks blocks as no longer readable.
    fn clear_bits(&self, first: usize, count: usize) {
        self.committed.each_part(first, count, |word, mask| {
            word.fetch_and(!mask, Ordering::Relaxed);
        });
    }

    /// Marks `count` blocks from `first` on as committed.
    ///
    /// # Safety
    /// The caller has taken these blocks. Their units and metadata can be read and written.
    pub(crate) unsafe fn set_committed(&self, first: usize, count: usize) {
        // Release: pairs with the Acquire of `has`.
        self.committed.each_part(first, count, |word, mask| {
            word.fetch_or(mask, Ordering::Release);
        });
    }

    /// Returns whether a block is taken and can be read.
    pub(crate) fn has(&self, block: usize) -> bool {
        // Acquire: as in `take_at`, and pairs with the Release of `set_committed`.
        [&self.taken, &self.committed]
            .iter()
            .all(|bits| bits.word(block).load(Ordering::Acquire) >> (block % WORD) & 1 == 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_disjoint_and_reusable() {
        let reserve = Reserve::new();
        assert_eq!(reserve.take(1, 1, 0, 200), Some(0));
        assert_eq!(reserve.take(3, 1, 0, 200), Some(1));
        assert_eq!(reserve.take(60, 1, 0, 200), Some(4));
        assert_eq!(reserve.take(60, 1, 0, 200), Some(64));
        assert_eq!(reserve.take(10, 1, 0, 200), Some(128), "a run must not span two words");
        assert_eq!(reserve.take(4, 1, 0, 200), Some(124));
        // SAFETY: the blocks were taken above; no memory belongs to them.
        unsafe { reserve.give(64, 60) };
        assert_eq!(reserve.take(8, 8, 0, 200), Some(64));
        assert_eq!(reserve.take(8, 8, 3, 200), Some(77), "77 + 3 is a multiple of 8");
        assert_eq!(reserve.take(64, 1, 0, 200), None);
    }

    #[test]
    fn blocks_that_were_given_up_are_not_allocated() {
        for (taken, first) in [(0, 16), (5, 16), (20, 21), (63, 64), (64, 65), (199, 200)] {
            let reserve = Reserve::new();
            assert!(reserve.take_at(taken, 1));
            assert_eq!(reserve.give_up(16, 200), first, "beside {taken}");
            for block in 0..200 {
                let is_free = block != taken && block < first;
                assert_eq!(reserve.take_at(block, 1), is_free, "{block} beside {taken}");
            }
        }
    }

    #[test]
    fn long_runs_take_whole_words() {
        let reserve = Reserve::new();
        assert_eq!(reserve.take(1, 1, 0, 512), Some(0));
        assert_eq!(reserve.take(130, 1, 0, 512), Some(64));
        assert!(!reserve.has(64), "the run is not committed yet");
        // SAFETY: the blocks were taken above; nobody reads them, as no memory belongs to them.
        unsafe { reserve.set_committed(64, 130) };
        assert!(reserve.has(64) && reserve.has(193) && !reserve.has(194));
        assert_eq!(reserve.take(200, 1, 0, 512), Some(256));
        assert_eq!(reserve.take(100, 1, 0, 512), None);
        // SAFETY: the blocks were taken above; no memory belongs to them.
        unsafe { reserve.give(64, 130) };
        assert!(!reserve.has(64));
        assert_eq!(reserve.take(100, 1, 0, 512), Some(64));
    }
}
