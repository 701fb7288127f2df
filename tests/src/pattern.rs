//! Block contents that are recomputed from a number, so that checking them needs no copy.
//!
//! A block's pattern is a window into one table of random bytes, repeated to the block's length.
//! The period is a prime, so a shift of bytes by a word, a page or a size class is detected. Whole
//! windows are copied and compared at once, which keeps unoptimised test builds fast.

use std::slice;

/// Length of a window in bytes.
const PERIOD: usize = 4093;

/// Random bytes, enough for a window that starts anywhere below `PERIOD`.
static TABLE: [u8; 2 * PERIOD] = table();

/// A byte that differs from the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset in the block.
    pub offset: usize,
    /// Byte of the pattern.
    pub expected: u8,
    /// Byte in the block.
    pub found: u8,
}

/// Mixes `value` by SplitMix64's finishing step: every input bit affects every output bit.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const fn table() -> [u8; 2 * PERIOD] {
    let mut table = [0; 2 * PERIOD];
    let mut index = 0;
    while index < table.len() {
        // No byte of the table is zero, so zeroed or untouched memory never passes for filled.
        table[index] = mix(index as u64 + 1) as u8 | 1;
        index += 1;
    }
    table
}

/// Returns the window that the pattern of `id` repeats.
fn window(id: u64) -> &'static [u8] {
    let start = (mix(id) % PERIOD as u64) as usize;
    &TABLE[start..start + PERIOD]
}

/// Splits `from..to` into stretches that a single window covers. Yields each stretch's offset in
/// the block and its expected bytes.
fn stretches(id: u64, from: usize, to: usize) -> impl Iterator<Item = (usize, &'static [u8])> {
    let window = window(id);
    let mut at = from;
    std::iter::from_fn(move || {
        let phase = at % PERIOD;
        let len = (PERIOD - phase).min(to.checked_sub(at).filter(|left| *left > 0)?);
        let offset = at;
        at += len;
        Some((offset, &window[phase..phase + len]))
    })
}

/// Writes the bytes `from..to` of the pattern of `id`.
///
/// # Safety
///
/// `block` must be valid for writes of `to` bytes.
pub unsafe fn fill(block: *mut u8, from: usize, to: usize, id: u64) {
    for (offset, bytes) in stretches(id, from, to) {
        // SAFETY: the caller guarantees `to` writable bytes, the stretch ends at or before `to`,
        // and the table is not in the heap.
        unsafe { block.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

/// Returns the first of `len` bytes that differs from the pattern of `id`, if any.
///
/// # Safety
///
/// `block` must be valid for reads of `len` initialised bytes that nobody writes meanwhile.
#[must_use]
pub unsafe fn find_mismatch(block: *const u8, len: usize, id: u64) -> Option<Mismatch> {
    stretches(id, 0, len).find_map(|(start, expected)| {
        // SAFETY: the caller guarantees `len` readable bytes, and the stretch ends at or before
        // `len`.
        let found = unsafe { slice::from_raw_parts(block.add(start), expected.len()) };
        first_difference(start, expected, found)
    })
}

/// Returns the first of `len` bytes that is not zero, if any.
///
/// # Safety
///
/// `block` must be valid for reads of `len` initialised bytes that nobody writes meanwhile.
#[must_use]
pub unsafe fn find_nonzero(block: *const u8, len: usize) -> Option<Mismatch> {
    static ZEROS: [u8; PERIOD] = [0; PERIOD];
    (0..len).step_by(PERIOD).find_map(|start| {
        let expected = &ZEROS[..PERIOD.min(len - start)];
        // SAFETY: the caller guarantees `len` readable bytes, and the stretch ends at or before
        // `len`.
        let found = unsafe { slice::from_raw_parts(block.add(start), expected.len()) };
        first_difference(start, expected, found)
    })
}

fn first_difference(start: usize, expected: &[u8], found: &[u8]) -> Option<Mismatch> {
    if expected == found {
        return None;
    }
    let at = expected.iter().zip(found).position(|(expected, found)| expected != found)?;
    Some(Mismatch { offset: start + at, expected: expected[at], found: found[at] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_filled_in_parts_is_whole() {
        let len = 3 * PERIOD + 17;
        for from in [0, 1, PERIOD - 1, PERIOD, PERIOD + 1, 3 * PERIOD, len] {
            let mut block = vec![0; len];
            // SAFETY: the ranges lie within the vector.
            let mismatch = unsafe {
                fill(block.as_mut_ptr(), 0, from, 5);
                fill(block.as_mut_ptr(), from, len, 5);
                find_mismatch(block.as_ptr(), len, 5)
            };
            assert_eq!(mismatch, None);
        }
    }

    #[test]
    fn a_changed_byte_is_found() {
        let len = 2 * PERIOD;
        let mut block = vec![0; len];
        // SAFETY: the range is the whole vector.
        unsafe { fill(block.as_mut_ptr(), 0, len, 5) };
        for offset in [0, 1, PERIOD - 1, PERIOD, len - 1] {
            block[offset] ^= 2;
            // SAFETY: the range is the whole vector.
            let mismatch = unsafe { find_mismatch(block.as_ptr(), len, 5) };
            assert_eq!(mismatch.map(|mismatch| mismatch.offset), Some(offset));
            block[offset] ^= 2;
        }
    }

    #[test]
    fn a_byte_that_is_not_zero_is_found() {
        let mut block = vec![0; PERIOD + 5];
        // SAFETY: the pointer and the length are those of a vector.
        assert_eq!(unsafe { find_nonzero(block.as_ptr(), block.len()) }, None);
        block[PERIOD + 4] = 1;
        // SAFETY: the pointer and the length are those of a vector.
        let mismatch = unsafe { find_nonzero(block.as_ptr(), block.len()) };
        assert_eq!(mismatch.map(|mismatch| mismatch.offset), Some(PERIOD + 4));
    }
}
