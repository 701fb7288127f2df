//! The allocation functions of the C standard, POSIX and glibc, with glibc's behaviour where the
//! standards leave a choice.
//!
//! Programs spend their time in `malloc` and `free`. Only the access to this CPU's sheaf is inlined
//! into these two; a miss is one jump.
//!
//! The C library's own names of these functions, `__libc_malloc` and so on, are public, and
//! programs and libraries that wrap `malloc` call them. So this library exports them, too. Any of
//! the functions may free or resize the blocks of any other.

use core::ffi::{c_int, c_void};
use core::ptr;

use hayloft_core::by_address;

use crate::errno::{fail, or_no_memory};
use crate::foreign;

/// Allocates `size` bytes, aligned to 16. A size of 0 gets a unique block.
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

/// Allocates `count` times `size` bytes and sets them to zero.
#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(size) = count.checked_mul(size) else {
        fail(libc::ENOMEM);
        return ptr::null_mut();
    };
    match by_address::pop(size) {
        Some(block) => {
            // SAFETY: `block` is fresh and has at least `size` bytes.
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

/// Frees a block, or does nothing if it is null. Preserves `errno`.
///
/// # Safety
/// `block` is null, foreign, or a live block of this allocator. It is not used afterwards.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// Does the same as [`free`]. Gone from glibc's headers since 2.26, but not from programs.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// Frees a block whose size the caller knows (C23). The size is ignored: the path from the address
/// to the class is as short as the path from the size, and cannot be wrong.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// Does the same as [`free_sized`] for a block of [`aligned_alloc`].
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    unsafe { by_address::free_or(block.cast(), foreign::free) }
}

/// Changes the size of a block, and returns the block, which may have moved. As in glibc, a size of
/// 0 frees the block and returns null.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the caller guarantees that `block` is foreign or live; it is not null.
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

/// Does the same as [`realloc`] with a size of `count` times `size` bytes.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller guarantees that `block` is null, foreign or live.
        Some(size) => unsafe { realloc(block, size) },
        None => {
            fail(libc::ENOMEM);
            ptr::null_mut()
        }
    }
}

/// Allocates `size` bytes at a multiple of `align`. If `align` is not a power of two, returns null
/// and sets `errno` to `EINVAL`.
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        fail(libc::EINVAL);
        return ptr::null_mut();
    }
    or_no_memory(by_address::alloc_aligned(size, align))
}

/// Does the same as [`aligned_alloc`], with `align` rounded up to a power of two.
#[unsafe(no_mangle)]
extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    aligned_alloc(align.checked_next_power_of_two().unwrap_or(0), size)
}

/// Allocates as [`aligned_alloc`] does and stores the block at `to`. `align` must also be a
/// multiple of the size of a pointer. Returns 0 or an error number. Preserves `errno`, and on an
/// error also the value at `to`.
///
/// # Safety
/// `to` is valid for the write of a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align < size_of::<*mut c_void>() {
        return libc::EINVAL;
    }
    let block = by_address::alloc_aligned(size, align);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller guarantees that `to` is valid for writes.
    unsafe { to.write(block.cast()) };
    0
}

/// Returns the page size in bytes.
fn page_size() -> usize {
    // SAFETY: `sysconf` takes a number only, and this one cannot fail.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Allocates `size` bytes on a page boundary.
#[unsafe(no_mangle)]
extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned_alloc(page_size(), size)
}

/// Does the same as [`valloc`], with `size` rounded up to whole pages, at least one.
#[unsafe(no_mangle)]
extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = page_size();
    aligned_alloc(page, size.max(1).checked_next_multiple_of(page).unwrap_or(usize::MAX))
}

/// Returns the number of usable bytes of a block, or 0 for null.
///
/// # Safety
/// As for [`free`], except that the block stays live.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller guarantees that `block` is null, foreign or live.
    match unsafe { by_address::usable_size(block.cast()) } {
        // SAFETY: `block` is foreign, as every other live block has bytes.
        0 if !block.is_null() => unsafe { foreign::usable_size(block) },
        size => size,
    }
}

/// Exports functions of this module by the C library's own names.
macro_rules! of_the_c_library {
    ($($name:literal $other:ident ($($argument:ident: $kind:ty),*) $(-> $result:ty)? = $function:ident;)*) => {
        $(
            /// # Safety
            /// As for the function without the prefix.
            #[unsafe(export_name = $name)]
            unsafe extern "C" fn $other($($argument: $kind),*) $(-> $result)? {
                #[allow(unused_unsafe, reason = "some of them are safe")]
                // SAFETY: the caller keeps the contract of the function without the prefix.
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
