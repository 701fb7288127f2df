//! No restartable sequences: another architecture, Miri, or loom. Every operation misses, so the slow path is the
//! road, and the fallback backend the one behind it.

extern crate std;

use super::RseqArea;
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

pub(crate) const HAVE_RSEQ: bool = false;

#[cfg(not(miri))]
pub(crate) const SIGNATURE: u32 = 0;

#[inline(always)]
pub(crate) unsafe fn pop(_class: usize) -> *mut u8 {
    ptr::null_mut()
}

#[inline(always)]
pub(crate) unsafe fn push(_class: usize, _object: *mut u8) -> bool {
    false
}

#[inline(always)]
pub(crate) unsafe fn push_once(_class: usize, _object: *mut u8) -> bool {
    false
}

pub(crate) unsafe fn push_batch(_class: usize, _from: *const *mut u8, _len: usize) -> usize {
    0
}

pub(crate) unsafe fn pop_batch(
    _class: usize,
    _floor: usize,
    _to: *mut *mut u8,
    _len: usize,
) -> usize {
    0
}

pub(crate) unsafe fn open(_class: usize, _header: u64) {}

pub(crate) unsafe fn widen(_class: usize, _last: u32) {}

pub(crate) unsafe fn publish_region(_region: *mut u8) {}

pub(crate) unsafe fn publish_rseq_offset(_offset: isize) {}

pub(crate) fn libc_rseq() -> Option<isize> {
    None
}

pub(crate) fn add(word: &AtomicU64, more: u64) {
    word.fetch_add(more, Ordering::Relaxed);
}

pub(crate) fn cpu() -> Option<usize> {
    None
}

pub(crate) fn thread_pointer() -> *mut u8 {
    ptr::null_mut()
}

pub(crate) fn own_rseq() -> *mut RseqArea {
    ptr::null_mut()
}

/// A word of this thread that is zero at its start.
pub(crate) fn depth() -> *mut u32 {
    std::thread_local! {
        static DEPTH: Cell<u32> = const { Cell::new(0) };
    }
    DEPTH.with(Cell::as_ptr)
}

/// Makes a system call; returns its result, or the negated error number. Keeps `errno`.
///
/// # Safety
/// What the call does with these arguments is sound.
#[cfg(not(any(miri, loom)))]
pub(crate) unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the caller's promise; the address of this thread's `errno` is always valid.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let result =
            libc::syscall(number as libc::c_long, first, second, third, fourth, fifth, sixth);
        let result = if result == -1 { -(*errno as isize) } else { result as isize };
        *errno = before;
        result
    }
}
