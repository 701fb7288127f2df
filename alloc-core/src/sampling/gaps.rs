//! Random gaps between samples.
//!
//! A sampler with a mean of R bytes is a Poisson process on the bytes that a program allocates: it
//! hits each byte with probability 1/R, and a block is sampled if any of its bytes is hit. So a
//! block of s bytes is sampled with probability p = 1 - e^(-s/R), whatever was sampled before, and
//! a sample stands for 1/p blocks. Sums of these weights are unbiased. With a mean of one byte each
//! byte is hit, and each block sampled.
//!
//! Among blocks of one size, the number of blocks before the next sample is geometric. It is drawn
//! as the floor of an exponential distance over the size. The process has no memory: a gap that is
//! abandoned may be replaced by a new one at any time, unless the decision depends on its length.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of a weight behind the point.
pub(crate) const FRACTION: u32 = 16;

/// Added to the state of a generator for each number: 2^64 over the golden ratio, which visits all
/// states.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the next number of the generator with this state (SplitMix64). Two threads that share a
/// generator get different numbers. Any context.
pub(crate) fn random(state: &AtomicU64) -> u64 {
    let mut bits = state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Returns a number of bytes that is exponentially distributed with this mean; 0 with a mean of
/// one byte.
pub(super) fn distance(mean: f64, random: u64) -> f64 {
    if mean <= 1.0 {
        return 0.0;
    }
    // In (0, 1]: 53 bits, of which at least one is set.
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    -ln(uniform) * mean
}

/// Returns a number of allocations below `2 * mean - 1`, each as likely as any other.
pub(super) fn uniform(mean: u32, random: u64) -> u32 {
    let bound = 2 * u64::from(mean) - 1;
    ((u128::from(random) * u128::from(bound)) >> 64) as u32
}

/// Returns the weight of a sample of `size` bytes at this mean: 1/p with [`FRACTION`] bits behind
/// the point.
pub(super) fn weight(size: usize, mean: f64) -> u64 {
    let rate = if mean <= 1.0 { 1.0 } else { hit_rate(size as f64 / mean) };
    ((1 << FRACTION) as f64 / rate) as u64
}

/// Returns 1 - e^-x for a positive x, with a relative error below 1e-12.
fn hit_rate(x: f64) -> f64 {
    if x > 40.0 {
        return 1.0;
    }
    // From a small part of x, by the series, and then by doubling: 1 - (1 - p)² = p (2 - p).
    let (mut part, mut doublings) = (x, 0);
    while part > 1.0 / 64.0 {
        part /= 2.0;
        doublings += 1;
    }
    let (mut term, mut rate) = (part, part);
    for number in 2..=7 {
        term *= -part / f64::from(number);
        rate += term;
    }
    for _ in 0..doublings {
        rate *= 2.0 - rate;
    }
    rate
}

/// Returns the natural logarithm of a positive normal number, with an error below 1e-14 relative to
/// the result or to 1.
fn ln(x: f64) -> f64 {
    const ROOT: f64 = core::f64::consts::SQRT_2;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > ROOT {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh ((m - 1) / (m + 1)), whose argument is at most 0.172 here.
    let argument = (mantissa - 1.0) / (mantissa + 1.0);
    let square = argument * argument;
    let (mut power, mut sum) = (argument, 0.0);
    for number in 0..10 {
        sum += power / f64::from(2 * number + 1);
        power *= square;
    }
    2.0 * sum + f64::from(exponent) * core::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_those_of_the_standard_library() {
        let mut x = 1e-9_f64;
        while x < 50.0 {
            assert!((ln(x) - x.ln()).abs() <= 1e-14 * x.ln().abs().max(1.0), "ln {x}");
            let rate = -(-x).exp_m1();
            assert!((hit_rate(x) - rate).abs() <= 1e-12 * rate, "1 - e^-{x}");
            x *= 1.01;
        }
    }

    #[test]
    fn distances_are_exponential() {
        let state = AtomicU64::new(1);
        let count = if cfg!(miri) { 1000 } else { 1_000_000 };
        let distances = || (0..count).map(|_| distance(100.0, random(&state)));
        let mean = distances().sum::<f64>() / f64::from(count);
        let beyond = distances().filter(|distance| *distance > 300.0).count() as f64;
        let expected = f64::from(count) * (-3.0_f64).exp();
        // Five standard deviations.
        assert!((mean - 100.0).abs() < 500.0 / f64::from(count).sqrt(), "{mean}");
        assert!((beyond - expected).abs() < 5.0 * expected.sqrt(), "{beyond} of {count}");
    }

    #[test]
    fn weights_are_the_reciprocals_of_probabilities() {
        let one = 1 << FRACTION;
        assert_eq!(weight(usize::MAX / 2, 2.0), one);
        assert_eq!(weight(1 << 20, 1.0), one);
        let many = weight(16, 524_288.0) as f64 / f64::from(one as u32);
        assert!((many - 32_768.5).abs() < 0.01, "{many}");
    }

    #[test]
    fn with_a_mean_of_one_byte_each_block_is_sampled() {
        let state = AtomicU64::new(1);
        assert!((0..10_000).all(|_| distance(1.0, random(&state)) == 0.0));
        assert_eq!([1, 8, 1 << 20].map(|size| weight(size, 1.0)), [1 << FRACTION; 3]);
    }
}
