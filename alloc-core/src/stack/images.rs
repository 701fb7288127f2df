//! The programs and libraries that are mapped, found by an address in their code.
//!
//! With glibc since 2.35 its `_dl_find_object` finds all of them, in any context. With other C
//! libraries three are found: the program, the library that this allocator is linked into, and the
//! kernel's functions (vDSO). A list of all is available there only under the loader's lock.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;

use super::tables::Tables;
use crate::arch::frames;
use crate::os;

unsafe extern "C" {
    /// The start of the program or library that this is linked into. Every linker defines it.
    #[link_name = "__ehdr_start"]
    static HEADER: libc::Elf64_Ehdr;
}

/// A mapped program or library.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The addresses from its first to its last byte. Not all of them need be mapped.
    pub(super) range: Range<usize>,
    /// Its tables of stack frames, if it has any.
    pub(super) tables: Option<Tables>,
}

/// `struct dl_find_object`, as far as it is used here.
#[repr(C)]
struct Found {
    flags: u64,
    start: usize,
    end: usize,
    map: *const c_void,
    tables: usize,
    reserved: [u64; 8],
}

type FindObject = unsafe extern "C" fn(*const c_void, *mut Found) -> c_int;

/// Returns the image that `address` lies in.
pub(super) fn find(address: usize) -> Option<Image> {
    let function = frames::find_object();
    if function.is_null() {
        return find_without_loader(address);
    }
    let mut found = MaybeUninit::<Found>::uninit();
    // SAFETY: glibc's function has this type, and fills the struct if it returns zero. Any address
    // may be asked for, in any context.
    let found = unsafe {
        let function = core::mem::transmute::<*const (), FindObject>(function);
        if function(ptr::without_provenance(address), found.as_mut_ptr()) != 0 {
            return None;
        }
        found.assume_init()
    };
    // SAFETY: a table that the loader names is mapped for as long as its image.
    let tables = unsafe { Tables::new(found.tables) };
    Some(Image { range: found.start..found.end, tables })
}

/// As [`find`], where the loader cannot be asked.
fn find_without_loader(address: usize) -> Option<Image> {
    let of_program = || {
        let segments = os::auxiliary(libc::AT_PHDR);
        // SAFETY: the kernel has placed the program's headers there.
        unsafe { image(segments, os::auxiliary(libc::AT_PHNUM), None) }
    };
    let of_file = |header: usize| {
        let file: *const libc::Elf64_Ehdr = ptr::with_exposed_provenance(header);
        // SAFETY: the kernel or the linker has placed an image there, from its first byte on.
        unsafe {
            let count = usize::from((*file).e_phnum);
            image(header + (*file).e_phoff as usize, count, Some(header))
        }
    };
    let holds = |image: &Image| image.range.contains(&address);
    of_program().filter(holds).or_else(|| {
        let own = (&raw const HEADER).expose_provenance();
        let files = [own, os::auxiliary(libc::AT_SYSINFO_EHDR)];
        files.into_iter().filter(|file| *file != 0).find_map(|file| of_file(file).filter(holds))
    })
}

/// Returns the image with these program headers. Its first byte is at `start`, if that is known.
///
/// # Safety
/// `count` program headers of a mapped image are at `segments`, or `count` is zero.
unsafe fn image(segments: usize, count: usize, start: Option<usize>) -> Option<Image> {
    let first: *const libc::Elf64_Phdr = ptr::with_exposed_provenance(segments);
    // SAFETY: the caller guarantees that the headers are there.
    let all = (0..count).map(|index| unsafe { &*first.wrapping_add(index) });
    let loaded = || all.clone().filter(|segment| segment.p_type == libc::PT_LOAD);
    let lowest = loaded().map(|segment| segment.p_vaddr).min()? as usize;
    let highest = loaded().map(|segment| segment.p_vaddr + segment.p_memsz).max()? as usize;
    let named = |kind| all.clone().find(|segment| segment.p_type == kind);
    // Addresses in the headers are relative to this one. Where the headers do not name their own
    // address, they directly follow the header of the file.
    let base = match (start, named(libc::PT_PHDR)) {
        (Some(start), _) => start.wrapping_sub(lowest),
        (None, Some(own)) => segments.wrapping_sub(own.p_vaddr as usize),
        (None, None) => segments.wrapping_sub(size_of::<libc::Elf64_Ehdr>()).wrapping_sub(lowest),
    };
    let at = |address: usize| base.wrapping_add(address);
    let tables = named(libc::PT_GNU_EH_FRAME).map(|segment| at(segment.p_vaddr as usize));
    // SAFETY: the segment is a part of the image.
    let tables = tables.and_then(|tables| unsafe { Tables::new(tables) });
    Some(Image { range: at(lowest)..at(highest), tables })
}
