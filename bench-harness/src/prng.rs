//! A small deterministic random number generator. All allocators see the same requests.

/// Xorshift with 64 bits of state. Its cost is negligible beside an allocation.
pub(crate) struct Prng(u64);

impl Prng {
    /// Creates the generator for `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be zero, and neighbouring seeds should not start with similar numbers.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next 64 bits.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `bound`, which must be at most 2³².
    #[inline(always)]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // Multiplies and shifts, since a division would cost more than some of the operations
        // timed.
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// Returns one of `choices`, each of which has its share in percent. The shares make a hundred.
    #[inline(always)]
    pub(crate) fn weighted<T>(&mut self, choices: impl IntoIterator<Item = (usize, T)>) -> T {
        let mut draw = self.below(100);
        for (share, choice) in choices {
            if draw < share {
                return choice;
            }
            draw -= share;
        }
        unreachable!("shares make a hundred")
    }

    /// Returns a number above `low` and up to `high`. Every octave between them is equally likely.
    /// Expects `high / low` to be a power of two.
    #[inline(always)]
    pub(crate) fn geometric(&mut self, low: usize, high: usize) -> usize {
        let octaves = (high / low).ilog2() as usize;
        let base = low << self.below(octaves);
        base + 1 + self.below(base)
    }
}
