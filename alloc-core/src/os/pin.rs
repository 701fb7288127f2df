//! The shared library that this allocator is linked into stays loaded.
//!
//! `dlclose` would leave threads whose `struct rseq` names a descriptor in the library (the kernel kills a thread when that
//! cannot be read), threads of ours that run its code, hooks at forks and at the ends of threads, and blocks that nobody could
//! free. So when the library is loaded it asks the loader to keep it until the process ends, and `dlclose` does nothing.
//!
//! That takes a constructor: the loader's locks are none that a first allocation may wait for, which may be in a handler.
//! With musl there is nothing to be done, whose loader never unloads; nor in static programs.

use core::ffi::{c_char, c_int, c_void};

use super::warn;

#[cfg(target_pointer_width = "64")]
type Header = libc::Elf64_Ehdr;
#[cfg(target_pointer_width = "32")]
type Header = libc::Elf32_Ehdr;

unsafe extern "C" {
    /// The start of the program or library that this is linked into: every linker defines it.
    #[link_name = "__ehdr_start"]
    static HEADER: Header;
    /// The C library's; null before its own constructors ran.
    static environ: *const *const c_char;
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = pin;

extern "C" fn pin(_: c_int, _: *const *const c_char, environment: *const *const c_char) {
    // A library whose constructors run before the C library's is there from the start, so it stays; and the loader must not be
    // called yet: it would have the C library take note of its own environment, which is none.
    // SAFETY: the C library's.
    let is_early = unsafe { (&raw const environ).read_volatile() }.is_null();
    if is_early && !environment.is_null() {
        return;
    }
    if !is_main_program() && !stays() {
        warn(format_args!("the library that this allocator is in must not be unloaded"));
    }
}

/// Whether what the kernel started is what this is linked into.
fn is_main_program() -> bool {
    let header = &raw const HEADER;
    // SAFETY: the linker has put it there; `getauxval` may be called anywhere.
    let (headers, of_program) =
        unsafe { (header.addr() + (*header).e_phoff as usize, libc::getauxval(libc::AT_PHDR)) };
    headers == of_program as usize
}

/// Has the loader keep the library; false where it does not know it.
fn stays() -> bool {
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: an address in the library, and a struct that is ours to be written; it then has a name that is as the loader
    // wrote it, and finds the library again without looking at any file. Constructors may call `dlopen`.
    unsafe {
        let mut found: libc::Dl_info = core::mem::zeroed();
        let inside: *const c_void = (&raw const CONSTRUCTOR).cast();
        libc::dladdr(inside, &raw mut found) != 0 && !libc::dlopen(found.dli_fname, flags).is_null()
    }
}
