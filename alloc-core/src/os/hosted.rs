//! A stand-in for Linux under Miri. Memory comes from the standard allocator and is committed from
//! the start.

extern crate std;

use core::ffi::{CStr, c_int, c_ulong, c_void};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use std::alloc::{GlobalAlloc, Layout, System};

use super::{ForkHooks, Remapped, Renewed};
use crate::arch::RseqArea;

const ALIGN: usize = 64 * 1024;

fn layout(len: usize) -> Option<Layout> {
    // Miri keeps a shadow of every byte, so reservations that Linux grants easily are refused here.
    Layout::from_size_align(len, ALIGN).ok().filter(|layout| layout.size() <= 64 << 20)
}

pub(crate) fn reserve(len: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout has a size other than 0.
    NonNull::new(unsafe { System.alloc_zeroed(layout(len)?) })
}

pub(crate) fn may_reserve(_len: usize) -> bool {
    true
}

pub(crate) fn reserve_near(_address: usize, len: usize) -> Option<NonNull<u8>> {
    reserve(len)
}

pub(crate) unsafe fn unreserve(_address: NonNull<u8>, _len: usize) {
    // The standard allocator cannot free part of an allocation, and the process is about to end.
}

pub(crate) unsafe fn commit(_address: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) unsafe fn let_read(_address: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) unsafe fn forbid(_address: NonNull<u8>, _len: usize) -> bool {
    false
}

#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) address: usize,
    pub(crate) is_write: Option<bool>,
    pub(crate) context: *const c_void,
}

pub(crate) fn explain_faults(_explain: fn(Fault) -> bool) {}

pub(crate) fn cpu_numbers() -> usize {
    1
}

pub(crate) fn has_little_address_space() -> bool {
    true
}

pub(crate) unsafe fn decommit(address: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller guarantees that the range is committed and its contents are dead.
    unsafe { address.write_bytes(0, len) };
    true
}

pub(crate) unsafe fn set_dumped(_address: NonNull<u8>, _len: usize, _dumped: bool) {}

pub(crate) unsafe fn prefer_huge_pages(_address: NonNull<u8>, _len: usize, _huge: bool) {}

pub(crate) unsafe fn collapse(_address: NonNull<u8>, _len: usize) -> bool {
    false
}

pub(crate) fn private_pages(_address: NonNull<u8>, _len: usize) -> Option<usize> {
    None
}

pub(crate) unsafe fn prefer_node(_address: NonNull<u8>, _len: usize, _node: usize) {}

pub(crate) unsafe fn renew(_address: NonNull<u8>, _len: usize) -> Renewed {
    Renewed::Kept
}

pub(crate) unsafe fn remap(_from: NonNull<u8>, _to: NonNull<u8>, _len: usize) -> Remapped {
    Remapped::Refused
}

pub(crate) fn futex_wait(word: &AtomicU32, expected: u32) {
    wait(word, expected, core::ptr::null());
}

pub(crate) fn futex_wait_for(word: &AtomicU32, expected: u32, milliseconds: u64) {
    let time = libc::timespec {
        tv_sec: (milliseconds / 1000) as libc::time_t,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as libc::c_long,
    };
    wait(word, expected, &raw const time);
}

fn wait(word: &AtomicU32, expected: u32, time: *const libc::timespec) {
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word outlives the call; Miri models this system call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, time) };
}

pub(crate) fn futex_wake_one(word: &AtomicU32) {
    wake(word, 1);
}

pub(crate) fn futex_wake_all(word: &AtomicU32) {
    wake(word, c_int::MAX);
}

fn wake(word: &AtomicU32, count: c_int) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the address only names a queue; Miri models this system call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, count) };
}

pub(crate) fn yield_now() {
    std::thread::yield_now();
}

pub(crate) fn sleep_microseconds(_count: u32) {
    std::thread::yield_now();
}

pub(crate) fn current_cpu() -> usize {
    0
}

pub(crate) fn current_cpu_and_node() -> (usize, usize) {
    (0, 0)
}

pub(crate) fn list(path: fmt::Arguments<'_>, mut each: impl FnMut(usize, usize)) -> Option<()> {
    // There is one CPU, on one node.
    let _ = path;
    each(0, 0);
    Some(())
}

pub(crate) fn read<'a>(path: fmt::Arguments<'_>, _room: &'a mut [u8]) -> Option<&'a str> {
    let _ = path;
    None
}

pub(crate) fn lines(
    path: fmt::Arguments<'_>,
    _room: &mut [u8],
    _each: &mut dyn FnMut(&mut [u8]),
) -> Option<()> {
    let _ = path;
    None
}

pub(crate) fn copy_memory(_from: usize, _to: &mut [u8]) -> bool {
    false
}

pub(crate) fn auxiliary(_kind: c_ulong) -> usize {
    0
}

pub(crate) fn unix_nanoseconds() -> u64 {
    0
}

pub(crate) fn read_bytes<'a>(path: fmt::Arguments<'_>, _room: &'a mut [u8]) -> Option<&'a [u8]> {
    let _ = path;
    None
}

pub(crate) unsafe fn register_rseq(_area: *mut RseqArea) -> bool {
    false
}

pub(crate) unsafe fn unregister_rseq(_area: *mut RseqArea) {}

pub(crate) struct PageMap;

impl PageMap {
    pub(crate) fn open() -> Option<PageMap> {
        None
    }

    pub(crate) fn read(&self, _address: usize, _room: &mut [u8]) -> bool {
        false
    }

    pub(crate) fn has_contents(_page: [u8; 8]) -> bool {
        true
    }
}

pub(crate) struct ThreadExit;

impl ThreadExit {
    pub(crate) const fn new(_hook: unsafe extern "C" fn(*mut c_void)) -> ThreadExit {
        ThreadExit
    }

    pub(crate) fn expect(&self) -> bool {
        false
    }
}

pub(crate) fn is_main_thread() -> bool {
    false
}

pub(crate) fn lock_streams() {}

pub(crate) fn unlock_streams() {}

pub(crate) fn renew_streams() {}

pub(crate) fn at_fork(_: &'static ForkHooks) {}

pub(crate) fn take_place_at_forks() {}

pub(crate) struct Thread(std::thread::JoinHandle<()>);

pub(crate) fn spawn(
    _stack: usize,
    body: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Option<Thread> {
    let argument = std::sync::atomic::AtomicPtr::new(argument);
    let run = move || {
        body(argument.into_inner());
    };
    std::thread::Builder::new().spawn(run).ok().map(Thread)
}

pub(crate) struct ThreadSlot(std::sync::Mutex<Option<Thread>>);

impl ThreadSlot {
    pub(crate) const fn new() -> ThreadSlot {
        ThreadSlot(std::sync::Mutex::new(None))
    }

    pub(crate) fn set(&self, thread: Option<Thread>) {
        *self.0.lock().expect("nobody panics with it") = thread;
    }

    pub(crate) fn pin(&self, _cpus: &CpuMask) -> bool {
        true
    }

    pub(crate) fn join(&self) {
        if let Some(thread) = self.0.lock().expect("nobody panics with it").take() {
            let _ = thread.0.join();
        }
    }
}

pub(crate) fn most_threads() -> usize {
    usize::MAX
}

pub(crate) fn schedule_as_the_process() {}

pub(crate) fn name_thread(_name: &CStr) {}

/// Every thread under Miri is one of the standard library.
pub(crate) mod bare {
    pub(crate) fn is_alive() -> bool {
        false
    }

    pub(crate) fn in_child() {}

    pub(crate) fn spawn(_stack: usize, _body: extern "C" fn()) -> bool {
        false
    }

    pub(crate) fn own_descriptors() -> bool {
        false
    }
}

pub(crate) fn thread_id() -> i32 {
    1
}

pub(crate) fn signal_thread(_id: i32, _signal: c_int) -> bool {
    true
}

pub(crate) struct Signal;

impl Signal {
    pub(crate) unsafe fn new(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) -> Signal {
        Signal
    }

    pub(crate) fn is_own(&self) -> bool {
        true
    }

    pub(crate) fn pass_on(&self) {}

    pub(crate) fn do_the_default(&self) {}
}

pub(crate) fn take_signal(
    _wanted: Option<c_int>,
    _handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
) -> Option<c_int> {
    None
}

pub(crate) struct OldMask;

pub(crate) fn block_signals() -> OldMask {
    OldMask
}

pub(crate) fn admit_signal(_signal: c_int) -> OldMask {
    OldMask
}

pub(crate) fn has_signals_blocked() -> bool {
    false
}

pub(crate) struct CpuMask;

impl CpuMask {
    pub(crate) fn one(_cpu: usize) -> CpuMask {
        CpuMask
    }

    pub(crate) fn contains(&self, cpu: usize) -> bool {
        cpu == 0
    }
}

pub(crate) fn affinity() -> CpuMask {
    CpuMask
}

pub(crate) fn restart_sections_on(_cpu: usize) -> bool {
    false
}

pub(crate) fn page_size() -> usize {
    system_page_size()
}

pub(crate) fn system_page_size() -> usize {
    4096
}

pub(crate) fn milliseconds() -> u64 {
    0
}

pub(crate) fn data_limit() -> Option<usize> {
    None
}

pub(crate) fn nanoseconds() -> u64 {
    0
}

pub(crate) fn minor_faults() -> Option<u64> {
    None
}

/// Identity of the only file under Miri, standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity;

pub(crate) fn identity(file: c_int) -> Option<Identity> {
    (file == 2).then_some(Identity)
}

pub(crate) fn duplicate(_file: c_int, _least: c_int) -> Option<c_int> {
    None
}

pub(crate) fn close(_file: c_int) {}

pub(crate) fn pid_namespace() -> u64 {
    0
}

pub(crate) fn replace(_path: fmt::Arguments<'_>, _write: impl FnOnce(c_int) -> bool) -> bool {
    false
}

pub(crate) fn share(_path: fmt::Arguments<'_>, _len: usize) -> Option<NonNull<u8>> {
    None
}

pub(crate) fn remove(_path: fmt::Arguments<'_>) {}

pub(crate) fn at_exit(_hook: extern "C" fn()) {}
