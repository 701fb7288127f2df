//! No restartable sequences: another architecture, or Miri. Every operation misses, so allocations
//! take the slow path, and the fallback backend there.

extern crate std;

use super::{Locals, RseqArea};
use core::ffi::c_char;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

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

pub(crate) unsafe fn push_bulk(_class: usize, _from: *const *mut u8, _len: usize) -> usize {
    0
}

pub(crate) unsafe fn pop_bulk(
    _class: usize,
    _floor: usize,
    _to: *mut *mut u8,
    _len: usize,
    _each: u32,
) -> usize {
    0
}

pub(crate) unsafe fn open(_class: usize, _header: u64, _at: usize, _mark: u8) -> *mut u8 {
    ptr::null_mut()
}

pub(crate) unsafe fn recount(
    _class: usize,
    _count: u32,
    _at: usize,
    _mark: u8,
) -> (u32, u8, *mut u8) {
    (0, 0, ptr::null_mut())
}

pub(crate) unsafe fn widen(_class: usize, _last: u32) {}

pub(crate) fn lowest() -> &'static AtomicUsize {
    static LOWEST: AtomicUsize = AtomicUsize::new(1);
    &LOWEST
}

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

/// Returns the allocator's state for this thread. The reference must not leave the thread.
pub(crate) fn locals() -> &'static Locals {
    std::thread_local! {
        static LOCALS: Locals = const {
            Locals {
                readers: [AtomicUsize::new(0), AtomicUsize::new(0)],
                hotplug_readers: AtomicUsize::new(0),
                changing: AtomicUsize::new(0),
                acts_as: AtomicUsize::new(0),
                depth: AtomicU32::new(0),
                registration: AtomicU32::new(0),
                aborts: AtomicU32::new(0),
                is_service: AtomicU32::new(0),
                tag: AtomicU32::new(0),
                queueing: AtomicPtr::new(ptr::null_mut()),
                checked_stack: AtomicUsize::new(0),
                sampled: [const { [const { AtomicU64::new(0) }; 2] }; 2],
                #[cfg(feature = "thread-totals")]
                exact: [const { AtomicU64::new(0) }; 2],
                #[cfg(debug_assertions)]
                witness: [const { AtomicUsize::new(0) }; super::WITNESS_WORDS],
            }
        };
    }
    // SAFETY: the value needs no destructor, so it lives as long as its thread.
    LOCALS.with(|locals| unsafe { &*ptr::from_ref(locals) })
}

/// Makes a system call. Returns its result, or the negated error number. Keeps `errno`.
///
/// # Safety
/// The effect of the call with these arguments is sound.
#[cfg(not(miri))]
pub(crate) unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the caller guarantees that the call is sound; the address of this thread's `errno` is
    // always valid.
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

/// Returns null: the settings of a program are not found here.
pub(crate) fn program_settings() -> *const *const c_char {
    ptr::null()
}

/// Returns null: nothing is known of the C library.
#[cfg(not(miri))]
pub(crate) fn stream_locks() -> [*const (); 3] {
    [ptr::null(); 3]
}

/// Starts no thread and returns an error: nothing is known of the architecture.
///
/// # Safety
/// No requirements.
#[cfg(not(miri))]
pub(crate) unsafe fn start_thread(
    _flags: i32,
    _stack: *mut u8,
    _number: *mut u32,
    _pointer: *mut u8,
    _body: extern "C" fn(),
) -> isize {
    -(libc::ENOSYS as isize)
}

/// No probes: tracers are for programs on other architectures.
pub(crate) mod probes {
    #[inline(always)]
    pub(crate) fn is_traced() -> bool {
        false
    }

    pub(crate) fn alloc(_block: usize, _size: usize, _weighted: u64) {}

    pub(crate) fn free(_block: usize) {}
}

pub(crate) unsafe fn call_on_stack(
    _end: *mut u8,
    function: extern "C" fn(*mut core::ffi::c_void),
    argument: *mut core::ffi::c_void,
) {
    function(argument);
}
