//! Blocks that lie in none of our arenas.
//!
//! They may be of the C library's own heap, where a program came to this library late, say with a plugin: then the function of the
//! same name that is next in the order of libraries knows them. Where that heap was never used, no block can be of it, and a
//! foreign address is a mistake, which ends the process with a message.

use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;

use alloc_core::by_address;

/// The function of this name that is next in the order of libraries.
fn next(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: a name that ends in a null byte.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) })
}

/// As [`next`], if the heap of the C library was ever used.
fn next_if_used(name: &CStr) -> Option<NonNull<c_void>> {
    /// `struct mallinfo2`: ten words, of which the first says what came by `brk`, and the fifth what by `mmap`.
    type Info = [usize; 10];
    let info = next(c"mallinfo2")?;
    // SAFETY: a function of this type.
    let info = unsafe { mem::transmute::<NonNull<c_void>, extern "C" fn() -> Info>(info)() };
    if info[0] + info[4] > 0 { next(name) } else { None }
}

/// Frees a foreign block, or ends the process.
///
/// # Safety
/// As `free`.
#[cold]
pub(crate) unsafe extern "C" fn free(block: *mut u8) {
    match next_if_used(c"free") {
        // SAFETY: a function of this type; the rest is the caller's promise.
        Some(free) => unsafe {
            mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(*mut u8)>(free)(block);
        },
        None => by_address::refuse_foreign(block),
    }
}

/// Changes the size of a foreign block, which stays one, or ends the process.
///
/// # Safety
/// As `realloc`.
#[cold]
pub(crate) unsafe fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
    match next_if_used(c"realloc") {
        // SAFETY: as in `free`.
        Some(realloc) => unsafe {
            mem::transmute::<NonNull<c_void>, Realloc>(realloc)(block, size)
        },
        None => by_address::refuse_foreign(block.cast()),
    }
}

/// Bytes of a foreign block that the program may use; 0 for what is none.
///
/// # Safety
/// As `malloc_usable_size`.
#[cold]
pub(crate) unsafe fn usable_size(block: *mut c_void) -> usize {
    type UsableSize = unsafe extern "C" fn(*mut c_void) -> usize;
    next_if_used(c"malloc_usable_size").map_or(0, |usable_size| {
        // SAFETY: as in `free`.
        unsafe { mem::transmute::<NonNull<c_void>, UsableSize>(usable_size)(block) }
    })
}
