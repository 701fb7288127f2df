//! Distributions of the block sizes of programs.

use crate::prng::Prng;

/// Ranges of sizes, with the percentage of blocks in each: `(percentage, (smallest, largest))`.
/// Within a range every octave is equally likely.
pub(super) struct Mix(&'static [(usize, (usize, usize))]);

/// The nodes and strings that most programs consist of: smaller blocks are more frequent. 230 B on
/// average.
pub(super) static SMALL: Mix =
    Mix(&[(60, (8, 64)), (25, (64, 256)), (10, (256, 1024)), (5, (1024, 4096))]);
/// Keys, names, small nodes. 60 B on average.
pub(super) static STRINGS: Mix = Mix(&[(50, (8, 32)), (40, (32, 128)), (10, (128, 512))]);
/// Rows, cached objects. 490 B on average.
pub(super) static RECORDS: Mix = Mix(&[(80, (128, 512)), (20, (512, 2048))]);
/// Buffers of files and sockets. 60 KiB on average.
pub(super) static BUFFERS: Mix = Mix(&[(80, (4 << 10, 64 << 10)), (20, (64 << 10, 512 << 10))]);

impl Mix {
    /// Returns the size of the next block: a multiple of eight, at least 16.
    #[inline]
    pub(super) fn size(&self, prng: &mut Prng) -> usize {
        let (smallest, largest) = prng.weighted(self.0.iter().copied());
        prng.geometric(smallest, largest).next_multiple_of(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_skewed_and_have_room_for_a_link() {
        let mut prng = Prng::new(1);
        for (mix, expected) in [(&SMALL, 230), (&STRINGS, 60), (&RECORDS, 490), (&BUFFERS, 60_000)]
        {
            let sizes: Vec<usize> = (0..100_000).map(|_| mix.size(&mut prng)).collect();
            assert!(sizes.iter().all(|size| *size >= 16 && size % 8 == 0));
            let mean = sizes.iter().sum::<usize>() / sizes.len();
            assert!(mean.abs_diff(expected) < expected / 5, "mean {mean}, expected {expected}");
        }
    }
}
