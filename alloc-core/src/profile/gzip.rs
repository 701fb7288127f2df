//! Compression in gzip's format (RFC 1952 and 1951), in a stream and without a heap.
//!
//! All data is one block with the fixed Huffman code. A repetition is looked for at one place only:
//! where the same four bytes were last seen, within the 32 KiB that the format allows.

use core::mem;

use super::scratch::{Scratch, Zeroed};

/// The farthest distance of a repetition.
const WINDOW: usize = 32 << 10;
/// Lengths of a repetition. The format's shortest is 3, but the look-up is by four bytes.
const SHORTEST: usize = 4;
const LONGEST: usize = 258;
const HASH_BITS: u32 = 13;
/// Bytes of output that go to the sink at once.
const OUTPUT: usize = 8 << 10;

const HEADER: [u8; 10] = {
    const DEFLATE: u8 = 8;
    const UNIX: u8 = 3;
    [0x1f, 0x8b, DEFLATE, 0, 0, 0, 0, 0, 0, UNIX]
};

/// Remainders of CRC-32 for each byte.
static REMAINDERS: [u32; 256] = {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = remainder >> 1 ^ if remainder & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

#[derive(Clone, Copy)]
struct State {
    /// Bytes before and after those that are being compressed.
    text: [u8; 2 * WINDOW],
    /// Bytes in `text`, and those of them that are compressed.
    len: usize,
    done: usize,
    /// Position in the stream of the first byte of `text`, modulo 2^32.
    start: u32,
    /// Position in the stream where four bytes with each hash were last seen.
    last: [u32; 1 << HASH_BITS],
    output: [u8; OUTPUT],
    output_len: usize,
    /// Bits that do not fill a byte yet, from the lowest on.
    bits: u64,
    bit_count: u32,
    /// Of all input: the inverted checksum, and the length modulo 2^32.
    checksum: u32,
    total: u32,
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for State {}

/// A stream that is compressed into a sink.
pub(super) struct Gzip<'a> {
    state: Scratch<State>,
    /// Receives the compressed bytes. Returns false if it failed; it is not called again then.
    sink: &'a mut dyn FnMut(&[u8]) -> bool,
    failed: bool,
}

impl<'a> Gzip<'a> {
    /// Starts a stream. `None` if there is no memory.
    pub(super) fn new(sink: &'a mut dyn FnMut(&[u8]) -> bool) -> Option<Gzip<'a>> {
        let mut gzip = Gzip { state: Scratch::new(1)?, sink, failed: false };
        let state = gzip.state();
        state.checksum = u32::MAX;
        HEADER.iter().for_each(|byte| gzip.put((*byte).into(), 8));
        // The first block is the last, and has the fixed Huffman code.
        gzip.put(1, 1);
        gzip.put(1, 2);
        Some(gzip)
    }

    /// Returns whether the sink has refused something. What follows goes nowhere.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Adds bytes to the stream.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.failed {
            let state = self.state();
            let room = state.text.get_mut(state.len..).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            for (to, byte) in room.iter_mut().zip(now) {
                *to = *byte;
                let remainder = REMAINDERS[usize::from(state.checksum as u8 ^ byte)];
                state.checksum = state.checksum >> 8 ^ remainder;
            }
            state.total = state.total.wrapping_add(now.len() as u32);
            state.len += now.len();
            bytes = later;
            if state.len == state.text.len() {
                self.compress(LONGEST);
                self.slide();
            }
        }
    }

    /// Ends the stream. Returns false if the sink refused something.
    pub(super) fn finish(mut self) -> bool {
        const END_OF_BLOCK: usize = 256;
        self.compress(1);
        self.symbol(END_OF_BLOCK);
        let state = self.state();
        let (fill, checksum, total) =
            (state.bit_count.wrapping_neg() & 7, !state.checksum, state.total);
        self.put(0, fill);
        self.put(checksum.into(), 32);
        self.put(total.into(), 32);
        self.flush();
        !self.failed
    }

    fn state(&mut self) -> &mut State {
        self.state.only()
    }

    /// Compresses while at least `ahead` bytes are left.
    fn compress(&mut self, ahead: usize) {
        while self.state().done + ahead <= self.state().len && !self.failed {
            let (length, distance) = self.repetition();
            let state = self.state();
            if length < SHORTEST {
                let byte = state.text.get(state.done).copied().unwrap_or_default();
                state.done += 1;
                self.symbol(byte.into());
                continue;
            }
            for _ in 1..length {
                state.done += 1;
                state.note();
            }
            state.done += 1;
            self.length(length);
            self.distance(distance);
        }
    }

    /// Returns length and distance of the repetition at the current byte. A length under
    /// [`SHORTEST`] is none.
    fn repetition(&mut self) -> (usize, usize) {
        let state = self.state();
        let distance = state.note();
        let Some(before) = state.done.checked_sub(distance) else { return (0, 0) };
        if !(1..=WINDOW).contains(&distance) {
            return (0, 0);
        }
        let text = state.text.get(..state.len).unwrap_or_default();
        let (from, here) = (text.get(before..), text.get(state.done..));
        let pairs = from.unwrap_or_default().iter().zip(here.unwrap_or_default());
        (pairs.take(LONGEST).take_while(|(from, here)| from == here).count(), distance)
    }

    /// Drops the older half of `text`, which is too far back for a repetition to refer to.
    fn slide(&mut self) {
        let state = self.state();
        let old = state.done.saturating_sub(WINDOW);
        state.text.copy_within(old..state.len, 0);
        state.start = state.start.wrapping_add(old as u32);
        state.len -= old;
        state.done -= old;
    }

    fn symbol(&mut self, symbol: usize) {
        let (code, len) = match symbol as u32 {
            symbol @ 0..144 => (0x30 + symbol, 8),
            symbol @ 144..256 => (0x190 + symbol - 144, 9),
            symbol @ 256..280 => (symbol - 256, 7),
            symbol => (0xc0 + symbol - 280, 8),
        };
        self.code(code, len);
    }

    fn length(&mut self, length: usize) {
        let more = length - 3;
        if more < 8 || length == LONGEST {
            return self.symbol(if length == LONGEST { 285 } else { 257 + more });
        }
        let extra = more.ilog2() - 2;
        self.symbol(257 + 4 * (extra as usize + 1) + (more >> extra & 3));
        self.put(more as u64 & ((1 << extra) - 1), extra);
    }

    fn distance(&mut self, distance: usize) {
        let more = distance as u32 - 1;
        if more < 4 {
            return self.code(more, 5);
        }
        let extra = more.ilog2() - 1;
        self.code(2 * (extra + 1) + (more >> extra & 1), 5);
        self.put(u64::from(more) & ((1 << extra) - 1), extra);
    }

    /// Writes a Huffman code, which goes out from the highest bit on.
    fn code(&mut self, code: u32, len: u32) {
        self.put((code.reverse_bits() >> (32 - len)).into(), len);
    }

    /// Writes `count` bits, at most 32, from the lowest on.
    fn put(&mut self, bits: u64, count: u32) {
        let state = self.state();
        state.bits |= bits << state.bit_count;
        state.bit_count += count;
        while self.state().bit_count >= 8 {
            let state = self.state();
            if let Some(to) = state.output.get_mut(state.output_len) {
                *to = state.bits as u8;
            }
            state.output_len += 1;
            state.bits >>= 8;
            state.bit_count -= 8;
            if state.output_len >= OUTPUT {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let state = self.state.only();
        let output = state.output.get(..state.output_len).unwrap_or_default();
        self.failed = self.failed || !(self.sink)(output);
        state.output_len = 0;
    }
}

impl State {
    /// Notes that the four bytes at `done` were seen there. Returns the distance to the place noted
    /// before, where there may be other bytes.
    fn note(&mut self) -> usize {
        let rest = self.text.get(self.done..self.len).unwrap_or_default();
        let Some(four) = rest.first_chunk() else { return 0 };
        let hash = u32::from_le_bytes(*four).wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS);
        let here = self.start.wrapping_add(self.done as u32);
        let Some(last) = self.last.get_mut(hash as usize) else { return 0 };
        here.wrapping_sub(mem::replace(last, here)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read as _;
    use std::vec;
    use std::vec::Vec;

    /// Compresses `text`, handed over in pieces of `piece` bytes.
    fn compressed(text: &[u8], piece: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut sink = |bytes: &[u8]| {
            file.extend_from_slice(bytes);
            true
        };
        let mut gzip = Gzip::new(&mut sink).unwrap();
        text.chunks(piece).for_each(|piece| gzip.push(piece));
        assert!(gzip.finish());
        file
    }

    /// Checks that `text` comes back. Returns the length of the file.
    fn check(text: &[u8], piece: usize) -> usize {
        let file = compressed(text, piece);
        let mut found = Vec::new();
        // The decoder checks checksum and length.
        GzDecoder::new(file.as_slice()).read_to_end(&mut found).unwrap();
        assert!(found == text, "{} bytes in pieces of {piece} differ", text.len());
        file.len()
    }

    /// Returns numbers that look random, the same in each run.
    fn random() -> impl FnMut() -> u32 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        }
    }

    #[test]
    fn short_texts_come_back() {
        for text in [&b""[..], b"a", b"abc", b"abcd", b"aaaaa", b"abcabcabcabcabcabc", &[0xff; 3]] {
            check(text, 1);
            check(text, 1000);
        }
    }

    #[test]
    fn every_length_and_distance_comes_back() {
        let mut random = random();
        let most = if cfg!(miri) { 300 } else { 2 * WINDOW };
        let noise: Vec<u8> = (0..most).map(|_| random() as u8).collect();
        let mut text = Vec::new();
        for length in 3..=300 {
            text.extend_from_slice(&noise[..length.min(most)]);
            text.push(length as u8);
        }
        let lengths = [1, 2, 3, 4, 5, 7, 8, 9, 100, 257, 300, 4096, WINDOW - 1, WINDOW, WINDOW + 1];
        for distance in lengths.into_iter().filter(|distance| *distance <= most) {
            text.extend_from_slice(&noise[..distance]);
            text.extend_from_slice(&noise[..distance]);
        }
        check(&text, 777);
    }

    #[test]
    fn mixed_texts_come_back() {
        let mut random = random();
        for round in 0..if cfg!(miri) { 2 } else { 40 } {
            let mut text: Vec<u8> = Vec::new();
            let most = if cfg!(miri) { 2000 } else { random() as usize % 200_000 };
            while text.len() < most {
                let (kind, length) = (random() % 4, random() as usize % 400);
                let from = text.len() - (random() as usize % 70_000).min(text.len());
                match kind {
                    0 => text.extend((0..length).map(|_| random() as u8)),
                    1 => text.extend(vec![random() as u8; length]),
                    _ => text.extend_from_within(from..(from + length).min(text.len())),
                }
            }
            check(&text, 1 + round * 37);
        }
    }

    #[test]
    fn repetitive_text_shrinks_and_noise_hardly_grows() {
        let mut random = random();
        let line = b"7f3c2a1b4000 r-xp /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        let lines = line.repeat(if cfg!(miri) { 50 } else { 5000 });
        assert!(check(&lines, 4096) < lines.len() / 20);
        let noise: Vec<u8> = (0..2000).map(|_| random() as u8).collect();
        assert!(check(&noise, 4096) < noise.len() * 9 / 8 + 32);
    }

    #[test]
    fn nothing_reaches_a_sink_that_has_refused() {
        let mut calls = 0;
        let mut sink = |_: &[u8]| {
            calls += 1;
            false
        };
        let mut gzip = Gzip::new(&mut sink).unwrap();
        let mut random = random();
        let noise: Vec<u8> = (0..200_000).map(|_| random() as u8).collect();
        let noise = if cfg!(miri) { &noise[..20_000] } else { &noise };
        noise.chunks(100).for_each(|piece| gzip.push(piece));
        gzip.push(noise);
        assert!(cfg!(miri) || gzip.has_failed());
        assert!(!gzip.finish());
        assert_eq!(calls, 1);
    }
}
