//! The format of pprof (`perftools.profiles.Profile` of `profile.proto`), compressed by gzip.
//!
//! The message is written field by field in one pass. Protocol buffers permit any order of fields,
//! and a reader puts those that repeat in a list in the order that it finds them, so a string, a
//! mapping or a location is written when it is first needed, before the sample that refers to it:
//!
//! | part | written | memory for it |
//! |---|---|---|
//! | description | first | none |
//! | mappings | next, with the program's own as the first, which readers expect | their ranges |
//! | locations | before the first sample with that address | a hash table of addresses |
//! | samples | as they come | one sample |
//! | strings | before the first use | the latest strings: others are written again |
//!
//! A location's address is the return address less one. So it lies in the call, where a line table
//! has the right line, and in the right function even if the call is that function's last
//! instruction. Profiles of Go and gperftools have it so, and readers look addresses up as they
//! are. Functions and lines are left to readers, who find the files by path or build ID. Only a
//! [named sample](Writer::named_sample) has a function.

use core::fmt::Write as _;

use super::gzip::Gzip;
use super::mappings::{self, Mapping};
use super::scratch::{Scratch, Zeroed};
use crate::os::{self, Line};

/// What a profile is about.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    /// Type and unit of each value of a sample.
    pub types: &'a [(&'a str, &'a str)],
    /// The type that readers show unless asked for another.
    pub default_type: &'a str,
    /// Bytes from one sample to the next, on average.
    pub period: u64,
    /// Time of the profile in nanoseconds since 1970; see [`now`].
    pub time: u64,
    /// Nanoseconds that the profile covers; 0 if that makes no sense.
    pub duration: u64,
    /// Lines that readers show, such as the version and the settings in force.
    pub comments: &'a [&'a str],
}

/// Types of a heap profile: what was allocated so far, and what of it is in use. The names and
/// their order are those of Go's heap profiles.
pub const HEAP_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// Functions between the program's and the sampler, as a regular expression that matches whole
/// names: readers leave them out, with all that they call. `operator new` stands without its
/// arguments, as readers cut them off.
pub const ALLOCATOR: &str = concat!(
    r"(__libc_)?(malloc|calloc|realloc|reallocarray|memalign|aligned_alloc|posix_memalign|valloc",
    r"|pvalloc)|hayloft_\w*alloc\w*|operator new(\[\])?|(__rustc::)?__(rust|rg|rdl)_\w*alloc\w*",
    r"|alloc::alloc::(Global::)?\w+|<alloc::alloc::Global as .*",
    r"|<hayloft.* as .*(GlobalAlloc|Allocator)>::\w+",
    r"|hayloft(_core)?::(front|path|percpu|sampling|stack|profile|kmalloc|by_address|nolock)::.*",
    r"|hayloft::(malloc|operators|api)::.*",
);

/// An aspect of a sample other than its stack and values.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    /// Name of the aspect.
    pub key: &'a str,
    /// Its value.
    pub value: LabelValue<'a>,
}

/// Value of a [`Label`].
#[derive(Clone, Copy, Debug)]
pub enum LabelValue<'a> {
    /// Text.
    Text(&'a str),
    /// A number, and its unit, such as `bytes`.
    Number(i64, &'a str),
}

/// Returns the time of day, for [`Description::time`].
pub fn now() -> u64 {
    os::unix_nanoseconds()
}

/// Writes a profile to `sink`, which returns false if it failed. `samples` adds the samples.
/// Returns false if the sink failed or the system has no memory (some 400 KiB, and 32 bytes for
/// each distinct address); the sink may have received a part of the profile then.
///
/// May be called in any context. Uses little stack, and calls `sink` with a few kilobytes at a
/// time.
///
/// ```
/// use hayloft_core::profile::pprof::{self, Description, HEAP_TYPES, Label, LabelValue};
///
/// let description = Description {
///     types: &HEAP_TYPES,
///     default_type: "inuse_space",
///     period: 512 << 10,
///     time: pprof::now(),
///     duration: 0,
///     comments: &["hayloft 0.1.0"],
/// };
/// let mut file = Vec::new();
/// let mut sink = |bytes: &[u8]| {
///     file.extend_from_slice(bytes);
///     true
/// };
/// let done = pprof::write(&description, &mut sink, |writer| {
///     let tag = Label { key: "tag", value: LabelValue::Text("index") };
///     let size = Label { key: "bytes", value: LabelValue::Number(64, "bytes") };
///     writer.sample(&[0x1234_5678], &[10, 640, 2, 128], &[tag, size]);
/// });
/// assert!(done && file.starts_with(&[0x1f, 0x8b]));
/// ```
pub fn write(
    description: &Description<'_>,
    sink: &mut dyn FnMut(&[u8]) -> bool,
    samples: impl FnOnce(&mut Writer<'_>),
) -> bool {
    let Some(mut writer) = Writer::new(sink) else { return false };
    writer.describe(description);
    writer.mappings();
    samples(&mut writer);
    writer.to.finish()
}

/// Numbers of the fields of `Profile`.
mod field {
    pub(super) const SAMPLE_TYPE: u32 = 1;
    pub(super) const SAMPLE: u32 = 2;
    pub(super) const MAPPING: u32 = 3;
    pub(super) const LOCATION: u32 = 4;
    pub(super) const FUNCTION: u32 = 5;
    pub(super) const STRING: u32 = 6;
    pub(super) const DROP_FRAMES: u32 = 7;
    pub(super) const TIME: u32 = 9;
    pub(super) const DURATION: u32 = 10;
    pub(super) const PERIOD_TYPE: u32 = 11;
    pub(super) const PERIOD: u32 = 12;
    pub(super) const COMMENT: u32 = 13;
    pub(super) const DEFAULT_SAMPLE_TYPE: u32 = 14;
}

/// Most frames of a sample. The outermost ones are cut off.
pub const MOST_FRAMES: usize = 256;
/// Most values of a sample.
pub const MOST_VALUES: usize = 16;
/// Most labels of a sample.
pub const MOST_LABELS: usize = 16;
/// Most mappings. Locations beyond them have none.
const MOST_MAPPINGS: usize = 4096;

/// Memory of a writer, apart from its tables.
#[derive(Clone, Copy)]
struct State {
    message: Message<8192>,
    /// The numbers of a sample's locations.
    locations: [u64; MOST_FRAMES],
    strings: [RecentString; 256],
    string_count: u64,
    /// Mappings by rising addresses.
    mappings: [Range; MOST_MAPPINGS],
    mapping_count: usize,
}

// SAFETY: the fields are numbers, or structs of numbers.
unsafe impl Zeroed for State {}

/// A string that was written lately.
#[derive(Clone, Copy)]
struct RecentString {
    text: [u8; 55],
    len: u8,
    number: u64,
}

#[derive(Clone, Copy)]
struct Range {
    start: usize,
    limit: usize,
    number: u64,
}

/// A profile being written, by [`write`].
pub struct Writer<'a> {
    to: Gzip<'a>,
    state: Scratch<State>,
    locations: Locations,
}

impl<'a> Writer<'a> {
    fn new(sink: &'a mut dyn FnMut(&[u8]) -> bool) -> Option<Writer<'a>> {
        let to = Gzip::new(sink)?;
        Some(Writer { to, state: Scratch::new(1)?, locations: Locations::new()? })
    }

    /// Adds a sample. `frames` are return addresses, the innermost first; the first [`MOST_FRAMES`]
    /// are used. The values are those of [`Description::types`]. Returns false if the sink has
    /// refused something, so that further samples are useless.
    pub fn sample(&mut self, frames: &[usize], values: &[i64], labels: &[Label<'_>]) -> bool {
        let mut count = 0;
        for frame in frames.iter().take(MOST_FRAMES).filter(|frame| **frame != 0) {
            let number = self.location(frame - 1);
            if let Some(to) = self.state.only().locations.get_mut(count) {
                *to = number;
                count += 1;
            }
        }
        self.put_sample(count, values, labels)
    }

    /// Adds a sample as [`Writer::sample`] does, of something without a stack. In the place of the
    /// stack it has one function of this name, without an address.
    pub fn named_sample(&mut self, name: &str, values: &[i64]) -> bool {
        let name = self.string(name.as_bytes());
        // No other location has the number, and no other function.
        let number = self.locations.next();
        let mut function = Message::<48>::new();
        function.number(1, number);
        function.number(2, name);
        function.number(3, name);
        self.put(field::FUNCTION, function.as_bytes());
        let mut line = Message::<16>::new();
        line.number(1, number);
        let mut location = Message::<48>::new();
        location.number(1, number);
        location.bytes(4, line.as_bytes());
        self.put(field::LOCATION, location.as_bytes());
        self.state.only().locations[0] = number;
        self.put_sample(1, values, &[])
    }

    /// Writes a sample with the first `count` of the locations in the buffer.
    fn put_sample(&mut self, count: usize, values: &[i64], labels: &[Label<'_>]) -> bool {
        let state = self.state.only();
        let locations = state.locations.get(..count).unwrap_or_default();
        state.message.clear();
        state.message.packed(1, locations.iter().copied());
        state.message.packed(2, values.iter().take(MOST_VALUES).map(|value| *value as u64));
        for label in labels.iter().take(MOST_LABELS) {
            let mut part = Message::<64>::new();
            part.number(1, self.string(label.key.as_bytes()));
            match label.value {
                LabelValue::Text(text) => part.number(2, self.string(text.as_bytes())),
                LabelValue::Number(number, unit) => {
                    part.number(3, number as u64);
                    part.number(4, self.string(unit.as_bytes()));
                }
            }
            self.state.only().message.bytes(3, part.as_bytes());
        }
        self.put_message(field::SAMPLE);
        !self.to.has_failed()
    }

    fn describe(&mut self, description: &Description<'_>) {
        // The first string is the empty one.
        self.put(field::STRING, b"");
        let state = self.state.only();
        state.string_count = 1;
        for (kind, unit) in description.types.iter().take(MOST_VALUES) {
            self.value_type(field::SAMPLE_TYPE, kind, unit);
        }
        self.value_type(field::PERIOD_TYPE, "space", "bytes");
        self.put_number(field::PERIOD, description.period);
        self.put_number(field::TIME, description.time);
        self.put_number(field::DURATION, description.duration);
        let default = self.string(description.default_type.as_bytes());
        self.put_number(field::DEFAULT_SAMPLE_TYPE, default);
        let allocator = self.string(ALLOCATOR.as_bytes());
        self.put_number(field::DROP_FRAMES, allocator);
        for comment in description.comments {
            let comment = self.string(comment.as_bytes());
            self.put_number(field::COMMENT, comment);
        }
    }

    fn value_type(&mut self, field: u32, kind: &str, unit: &str) {
        let mut message = Message::<32>::new();
        message.number(1, self.string(kind.as_bytes()));
        message.number(2, self.string(unit.as_bytes()));
        self.put(field, message.as_bytes());
    }

    /// Writes all mappings, the program's own first.
    fn mappings(&mut self) {
        let Some(mut room) = Scratch::<mappings::Room>::new(1) else { return };
        let entry = os::auxiliary(libc::AT_ENTRY);
        let mut first = None;
        // They are read twice: there is no memory for their paths.
        mappings::each(room.only(), &mut |mapping| {
            if first.is_none() && (mapping.start..mapping.limit).contains(&entry) {
                first = Some(mapping.start);
                self.mapping(1, &mapping);
            }
        });
        let mut number = u64::from(first.is_some());
        mappings::each(room.only(), &mut |mapping| {
            let state = self.state.only();
            let last = state.mapping_count.checked_sub(1);
            let last = last.and_then(|last| state.mappings.get(last));
            // The list may change while the kernel hands it out.
            let is_next = last.is_none_or(|last| last.limit <= mapping.start);
            let Some(to) = state.mappings.get_mut(state.mapping_count).filter(|_| is_next) else {
                return;
            };
            let is_first = first == Some(mapping.start);
            number += u64::from(!is_first);
            let own = if is_first { 1 } else { number };
            *to = Range { start: mapping.start, limit: mapping.limit, number: own };
            state.mapping_count += 1;
            if !is_first {
                self.mapping(own, &mapping);
            }
        });
    }

    fn mapping(&mut self, number: u64, mapping: &Mapping<'_>) {
        let path = self.new_string(mapping.path);
        // In hexadecimal.
        let mut build_id = Line::<128>::new();
        for byte in mapping.build_id {
            let _ = write!(build_id, "{byte:02x}");
        }
        let build_id = self.new_string(build_id.as_bytes());
        let mut message = Message::<96>::new();
        message.number(1, number);
        message.number(2, mapping.start as u64);
        message.number(3, mapping.limit as u64);
        message.number(4, mapping.offset);
        message.number(5, path);
        message.number(6, build_id);
        self.put(field::MAPPING, message.as_bytes());
    }

    /// Returns the number of the location of an address. Writes the location if it is new.
    fn location(&mut self, address: usize) -> u64 {
        let (number, is_new) = self.locations.number(address);
        if is_new {
            let state = self.state.only();
            let mappings = state.mappings.get(..state.mapping_count).unwrap_or_default();
            let after = mappings.partition_point(|mapping| mapping.start <= address);
            let mapping = after.checked_sub(1).and_then(|index| mappings.get(index));
            let mapping = mapping.filter(|mapping| address < mapping.limit);
            let mut message = Message::<48>::new();
            message.number(1, number);
            message.number(2, mapping.map_or(0, |mapping| mapping.number));
            message.number(3, address as u64);
            self.put(field::LOCATION, message.as_bytes());
        }
        number
    }

    /// Returns the number of a string. Writes it, unless it was written lately.
    fn string(&mut self, text: &[u8]) -> u64 {
        let state = self.state.only();
        // FNV-1a, in 32 bits.
        let hash = text.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let slot = hash as usize % state.strings.len();
        let recent = state.strings.get(slot);
        if let Some(recent) = recent.filter(|it| it.number != 0 && it.text() == text) {
            return recent.number;
        }
        let number = self.new_string(text);
        if let Some(recent) = self.state.only().strings.get_mut(slot) {
            recent.set(text, number);
        }
        number
    }

    /// Writes a string. Returns its number. What is not UTF-8 is replaced, as protocol buffers
    /// demand it.
    fn new_string(&mut self, text: &[u8]) -> u64 {
        const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();
        if text.is_empty() {
            return 0;
        }
        let state = self.state.only();
        let number = state.string_count;
        state.string_count += 1;
        let parts = || {
            text.utf8_chunks().flat_map(|chunk| {
                let bad = if chunk.invalid().is_empty() { &[] } else { REPLACEMENT };
                [chunk.valid().as_bytes(), bad]
            })
        };
        let len = parts().map(<[u8]>::len).sum::<usize>();
        let mut start = Message::<16>::new();
        start.tag(field::STRING, Wire::Bytes);
        start.varint(len as u64);
        self.to.push(start.as_bytes());
        parts().for_each(|part| self.to.push(part));
        number
    }

    fn put(&mut self, field: u32, content: &[u8]) {
        let mut start = Message::<16>::new();
        start.tag(field, Wire::Bytes);
        start.varint(content.len() as u64);
        self.to.push(start.as_bytes());
        self.to.push(content);
    }

    fn put_number(&mut self, field: u32, number: u64) {
        let mut message = Message::<16>::new();
        message.number(field, number);
        self.to.push(message.as_bytes());
    }

    /// Writes the message in the buffer.
    fn put_message(&mut self, field: u32) {
        let state = self.state.only();
        let mut start = Message::<16>::new();
        start.tag(field, Wire::Bytes);
        start.varint(state.message.len as u64);
        self.to.push(start.as_bytes());
        self.to.push(state.message.as_bytes());
    }
}

impl RecentString {
    fn text(&self) -> &[u8] {
        self.text.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Replaces this string by another, unless that is long.
    fn set(&mut self, text: &[u8], number: u64) {
        if let Some(to) = self.text.get_mut(..text.len()) {
            to.copy_from_slice(text);
            self.len = text.len() as u8;
            self.number = number;
        }
    }
}

/// How a field is encoded.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Bytes = 2,
}

/// A message of at most `ROOM` bytes. Longer ones would be cut off; the limits above leave room.
#[derive(Clone, Copy)]
struct Message<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Message<ROOM> {
    const fn new() -> Message<ROOM> {
        Message { bytes: [0; ROOM], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    fn byte(&mut self, byte: u8) {
        debug_assert!(self.len < ROOM, "a message of more than {ROOM} bytes");
        if let Some(to) = self.bytes.get_mut(self.len) {
            *to = byte;
            self.len += 1;
        }
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    fn tag(&mut self, field: u32, wire: Wire) {
        self.varint(u64::from(field << 3 | wire as u32));
    }

    /// Adds a field, unless it has the value that an absent one has.
    fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.tag(field, Wire::Varint);
            self.varint(number);
        }
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, Wire::Bytes);
        self.varint(bytes.len() as u64);
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    fn packed(&mut self, field: u32, numbers: impl Iterator<Item = u64> + Clone) {
        let len = numbers.clone().map(varint_len).sum();
        if len > 0 {
            self.tag(field, Wire::Bytes);
            self.varint(len);
            numbers.for_each(|number| self.varint(number));
        }
    }
}

/// Returns the bytes of a number as a varint.
fn varint_len(number: u64) -> u64 {
    const BITS: u32 = 7;
    u64::from((u64::BITS - (number | 1).leading_zeros()).div_ceil(BITS))
}

/// Addresses with the numbers of their locations, from 1 on: a hash table with linear probing.
struct Locations {
    entries: Scratch<Entry>,
    /// Entries in use.
    count: usize,
    /// The highest number.
    last: u64,
}

/// Empty if the number is 0.
#[derive(Clone, Copy)]
struct Entry {
    address: usize,
    number: u64,
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for Entry {}

impl Locations {
    /// Entries of the first table. All counts are powers of two.
    const FEWEST: usize = 4096;

    fn new() -> Option<Locations> {
        Some(Locations { entries: Scratch::new(Locations::FEWEST)?, count: 0, last: 0 })
    }

    /// Returns the number of the location of an address, and whether it is a new one.
    fn number(&mut self, address: usize) -> (u64, bool) {
        if self.count >= self.entries.len() / 4 * 3 {
            self.grow();
        }
        // A table that cannot grow keeps some entries empty, where a search ends. Addresses that
        // it does not take get a new location each time.
        let is_full = self.count >= self.entries.len() / 8 * 7;
        let Some(entry) = find(&mut self.entries, address) else { return (0, false) };
        if entry.number != 0 {
            return (entry.number, false);
        }
        self.last += 1;
        if !is_full {
            *entry = Entry { address, number: self.last };
            self.count += 1;
        }
        (self.last, true)
    }

    /// Returns the number of a location without an address.
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Doubles the table, if there is memory.
    fn grow(&mut self) {
        let Some(mut entries) = Scratch::new(self.entries.len() * 2) else { return };
        for old in self.entries.iter().filter(|entry| entry.number != 0) {
            if let Some(entry) = find(&mut entries, old.address) {
                *entry = *old;
            }
        }
        self.entries = entries;
    }
}

/// Returns the entry of an address, or the empty one where it belongs.
fn find(entries: &mut [Entry], address: usize) -> Option<&mut Entry> {
    let mask = entries.len() - 1;
    // The upper half of the product depends on all bits of the address.
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let mut at = hash as usize & mask;
    while entries.get(at).is_some_and(|entry| entry.number != 0 && entry.address != address) {
        at = (at + 1) & mask;
    }
    entries.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::string::{String, ToString as _};
    use std::vec::Vec;
    use std::{format, vec};

    /// Content of a field.
    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Number(u64),
        Bytes(Vec<u8>),
    }

    impl Field {
        fn number(&self) -> u64 {
            match self {
                Field::Number(number) => *number,
                Field::Bytes(_) => panic!("not a number: {self:?}"),
            }
        }

        fn bytes(&self) -> &[u8] {
            match self {
                Field::Bytes(bytes) => bytes,
                Field::Number(_) => panic!("not bytes: {self:?}"),
            }
        }

        fn numbers(&self) -> Vec<u64> {
            let mut rest = self.bytes();
            let mut numbers = Vec::new();
            while !rest.is_empty() {
                numbers.push(varint(&mut rest));
            }
            numbers
        }
    }

    fn varint(rest: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, after) = rest.split_first().expect("a whole number");
            *rest = after;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return number;
            }
        }
        panic!("a number of more than ten bytes");
    }

    /// A message, decoded.
    struct Decoded(Vec<(u64, Field)>);

    impl Decoded {
        fn new(mut rest: &[u8]) -> Decoded {
            let mut fields = Vec::new();
            while !rest.is_empty() {
                let tag = varint(&mut rest);
                let content = match tag & 7 {
                    0 => Field::Number(varint(&mut rest)),
                    2 => {
                        let len = varint(&mut rest) as usize;
                        let (bytes, after) = rest.split_at(len);
                        rest = after;
                        Field::Bytes(bytes.to_vec())
                    }
                    other => panic!("wire type {other}"),
                };
                fields.push((tag >> 3, content));
            }
            Decoded(fields)
        }

        fn all(&self, field: u32) -> impl Iterator<Item = &Field> {
            self.0.iter().filter(move |(number, _)| *number == u64::from(field)).map(|(_, it)| it)
        }

        fn messages(&self, field: u32) -> Vec<Decoded> {
            self.all(field).map(|field| Decoded::new(field.bytes())).collect()
        }

        fn number(&self, field: u32) -> u64 {
            self.all(field).last().map_or(0, Field::number)
        }

        fn strings(&self) -> Vec<String> {
            let text = |field: &Field| String::from_utf8(field.bytes().to_vec()).unwrap();
            self.all(field::STRING).map(text).collect()
        }
    }

    const DESCRIPTION: Description<'_> = Description {
        types: &HEAP_TYPES,
        default_type: "inuse_space",
        period: 524_288,
        time: 1_700_000_000_123_456_789,
        duration: 5_000_000_000,
        comments: &["hayloft", "mean=512K"],
    };

    fn made(samples: impl FnOnce(&mut Writer<'_>)) -> Decoded {
        let mut file = Vec::new();
        let mut sink = |bytes: &[u8]| {
            file.extend_from_slice(bytes);
            true
        };
        assert!(write(&DESCRIPTION, &mut sink, samples));
        let mut message = Vec::new();
        flate2::read::GzDecoder::new(file.as_slice()).read_to_end(&mut message).unwrap();
        Decoded::new(&message)
    }

    #[test]
    fn description_is_complete() {
        let profile = made(|_| {});
        let strings = profile.strings();
        let string = |number: u64| strings[number as usize].as_str();
        let types = profile.messages(field::SAMPLE_TYPE);
        let pair =
            |it: &Decoded| (string(it.number(1)).to_string(), string(it.number(2)).to_string());
        let expected = HEAP_TYPES.map(|(kind, unit)| (kind.to_string(), unit.to_string()));
        assert_eq!(types.iter().map(pair).collect::<Vec<_>>(), expected);
        let period = &profile.messages(field::PERIOD_TYPE)[0];
        assert_eq!(pair(period), ("space".to_string(), "bytes".to_string()));
        assert_eq!(profile.number(field::PERIOD), DESCRIPTION.period);
        assert_eq!(profile.number(field::TIME), DESCRIPTION.time);
        assert_eq!(profile.number(field::DURATION), DESCRIPTION.duration);
        assert_eq!(string(profile.number(field::DEFAULT_SAMPLE_TYPE)), "inuse_space");
        assert_eq!(string(profile.number(field::DROP_FRAMES)), ALLOCATOR);
        let comments = profile.all(field::COMMENT).map(|field| string(field.number()));
        assert_eq!(comments.collect::<Vec<_>>(), DESCRIPTION.comments);
        assert_eq!(strings[0], "");
    }

    #[test]
    fn samples_refer_to_locations_once_each() {
        let profile = made(|writer| {
            assert!(writer.sample(&[0x1001, 0x2001, 0x3001], &[1, 2, 3, -4], &[]));
            assert!(writer.sample(&[0x2001, 0, 0x3001], &[0, 0, 0, 0], &[]));
            assert!(writer.sample(&[], &[5], &[]));
        });
        let locations = profile.messages(field::LOCATION);
        let addresses: Vec<_> = locations.iter().map(|it| (it.number(1), it.number(3))).collect();
        assert_eq!(addresses, [(1, 0x1000), (2, 0x2000), (3, 0x3000)]);
        let samples = profile.messages(field::SAMPLE);
        let list = |sample: &Decoded, field| sample.all(field).next().map(Field::numbers);
        assert_eq!(list(&samples[0], 1), Some(vec![1, 2, 3]));
        assert_eq!(list(&samples[0], 2), Some(vec![1, 2, 3, -4_i64 as u64]));
        assert_eq!(list(&samples[1], 1), Some(vec![2, 3]));
        assert_eq!(list(&samples[1], 2), Some(vec![0; 4]));
        assert_eq!((list(&samples[2], 1), list(&samples[2], 2)), (None, Some(vec![5])));
    }

    #[test]
    fn named_samples_have_a_function_each() {
        let profile = made(|writer| {
            assert!(writer.named_sample("object cache a", &[1, 2, 3, 4]));
            assert!(writer.sample(&[0x1001], &[5, 6, 7, 8], &[]));
            assert!(writer.named_sample("object cache b", &[9, 10, 11, 12]));
        });
        let strings = profile.strings();
        let name = |sample: &Decoded| {
            let number = sample.all(1).next().unwrap().numbers()[0];
            let numbered = |all: Vec<Decoded>, number| {
                all.into_iter().find(|one| one.number(1) == number).unwrap()
            };
            let location = numbered(profile.messages(field::LOCATION), number);
            let line = location.messages(4).into_iter().next()?;
            assert_eq!((location.number(2), location.number(3)), (0, 0));
            let function = numbered(profile.messages(field::FUNCTION), line.number(1));
            assert_eq!(function.number(2), function.number(3));
            Some(strings[function.number(2) as usize].clone())
        };
        let names: Vec<_> = profile.messages(field::SAMPLE).iter().map(name).collect();
        let named = |name: &str| Some(format!("object cache {name}"));
        assert_eq!(names, [named("a"), None, named("b")]);
    }

    #[test]
    fn labels_keep_their_texts_and_units() {
        let long = "long ".repeat(100);
        let profile = made(|writer| {
            for text in ["index", &long, "index", &long, "größe"] {
                let labels = [
                    Label { key: "tag", value: LabelValue::Text(text) },
                    Label { key: "bytes", value: LabelValue::Number(64, "bytes") },
                    Label { key: "age", value: LabelValue::Number(-1, "") },
                ];
                writer.sample(&[1], &[1], &labels);
            }
        });
        let strings = profile.strings();
        let string = |number: u64| strings[number as usize].as_str();
        let samples = profile.messages(field::SAMPLE);
        for (sample, text) in samples.iter().zip(["index", &long, "index", &long, "größe"]) {
            let [tag, size, age] = &sample.messages(3)[..] else { panic!("not three labels") };
            assert_eq!((string(tag.number(1)), string(tag.number(2))), ("tag", text));
            assert_eq!((string(size.number(1)), size.number(3)), ("bytes", 64));
            assert_eq!((string(size.number(4)), size.number(2)), ("bytes", 0));
            assert_eq!((age.number(3) as i64, age.number(4)), (-1, 0));
        }
        // Short strings are written once.
        for short in ["index", "tag", "bytes", "age"] {
            assert_eq!(strings.iter().filter(|text| *text == short).count(), 1, "{short}");
        }
    }

    #[test]
    fn many_addresses_and_strings_stay_apart() {
        let count = if cfg!(miri) { 200 } else { 20_000_usize };
        let profile = made(|writer| {
            for number in 0..count {
                let text = format!("tag {number}");
                let label = Label { key: "tag", value: LabelValue::Text(&text) };
                // Page-aligned addresses, the worst case of a bad hash.
                writer.sample(&[(number + 1) << 12, (number % 7 + 1) << 12], &[1], &[label]);
            }
        });
        let strings = profile.strings();
        let address = |it: Decoded| (it.number(1), it.number(3) as usize);
        let locations = profile.messages(field::LOCATION).into_iter().map(address);
        let addresses: std::collections::BTreeMap<_, _> = locations.collect();
        assert_eq!(addresses.len(), count);
        for (number, sample) in profile.messages(field::SAMPLE).iter().enumerate() {
            let frames = sample.all(1).next().unwrap().numbers();
            assert_eq!(addresses[&frames[0]], ((number + 1) << 12) - 1);
            assert_eq!(addresses[&frames[1]], ((number % 7 + 1) << 12) - 1);
            let tag = sample.messages(3)[0].number(2);
            assert_eq!(strings[tag as usize], format!("tag {number}"));
        }
    }

    #[test]
    fn largest_sample_fits() {
        let profile = made(|writer| {
            let frames: Vec<usize> = (1..=1000).map(|frame| frame << 40).collect();
            let label = Label { key: "tag", value: LabelValue::Number(i64::MIN, "unit") };
            writer.sample(&frames, &[i64::MIN; 100], &[label; 100]);
        });
        let sample = &profile.messages(field::SAMPLE)[0];
        assert_eq!(sample.all(1).next().unwrap().numbers().len(), MOST_FRAMES);
        assert_eq!(sample.all(2).next().unwrap().numbers(), [i64::MIN as u64; MOST_VALUES]);
        let labels = sample.messages(3);
        assert!(labels.len() == MOST_LABELS);
        assert!(labels.iter().all(|label| label.number(3) as i64 == i64::MIN));
    }

    #[test]
    #[cfg_attr(miri, ignore = "the stand-in has no mappings")]
    fn own_addresses_are_in_the_first_mapping() {
        let own = (own_addresses_are_in_the_first_mapping as fn()) as usize;
        let profile = made(|writer| {
            writer.sample(
                &[own + 1, libc::getpid as *const () as usize + 1, 2],
                &[1, 2, 3, 4],
                &[],
            );
        });
        let strings = profile.strings();
        let mappings = profile.messages(field::MAPPING);
        let numbers: Vec<_> = mappings.iter().map(|mapping| mapping.number(1)).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        let locations = profile.messages(field::LOCATION);
        let of = |location: &Decoded| location.number(2);
        assert_eq!(locations.iter().map(of).next(), Some(1));
        assert_eq!(of(&locations[2]), 0);
        for location in &locations[..2] {
            let mapping = &mappings[of(location) as usize - 1];
            assert!((mapping.number(2)..mapping.number(3)).contains(&location.number(3)));
        }
        let path = &strings[mappings[0].number(5) as usize];
        assert_eq!(path.as_str(), std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap());
    }

    #[test]
    fn text_that_is_not_utf8_is_replaced() {
        let mut file = Vec::new();
        let mut sink = |bytes: &[u8]| {
            file.extend_from_slice(bytes);
            true
        };
        let mut writer = Writer::new(&mut sink).unwrap();
        writer.describe(&DESCRIPTION);
        writer.string(b"/tmp/\xff\xfeb");
        assert!(writer.to.finish());
        let mut message = Vec::new();
        flate2::read::GzDecoder::new(file.as_slice()).read_to_end(&mut message).unwrap();
        let strings = Decoded::new(&message).strings();
        assert_eq!(strings.last().unwrap(), "/tmp/\u{fffd}\u{fffd}b");
    }

    #[test]
    fn refusing_sink_ends_the_work() {
        let mut left = if cfg!(miri) { 40 } else { 1_000_000_usize };
        let done = write(&DESCRIPTION, &mut |_| false, |writer| {
            while left > 0 && writer.sample(&[left << 20, left << 10], &[left as i64], &[]) {
                left -= 1;
            }
        });
        assert!(!done && (left > 0 || cfg!(miri)));
    }
}
