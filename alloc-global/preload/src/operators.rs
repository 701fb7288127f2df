//! `operator new` and `operator delete` of C++, under their names in the Itanium ABI, where `m`
//! stands for `std::size_t`.
//!
//! The library exports the two basic operators, which programs call most, and those that the
//! standard defines in terms of the basic two. The others are left to the C++ library. Its
//! `nothrow` forms call the operators here and catch what they throw; its aligned forms call
//! `aligned_alloc` and `free`.
//!
//! A program may replace the basic two alone, for example with a `new` that writes a header in
//! front of each block. The operators that are defined in terms of the basic two therefore call
//! whichever functions have these names ([new.delete] of the standard). If they allocated here
//! instead, their blocks would lack the header.
//!
//! A `new` that finds no memory must call the program's new-handler until there is memory, and
//! throw `std::bad_alloc` if there is no handler. Only the C++ library knows the handler and can
//! throw, and programs in C do not have that library. So both of its functions are weak references:
//! the linker binds them if they are linked in, and the loader if the program or one of its
//! libraries has them at the start. Otherwise they are looked up by name, as the C++ library may
//! have come with a plugin. If the lookup fails, there is no way to report the failure to the
//! program, and the process ends.

use core::arch::global_asm;
use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;

use hayloft_core::by_address;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("std::size_t has another letter");

/// Defines a word that the linker or the loader fills with the address of a function.
macro_rules! word {
    ($name:literal, $function:literal) => {
        concat!(".hidden ", $name, "\n.globl ", $name, "\n", $name, ": .quad ", $function)
    };
}

// The compiler has no weak references, and binds calls of symbols that this library defines to this
// library. So each of these functions has a word with its address.
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

/// Returns a function of the C++ library, if there is one: `bound`, the target of the weak
/// reference, or else the current definition of `name`.
fn find(bound: *mut c_void, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: `name` is null-terminated.
    let by_name = |library| NonNull::new(unsafe { libc::dlsym(library, name.as_ptr()) });
    let libraries = [c"libstdc++.so.6", c"libc++abi.so.1", c"libc++.so.1"];
    NonNull::new(bound).or_else(|| by_name(libc::RTLD_DEFAULT)).or_else(|| {
        libraries.into_iter().find_map(|library| {
            // SAFETY: the names are null-terminated. `RTLD_NOLOAD` finds loaded libraries only, and
            // those stay loaded after `dlclose` for as long as their loaders want.
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

/// Calls the new-handler, which may free memory or throw. Throws `std::bad_alloc` if there is no
/// handler, and ends the process if there is no C++ library.
fn handle_failure() {
    // SAFETY: the linker or the loader filled the words. The functions have these types:
    // `std::new_handler get_new_handler()` and `void __throw_bad_alloc()`. Their exceptions pass
    // only through functions that may unwind.
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

/// Allocates after a miss of the sheaf, and calls the new-handler until that succeeds.
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
/// As for `free`.
#[unsafe(no_mangle)]
unsafe extern "C" fn _ZdlPv(block: *mut c_void) {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    unsafe { by_address::free_or(block.cast(), crate::foreign::free) }
}

/// `operator new[](std::size_t)`
#[unsafe(no_mangle)]
extern "C-unwind" fn _Znam(size: usize) -> *mut c_void {
    // SAFETY: the linker or the loader filled this word with the address of an `operator new`.
    unsafe { hayloft_new(size) }
}

/// `operator delete(void *, std::size_t)`. The size is ignored: the address identifies the block.
///
/// # Safety
/// As for `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdlPvm(block: *mut c_void, _: usize) {
    // SAFETY: the loader filled the word; the caller guarantees that `block` is null or live.
    unsafe { hayloft_delete(block) }
}

/// `operator delete[](void *)`
///
/// # Safety
/// As for `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdaPv(block: *mut c_void) {
    // SAFETY: the loader filled the word; the caller guarantees that `block` is null or live.
    unsafe { hayloft_delete(block) }
}

/// `operator delete[](void *, std::size_t)`
///
/// # Safety
/// As for `free`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _ZdaPvm(block: *mut c_void, _: usize) {
    // SAFETY: the loader filled the word; the caller guarantees that `block` is null or live.
    unsafe { hayloft_delete_array(block) }
}
