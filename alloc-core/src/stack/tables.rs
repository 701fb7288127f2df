//! The tables of stack frames in an image: a sorted index of functions (`.eh_frame_hdr`), and a
//! description of each function (`.eh_frame`).
//!
//! Formats: *Linux Standard Base Core*, sections on DWARF extensions; *DWARF 5*, section 6.4. The
//! tables are as trusted as the code beside them: exceptions and panics depend on them, too.

use core::ops::Range;
use core::ptr;

use crate::arch::frames;

/// Reads a value at any address.
///
/// # Safety
/// The memory is readable, and holds plain data.
unsafe fn read<T: Copy>(address: usize) -> T {
    // SAFETY: by the contract of this function.
    unsafe { ptr::with_exposed_provenance::<T>(address).read_unaligned() }
}

/// Bytes of a table, from `at` to `end`. Its maker guarantees that they are readable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub(super) at: usize,
    pub(super) end: usize,
}

/// How a pointer is encoded: the form of the number in the low 4 bits, and what it is relative to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Encoding(u8);

impl Encoding {
    const ABSOLUTE: Encoding = Encoding(0);
    const OMITTED: Encoding = Encoding(0xff);
    const RELATIVE: u8 = 0x70;
    const TO_PLACE: u8 = 0x10;
    const TO_NOTHING: u8 = 0;
}

impl Bytes {
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    fn take<T: Copy>(&mut self) -> Option<T> {
        let after = self.at.checked_add(size_of::<T>())?;
        if after > self.end {
            return None;
        }
        // SAFETY: the bytes up to `end` are readable, and all types read here are numbers.
        let value = unsafe { read(self.at) };
        self.at = after;
        Some(value)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take()
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take()
    }

    /// Reads an unsigned number of variable length (LEB128).
    pub(super) fn unsigned(&mut self) -> Option<usize> {
        let mut value = 0;
        let mut shift = 0;
        loop {
            let byte = self.u8()?;
            if shift < usize::BITS {
                value |= usize::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    }

    /// Reads a signed number of variable length (LEB128).
    pub(super) fn signed(&mut self) -> Option<isize> {
        let mut value = 0;
        let mut shift = 0;
        loop {
            let byte = self.u8()?;
            if shift < usize::BITS {
                value |= isize::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                let is_negative = byte & 0x40 != 0 && shift < usize::BITS;
                return Some(if is_negative { value | -1 << shift } else { value });
            }
        }
    }

    /// Reads the bytes of a block, which begin with their number. Returns the address of the block.
    pub(super) fn block(&mut self) -> Option<usize> {
        let at = self.at;
        let len = self.unsigned()?;
        self.skip(len)?;
        Some(at)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.at = self.at.checked_add(len).filter(|after| *after <= self.end)?;
        Some(())
    }

    /// Reads an encoded pointer.
    fn pointer(&mut self, encoding: Encoding) -> Option<usize> {
        let place = self.at;
        let value = match encoding.0 & 0xf {
            0x0 | 0x4 | 0xc => self.u64()? as usize,
            0x1 => self.unsigned()?,
            0x2 => self.u16()?.into(),
            0x3 => self.u32()? as usize,
            0x9 => self.signed()? as usize,
            0xa => self.u16()? as i16 as usize,
            0xb => self.u32()? as i32 as usize,
            _ => return None,
        };
        match encoding.0 & Encoding::RELATIVE {
            Encoding::TO_PLACE => Some(place.wrapping_add(value)),
            Encoding::TO_NOTHING => Some(value),
            _ => None,
        }
    }
}

/// The tables of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tables {
    /// Address of the header, to which the addresses in the index are relative.
    pub(super) header: usize,
    /// Address of the index: of each function the address of its code, and that of its description.
    index: usize,
    /// Number of functions in the index.
    len: usize,
}

/// What the tables say of a function.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// Addresses of its code.
    pub(super) code: Range<usize>,
    /// Instructions that yield the rules at the start of the code, and from there on.
    pub(super) initial: Bytes,
    pub(super) instructions: Bytes,
    /// Factors of the numbers in the instructions.
    pub(super) code_factor: usize,
    pub(super) data_factor: isize,
    /// Number of the register that stands for the return address.
    pub(super) return_address: usize,
    /// Whether this is code to which signal handlers return.
    pub(super) is_signal_frame: bool,
    /// How addresses are encoded.
    encoding: Encoding,
}

impl Function {
    /// Reads an address in the instructions of this function.
    pub(super) fn address(&self, from: &mut Bytes) -> Option<usize> {
        from.pointer(self.encoding)
    }
}

/// Longest description of a function whose rules are remembered.
const MOST_HASHED: usize = 2048;

impl Tables {
    /// Returns the tables whose header is at this address. `None` if there is no index, or one in
    /// a form that no linker writes.
    ///
    /// # Safety
    /// The address is 0, or that of an `.eh_frame_hdr` which stays mapped while the result is used,
    /// together with its `.eh_frame`.
    pub(super) unsafe fn new(header: usize) -> Option<Tables> {
        if header == 0 {
            return None;
        }
        let mut from = Bytes { at: header, end: header + 20 };
        let [version, of_table, of_len, of_index] = from.u32()?.to_le_bytes();
        // Version 1. The number of functions is an unsigned word of 32 bits; the index has signed
        // words of 32 bits, relative to the header.
        if [version, of_len, of_index] != [1, 0x03, 0x3b] {
            return None;
        }
        // The address of the other table is in the index, too.
        from.pointer(Encoding(of_table & 0xf))?;
        let len = from.u32()? as usize;
        Some(Tables { header, index: from.at, len })
    }

    /// Returns one of the pair of words at this place of the index, as an address.
    fn word(&self, place: usize, which: usize) -> usize {
        // SAFETY: the caller's place is below `len`; the index is mapped.
        let distance: i32 = unsafe { read(self.index + place * 8 + which * 4) };
        self.header.wrapping_add(distance as usize)
    }

    /// Returns the place in the index of the last function that starts at or below `address`.
    pub(super) fn search(&self, address: usize) -> Option<usize> {
        let (mut from, mut len) = (0, self.len);
        while len > 1 {
            let half = len / 2;
            if self.word(from + half, 0) <= address {
                from += half;
            }
            len -= half;
        }
        (self.len > 0 && self.word(from, 0) <= address).then_some(from)
    }

    /// Returns the description of a function and the one that it shares with others, each without
    /// the word of its length.
    fn descriptions(&self, place: usize) -> Option<(Bytes, Bytes)> {
        let record = |at: usize| {
            // SAFETY: the index leads to records, each of which begins with its length.
            let len: u32 = unsafe { read(at) };
            // A length of all ones announces one of 64 bits, which no compiler writes.
            (len < u32::MAX - 15).then(|| Bytes { at: at + 4, end: at + 4 + len as usize })
        };
        let own = record(self.word(place, 1))?;
        let mut from = own;
        let shared = own.at.checked_sub(from.u32()? as usize)?;
        Some((from, record(shared)?))
    }

    /// Returns the function at a place of the index.
    pub(super) fn function(&self, place: usize) -> Option<Function> {
        let (mut own, mut shared) = self.descriptions(place)?;
        if shared.u32()? != 0 {
            return None;
        }
        let version = shared.u8()?;
        let mut names = Bytes { at: shared.at, end: shared.end };
        while shared.u8()? != 0 {}
        let code_factor = shared.unsigned()?;
        let data_factor = shared.signed()?;
        let return_address = match version {
            1 => shared.u8()?.into(),
            3 => shared.unsigned()?,
            _ => return None,
        };
        let mut encoding = Encoding::ABSOLUTE;
        let mut is_signal_frame = false;
        let mut has_more = false;
        loop {
            match names.u8()? {
                0 => break,
                // The rest is as long as the number says.
                b'z' => {
                    let len = shared.unsigned()?;
                    let rest = shared;
                    shared.skip(len)?;
                    has_more = true;
                    let mut more = Bytes { at: rest.at, end: shared.at };
                    loop {
                        match names.u8()? {
                            0 => break,
                            b'R' => encoding = Encoding(more.u8()?),
                            b'P' => {
                                let form = Encoding(more.u8()?);
                                more.pointer(Encoding(form.0 & 0xf))?;
                            }
                            b'L' => drop(more.u8()?),
                            b'S' => is_signal_frame = true,
                            // Code with signed return addresses, or with tagged memory.
                            b'B' | b'G' => {}
                            _ => return None,
                        }
                    }
                    break;
                }
                b'S' => is_signal_frame = true,
                _ => return None,
            }
        }
        if encoding == Encoding::OMITTED || return_address >= frames::REGISTERS {
            return None;
        }
        let start = own.pointer(encoding)?;
        let len = own.pointer(Encoding(encoding.0 & 0xf))?;
        if has_more {
            let len = own.unsigned()?;
            own.skip(len)?;
        }
        Some(Function {
            code: start..start.checked_add(len)?,
            initial: shared,
            instructions: own,
            code_factor,
            data_factor,
            return_address,
            is_signal_frame,
            encoding,
        })
    }

    /// Returns the description of the function at a place of the index.
    #[cfg(test)]
    pub(super) fn record(&self, place: usize) -> Option<Bytes> {
        let (own, _) = (place < self.len).then(|| self.descriptions(place))??;
        Some(Bytes { at: own.at - 4, ..own })
    }

    /// Returns the address of the descriptions.
    #[cfg(test)]
    pub(super) fn section(&self) -> usize {
        let mut from = Bytes { at: self.header + 4, end: self.header + 8 };
        from.pointer(Encoding(0x1b)).unwrap_or(0)
    }

    /// Returns a number that depends on all that the tables say of the function at a place of the
    /// index. `None` if there is no such place, or too much to read.
    #[inline]
    pub(super) fn hash(&self, place: usize) -> Option<u64> {
        if place >= self.len {
            return None;
        }
        let (own, shared) = self.descriptions(place)?;
        let mut hash = own.at as u64;
        for mut bytes in [own, shared] {
            if bytes.end - bytes.at > MOST_HASHED {
                return None;
            }
            while let Some(word) = bytes.u64() {
                hash = mix(hash, word);
            }
            while let Some(word) = bytes.u32() {
                hash = mix(hash, word.into());
            }
        }
        Some(hash)
    }
}

/// Mixes a word into a hash.
#[inline(always)]
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
