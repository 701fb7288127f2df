//! The functions of `include/hayloft.h`, which documents them.

use core::alloc::Layout;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use hayloft_core::by_address;
use hayloft_core::cache::{Cache, CacheError, CacheFlags};
use hayloft_core::heap;
use hayloft_core::profile;
use hayloft_core::report::{self, Format};
use hayloft_core::stats::{self, CacheStats, Stats};
use hayloft_core::tag::{self, Tag};
use hayloft_core::thread::{self, Total};

use crate::errno::{fail, or_no_memory};

// `tests/c/api.c` checks that the header agrees.
const _: () = assert!(size_of::<Stats>() == 176 && size_of::<CacheStats>() == 184);

/// The `HAYLOFT_CACHE_*` flags of the header, in the order of their bits.
const FLAGS: [CacheFlags; 4] =
    [CacheFlags::NO_MERGE, CacheFlags::ZERO, CacheFlags::HWCACHE_ALIGN, CacheFlags::PANIC_ON_LEAK];

/// The formats of `hayloft_stats_write`, in the order of the header's numbers.
const FORMATS: [Format; 4] = [Format::Slabinfo, Format::OpenMetrics, Format::Json, Format::Table];

#[unsafe(no_mangle)]
extern "C" fn hayloft_alloc_nolock(size: usize) -> *mut c_void {
    or_no_memory(by_address::alloc_nolock(size))
}

/// # Safety
/// As for `free`.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_free_nolock(block: *mut c_void) {
    // SAFETY: the caller guarantees that `block` is null or a live block of this allocator.
    unsafe { by_address::free_nolock(block.cast()) }
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_trim() -> usize {
    heap::trim()
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_barrier() {
    heap::barrier();
}

/// # Safety
/// `to` is valid for writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_stats(to: *mut Stats) {
    // SAFETY: the caller guarantees that `to` is valid for writes.
    unsafe { to.write(stats::gather()) };
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_stats_write(file: c_int, format: c_uint) -> c_int {
    let Some(format) = FORMATS.get(format as usize) else {
        fail(libc::EINVAL);
        return -1;
    };
    if report::write(file, *format) {
        0
    } else {
        fail(libc::EIO);
        -1
    }
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_profile_start(mean: usize) -> c_int {
    if profile::start(if mean == 0 { profile::DEFAULT_MEAN } else { mean }) {
        0
    } else {
        fail(libc::ENOMEM);
        -1
    }
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_profile_stop() {
    profile::stop();
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_profile_write(file: c_int) -> c_int {
    if profile::write_to(file) {
        0
    } else {
        fail(libc::EIO);
        -1
    }
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_profile_mark() -> c_uint {
    profile::mark().number()
}

#[unsafe(no_mangle)]
extern "C" fn hayloft_profile_write_growth(mark: c_uint, file: c_int) -> c_int {
    if profile::write_growth_to(profile::Mark::from_number(mark), file) {
        0
    } else {
        fail(libc::EIO);
        -1
    }
}

/// # Safety
/// `name` is null or a null-terminated string.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_tag_enter(name: *const c_char) -> c_uint {
    let tag = if name.is_null() {
        Tag::NONE
    } else {
        // SAFETY: the caller guarantees that `name` is null-terminated.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        let valid = name.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        Tag::named(valid)
    };
    tag::replace(tag).number()
}

/// # Safety
/// [`hayloft_tag_enter`] returned `before`.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_tag_leave(before: c_uint) {
    // SAFETY: the caller guarantees that the number was returned, and so that it is one of a tag.
    tag::replace(unsafe { Tag::from_number(before) });
}

/// # Safety
/// `error` is null or valid for writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_thread_allocated(error: *mut u64) -> u64 {
    // SAFETY: the caller guarantees the pointer.
    unsafe { bytes_of(thread::allocated(), error) }
}

/// # Safety
/// As for [`hayloft_thread_allocated`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_thread_freed(error: *mut u64) -> u64 {
    // SAFETY: the caller guarantees the pointer.
    unsafe { bytes_of(thread::freed(), error) }
}

/// # Safety
/// As for [`hayloft_thread_allocated`].
unsafe fn bytes_of(total: Total, error: *mut u64) -> u64 {
    if !error.is_null() {
        // SAFETY: the caller guarantees that the pointer is valid for writes, unless it is null.
        unsafe { error.write(total.error) };
    }
    total.bytes
}

/// # Safety
/// `name` is a null-terminated string.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_create(
    name: *const c_char,
    size: usize,
    align: usize,
    flags: c_uint,
) -> *mut Cache {
    let room: *mut Cache = or_no_memory(by_address::alloc(size_of::<Cache>())).cast();
    if room.is_null() {
        return room;
    }
    // SAFETY: the caller guarantees that `name` is null-terminated. `room` is a fresh block as
    // large as a cache, and is freed at most once.
    unsafe {
        match create(name, size, align, flags) {
            Ok(cache) => {
                room.write(cache);
                room
            }
            Err(error) => {
                by_address::free(room.cast());
                fail(error);
                ptr::null_mut()
            }
        }
    }
}

/// # Safety
/// As for [`hayloft_cache_create`].
unsafe fn create(
    name: *const c_char,
    size: usize,
    align: usize,
    flags: c_uint,
) -> Result<Cache, c_int> {
    // SAFETY: the caller guarantees that `name` is null-terminated.
    let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| libc::EINVAL)?;
    let align = if align == 0 { align_of::<usize>() } else { align };
    let layout = Layout::from_size_align(size, align).map_err(|_| libc::EINVAL)?;
    if flags >> FLAGS.len() != 0 {
        return Err(libc::EINVAL);
    }
    let wanted = FLAGS.into_iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0);
    let flags = wanted.fold(CacheFlags::default(), |flags, (_, flag)| flags | flag);
    Cache::builder(name, layout).flags(flags).build().map_err(|error| match error {
        CacheError::NameTaken => libc::EEXIST,
        CacheError::TooMany => libc::ENOSPC,
        CacheError::OutOfMemory => libc::ENOMEM,
        _ => libc::EINVAL,
    })
}

/// # Safety
/// `cache` was created by [`hayloft_cache_create`] and not destroyed. No other thread uses it
/// during the call.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_destroy(cache: *mut Cache) -> c_int {
    // SAFETY: the caller guarantees that `cache` is live and used by no other thread. The value
    // moved out of it is either moved back, or destroyed before its memory is freed.
    unsafe {
        match cache.read().destroy() {
            Ok(()) => {
                by_address::free(cache.cast());
                0
            }
            Err(error) => {
                cache.write(error.into_cache());
                fail(libc::EBUSY);
                -1
            }
        }
    }
}

/// # Safety
/// `cache` was created by [`hayloft_cache_create`] and not destroyed.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_alloc(cache: *const Cache) -> *mut c_void {
    // SAFETY: the caller guarantees that `cache` is live.
    or_no_memory(unsafe { (*cache).alloc() }.map_or(ptr::null_mut(), NonNull::as_ptr))
}

/// # Safety
/// As for [`hayloft_cache_alloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_alloc_nolock(cache: *const Cache) -> *mut c_void {
    // SAFETY: the caller guarantees that `cache` is live.
    or_no_memory(unsafe { (*cache).alloc_nolock() }.map_or(ptr::null_mut(), NonNull::as_ptr))
}

/// # Safety
/// As for [`hayloft_cache_alloc`]. `object` is null, or a live object of that cache which is not
/// used afterwards.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_free(cache: *const Cache, object: *mut c_void) {
    if let Some(object) = NonNull::new(object.cast()) {
        // SAFETY: the caller guarantees that `object` is a live object of `cache`.
        unsafe { (*cache).free(object) };
    }
}

/// # Safety
/// As for [`hayloft_cache_free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_free_nolock(cache: *const Cache, object: *mut c_void) {
    if let Some(object) = NonNull::new(object.cast()) {
        // SAFETY: the caller guarantees that `object` is a live object of `cache`.
        unsafe { (*cache).free_nolock(object) };
    }
}

/// # Safety
/// As for [`hayloft_cache_alloc`]. `to` is valid for writes of `count` pointers.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_alloc_bulk(
    cache: *const Cache,
    to: *mut MaybeUninit<NonNull<u8>>,
    count: usize,
) -> usize {
    if count == 0 {
        return 0;
    }
    // SAFETY: the caller guarantees that `cache` is live, and that `to` has room for `count`
    // pointers.
    unsafe { (*cache).alloc_bulk(core::slice::from_raw_parts_mut(to, count)) }
}

/// # Safety
/// As for [`hayloft_cache_free`]. `objects` points to `count` objects, none of them null.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_free_bulk(
    cache: *const Cache,
    objects: *const NonNull<u8>,
    count: usize,
) {
    if count > 0 {
        // SAFETY: the caller guarantees that `cache` is live, and that `objects` points to `count`
        // live objects of it.
        unsafe { (*cache).free_bulk(core::slice::from_raw_parts(objects, count)) };
    }
}

/// # Safety
/// As for [`hayloft_cache_alloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_shrink(cache: *const Cache) -> usize {
    // SAFETY: the caller guarantees that `cache` is live.
    unsafe { (*cache).shrink() }
}

/// # Safety
/// As for [`hayloft_cache_alloc`]. `to` is valid for writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn hayloft_cache_stats(cache: *const Cache, to: *mut CacheStats) {
    // SAFETY: the caller guarantees that `cache` is live and that `to` is valid for writes.
    unsafe { to.write((*cache).stats()) };
}
