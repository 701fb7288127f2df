//! `operator new` and `operator delete` of C++, by their names in the Itanium ABI, where `m` is `std::size_t`: the two that programs
//! call most, and those that the standard has call these. The others are left to the C++ library, whose `nothrow` forms call the
//! ones here and catch what they throw, and whose aligned forms call `aligned_alloc` and `free`.
//!
//! A program may replace the basic two alone, by `new` that writes a header in front of a block, say. So what is defined in terms
//! of them calls whatever has their names ([new.delete] of the standard); a block of ours would lack the header.
//!
//! A `new` that finds no memory has to call the program's new-handler until there is some, and to throw `std::bad_alloc` if
//! there is no handler. Only the C++ library knows the one and can do the other, and a program in C has none: so both
//! functions are weak references, bound where the program or a library of it had them at its start (or is linked with them), and
//! looked up otherwise, for the library may have come with a plugin. Where there is none, the program is not told of any failure
//! that it could deal with, and ends.

use core::arch::global_asm;
use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;

use alloc_core::by_address;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("std::size_t has another letter");

/// A word that the linker or the loader fills in with the address of a function.
macro_rules! word {
    ($name:literal, $function:literal) => {
        concat!(".hidden ", $name, "\n.globl ", $name, "\n", $name, ": .quad ", $function)
    };
}

// The compiler has no weak references, and binds what this library defines to itself. So each of these functions has a word.
global_asm!(
    ".weak _ZSt15get_new_handlerv",
    ".weak _ZSt17__throw_bad_allocv",
    ".pushsection .data.rel.ro.hayloft_operators, \"aw\", @progbits",
    ".balign 8",
    word!("hayloft_get_new_handler", "_ZSt15get_new_handlerv"),
    word!("hayloft_throw_bad_alloc", "_ZSt17__throw_bad_allocv"),
    word!("hayloft_new", "_Znwm"),
    word!("hayloft_delete", "_ZdlPv"),
    word!("hayloft_delete_array", "_ZdaPv"),
    ".popsection",
);

unsafe extern "C" {
    static hayloft_get_new_handler: *mut c_void;
    static hayloft_throw_bad_alloc: *mut c_void;
    static hayloft_new: unsafe extern "C-unwind" fn(usize) -> *mut c_void;
    static hayloft_delete: unsafe extern "C-unwind" fn(*mut c_void);
    static hayloft_delete_array: unsafe extern "C-unwind" fn(*mut c_void);
}

type Handler = unsafe extern "C-unwind" fn();

/// A function of the C++ library, if there is one: what the weak reference was bound to, or else what goes by that name now.
fn find(bound: *mut c_void, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: a name that ends in a null byte.
    let by_name = |library| NonNull::new(unsafe { libc::dlsym(library, name.as_ptr()) });
    let libraries = [c"libstdc++.so.6", c"libc++abi.so.1", c"libc++.so.1"];
    NonNull::new(bound).or_else(|| by_name(libc::RTLD_DEFAULT)).or_else(|| {
        libraries.into_iter().find_map(|library| {
            // SAFETY: as above. Only a library that is loaded already is found, and it stays as long as who loaded it wants.
            unsafe {
                let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
                let library = NonNull::new(libc::dlopen(library.as_ptr(), flags))?;
                let found = by_name(library.as_ptr());
                libc::dlclose(library.as_ptr());
                found
            }
        })
    })
}

/// Asks the new-handler for memory, or throws.
fn handle_failure() {
    // SAFETY: words that the linker or the loader filled in; functions of these types: `std::new_handler get_new_handler()`, and
    // `void __throw_bad_alloc()`. What they throw passes through functions that may be unwound.
    unsafe {
        let handler =
            find(hayloft_get_new_handler, c"_ZSt15get_new_handlerv").and_then(|get_handler| {
                mem::transmute::<NonNull<c_void>, extern "C-unwind" fn() -> Option<Handler>>(
                    get_handler,
                )()
            });
        if let Some(handler) = handler {
            return handler();
        }
        if let Some(throw) = find(hayloft_throw_bad_alloc, c"_ZSt17__throw_bad_allocv") {
            mem::transmute::<NonNull<c_void>, Handler>(throw)();
        }
        let message = "hayloft: out of memory in operator new, and no C++ library to throw\n";
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::abort();
    }
}

/// What follows a miss.
#[cold]
#[inline(never)]
extern "C-unwind" fn new_slow(size: usize) -> *mut c_void {
    loop {
        let block = by_address::alloc(size);
        if !block.is_null() {
            return block.cast();
        }
        handle_failure();
    }
}

/// `operator new(std::size_t)`
#[unsafe(no_mangle)]
extern "C-unwind" fn _Znwm(size: usize) -> *mut c_void {
    match by_address::pop(size) {
        Some(block) => block.as_ptr().cast(),
        None => new_slow(size),
    }
}

/// `operator delete(void *)`
///
/// # Safety
/// As `free`.
#[unsafe(no_mangle)]
unsafe extern "C" fn _ZdlPv(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { by_address::free_or(block.cast(), crate::foreign::free) }
}

/// `operator new[](std::size_t)`
#[unsafe(no_mangle)]
extern "C-unwind" fn _Znam(size: usize) -> *mut c_void {
    // SAFETY: a word that the linker or the loader filled in; so below.
    unsafe { hayloft_new(size) }
}

/// `operator delete(void *, std::size_t)`. A block is known by its address.
///
/// # Safety
/// As `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdlPvm(block: *mut c_void, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { hayloft_delete(block) }
}

/// `operator delete[](void *)`
///
/// # Safety
/// As `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdaPv(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { hayloft_delete(block) }
}

/// `operator delete[](void *, std::size_t)`
///
/// # Safety
/// As `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdaPvm(block: *mut c_void, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { hayloft_delete_array(block) }
}
