//! Names of functions that programs and libraries export, for reports that people read.
//!
//! They come from the tables of dynamic symbols, which are in memory for the loader. Other
//! functions have names only in files. The kernel reads, as another thread may unload a library.

use super::mappings::Image;
use super::scratch::{Scratch, Zeroed};
use crate::os::{self, number_in as number};

/// The names that were looked up before.
pub(super) struct Names {
    known: Scratch<Known>,
    text: Scratch<u8>,
    used: usize,
    room: Scratch<Room>,
}

/// The answer for an address.
#[derive(Clone, Copy)]
struct Known {
    address: usize,
    /// Where its name begins, and how long it is. It is empty if there is none.
    start: u32,
    len: u32,
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for Known {}

/// Memory for what is being read.
#[derive(Clone, Copy)]
struct Room([u8; Symbol::BYTES * 2048]);

// SAFETY: the field holds numbers.
unsafe impl Zeroed for Room {}

/// A symbol.
struct Symbol {
    name: u64,
    kind: u64,
    section: u64,
    address: u64,
    len: u64,
}

impl Symbol {
    /// Bytes of `Elf64_Sym`.
    const BYTES: usize = 24;

    fn parse(bytes: &[u8]) -> Symbol {
        let field = |at, len| number(bytes, at, len);
        Symbol {
            name: field(0, 4),
            kind: field(4, 1) & 0xf,
            section: field(6, 2),
            address: field(8, 8),
            len: field(16, 8),
        }
    }

    /// Returns whether this is a function that lies at an address.
    fn is_at(&self, address: u64) -> bool {
        /// Functions, and those that the loader chooses.
        const KINDS: [u64; 2] = [2, 10];
        KINDS.contains(&self.kind)
            && self.section != 0
            && (self.address..self.address.saturating_add(self.len)).contains(&address)
    }
}

/// Where the loader finds the symbols of a file.
struct Tables {
    /// What was added to the addresses of the file.
    moved: usize,
    symbols: usize,
    count: usize,
    names: usize,
}

impl Names {
    /// Most bytes of all names.
    const TEXT: usize = 1 << 20;
    /// Most bytes of a name; the rest is left out.
    const LONGEST: usize = 256;

    pub(super) fn new() -> Option<Names> {
        Some(Names {
            known: Scratch::new(1 << 13)?,
            text: Scratch::new(Names::TEXT)?,
            used: 0,
            room: Scratch::new(1)?,
        })
    }

    /// Returns the name of the exported function at an address, in a file that is mapped as
    /// `image`. It is empty if there is none.
    pub(super) fn name(&mut self, image: Image, address: usize) -> &[u8] {
        let slot = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
        let known = self.known.get(slot as usize).copied();
        let known = known.filter(|known| known.address == address).unwrap_or_else(|| {
            let start = self.used;
            self.look_up(image, address);
            let len = (self.used - start) as u32;
            let known = Known { address, start: start as u32, len };
            if let Some(to) = self.known.get_mut(slot as usize) {
                *to = known;
            }
            known
        });
        let (start, len) = (known.start as usize, known.len as usize);
        self.text.get(start..start + len).unwrap_or_default()
    }

    /// Adds the name at an address to the text, if there is one.
    fn look_up(&mut self, image: Image, address: usize) -> Option<()> {
        let room = &mut self.room.only().0;
        let tables = Tables::of(image, room)?;
        let linked = address.wrapping_sub(tables.moved) as u64;
        let most = room.len() / Symbol::BYTES;
        for first in (0..tables.count).step_by(most) {
            let count = most.min(tables.count - first);
            let part = room.get_mut(..count * Symbol::BYTES)?;
            if !os::copy_memory(tables.symbols + first * Symbol::BYTES, part) {
                return None;
            }
            let mut symbols = part.chunks_exact(Symbol::BYTES).map(Symbol::parse);
            if let Some(symbol) = symbols.find(|symbol| symbol.is_at(linked)) {
                let name = tables.names.checked_add(symbol.name as usize)?;
                let to = self.text.get_mut(self.used..self.used + Names::LONGEST)?;
                self.used += copy_text(name, to);
                return Some(());
            }
        }
        None
    }
}

/// Copies a text that ends in a null byte. Returns its bytes, as far as there is room.
fn copy_text(from: usize, to: &mut [u8]) -> usize {
    const PART: usize = 32;
    for (index, part) in to.chunks_mut(PART).enumerate() {
        // The end of a table may be less than that from the end of a mapping.
        let from = from + index * PART;
        if !os::copy_memory(from, part) {
            let mut bytes = part.iter_mut().enumerate();
            let _ = bytes.all(|(at, to)| os::copy_memory(from + at, core::slice::from_mut(to)));
        }
        if let Some(end) = part.iter().position(|byte| *byte == 0) {
            return index * PART + end;
        }
    }
    to.len()
}

impl Tables {
    /// Finds the tables of a file.
    fn of(image: Image, room: &mut [u8]) -> Option<Tables> {
        // Kinds of entries, of `Elf64_Dyn`, and the bytes of one.
        const END: u64 = 0;
        const HASH: u64 = 4;
        const NAMES: u64 = 5;
        const SYMBOLS: u64 = 6;
        const GNU_HASH: u64 = 0x6fff_fef5;
        const ENTRY: usize = 16;
        let moved = image.moved()?;
        let dynamic = image.segments().find(|segment| segment.kind == libc::PT_DYNAMIC)?;
        let len = usize::try_from(dynamic.len).ok()?.min(room.len());
        let entries = room.get_mut(..len - len % ENTRY)?;
        if !os::copy_memory(moved.wrapping_add(dynamic.address as usize), entries) {
            return None;
        }
        let value = |kind| {
            let mut entries = entries.chunks_exact(ENTRY);
            let entry = entries.find(|entry| [END, kind].contains(&number(entry, 0, 8)))?;
            let value = number(entry, 8, 8) as usize;
            // Some loaders replace addresses of the file by those in memory.
            let address = if value < moved { value.wrapping_add(moved) } else { value };
            (number(entry, 0, 8) == kind).then_some(address)
        };
        let (symbols, names) = (value(SYMBOLS)?, value(NAMES)?);
        let (hash, gnu_hash) = (value(HASH), value(GNU_HASH));
        let count = match hash {
            Some(hash) => word(hash.checked_add(4)?)?,
            None => count_of_gnu_hash(gnu_hash?, room)?,
        };
        /// More would be senseless.
        const MOST: u32 = 1 << 24;
        Some(Tables { moved, symbols, count: count.min(MOST) as usize, names })
    }
}

fn word(address: usize) -> Option<u32> {
    let mut bytes = [0; 4];
    os::copy_memory(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
}

/// Returns the number of symbols of a file, from its table of hashes in the format of GNU: one more
/// than the number of the last symbol in the last of the chains.
fn count_of_gnu_hash(table: usize, room: &mut [u8]) -> Option<u32> {
    const WORD: usize = 4;
    let header = |index: usize| word(table.checked_add(index * WORD)?);
    let (buckets, first, bloom) = (header(0)? as usize, header(1)?, header(2)? as usize);
    let start = table.checked_add(16)?.checked_add(bloom.checked_mul(8)?)?;
    let end = start.checked_add(buckets.checked_mul(WORD)?)?;
    let mut last = 0;
    for at in (start..end).step_by(room.len() - room.len() % WORD) {
        let part = room.get_mut(..room.len().min(end - at))?;
        if !os::copy_memory(at, part) {
            return None;
        }
        let heads = part.chunks_exact(WORD).map(|head| number(head, 0, WORD) as u32);
        last = heads.max().unwrap_or(0).max(last);
    }
    if last < first {
        return Some(first);
    }
    // The last hash of a chain is odd.
    (last..=u32::MAX).find_map(|index| {
        let hash = word(end.checked_add((index - first) as usize * WORD)?);
        // Unreadable memory ends the search as well.
        hash.is_none_or(|hash| hash & 1 == 1).then_some(index + 1)
    })
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::mappings;
    use super::*;

    fn name_of(function: usize) -> std::string::String {
        let mut image = None;
        let mut room = Scratch::new(1).unwrap();
        mappings::each(room.only(), &mut |mapping| {
            if (mapping.start..mapping.limit).contains(&function) {
                image = mapping.image;
            }
        });
        let mut names = Names::new().unwrap();
        let first = names.name(image.unwrap(), function).to_vec();
        assert_eq!(names.name(image.unwrap(), function), first);
        std::string::String::from_utf8(first).unwrap()
    }

    #[test]
    #[cfg_attr(not(all(target_env = "gnu", target_arch = "x86_64")), ignore = "QEMU hides memory")]
    fn exported_functions_have_names() {
        let (open, end) =
            (libc::mkfifo as *const () as usize, libc::sigaction as *const () as usize);
        assert_eq!(name_of(open), "mkfifo");
        assert_eq!(name_of(open + 1), "mkfifo");
        assert!(name_of(end).contains("sigaction"));
        let own = (exported_functions_have_names as fn()) as usize;
        assert_eq!(name_of(own), "");
    }
}
