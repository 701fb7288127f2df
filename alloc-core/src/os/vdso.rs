//! Functions that the kernel maps into each process (vDSO), which answer some queries without a
//! system call.
//!
//! They are looked up in the image that the auxiliary vector names, an ELF shared object, without
//! the C library: its functions for this may be wrapped by a library that allocates. If there is no
//! image, as under valgrind, or the image lacks a function, callers make the system call.
//! (`vdso(7)`, and `Documentation/ABI/stable/vdso` of Linux.)

use core::ffi::{CStr, c_int, c_void};
use core::ptr;

use crate::atomic_fn::{AtomicFn, FnPtr};

type Clock = unsafe extern "C" fn(c_int, *mut libc::timespec) -> c_int;
type CurrentCpu = unsafe extern "C" fn(*mut u32, *mut u32, *mut c_void) -> c_int;

#[cfg(target_arch = "aarch64")]
const NAMES: [&CStr; 2] = [c"__kernel_clock_gettime", c"__kernel_getcpu"];
#[cfg(not(target_arch = "aarch64"))]
const NAMES: [&CStr; 2] = [c"__vdso_clock_gettime", c"__vdso_getcpu"];

/// A function of the image, looked up on first use.
struct Function<F> {
    name: &'static CStr,
    /// The function that is called if the image has none of this name.
    absent: F,
    /// `None` before the look-up. Every thread finds the same function.
    found: AtomicFn<F>,
}

// SAFETY: the kernel's function of this name is a `Clock`.
static CLOCK: Function<Clock> = unsafe { Function::new(NAMES[0], no_clock) };
// SAFETY: the kernel's function of this name is a `CurrentCpu`.
static CPU: Function<CurrentCpu> = unsafe { Function::new(NAMES[1], no_cpu) };

/// Stands for the kernel's function where it is absent.
unsafe extern "C" fn no_clock(_: c_int, _: *mut libc::timespec) -> c_int {
    -libc::ENOSYS
}

/// Stands for the kernel's function where it is absent.
unsafe extern "C" fn no_cpu(_: *mut u32, _: *mut u32, _: *mut c_void) -> c_int {
    -libc::ENOSYS
}

impl<F: FnPtr> Function<F> {
    /// # Safety
    /// A function of this name in the image is of type `F`.
    const unsafe fn new(name: &'static CStr, absent: F) -> Function<F> {
        Function { name, absent, found: AtomicFn::new() }
    }

    /// Returns the function.
    #[inline]
    fn get(&self) -> F {
        self.found.get().unwrap_or_else(|| self.look_up())
    }

    #[cold]
    fn look_up(&self) -> F {
        // SAFETY: `getauxval` may be called anywhere; its result is the address of the image, or 0.
        let image: *const u8 = ptr::with_exposed_provenance(unsafe {
            libc::getauxval(libc::AT_SYSINFO_EHDR) as usize
        });
        // SAFETY: an address other than null is that of the kernel's image.
        let found = (!image.is_null()).then(|| unsafe { find(image, self.name) }).flatten();
        // SAFETY: by the contract of `new`, a function of this name is of type `F`.
        let found = found.and_then(|address| unsafe { F::at(address.cast()) });
        let function = found.unwrap_or(self.absent);
        self.found.set(function);
        function
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
    // SAFETY: the function writes only the time.
    unsafe { CLOCK.get()(clock, to) == 0 }
}

/// Reads the CPU that this thread runs on, and its node. Returns false if that takes a system call.
pub(super) fn current_cpu(cpu: &mut u32, node: &mut u32) -> bool {
    // SAFETY: the function writes only the two numbers; the third argument is unused since Linux
    // 2.6.24.
    unsafe { CPU.get()(cpu, node, ptr::null_mut()) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vdso_clock_agrees_with_the_system_call() {
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
        // SAFETY: the image has no function of this name.
        let missing: Function<Clock> = unsafe { Function::new(c"__vdso_nothing", no_clock) };
        let is_absent = || ptr::fn_addr_eq(missing.get(), missing.absent);
        assert!(is_absent() && is_absent());
        // Linux has both functions on the supported architectures; valgrind and others hide them.
        // SAFETY: `getauxval` may be called anywhere.
        if unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } != 0 {
            assert!(!ptr::fn_addr_eq(CLOCK.get(), CLOCK.absent));
        }
    }
}
