//! What is left out of core files: free memory that went back to the system reads as zero, and debuggers write all of it.
//!
//! A mapping is left out as a whole, or not at all, so this is noted for *blocks* of 2 MiB, of which no part is in use. They are taken
//! in again before anybody uses a part of them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Arrays, UNIT, UNIT_SHIFT};
use crate::os;

/// FreeRuns of a block.
pub(super) const BLOCK: u32 = (2 << 20) / UNIT as u32;
/// Blocks that can be left out: those of 256 GiB.
const WORDS: usize = if cfg!(miri) { 8 } else { 2048 };
/// Most blocks that are left out at a time: each may be a mapping of its own, and the kernel grants a process some 65 000 of these
/// (`vm.max_map_count`).
const MOST: u32 = 4096;

/// A bit for each block that is left out.
pub(super) struct LeftOut {
    bits: [AtomicU64; WORDS],
    count: AtomicU32,
}

impl LeftOut {
    pub(super) const fn new() -> LeftOut {
        LeftOut { bits: [const { AtomicU64::new(0) }; WORDS], count: AtomicU32::new(0) }
    }

    /// Calls `visit` with the first unit of each block of which there are any of these units, and the word and the bit that stand for
    /// it.
    fn for_each(
        &self,
        arrays: &Arrays,
        start: u32,
        end: u32,
        visit: impl Fn(u32, &AtomicU64, u64),
    ) {
        // Blocks start on a multiple of their size, by address.
        let past = arrays.base_unit() % BLOCK;
        for number in (start + past) / BLOCK..(end + past).div_ceil(BLOCK) {
            // One that lies in front of the arena in part is none.
            if let Some(first) = (number * BLOCK).checked_sub(past)
                && let Some(word) = self.bits.get((number / u64::BITS) as usize)
            {
                visit(first, word, 1 << (number % u64::BITS));
            }
        }
    }

    /// Has the whole blocks among these units left out. They are the caller's, and clean.
    pub(super) fn leave_out(&self, arrays: &Arrays, start: u32, end: u32) {
        self.for_each(arrays, start, end, |first, word, bit| {
            // Relaxed, here and below: who gets units of a block has the arena's lock after this.
            if first >= start && first + BLOCK <= end && self.count.load(Ordering::Relaxed) < MOST {
                set_dumped(arrays, first, false);
                if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                    self.count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }

    /// Has the blocks of these units taken in again. They are the caller's.
    pub(super) fn take_in(&self, arrays: &Arrays, start: u32, end: u32) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.for_each(arrays, start, end, |first, word, bit| {
            if word.load(Ordering::Relaxed) & bit != 0 {
                set_dumped(arrays, first, true);
                if word.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
    }
}

/// The first unit of the block that `start` lies in, if all of that lies in the arena, and the end of the one before `end`.
pub(super) fn blocks_around(arrays: &Arrays, start: u32, end: u32) -> (Option<u32>, u32) {
    let past = arrays.base_unit() % BLOCK;
    let first = ((start + past) / BLOCK * BLOCK).checked_sub(past);
    (first, (end + past).next_multiple_of(BLOCK) - past)
}

fn set_dumped(arrays: &Arrays, first: u32, dumped: bool) {
    // SAFETY: committed units of the arena: some of them are in use, or all have just been.
    unsafe { os::set_dumped(arrays.address(first), (BLOCK as usize) << UNIT_SHIFT, dumped) };
}
