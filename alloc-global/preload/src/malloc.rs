//! The functions of the C standard, POSIX and glibc, with glibc's answers where these leave a choice.
//!
//! `malloc` and `free` are what a program spends its time in: only the sheaf of this CPU is inlined into them, and what follows a
//! miss is a jump.
//!
//! The C library's own names for these, `__libc_malloc` and so on, are public, and programs and libraries that wrap `malloc` call
//! them. So they are here, too: what they return may be freed by any of the others.

use core::ffi::{c_int, c_void};
use core::ptr;

use alloc_core::by_address;

use crate::{fail, foreign, or_no_memory};

/// Allocates `size` bytes, aligned to 16; a block of its own for 0.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    match by_address::pop(size) {
        Some(block) => block.as_ptr().cast(),
        None => malloc_slow(size),
    }
}

#[cold]
#[inline(never)]
extern "C" fn malloc_slow(size: usize) -> *mut c_void {
    or_no_memory(by_address::alloc(size))
}

/// Allocates `count` times `size` bytes that are zero.
#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(size) = count.checked_mul(size) else {
        fail(libc::ENOMEM);
        return ptr::null_mut();
    };
    match by_address::pop(size) {
        Some(block) => {
            // SAFETY: a fresh block of that size.
            unsafe { block.write_bytes(0, size) };
            block.as_ptr().cast()
        }
        None => calloc_slow(size),
    }
}

#[cold]
#[inline(never)]
extern "C" fn calloc_slow(size: usize) -> *mut c_void {
    or_no_memory(by_address::alloc_zeroed(size))
}

/// Frees a block; nothing if it is null. Keeps `errno`.
///
/// # Safety
/// The block is null, foreign, or was allocated here, not freed, and is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// As [`free`]. (Gone from glibc's headers since 2.26, not from programs.)
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// As [`free`], by a caller who knows the size. (C23.) What leads from the address to the class is as short as what would lead
/// there from the size, and cannot be wrong.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// As [`free_sized`], for a block of [`aligned_alloc`].
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// Changes the size of a block. As with glibc, a size of 0 frees it, and the answer is null.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the caller's promise.
    unsafe {
        if size == 0 {
            free(block);
            return ptr::null_mut();
        }
        let new = by_address::realloc(block.cast(), size);
        if new.is_null() && by_address::is_foreign(block.cast()) {
            return foreign::realloc(block, size);
        }
        or_no_memory(new)
    }
}

/// As [`realloc`], to `count` times `size` bytes.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(size) => unsafe { realloc(block, size) },
        None => {
            fail(libc::ENOMEM);
            ptr::null_mut()
        }
    }
}

/// Allocates `size` bytes at a multiple of `align`, a power of two.
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        fail(libc::EINVAL);
        return ptr::null_mut();
    }
    or_no_memory(by_address::alloc_aligned(size, align))
}

/// As [`aligned_alloc`]; an alignment that is no power of two counts as the next one.
#[unsafe(no_mangle)]
extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    aligned_alloc(align.checked_next_power_of_two().unwrap_or(0), size)
}

/// As [`aligned_alloc`], for a multiple of a pointer's size; the answer is the error, and the block is stored at `to`. Keeps
/// `errno`, and what is at `to` if there is an error.
///
/// # Safety
/// A pointer can be stored at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align < size_of::<*mut c_void>() {
        return libc::EINVAL;
    }
    let block = by_address::alloc_aligned(size, align);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(block.cast()) };
    0
}

fn page_size() -> usize {
    // SAFETY: a number only; it cannot fail.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Allocates `size` bytes on a page boundary.
#[unsafe(no_mangle)]
extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned_alloc(page_size(), size)
}

/// As [`valloc`], whole pages, one at least.
#[unsafe(no_mangle)]
extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = page_size();
    aligned_alloc(page, size.max(1).checked_next_multiple_of(page).unwrap_or(usize::MAX))
}

/// Bytes of a block that the program may use; 0 for null.
///
/// # Safety
/// As [`free`], but the block is still in use.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    match unsafe { by_address::usable_size(block.cast()) } {
        // SAFETY: the caller's promise.
        0 if !block.is_null() => unsafe { foreign::usable_size(block) },
        size => size,
    }
}

/// Names of the C library for functions above.
macro_rules! of_the_c_library {
    ($($name:literal $other:ident ($($argument:ident: $kind:ty),*) $(-> $result:ty)? = $function:ident;)*) => {
        $(
            /// # Safety
            /// As the function without a prefix.
            #[unsafe(export_name = $name)]
            unsafe extern "C" fn $other($($argument: $kind),*) $(-> $result)? {
                #[allow(unused_unsafe, reason = "some of them are safe")]
                // SAFETY: the caller's promise.
                unsafe { $function($($argument),*) }
            }
        )*
    };
}

#[cfg(target_env = "gnu")]
of_the_c_library! {
    "__libc_malloc" libc_malloc(size: usize) -> *mut c_void = malloc;
    "__libc_calloc" libc_calloc(count: usize, size: usize) -> *mut c_void = calloc;
    "__libc_realloc" libc_realloc(block: *mut c_void, size: usize) -> *mut c_void = realloc;
    "__libc_reallocarray" libc_reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void = reallocarray;
    "__libc_memalign" libc_memalign(align: usize, size: usize) -> *mut c_void = memalign;
    "__libc_valloc" libc_valloc(size: usize) -> *mut c_void = valloc;
    "__libc_pvalloc" libc_pvalloc(size: usize) -> *mut c_void = pvalloc;
    "__libc_free" libc_free(block: *mut c_void) = free;
    "__posix_memalign" libc_posix_memalign(to: *mut *mut c_void, align: usize, size: usize) -> c_int = posix_memalign;
}
