//! Functions that the kernel maps into each process (vDSO), which answer some queries without a
//! system call.
//!
//! They are looked up in the image that the auxiliary vector names, an ELF shared object, without
//! the C library: its functions for this may be wrapped by a library that allocates. If there is no
//! image, as under valgrind, or the image lacks a function, callers make the system call.
//! (`vdso(7)`, and `Documentation/ABI/stable/vdso` of Linux.)

use core::ffi::{CStr, c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

type Clock = unsafe extern "C" fn(c_int, *mut libc::timespec) -> c_int;
type CurrentCpu = unsafe extern "C" fn(*mut u32, *mut u32, *mut c_void) -> c_int;

#[cfg(target_arch = "aarch64")]
const NAMES: [&CStr; 2] = [c"__kernel_clock_gettime", c"__kernel_getcpu"];
#[cfg(not(target_arch = "aarch64"))]
const NAMES: [&CStr; 2] = [c"__vdso_clock_gettime", c"__vdso_getcpu"];

/// A function of the image, looked up on first use.
struct Function {
    name: &'static CStr,
    /// Null before the look-up, and [`ABSENT`] if the image does not have it.
    address: AtomicPtr<c_void>,
}

static CLOCK: Function = Function { name: NAMES[0], address: AtomicPtr::new(ptr::null_mut()) };
static CPU: Function = Function { name: NAMES[1], address: AtomicPtr::new(ptr::null_mut()) };

/// Marks a function that the image does not have.
const ABSENT: *mut c_void = ptr::without_provenance_mut(1);

impl Function {
    /// Returns the address, or `None` if the image does not have the function.
    #[inline]
    fn get(&self) -> Option<*mut c_void> {
        // Relaxed: the address never changes once known, and guards no other memory.
        match self.address.load(Ordering::Relaxed) {
            ABSENT => None,
            address if address.is_null() => self.look_up(),
            address => Some(address),
        }
    }

    #[cold]
    fn look_up(&self) -> Option<*mut c_void> {
        // SAFETY: `getauxval` may be called anywhere; its result is the address of the image, or 0.
        let image: *const u8 = ptr::with_exposed_provenance(unsafe {
            libc::getauxval(libc::AT_SYSINFO_EHDR) as usize
        });
        // SAFETY: an address other than null is that of the kernel's image.
        let found = (!image.is_null()).then(|| unsafe { find(image, self.name) }).flatten();
        // Relaxed: every thread finds the same address, which guards no other memory.
        self.address.store(found.unwrap_or(ABSENT), Ordering::Relaxed);
        found
    }
}

/// Returns the address of a function in an ELF image that is mapped from its first byte on.
///
/// # Safety
/// `image` is such an image, with a dynamic section, a hash table, and symbols.
unsafe fn find(image: *const u8, name: &CStr) -> Option<*mut c_void> {
    /// Tags of the dynamic section.
    const END: i64 = 0;
    const HASH: i64 = 4;
    const STRINGS: i64 = 5;
    const SYMBOLS: i64 = 6;
    const GNU_HASH: i64 = 0x6fff_fef5;

    // SAFETY: the caller guarantees an ELF image, whose headers, tables and strings are readable.
    unsafe {
        let header = &*image.cast::<libc::Elf64_Ehdr>();
        let segments = image.add(header.e_phoff as usize).cast::<libc::Elf64_Phdr>();
        let segments = (0..usize::from(header.e_phnum)).map(|index| &*segments.add(index));
        let loaded = segments.clone().find(|segment| segment.p_type == libc::PT_LOAD)?;
        let dynamic = segments.clone().find(|segment| segment.p_type == libc::PT_DYNAMIC)?;
        // Addresses in the image are relative to its link address.
        let at = |address: u64| {
            image.wrapping_add((address + loaded.p_offset).wrapping_sub(loaded.p_vaddr) as usize)
        };
        let [mut hash, mut gnu_hash, mut strings, mut symbols] = [ptr::null::<u8>(); 4];
        let mut entry = at(dynamic.p_vaddr).cast::<(i64, u64)>();
        while (*entry).0 != END {
            let (tag, value) = *entry;
            match tag {
                HASH => hash = at(value),
                GNU_HASH => gnu_hash = at(value),
                STRINGS => strings = at(value),
                SYMBOLS => symbols = at(value),
                _ => {}
            }
            entry = entry.add(1);
        }
        if strings.is_null() || symbols.is_null() {
            return None;
        }
        // The hash table yields the number of symbols.
        let count = match (hash.is_null(), gnu_hash.is_null()) {
            (false, _) => hash.cast::<u32>().add(1).read() as usize,
            (true, false) => count_by_gnu_hash(gnu_hash.cast()),
            _ => return None,
        };
        let symbols = symbols.cast::<libc::Elf64_Sym>();
        (0..count).map(|index| &*symbols.add(index)).find_map(|symbol| {
            let is_it = symbol.st_shndx != 0
                && CStr::from_ptr(strings.add(symbol.st_name as usize).cast()) == name;
            is_it.then(|| at(symbol.st_value).cast_mut().cast())
        })
    }
}

/// Returns one more than the highest symbol index in a GNU hash table.
///
/// # Safety
/// `table` is a GNU hash table.
unsafe fn count_by_gnu_hash(table: *const u32) -> usize {
    /// Words of the table's header.
    const HEADER: usize = 4;
    // SAFETY: the caller guarantees a GNU hash table. After the header come the words of the
    // filter, the buckets, and the chains; the last link of each chain is odd.
    unsafe {
        let [buckets, first, filter, _] = table.cast::<[u32; HEADER]>().read();
        let start = table.add(HEADER + 2 * filter as usize);
        let last = (0..buckets as usize).map(|index| start.add(index).read()).max().unwrap_or(0);
        if last < first {
            return first as usize;
        }
        let links = start.add(buckets as usize);
        let mut at = last;
        while links.add((at - first) as usize).read() & 1 == 0 {
            at += 1;
        }
        at as usize + 1
    }
}

/// Reads a clock. Returns false, and writes nothing, if that takes a system call.
pub(super) fn clock(clock: c_int, to: &mut libc::timespec) -> bool {
    CLOCK.get().is_some_and(|function| {
        // SAFETY: the kernel's function of this name has this signature and writes only the time.
        unsafe { mem::transmute::<*mut c_void, Clock>(function)(clock, to) == 0 }
    })
}

/// Reads the CPU that this thread runs on, and its node. Returns false if that takes a system call.
pub(super) fn current_cpu(cpu: &mut u32, node: &mut u32) -> bool {
    CPU.get().is_some_and(|function| {
        // SAFETY: the kernel's function of this name has this signature and writes only the two
        // numbers; the third argument is unused since Linux 2.6.24.
        unsafe {
            mem::transmute::<*mut c_void, CurrentCpu>(function)(cpu, node, ptr::null_mut()) == 0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_the_image_is_that_of_the_system_call() {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut before = time;
        // SAFETY: the call writes a struct of this function.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut before) };
        if clock(libc::CLOCK_MONOTONIC_COARSE, &mut time) {
            assert!((before.tv_sec, before.tv_nsec) <= (time.tv_sec, time.tv_nsec));
        }
    }

    #[test]
    fn absent_functions_are_not_found() {
        let missing =
            Function { name: c"__vdso_nothing", address: AtomicPtr::new(ptr::null_mut()) };
        assert_eq!((missing.get(), missing.get()), (None, None));
        // Linux has both functions on the supported architectures; valgrind and others hide them.
        // SAFETY: `getauxval` may be called anywhere.
        if unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } != 0 {
            assert!(CLOCK.get().is_some());
        }
    }
}
