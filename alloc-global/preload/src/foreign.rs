//! Foreign blocks: blocks outside all arenas of Hayloft.
//!
//! If a program loads this library late, with a plugin say, foreign blocks may come from the C
//! library's own heap. They are passed to the function of the same name that is next in the order
//! of libraries. If that heap was never used, no block can come from it. A foreign address is then
//! a mistake, and ends the process with a message.

use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;

use hayloft_core::by_address;

/// Returns the function `name` of the next library that has one, if there is any.
fn next(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: `name` is null-terminated.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) })
}

/// Returns the same as [`next`] if the heap of the C library was ever used, and `None` otherwise.
fn next_if_used(name: &CStr) -> Option<NonNull<c_void>> {
    /// `struct mallinfo2`: ten words. The first (`arena`) counts bytes from `brk`, the fifth
    /// (`hblkhd`) bytes from `mmap`.
    type Info = [usize; 10];
    let info = next(c"mallinfo2")?;
    // SAFETY: `mallinfo2` has this type, with a result of ten words.
    let info = unsafe { mem::transmute::<NonNull<c_void>, extern "C" fn() -> Info>(info)() };
    if info[0] + info[4] > 0 { next(name) } else { None }
}

/// Frees a foreign block, or ends the process.
///
/// # Safety
/// As for `free`.
#[cold]
pub(crate) unsafe extern "C" fn free(block: *mut u8) {
    match next_if_used(c"free") {
        // SAFETY: `free` has this type. The caller guarantees that `block` is live.
        Some(free) => unsafe {
            mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(*mut u8)>(free)(block);
        },
        None => by_address::refuse_foreign(block),
    }
}

/// Resizes a foreign block in the heap it came from and returns it, or ends the process.
///
/// # Safety
/// As for `realloc`.
#[cold]
pub(crate) unsafe fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
    match next_if_used(c"realloc") {
        // SAFETY: `realloc` has this type. The caller guarantees that `block` is live.
        Some(realloc) => unsafe {
            mem::transmute::<NonNull<c_void>, Realloc>(realloc)(block, size)
        },
        None => by_address::refuse_foreign(block.cast()),
    }
}

/// Returns the usable bytes of a foreign block. Returns 0 for every address if the heap of the C
/// library was never used.
///
/// # Safety
/// As for `malloc_usable_size`.
#[cold]
pub(crate) unsafe fn usable_size(block: *mut c_void) -> usize {
    type UsableSize = unsafe extern "C" fn(*mut c_void) -> usize;
    next_if_used(c"malloc_usable_size").map_or(0, |usable_size| {
        // SAFETY: `malloc_usable_size` has this type. The caller guarantees that `block` is live.
        unsafe { mem::transmute::<NonNull<c_void>, UsableSize>(usable_size)(block) }
    })
}
