//! Executable mappings of this process, and the build IDs of their files.
//!
//! They come from `/proc/self/maps`. Where that is hidden, the auxiliary vector still leads to the
//! program and to the kernel's own image (vDSO).
//!
//! A build ID is a note (`NT_GNU_BUILD_ID`) in an ELF file. It is read from memory, where the file
//! is mapped from its first byte on: the file itself may have been replaced since. Another thread
//! may unload a library at any moment, so the kernel does the reading.

use core::ffi::CStr;
use core::ops::Range;
use core::ptr;

use super::scratch::Zeroed;
use crate::os::{self, MapsLine, number_in as number};

/// A mapping.
pub(super) struct Mapping<'a> {
    /// Address of its first byte, and of the first one after it.
    pub(super) start: usize,
    pub(super) limit: usize,
    /// Offset in the file of its first byte.
    pub(super) offset: u64,
    /// The file's path, which need not be text; `//anon` if there is no file, or a name in
    /// brackets, such as `[vdso]`.
    pub(super) path: &'a [u8],
    /// Empty if the file has none.
    pub(super) build_id: &'a [u8],
    /// The file, if its first bytes are mapped.
    pub(super) image: Option<Image>,
}

impl Mapping<'_> {
    /// Returns the address of the first byte as the file has it, for tools that read the file.
    pub(super) fn linked(&self) -> u64 {
        let segments = self.image.iter().flat_map(Image::segments);
        // The first page of its code may be the last one of another segment as well.
        let mut code = segments
            .filter(|segment| segment.kind == libc::PT_LOAD && segment.flags & libc::PF_X != 0);
        let page = os::system_page_size() as u64;
        let segment = code.find(|segment| {
            let start = segment.offset - segment.offset % page;
            (start..segment.offset.saturating_add(segment.file_len)).contains(&self.offset)
        });
        let moved = segment.map_or(0, |segment| segment.address.wrapping_sub(segment.offset));
        self.offset.wrapping_add(moved)
    }
}

/// Memory for the lines and notes being read.
#[derive(Clone, Copy)]
pub(super) struct Room {
    line: [u8; Room::LINE],
    notes: [u8; 1024],
}

impl Room {
    /// Bytes of the longest path, some of them escaped, after at most 73 bytes of numbers.
    const LINE: usize = 3 * 4096;
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for Room {}

/// Name of code without a file, in the words of `perf`, which readers of profiles know.
const ANONYMOUS: &[u8] = b"//anon";

/// Calls `each` with every executable mapping, by rising addresses.
pub(super) fn each(room: &mut Room, each: &mut dyn FnMut(Mapping<'_>)) {
    let mut is_hidden = true;
    listed(room, &mut |mapping| {
        is_hidden = false;
        each(mapping);
    });
    if is_hidden {
        known(room, each);
    }
}

/// Calls `each` with the addresses of every mapping that can be read and written. Returns false if
/// the system hides them.
pub(super) fn each_writable(room: &mut Room, each: &mut dyn FnMut(Range<usize>)) -> bool {
    let mut any = false;
    let listed = os::lines(format_args!("/proc/self/maps"), &mut room.line, &mut |line| {
        if let Some(line) = MapsLine::parse(line).filter(|line| line.is_writable) {
            any = true;
            each(line.start..line.limit);
        }
    });
    listed.is_some() && any
}

/// Calls `each` with the executable mappings that the kernel lists.
fn listed(room: &mut Room, each: &mut dyn FnMut(Mapping<'_>)) {
    let Room { line: room, notes } = room;
    // The latest mapping of the first bytes of a file: its range, and hash of device and inode.
    let mut first = (0, 0, 0);
    let _ = os::lines(format_args!("/proc/self/maps"), room, &mut |line| {
        let Some(line) = MapsLine::parse(line) else { return };
        let file = identity(&line);
        if line.offset == 0 && (line.has_file() || line.is_executable) {
            first = (line.start, line.limit, file);
        }
        if !line.is_executable {
            return;
        }
        let (start, limit, of) = first;
        let image = (of == file).then_some(Image { start, limit });
        let build_id = image.and_then(|image| image.build_id(notes));
        let path = if line.path.is_empty() { ANONYMOUS } else { line.path };
        each(Mapping {
            start: line.start,
            limit: line.limit,
            offset: line.offset,
            path,
            build_id: build_id.unwrap_or_default(),
            image,
        });
    });
}

/// Returns a number that differs for the files of neighbouring mappings.
fn identity(line: &MapsLine<'_>) -> u64 {
    let nowhere: &[u8] = &[];
    let path = if line.has_file() { nowhere } else { line.path };
    let all = line.file.0.iter().chain(line.file.1).chain(path);
    // FNV-1a.
    all.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Bytes of an ELF header, where the program headers nearly always follow.
const HEADER: usize = 64;

/// Returns the first addresses of the program and of the vDSO, as far as the kernel told them.
fn stable_images() -> [Option<usize>; 2] {
    let program = os::auxiliary(libc::AT_PHDR).checked_sub(HEADER);
    let vdso = os::auxiliary(libc::AT_SYSINFO_EHDR);
    [program, (vdso != 0).then_some(vdso)]
}

/// Calls `each` with the executable mappings of the program and of the vDSO.
fn known(room: &mut Room, each: &mut dyn FnMut(Mapping<'_>)) {
    let [program, vdso] = stable_images();
    let name = match os::auxiliary(libc::AT_EXECFN) {
        0 => ANONYMOUS,
        // SAFETY: the kernel put a string there, above the stack, where it stays.
        name => unsafe { CStr::from_ptr(ptr::with_exposed_provenance(name)) }.to_bytes(),
    };
    for (start, path) in [(program, name), (vdso, b"[vdso]")] {
        let Some(start) = start else { continue };
        let image = Image { start, limit: usize::MAX };
        let Some(first) = image.segments().find(|segment| segment.kind == libc::PT_LOAD) else {
            continue;
        };
        let image = Image { start, limit: start.saturating_add(first.file_len as usize) };
        // Addresses in the file are relative to this one.
        let base = image.moved().unwrap_or(0) as u64;
        let page = os::system_page_size() as u64;
        for segment in image.segments() {
            if segment.kind != libc::PT_LOAD || segment.flags & libc::PF_X == 0 {
                continue;
            }
            let before = segment.address % page;
            let start = base.wrapping_add(segment.address - before);
            let len = (before.saturating_add(segment.len)).next_multiple_of(page);
            each(Mapping {
                start: start as usize,
                limit: start.wrapping_add(len) as usize,
                offset: segment.offset.wrapping_sub(before),
                path,
                build_id: image.build_id(&mut room.notes).unwrap_or_default(),
                image: Some(image),
            });
        }
    }
}

/// An ELF file, mapped from its first byte on.
#[derive(Clone, Copy)]
pub(super) struct Image {
    start: usize,
    /// The address where that mapping ends.
    limit: usize,
}

/// A program header.
pub(super) struct Segment {
    pub(super) kind: u32,
    flags: u32,
    offset: u64,
    pub(super) address: u64,
    file_len: u64,
    pub(super) len: u64,
    align: u64,
}

impl Image {
    /// Copies bytes of the file. Returns `None` if they are beyond the mapping, or unreadable.
    fn read(&self, offset: u64, to: &mut [u8]) -> Option<()> {
        let from = self.start.checked_add(usize::try_from(offset).ok()?)?;
        if from.checked_add(to.len())? > self.limit {
            return None;
        }
        if os::copy_memory(from, to) {
            return Some(());
        }
        // The program and the vDSO stay where they are.
        let is_stable = stable_images().contains(&Some(self.start));
        // SAFETY: the mapping of the file's first bytes is readable to its limit, and never
        // unmapped. A limit that is not known yet is only used for the headers.
        is_stable.then(|| unsafe {
            let from = ptr::with_exposed_provenance::<u8>(from);
            ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        })
    }

    fn field<const LEN: usize>(&self, offset: u64) -> Option<[u8; LEN]> {
        let mut bytes = [0; LEN];
        self.read(offset, &mut bytes)?;
        Some(bytes)
    }

    /// Returns the program headers; none if this is not an ELF file of this kind of machine.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        /// Of the file's format: 64 bits, little-endian.
        const MAGIC: &[u8] = b"\x7fELF\x02\x01";
        /// More would be senseless.
        const MOST: u64 = 128;
        let header = self.field::<HEADER>(0).filter(|header| header.starts_with(MAGIC));
        let header = header.unwrap_or([0; HEADER]);
        let table = number(&header, 32, 8);
        let (size, count) = (number(&header, 54, 2), number(&header, 56, 2));
        (0..count.min(MOST)).map_while(move |index| {
            let header = self.field::<56>(table.checked_add(index * size)?)?;
            Some(Segment {
                kind: number(&header, 0, 4) as u32,
                flags: number(&header, 4, 4) as u32,
                offset: number(&header, 8, 8),
                address: number(&header, 16, 8),
                file_len: number(&header, 32, 8),
                len: number(&header, 40, 8),
                align: number(&header, 48, 8),
            })
        })
    }

    /// Returns what was added to the addresses of the file where it was mapped.
    pub(super) fn moved(&self) -> Option<usize> {
        let first = self.segments().find(|segment| segment.kind == libc::PT_LOAD)?;
        Some((self.start as u64).wrapping_add(first.offset).wrapping_sub(first.address) as usize)
    }

    /// Reads the build ID into `room`.
    fn build_id<'a>(&self, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let found = self.segments().find_map(|segment| {
            if segment.kind != libc::PT_NOTE {
                return None;
            }
            let len = usize::try_from(segment.file_len).ok()?.min(room.len());
            let notes = room.get_mut(..len)?;
            self.read(segment.offset, notes)?;
            build_id_in(notes, if segment.align == 8 { 8 } else { 4 })
        });
        let (from, to) = found?;
        room.get(from..to)
    }
}

/// Returns where the build ID begins and ends in notes that are aligned to `align` bytes.
fn build_id_in(notes: &[u8], align: usize) -> Option<(usize, usize)> {
    const NT_GNU_BUILD_ID: u64 = 3;
    const OWNER: &[u8] = b"GNU\0";
    /// Bytes before the name of a note's owner: lengths of name and content, and the kind.
    const FIXED: usize = 12;
    let mut at = 0;
    while notes.len() > at + FIXED {
        let [name_len, len, kind] = [0, 4, 8].map(|field| number(notes, at + field, 4));
        let name = at + FIXED;
        let from = (name + name_len as usize).next_multiple_of(align);
        let to = from + len as usize;
        if kind == NT_GNU_BUILD_ID && notes.get(name..name + OWNER.len()) == Some(OWNER) {
            return (to <= notes.len()).then_some((from, to));
        }
        at = to.next_multiple_of(align);
    }
    None
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, fs};

    type Visit = fn(&mut Room, &mut dyn FnMut(Mapping<'_>));
    type Owned = (usize, usize, u64, Vec<u8>, String);

    /// Returns what `visit` finds.
    fn all(visit: Visit) -> Vec<Owned> {
        let mut room = Scratch::new(1).unwrap();
        let mut found = Vec::new();
        visit(room.only(), &mut |mapping| {
            let build_id = mapping.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
            let Mapping { start, limit, offset, path, .. } = mapping;
            found.push((start, limit, offset, path.to_vec(), build_id));
        });
        found
    }

    /// Maps the first pages of a file, executable. Returns the address.
    fn map_code(path: &std::path::Path) -> usize {
        let file = fs::File::open(path).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let rights = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let code =
            unsafe { libc::mmap(ptr::null_mut(), 4096, rights, libc::MAP_PRIVATE, number, 0) };
        assert_ne!(code, libc::MAP_FAILED);
        code.expose_provenance()
    }

    #[test]
    fn the_program_and_its_libraries_are_found() {
        let own = (the_program_and_its_libraries_are_found as fn()) as usize;
        let found = all(each);
        assert!(found.is_sorted_by_key(|mapping| mapping.0));
        let own = found.iter().find(|mapping| (mapping.0..mapping.1).contains(&own)).unwrap();
        let program = fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(own.3, program.as_os_str().as_encoded_bytes());
        let text = fs::read(program).unwrap();
        // The linker decides whether there is one.
        let id: Vec<u8> = (0..own.4.len() / 2)
            .map(|at| u8::from_str_radix(&own.4[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        assert!(id.is_empty() || text.windows(id.len()).any(|part| part == id));
        let vdso = found.iter().any(|mapping| mapping.3 == b"[vdso]" && mapping.4.len() == 40);
        assert_eq!(vdso, has_vdso() && can_copy());
    }

    /// Returns whether the kernel tells where its library is. Valgrind and QEMU may hide it.
    fn has_vdso() -> bool {
        os::auxiliary(libc::AT_SYSINFO_EHDR) != 0
    }

    /// Returns whether memory can be copied by the kernel, which QEMU does not emulate.
    fn can_copy() -> bool {
        os::copy_memory((can_copy as fn() -> bool) as usize, &mut [0])
    }

    /// A function's address in the file is what the program's symbols say, relative to another's.
    #[test]
    fn addresses_are_those_of_the_file() {
        let own = (addresses_are_those_of_the_file as fn()) as usize;
        let mut room = Scratch::new(1).unwrap();
        let mut linked = None;
        each(room.only(), &mut |mapping| {
            if (mapping.start..mapping.limit).contains(&own) {
                linked = Some(mapping.linked() + (own - mapping.start) as u64);
            }
        });
        let file = fs::read(fs::read_link("/proc/self/exe").unwrap()).unwrap();
        let field = |at: usize, len: usize| number(&file, at, len);
        // The entry point is at an address that the kernel and the header of the file both tell.
        let moved = os::auxiliary(libc::AT_ENTRY) as u64 - field(24, 8);
        assert_eq!(linked, Some(own as u64 - moved));
    }

    #[test]
    fn writable_mappings_have_variables() {
        static VARIABLE: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(7);
        let (local, variable) = (0, (&raw const VARIABLE).addr());
        let mut room = Scratch::new(1).unwrap();
        let mut holders = [0; 3];
        let code = (writable_mappings_have_variables as fn()) as usize;
        assert!(each_writable(room.only(), &mut |mapping| {
            for (count, address) in
                holders.iter_mut().zip([(&raw const local).addr(), variable, code])
            {
                *count += usize::from(mapping.contains(&address));
            }
        }));
        assert_eq!(holders, [1, 1, 0]);
    }

    #[test]
    fn without_proc_the_program_and_the_vdso_are_found() {
        let (listed, known) = (all(listed), all(known));
        // QEMU, which runs programs of other architectures, hides the program as well.
        let least = if cfg!(target_arch = "x86_64") { 1 + usize::from(has_vdso()) } else { 0 };
        assert!(known.len() >= least, "{known:?}");
        for mapping in known {
            let same = listed.iter().find(|other| other.0 == mapping.0).unwrap();
            assert_eq!((mapping.1, mapping.2, &mapping.4), (same.1, same.2, &same.4));
        }
    }

    #[test]
    fn paths_are_what_they_were() {
        let name = format!("hayloft mapped\nfile-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, [0x90; 5000]).unwrap();
        let code = map_code(&path);
        let named =
            |found: Vec<Owned>| found.into_iter().find(|mapping| mapping.0 == code).unwrap();
        assert_eq!(named(all(each)).3, path.as_os_str().as_encoded_bytes());
        fs::remove_file(&path).unwrap();
        assert_eq!(named(all(each)).3, path.as_os_str().as_encoded_bytes());
        // SAFETY: nobody uses the mapping of this test.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(code), 4096) };
    }

    #[test]
    fn a_truncated_file_has_no_build_id() {
        let name = format!("hayloft-truncated-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::copy(fs::read_link("/proc/self/exe").unwrap(), &path).unwrap();
        let code = map_code(&path);
        // What is mapped is no longer there: touching it would end the process by SIGBUS.
        fs::write(&path, "").unwrap();
        let found = all(each).into_iter().find(|mapping| mapping.0 == code).unwrap();
        assert_eq!(found.4, "");
        fs::remove_file(&path).unwrap();
        // SAFETY: nobody uses the mapping of this test.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(code), 4096) };
    }

    #[test]
    fn notes_are_searched_to_the_end() {
        let note = |owner: &[u8; 4], kind: u8, content: &[u8], align: usize| {
            let mut note = [4, 0, 0, 0, content.len() as u8, 0, 0, 0, kind, 0, 0, 0].to_vec();
            note.extend_from_slice(owner);
            note.extend_from_slice(content);
            note.resize(note.len().next_multiple_of(align), 0);
            note
        };
        for align in [4, 8] {
            let other = note(b"GNU\0", 5, b"12345", align);
            let foreign = note(b"Xen\0", 3, b"1234", align);
            let id = note(b"GNU\0", 3, b"abcdefgh", align);
            let notes = [other, foreign, id].concat();
            let (from, to) = build_id_in(&notes, align).unwrap();
            assert_eq!(&notes[from..to], b"abcdefgh");
            for len in 0..to {
                assert_eq!(build_id_in(&notes[..len], align), None);
            }
        }
        assert_eq!(build_id_in(&[0xff; 64], 4), None);
    }
}
