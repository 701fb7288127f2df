//! Keeps the shared library that this allocator is linked into loaded.
//!
//! After `dlclose`, threads would remain whose `struct rseq` names a descriptor in the library (the
//! kernel kills a thread if it cannot read that), allocator threads that run the library's code,
//! hooks at forks and at thread exit, and blocks that could never be freed. So a library with this
//! allocator asks the loader at load time to keep it until the process ends. Then `dlclose` does
//! nothing.
//!
//! This needs a constructor: a first allocation may happen in a signal handler, and must not wait
//! for the loader's locks. Nothing needs doing with musl, whose loader never unloads, or in static
//! programs.

use core::ffi::{c_char, c_int, c_void};

use crate::text::warn;

unsafe extern "C" {
    /// The start of the program or library that this is linked into. Every linker defines it.
    #[link_name = "__ehdr_start"]
    static HEADER: libc::Elf64_Ehdr;
    /// The C library's environment; null before the C library's own constructors have run.
    static environ: *const *const c_char;
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = pin;

extern "C" fn pin(_: c_int, _: *const *const c_char, environment: *const *const c_char) {
    // A library whose constructors run before the C library's was loaded at program start, so it
    // stays loaded. The loader must not be called yet: it would initialise the C library with that
    // library's own `environ`, which is still null.
    // SAFETY: the C library defines `environ`, and a volatile read of a pointer is sound at any
    // time.
    let is_early = unsafe { (&raw const environ).read_volatile() }.is_null();
    if is_early && !environment.is_null() {
        return;
    }
    if !is_main_program() && !stays() {
        warn(format_args!("the library that this allocator is in must not be unloaded"));
    }
}

/// Returns whether this is linked into the program that the kernel started.
fn is_main_program() -> bool {
    let header = &raw const HEADER;
    // SAFETY: the linker has placed a valid header there, and `getauxval` may be called anywhere.
    let (headers, of_program) =
        unsafe { (header.addr() + (*header).e_phoff as usize, libc::getauxval(libc::AT_PHDR)) };
    headers == of_program as usize
}

/// Asks the loader to keep the library loaded. Returns false if the loader does not know the
/// library.
fn stays() -> bool {
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the address lies in this library, and `dladdr` may write the struct. The name in the
    // struct is the loader's own spelling, so that `dlopen` finds the library without opening a
    // file. Constructors may call `dlopen`.
    unsafe {
        let mut found: libc::Dl_info = core::mem::zeroed();
        let inside: *const c_void = (&raw const CONSTRUCTOR).cast();
        libc::dladdr(inside, &raw mut found) != 0 && !libc::dlopen(found.dli_fname, flags).is_null()
    }
}
