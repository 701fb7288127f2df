//! Random numbers, and the layouts drawn from them.
//!
//! The generator is SplitMix64. It is written out here because a replay by seed must not depend on
//! the version of a library.

use std::alloc::Layout;

/// Computes one output step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): a bijection that spreads every input bit over all output bits.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The increment of SplitMix64: 2⁶⁴ divided by the golden ratio, odd.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Creates the stream of one worker thread.
    pub(crate) fn of_worker(seed: u64, thread: u32, generation: u32) -> Self {
        let worker = u64::from(thread) << 32 | u64::from(generation);
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ worker.wrapping_mul(GOLDEN)))
    }

    /// Creates the stream of a visit, which is independent of the workers' own sequences.
    pub(crate) fn of_visit(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed ^ GOLDEN).wrapping_add(number.wrapping_mul(GOLDEN))))
    }

    /// Creates a stream from a number that is itself random, such as a block's key.
    pub(crate) fn of_key(key: u64) -> Self {
        Self(key)
    }

    /// Returns the next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Returns a number in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Returns a number in `low..=high`. Every octave is about equally likely.
    pub(crate) fn log_uniform(&mut self, low: usize, high: usize) -> usize {
        let high = high.max(low);
        let steps = (high / low).ilog2() as usize + 1;
        let base = low << self.below(steps);
        (base + self.below(base)).min(high)
    }
}

/// Returns a size from 1 to `max`: mostly small, often at the border of a size class, rarely
/// megabytes.
pub(crate) fn size(rng: &mut Rng, max: usize) -> usize {
    let size = match rng.below(1000) {
        0..600 => rng.log_uniform(1, 1 << 10),
        600..800 => border(rng),
        800..960 => rng.log_uniform(1 << 10, 32 << 10),
        960..996 => rng.log_uniform(32 << 10, 512 << 10),
        _ => rng.log_uniform(512 << 10, max),
    };
    size.clamp(1, max)
}

/// Returns a size at, one below or one above a quarter step between powers of two. Size classes end
/// there.
fn border(rng: &mut Rng) -> usize {
    let power = 8 << rng.below(14);
    let step = power + power / 4 * rng.below(4);
    step + rng.below(3) - 1
}

/// Returns an alignment: mostly that of a common type, sometimes up to a page, rarely up to 2 MiB.
fn align(rng: &mut Rng) -> usize {
    match rng.below(2000) {
        0..1500 => 1 << rng.below(5),
        1500..1995 => 32 << rng.below(8),
        _ => 8192 << rng.below(9),
    }
}

/// Returns a layout of at most `max` bytes.
pub(crate) fn layout(rng: &mut Rng, max: usize) -> Layout {
    let size = size(rng, max);
    Layout::from_size_align(size, align(rng)).expect("a size far below isize::MAX")
}

/// Returns the new size for a block of `old` bytes: a small step away, half, double, or any size.
pub(crate) fn new_size(rng: &mut Rng, old: usize, max: usize) -> usize {
    let new = match rng.below(8) {
        0 => old + 1,
        1 => old - 1,
        2 | 3 => old * 2,
        4 => old / 2,
        5 => old + rng.below(old),
        _ => size(rng, max),
    };
    new.clamp(1, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_stay_in_bounds() {
        let mut rng = Rng::of_worker(1, 2, 3);
        for max in [1, 100, 4096, 8 << 20] {
            for _ in 0..20_000 {
                let layout = layout(&mut rng, max);
                assert!((1..=max).contains(&layout.size()));
                assert!(layout.align() <= 2 << 20);
                assert!((1..=max).contains(&new_size(&mut rng, layout.size(), max)));
            }
        }
    }

    #[test]
    fn log_uniform_reaches_both_ends() {
        let mut rng = Rng::of_worker(7, 0, 0);
        let drawn: Vec<_> = (0..10_000).map(|_| rng.log_uniform(3, 17)).collect();
        assert!(drawn.iter().all(|n| (3..=17).contains(n)));
        assert!(drawn.contains(&3) && drawn.contains(&17));
    }

    #[test]
    fn workers_draw_different_streams() {
        let first = |seed, thread, generation| Rng::of_worker(seed, thread, generation).next();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        assert_ne!(first(1, 2, 3), first(2, 2, 3));
        assert_ne!(first(1, 2, 3), first(1, 3, 2));
    }
}
