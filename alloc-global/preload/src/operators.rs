//! `operator new` and `operator delete` of C++, by their names in the Itanium ABI, where `m` is `std::size_t`.
//!
//! They are here, though those of the C++ library would call `malloc`, because they are one call less, and because its `delete`
//! of an aligned block may be another function than `free`.
//!
//! A plain `new` that finds no memory has to call the program's new-handler until there is some, and to throw `std::bad_alloc` if
//! there is no handler. Only the C++ library knows the one and can do the other, and a program in C has none: so both
//! functions are weak references, bound where the program or a library of it had them at its start (or is linked with them), and
//! looked up otherwise, for the library may have come with a plugin. Where there is none, the program is not told of any failure
//! that it could deal with, and ends.
//!
//! A `new` that must not throw answers null at once. It should ask the new-handler as well, but that may throw, and only C++
//! can catch that. A program that uses this form deals with null.

use core::arch::global_asm;
use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;

use alloc_core::by_address;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("std::size_t has another letter");

// The compiler has no weak references. This is one for each function: a word that the linker or the loader fills in.
global_asm!(
    ".weak _ZSt15get_new_handlerv",
    ".weak _ZSt17__throw_bad_allocv",
    ".pushsection .data.rel.ro.hayloft_operators, \"aw\", @progbits",
    ".balign 8",
    ".hidden hayloft_get_new_handler",
    ".globl hayloft_get_new_handler",
    "hayloft_get_new_handler: .quad _ZSt15get_new_handlerv",
    ".hidden hayloft_throw_bad_alloc",
    ".globl hayloft_throw_bad_alloc",
    "hayloft_throw_bad_alloc: .quad _ZSt17__throw_bad_allocv",
    ".popsection",
);

unsafe extern "C" {
    static hayloft_get_new_handler: *mut c_void;
    static hayloft_throw_bad_alloc: *mut c_void;
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

/// What follows a miss of a `new` that throws.
#[cold]
#[inline(never)]
extern "C-unwind" fn new_slow(size: usize, align: usize) -> *mut c_void {
    loop {
        let block = by_address::alloc_aligned(size, align);
        if !block.is_null() {
            return block.cast();
        }
        handle_failure();
    }
}

#[cold]
#[inline(never)]
extern "C" fn try_new_slow(size: usize, align: usize) -> *mut c_void {
    by_address::alloc_aligned(size, align).cast()
}

/// The forms of `new`: by size, by size and alignment, and both with `std::nothrow`.
macro_rules! new {
    ($plain:ident $aligned:ident $nothrow:ident $aligned_nothrow:ident) => {
        #[unsafe(no_mangle)]
        extern "C-unwind" fn $plain(size: usize) -> *mut c_void {
            match by_address::pop(size) {
                Some(block) => block.as_ptr().cast(),
                None => new_slow(size, 1),
            }
        }

        #[unsafe(no_mangle)]
        extern "C-unwind" fn $aligned(size: usize, align: usize) -> *mut c_void {
            new_slow(size, align)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $nothrow(size: usize, _: *const c_void) -> *mut c_void {
            match by_address::pop(size) {
                Some(block) => block.as_ptr().cast(),
                None => try_new_slow(size, 1),
            }
        }

        #[unsafe(no_mangle)]
        extern "C" fn $aligned_nothrow(size: usize, align: usize, _: *const c_void) -> *mut c_void {
            try_new_slow(size, align)
        }
    };
}

new!(_Znwm _ZnwmSt11align_val_t _ZnwmRKSt9nothrow_t _ZnwmSt11align_val_tRKSt9nothrow_t);
new!(_Znam _ZnamSt11align_val_t _ZnamRKSt9nothrow_t _ZnamSt11align_val_tRKSt9nothrow_t);

/// The forms of `delete`. A block is known by its address, so that what else they are told does not matter.
macro_rules! delete {
    ($($name:ident)*) => {$(
        /// # Safety
        /// As `free`.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(block: *mut c_void) {
            // SAFETY: the caller's promise.
            unsafe { by_address::free(block.cast()) }
        }
    )*};
}

delete! {
    _ZdlPv _ZdlPvm _ZdlPvSt11align_val_t _ZdlPvmSt11align_val_t
    _ZdlPvRKSt9nothrow_t _ZdlPvSt11align_val_tRKSt9nothrow_t
    _ZdaPv _ZdaPvm _ZdaPvSt11align_val_t _ZdaPvmSt11align_val_t
    _ZdaPvRKSt9nothrow_t _ZdaPvSt11align_val_tRKSt9nothrow_t
}
