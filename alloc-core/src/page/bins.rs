//! The free runs of an arena, in bins by length. Each bin is a list linked through the descriptors.
//!
//! This file knows only the lengths and the heads of lists. Callers maintain the links.

use super::descriptor::NONE;

/// Free runs of one state, in bins by length: one bin for each length below 16, then eight to an
/// octave.
pub(super) struct Bins {
    heads: [u32; Bins::COUNT],
    /// A bit for each bin, set if the bin is not empty.
    filled: [u64; Bins::COUNT / 64],
}

impl Bins {
    /// Number of bins, enough for every length.
    const COUNT: usize = 256;

    pub(super) const fn new() -> Bins {
        Bins { heads: [NONE; Bins::COUNT], filled: [0; Bins::COUNT / 64] }
    }

    /// Returns the bin for runs of `len` units.
    pub(super) fn holding(len: u32) -> usize {
        let octave = len.max(8).ilog2();
        ((octave - 3) * 8 + (len >> (octave - 3))) as usize
    }

    /// Returns the first bin in which every run has at least `len` units.
    pub(super) fn fitting(len: u32) -> usize {
        let octave = len.max(8).ilog2();
        let round = (1 << (octave - 3)) - 1;
        Bins::holding(len.saturating_add(round))
    }

    pub(super) fn head(&self, bin: usize) -> u32 {
        self.heads.get(bin).copied().unwrap_or(NONE)
    }

    pub(super) fn set_head(&mut self, bin: usize, start: u32) {
        if let (Some(head), Some(word)) = (self.heads.get_mut(bin), self.filled.get_mut(bin / 64)) {
            *head = start;
            let bit = 1 << (bin % 64);
            *word = if start == NONE { *word & !bit } else { *word | bit };
        }
    }

    /// Returns the first non-empty bin from `bin` on.
    pub(super) fn first_from(&self, bin: usize) -> Option<usize> {
        let mut mask = u64::MAX << (bin % 64);
        for (index, word) in self.filled.iter().enumerate().skip(bin / 64) {
            if word & mask != 0 {
                return Some(index * 64 + (word & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Returns the last non-empty bin.
    pub(super) fn last(&self) -> Option<usize> {
        let (index, word) = self.filled.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        Some(index * 64 + 63 - word.leading_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_fitting_bin_holds_no_shorter_run() {
        for len in 1..if cfg!(miri) { 1 << 10 } else { 1 << 17 } {
            let (holding, fitting) = (Bins::holding(len), Bins::fitting(len));
            assert!(
                holding <= fitting && fitting <= holding + 1,
                "bins of {len} units: {holding}, {fitting}"
            );
            assert!(Bins::holding(len + 1) >= holding && Bins::holding(len + 1) <= holding + 1);
            // No run shorter than `len` is kept in the first bin that fits `len`.
            assert!(len == 1 || Bins::holding(len - 1) < fitting, "{len} units");
        }
        assert!(Bins::holding(u32::MAX) < Bins::COUNT);
    }

    #[test]
    fn first_and_last_nonempty_bin_are_found() {
        let mut bins = Bins::new();
        assert_eq!((bins.first_from(0), bins.last()), (None, None));
        for bin in [3, 64, 130] {
            bins.set_head(bin, 7);
        }
        assert_eq!(bins.first_from(0), Some(3));
        assert_eq!(bins.first_from(4), Some(64));
        assert_eq!(bins.first_from(65), Some(130));
        assert_eq!(bins.first_from(131), None);
        bins.set_head(130, NONE);
        assert_eq!(bins.last(), Some(64));
    }
}
