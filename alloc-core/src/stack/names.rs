//! Names of functions, for messages that show a stack.
//!
//! The kernel lists the mapped files, and the symbol table of a file names its functions, those of
//! a stripped one only as far as other files call them. All is read from the files, without a heap
//! and in any context. One thread at a time can do so, as the buffers are too large for small
//! stacks; others get addresses.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::demangle::Demangled;
use crate::os::{self, File, MapsLine, number_in as number};

/// Calls `line` with a line of text for each frame, the innermost first. `frames` are as
/// [`capture`](super::capture) returns them. The allocator's own frames at the start are left out.
pub(crate) fn describe(frames: &[usize], line: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let Some(mut buffers) = Buffers::take() else {
        for (number, address) in frames.iter().enumerate() {
            line(format_args!("    #{number} {address:#x}"));
        }
        return;
    };
    let inside = frames.iter().map(|address| address.wrapping_sub(1));
    // Generic functions of the standard library may lie between those of the allocator.
    let own = inside.clone().take(MOST_OWN).rposition(|address| is_own(buffers.find(address).name));
    for (number, address) in inside.skip(own.map_or(0, |own| own + 1)).enumerate() {
        let Described { file, offset, name, distance } = buffers.find(address);
        let file = str::from_utf8(file).unwrap_or("?");
        if name.is_empty() {
            line(format_args!("    #{number} {file}+{offset:#x}"));
        } else {
            let name = Demangled(name);
            line(format_args!("    #{number} {name}+{distance:#x} ({file}+{offset:#x})"));
        }
    }
}

/// Frames among which the allocator's own are.
const MOST_OWN: usize = 16;

/// Returns whether a symbol is of a function of the allocator, or of one through which programs
/// call it.
fn is_own(name: &[u8]) -> bool {
    /// Names that compilers and C libraries give to allocating and freeing functions.
    const DOORS: [&[u8]; 14] = [
        b"malloc",
        b"calloc",
        b"realloc",
        b"reallocarray",
        b"free",
        b"cfree",
        b"free_sized",
        b"free_aligned_sized",
        b"memalign",
        b"aligned_alloc",
        b"posix_memalign",
        b"valloc",
        b"pvalloc",
        b"malloc_usable_size",
    ];
    /// Parts of names of the allocator, of Rust's functions, and of C++'s `new` and `delete`.
    const PARTS: [&[u8]; 7] = [
        b"hayloft_core",
        b"7hayloft",
        b"__rust_alloc",
        b"__rust_dealloc",
        b"__rust_realloc",
        b"__rdl_",
        b"__rg_",
    ];
    let has = |part: &&[u8]| name.windows(part.len()).any(|found| found == *part);
    DOORS.contains(&name)
        || PARTS.iter().any(has)
        || [&b"_Zn"[..], b"_Zd", b"hayloft_"].iter().any(|start| name.starts_with(start))
}

/// A function and its file.
struct Described<'a> {
    /// Path of the file, or a name in brackets; `?` where nothing is known.
    file: &'a [u8],
    /// Address in the file, or else the offset.
    offset: u64,
    /// Name of the symbol; empty if there is none.
    name: &'a [u8],
    /// Bytes from the start of the function.
    distance: u64,
}

/// Memory for reading files.
struct Buffers {
    line: [u8; Buffers::LINE],
    path: [u8; Buffers::PATH],
    name: [u8; Buffers::NAME],
    symbols: [u8; Buffers::SYMBOLS],
}

impl Buffers {
    const LINE: usize = 4096;
    const PATH: usize = 512;
    const NAME: usize = 384;
    const SYMBOLS: usize = 64 * SYMBOL;

    /// Takes the buffers, unless they are in use.
    fn take() -> Option<Taken> {
        // Acquire: pairs with the Release of `drop`.
        let is_taken = TAKEN.swap(true, Ordering::Acquire);
        (!is_taken).then_some(Taken(()))
    }
}

struct Shared(UnsafeCell<Buffers>);

// SAFETY: whoever set `TAKEN` uses the buffers alone.
unsafe impl Sync for Shared {}

static BUFFERS: Shared = Shared(UnsafeCell::new(Buffers {
    line: [0; Buffers::LINE],
    path: [0; Buffers::PATH],
    name: [0; Buffers::NAME],
    symbols: [0; Buffers::SYMBOLS],
}));
static TAKEN: AtomicBool = AtomicBool::new(false);

struct Taken(());

impl Drop for Taken {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of `take`.
        TAKEN.store(false, Ordering::Release);
    }
}

impl Taken {
    /// Returns the function at `address`, as far as it is known.
    fn find(&mut self, address: usize) -> Described<'_> {
        // SAFETY: this thread took the buffers, and borrows them from `self`.
        let Buffers { line, path, name, symbols } = unsafe { &mut *BUFFERS.0.get() };
        let mut found: Option<(usize, u64, Option<u64>)> = None;
        let _ = os::lines(format_args!("/proc/self/maps"), line, &mut |line| {
            let Some(line) = MapsLine::parse(line) else { return };
            if (line.start..line.limit).contains(&address) {
                let len = line.path.len().min(path.len());
                let parts = (path.get_mut(..len), line.path.get(..len));
                if let (Some(to), Some(from)) = parts {
                    to.copy_from_slice(from);
                }
                let inode = str::from_utf8(line.file.1).ok().and_then(|inode| inode.parse().ok());
                found = Some((len, (address - line.start) as u64 + line.offset, inode));
            }
        });
        let Some((len, offset, inode)) = found else {
            return Described { file: b"?", offset: address as u64, name: b"", distance: 0 };
        };
        let file = path.get(..len).filter(|path| !path.is_empty()).unwrap_or(b"//anon");
        let mut described = Described { file, offset, name: b"", distance: 0 };
        if let Some(elf) = str::from_utf8(file).ok().and_then(Elf::open)
            // Another file may have replaced the one that is mapped.
            && elf.file.inode() == inode
            && let Some(address) = elf.address(offset)
        {
            described.offset = address;
            if let Some((start, at)) = elf.symbol(address, symbols) {
                described.name = elf.text(at, name);
                described.distance = address - start;
            }
        }
        described
    }
}

/// Bytes of a symbol, a section header and a program header.
const SYMBOL: usize = 24;
const SECTION: usize = 64;
const SEGMENT: usize = 56;

/// An ELF file of 64 bits, of the byte order of this machine.
struct Elf {
    file: File,
    header: [u8; 64],
}

impl Elf {
    fn open(path: &str) -> Option<Elf> {
        let file = File::to_read(format_args!("{path}"))?;
        let mut header = [0; 64];
        let is_elf = file.read_at(&mut header, 0) && header.starts_with(b"\x7fELF\x02\x01");
        is_elf.then_some(Elf { file, header })
    }

    /// Reads the entries of a table that the header describes: the place of its offset, of the size
    /// of an entry, and of their number.
    fn table<const LEN: usize>(
        &self,
        [offset, size, count]: [usize; 3],
    ) -> impl Iterator<Item = [u8; LEN]> {
        let offset = number(&self.header, offset, 8);
        let size = number(&self.header, size, 2);
        (0..number(&self.header, count, 2)).map_while(move |index| {
            let mut entry = [0; LEN];
            let at = offset.checked_add(index * size)?;
            self.file.read_at(&mut entry, at as usize).then_some(entry)
        })
    }

    fn sections(&self) -> impl Iterator<Item = [u8; SECTION]> {
        self.table([40, 58, 60])
    }

    /// Returns the address that the file gives to a byte of it.
    fn address(&self, offset: u64) -> Option<u64> {
        self.table::<SEGMENT>([32, 54, 56]).find_map(|segment| {
            let is_loaded = number(&segment, 0, 4) == u64::from(libc::PT_LOAD);
            let distance = offset.checked_sub(number(&segment, 8, 8))?;
            let holds = is_loaded && distance < number(&segment, 32, 8);
            holds.then(|| number(&segment, 16, 8).wrapping_add(distance))
        })
    }

    /// Returns the address of the function that `address` lies in, and where in the file its name
    /// is.
    fn symbol(&self, address: u64, room: &mut [u8]) -> Option<(u64, u64)> {
        /// Kinds of sections: all symbols, and those for the loader.
        const ALL: u64 = 2;
        const FOR_LOADER: u64 = 11;
        let table = |kind| self.sections().find(|section| number(section, 4, 4) == kind);
        let table = table(ALL).or_else(|| table(FOR_LOADER))?;
        let names = self.sections().nth(number(&table, 40, 4) as usize)?;
        let (offset, len) = (number(&table, 24, 8), number(&table, 32, 8));
        let mut best = None;
        let mut done = 0;
        while done < len {
            let part = (len - done).min(room.len() as u64);
            let room = room.get_mut(..part as usize)?;
            if !self.file.read_at(room, offset.checked_add(done)? as usize) {
                break;
            }
            done += part;
            for symbol in room.as_chunks::<SYMBOL>().0 {
                let (start, size) = (number(symbol, 8, 8), number(symbol, 16, 8));
                // Functions, and those that are chosen at run time.
                let is_function = matches!(number(symbol, 4, 1) & 15, 2 | 10);
                let is_defined = number(symbol, 6, 2) != 0;
                let holds = start <= address && (size == 0 || address - start < size);
                if is_function && is_defined && holds && best.is_none_or(|(best, _)| best < start) {
                    best = Some((start, number(symbol, 0, 4)));
                }
            }
        }
        best.map(|(start, name)| (start, number(&names, 24, 8).wrapping_add(name)))
    }

    /// Returns the text at a place of the file, cut to the length of `room`.
    fn text<'a>(&self, at: u64, room: &'a mut [u8]) -> &'a [u8] {
        let mut len = 0;
        // The file may end soon after the text.
        while let Some(byte) = room.get_mut(len..=len)
            && self.file.read_at(byte, (at as usize).wrapping_add(len))
            && byte != [0]
        {
            len += 1;
        }
        room.get(..len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    #[inline(never)]
    fn captured_in_a_function_of_this_name() -> Vec<usize> {
        let mut frames = [0; 40];
        let count = super::super::capture(&mut frames);
        frames[..count].to_vec()
    }

    #[test]
    fn functions_have_names() {
        let mut frames = captured_in_a_function_of_this_name();
        frames.push(0x10);
        let mut lines: Vec<String> = Vec::new();
        describe(&frames, &mut |line| lines.push(format!("{line}")));
        let text = lines.join("\n");
        // The functions of this crate are the allocator's own; those of the test runner follow.
        assert!(lines.iter().any(|line| line.contains(" (/")), "{text}");
        assert!(!text.contains("captured_in_a_function"), "{text}");
        assert!(text.ends_with("?+0xf"), "{text}");
        assert!(lines[0].trim_start().starts_with("#0 "), "{text}");
        let address = frames[0] - 1;
        let mut taken = Buffers::take().unwrap();
        let Described { name, file, .. } = taken.find(address);
        let name = format!("{}", Demangled(name));
        assert!(name.ends_with("captured_in_a_function_of_this_name"), "{name}");
        let program = std::env::current_exe().unwrap();
        assert_eq!(str::from_utf8(file).unwrap(), program.to_str().unwrap());
        assert!(Buffers::take().is_none());
    }
}
