//! Leaves decommitted free memory out of core files: it reads as zero, and debuggers write all of
//! it.
//!
//! The kernel leaves out a mapping as a whole or not at all. So memory is left out in *blocks* of 2
//! MiB of which no part is in use. A block is included again before any part of it is used.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::arrays::Arrays;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};

/// Units of a block.
pub(super) const BLOCK: u32 = (2 << 20) / UNIT as u32;
/// Words of the bitmap, with a bit for each block that can be left out: the blocks of 256 GiB.
const WORDS: usize = if cfg!(miri) { 8 } else { 2048 };
/// Most blocks to leave out at a time. Each may be a mapping of its own, and the kernel grants a
/// process some 65 000 mappings (`vm.max_map_count`).
const MOST: u32 = 4096;

/// A bit for each block, set while the block is left out, and the number of bits set.
pub(super) struct LeftOut {
    bits: [AtomicU64; WORDS],
    count: AtomicU32,
}

impl LeftOut {
    pub(super) const fn new() -> LeftOut {
        LeftOut { bits: [const { AtomicU64::new(0) }; WORDS], count: AtomicU32::new(0) }
    }

    /// Calls `visit` for each block that holds any of the units `start..end`: with the block's
    /// first unit, and with the word and the bit that stand for the block.
    fn for_each(
        &self,
        arrays: &Arrays,
        start: u32,
        end: u32,
        visit: impl Fn(u32, &AtomicU64, u64),
    ) {
        // Blocks start at multiples of their size, by address.
        let past = arrays.base_unit() % BLOCK;
        for number in (start + past) / BLOCK..(end + past).div_ceil(BLOCK) {
            // A block that begins below the arena does not count.
            if let Some(first) = (number * BLOCK).checked_sub(past)
                && let Some(word) = self.bits.get((number / u64::BITS) as usize)
            {
                visit(first, word, 1 << (number % u64::BITS));
            }
        }
    }

    /// Leaves out the whole blocks among the units `start..end`.
    ///
    /// # Safety
    /// `arrays` are those of the arena of this bitmap. The caller owns the units, which are
    /// committed and clean.
    pub(super) unsafe fn leave_out(&self, arrays: &Arrays, start: u32, end: u32) {
        self.for_each(arrays, start, end, |first, word, bit| {
            // Relaxed, here and below: a thread that allocates units of a block has acquired the
            // arena's lock after this.
            if first >= start && first + BLOCK <= end && self.count.load(Ordering::Relaxed) < MOST {
                // SAFETY: the caller owns all units of this block.
                unsafe { set_dumped(arrays, first, false) };
                if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                    self.count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }

    /// Includes again the blocks that hold any of the units `start..end`.
    ///
    /// # Safety
    /// `arrays` are those of the arena of this bitmap. The caller owns the units, which are
    /// committed.
    pub(super) unsafe fn take_in(&self, arrays: &Arrays, start: u32, end: u32) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.for_each(arrays, start, end, |first, word, bit| {
            if word.load(Ordering::Relaxed) & bit != 0 {
                // SAFETY: a block that is left out consists of committed units of this arena.
                unsafe { set_dumped(arrays, first, true) };
                if word.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
    }
}

/// Returns the first unit of the block that holds `start`, unless that block begins below the
/// arena, and the end of the block that holds the last unit before `end`.
pub(super) fn blocks_around(arrays: &Arrays, start: u32, end: u32) -> (Option<u32>, u32) {
    let past = arrays.base_unit() % BLOCK;
    let first = ((start + past) / BLOCK * BLOCK).checked_sub(past);
    (first, (end + past).next_multiple_of(BLOCK) - past)
}

/// Includes a block in core files, or leaves it out.
///
/// # Safety
/// The block that starts at unit `first` consists of committed units of one arena.
unsafe fn set_dumped(arrays: &Arrays, first: u32, dumped: bool) {
    // SAFETY: the caller guarantees that the block lies in an arena, which is one reservation;
    // blocks start on a page boundary.
    unsafe { os::set_dumped(arrays.address(first), (BLOCK as usize) << UNIT_SHIFT, dumped) };
}
