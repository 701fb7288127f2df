//! The contents of a block: a function of its key and the offset.
//!
//! Word `i` of a block is `key + i * STEP`. Keys are random 64-bit numbers, so two blocks share a
//! word only by a rare coincidence. The word depends on the offset, so the check finds bytes that
//! moved as well as bytes that changed.

use crate::draw::GOLDEN;

/// Difference between two consecutive words.
const STEP: u64 = GOLDEN;

/// Bytes in a word.
const WORD: usize = size_of::<u64>();

/// A byte that differs from the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) offset: usize,
    pub(crate) expected: u8,
    pub(crate) found: u8,
}

/// Returns the word with index `index` of the block `key`.
fn word(key: u64, index: usize) -> u64 {
    key.wrapping_add((index as u64).wrapping_mul(STEP))
}

/// Returns the byte at `offset` of the block `key`.
fn byte(key: u64, offset: usize) -> u8 {
    word(key, offset / WORD).to_ne_bytes()[offset % WORD]
}

/// Writes the bytes `from..len` of the block `key`.
///
/// # Safety
///
/// `block` must be valid for writes of `len` bytes.
pub(crate) unsafe fn fill(block: *mut u8, from: usize, len: usize, key: u64) {
    let words = from.div_ceil(WORD)..len / WORD;
    if words.is_empty() {
        // SAFETY: the caller guarantees that `block` is valid for writes of `len` bytes.
        return unsafe { fill_bytes(block, from, len, key) };
    }
    // SAFETY: `block` is valid for `len` bytes, and this range ends before `len`.
    unsafe { fill_bytes(block, from, words.start * WORD, key) };
    for index in words.clone() {
        // SAFETY: word `index` ends at or before `len`.
        unsafe { block.add(index * WORD).cast::<u64>().write_unaligned(word(key, index)) };
    }
    // SAFETY: `block` is valid for `len` bytes, where this range ends.
    unsafe { fill_bytes(block, words.end * WORD, len, key) };
}

/// Writes the bytes `from..to` one by one.
///
/// # Safety
///
/// `block` must be valid for writes of `to` bytes.
unsafe fn fill_bytes(block: *mut u8, from: usize, to: usize, key: u64) {
    for offset in from..to {
        // SAFETY: `offset` is below `to`, and the caller guarantees `to` bytes.
        unsafe { block.add(offset).write(byte(key, offset)) };
    }
}

/// Finds the first of `len` bytes that differs from the block `key`.
pub(crate) unsafe fn find_mismatch(block: *const u8, len: usize, key: u64) -> Option<Mismatch> {
    // SAFETY: the caller guarantees `len` readable, initialised bytes.
    unsafe { find_other(block, len, |index| word(key, index)) }
}

/// Finds the first of `len` bytes that is not zero.
///
/// # Safety
///
/// `block` must be valid for reads of `len` bytes, all of them initialised.
pub(crate) unsafe fn find_nonzero(block: *const u8, len: usize) -> Option<Mismatch> {
    // SAFETY: the caller guarantees `len` readable, initialised bytes.
    unsafe { find_other(block, len, |_| 0) }
}

/// Finds the first of `len` bytes that differs from the words that `expected` returns.
///
/// # Safety
///
/// `block` must be valid for reads of `len` bytes, all of them initialised.
unsafe fn find_other(
    block: *const u8,
    len: usize,
    expected: impl Fn(usize) -> u64,
) -> Option<Mismatch> {
    // The first pass has no branch per word, so the compiler vectorises it. The offset is searched
    // for only after this pass found a difference.
    let mut difference = 0;
    for index in 0..len / WORD {
        // SAFETY: word `index` ends at or before `len`.
        let found = unsafe { block.add(index * WORD).cast::<u64>().read_unaligned() };
        difference |= found ^ expected(index);
    }
    let first = if difference == 0 { len / WORD * WORD } else { 0 };
    (first..len).find_map(|offset| {
        // SAFETY: `offset` is below `len`.
        let found = unsafe { block.add(offset).read() };
        let expected = expected(offset / WORD).to_ne_bytes()[offset % WORD];
        (found != expected).then_some(Mismatch { offset, expected, found })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 0x0123_4567_89ab_cdef;

    fn mismatch(block: &[u8]) -> Option<Mismatch> {
        // SAFETY: the pointer and the length are those of a slice.
        unsafe { find_mismatch(block.as_ptr(), block.len(), KEY) }
    }

    #[test]
    fn filled_pattern_has_no_mismatch() {
        for len in 0..100 {
            for from in 0..=len {
                let mut block = vec![0; len];
                // SAFETY: both ranges lie within the vector.
                unsafe {
                    fill(block.as_mut_ptr(), 0, from, KEY);
                    fill(block.as_mut_ptr(), from, len, KEY);
                }
                assert_eq!(mismatch(&block), None, "{from} of {len}");
            }
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let mut block = vec![0; 77];
        // SAFETY: the range is the whole vector.
        unsafe { fill(block.as_mut_ptr(), 0, 77, KEY) };
        for offset in 0..block.len() {
            let expected = block[offset];
            block[offset] ^= 0x10;
            let found = block[offset];
            assert_eq!(mismatch(&block), Some(Mismatch { offset, expected, found }));
            block[offset] = expected;
        }
    }

    #[test]
    fn a_byte_that_is_not_zero_is_found() {
        let mut block = [0; 33];
        // SAFETY: the pointer and the length are those of an array.
        assert_eq!(unsafe { find_nonzero(block.as_ptr(), 33) }, None);
        block[32] = 5;
        // SAFETY: the pointer and the length are those of an array.
        let found = unsafe { find_nonzero(block.as_ptr(), 33) };
        assert_eq!(found, Some(Mismatch { offset: 32, expected: 0, found: 5 }));
    }
}
