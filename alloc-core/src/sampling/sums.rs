//! Sums over samples, each multiplied by its weight, and how exact they are.
//!
//! A block of s bytes is sampled with probability p, whatever other blocks are, and then counts w =
//! 1/p times. The variance of that contribution is s² (1 - p) / p. A sampled block adds s² (1 - p)
//! / p² = s² w (w - 1) to the sum of variances, so that this sum is unbiased as well.

use core::sync::atomic::{AtomicU64, Ordering};

use super::gaps::FRACTION;

/// Returns the bytes of all blocks for which a sample of this size and weight stands.
pub(super) fn bytes_for(size: usize, weight: u64) -> u64 {
    ((size as u128 * u128::from(weight)) >> FRACTION) as u64
}

/// Returns the number nearest to a weight or a sum of weights.
pub(super) fn whole(weight: u64) -> u64 {
    (weight + (1 << (FRACTION - 1))) >> FRACTION
}

/// Returns the estimated variance of the bytes of a sample.
fn variance_of(size: usize, weight: u64) -> f64 {
    let weight = weight as f64 / f64::from(1_u32 << FRACTION);
    size as f64 * size as f64 * weight * (weight - 1.0)
}

/// Adds to a word that holds an `f64`.
fn add_float(word: &AtomicU64, more: f64) {
    if more > 0.0 {
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + more).to_bits())
        });
    }
}

/// Adds the bytes of a sample beyond the first `from` of it to a sum of bytes, and to that of
/// variances, which is an `f64`. The difference of two such sums is right after that, with its
/// variance, if the other has the first bytes.
pub(super) fn add_bytes([bytes, variance]: &[AtomicU64; 2], from: usize, to: usize, weight: u64) {
    let more = bytes_for(to, weight).saturating_sub(bytes_for(from, weight));
    bytes.fetch_add(more, Ordering::Relaxed);
    add_float(variance, variance_of(to, weight) - variance_of(from, weight));
}

/// What was allocated, or freed, as estimated from samples. Zeroed memory is an empty sum.
#[repr(C)]
pub(super) struct Total {
    /// Blocks, with [`FRACTION`] bits behind the point.
    blocks: AtomicU64,
    /// Bytes, and their variance.
    bytes: [AtomicU64; 2],
}

impl Total {
    pub(super) const fn new() -> Total {
        Total { blocks: AtomicU64::new(0), bytes: [const { AtomicU64::new(0) }; 2] }
    }

    /// Adds a block.
    pub(super) fn add(&self, size: usize, weight: u64) {
        self.blocks.fetch_add(weight, Ordering::Relaxed);
        add_bytes(&self.bytes, 0, size, weight);
    }
}

/// What was allocated and freed.
#[repr(C)]
pub(super) struct Balance {
    allocated: Total,
    freed: Total,
}

/// The numbers of a [`Balance`].
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Estimate {
    /// Blocks and bytes allocated so far, and the variance of the bytes.
    pub(crate) allocs: u64,
    pub(crate) alloc_bytes: u64,
    pub(crate) alloc_variance: f64,
    /// The same of those in use.
    pub(crate) live: u64,
    pub(crate) live_bytes: u64,
    pub(crate) live_variance: f64,
}

impl Balance {
    pub(super) const fn new() -> Balance {
        Balance { allocated: Total::new(), freed: Total::new() }
    }

    pub(super) fn allocated(&self, size: usize, weight: u64) {
        self.allocated.add(size, weight);
    }

    pub(super) fn freed(&self, size: usize, weight: u64) {
        self.freed.add(size, weight);
    }

    /// Notes that a block grew or shrank.
    pub(super) fn resized(&self, old: usize, new: usize, weight: u64) {
        if new > old {
            add_bytes(&self.allocated.bytes, old, new, weight);
        } else {
            add_bytes(&self.freed.bytes, new, old, weight);
        }
    }

    pub(super) fn read(&self) -> Estimate {
        let read = |total: &Total| {
            [&total.blocks, &total.bytes[0], &total.bytes[1]]
                .map(|word| word.load(Ordering::Relaxed))
        };
        // Frees first: a block that is allocated and freed in between is not missed.
        let [frees, free_bytes, free_variance] = read(&self.freed);
        let [allocs, alloc_bytes, variance] = read(&self.allocated);
        let alloc_variance = f64::from_bits(variance);
        Estimate {
            allocs: whole(allocs),
            alloc_bytes,
            alloc_variance,
            live: whole(allocs.saturating_sub(frees)),
            live_bytes: alloc_bytes.saturating_sub(free_bytes),
            live_variance: (alloc_variance - f64::from_bits(free_variance)).max(0.0),
        }
    }
}

/// Returns the square root of a number that is not negative, as a whole number.
pub(crate) fn root(number: f64) -> u64 {
    if number < 1.0 {
        return 0;
    }
    // Half the exponent is within a factor of √2; each step doubles the number of right digits.
    let half = (number.to_bits() >> 1) + (1023 << 51);
    let mut root = f64::from_bits(half);
    for _ in 0..5 {
        root = (root + number / root) / 2.0;
    }
    (root + 0.5) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_agree_with_those_of_the_standard_library() {
        let mut number = 1.0;
        while number < 1e30 {
            let (found, exact) = (root(number) as f64, number.sqrt());
            assert!((found - exact).abs() <= 0.5 + 1e-14 * exact, "{number}: {found}");
            number *= 1.7;
        }
        assert_eq!([0.0, 0.5, 1.0, 4.0, 1e6].map(root), [0, 0, 1, 2, 1000]);
    }

    /// 2048 samples that stand for a gibibyte, at a mean of 512 KiB: one standard deviation is
    /// 2.2 %.
    #[test]
    fn a_gibibyte_is_known_to_two_percent() {
        let balance = Balance::new();
        let weight = super::super::gaps::weight(64, 524_288.0);
        (0..2048).for_each(|_| balance.allocated(64, weight));
        let numbers = balance.read();
        let percent = 100.0 * root(numbers.live_variance) as f64 / numbers.live_bytes as f64;
        assert!((2.2..2.22).contains(&percent), "{percent} %");
    }

    #[test]
    fn exact_sums_have_no_variance() {
        let balance = Balance::new();
        let one = 1 << FRACTION;
        balance.allocated(100, one);
        balance.resized(100, 300, one);
        balance.resized(300, 50, one);
        let numbers = balance.read();
        assert_eq!((numbers.allocs, numbers.alloc_bytes), (1, 300));
        assert_eq!((numbers.live, numbers.live_bytes), (1, 50));
        assert_eq!((numbers.alloc_variance, numbers.live_variance), (0.0, 0.0));
        balance.freed(50, one);
        assert_eq!((balance.read().live, balance.read().live_bytes), (0, 0));
    }

    #[test]
    fn variance_of_live_blocks_follows_their_sizes() {
        let (balance, other) = (Balance::new(), Balance::new());
        let weight = 10 << FRACTION;
        balance.allocated(100, weight);
        balance.allocated(500, weight);
        balance.resized(100, 300, weight);
        balance.resized(300, 200, weight);
        balance.freed(500, weight);
        other.allocated(200, weight);
        let [found, expected] = [&balance, &other].map(|balance| balance.read().live_variance);
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
}
