//! Linux, through libc.

use core::ffi::{CStr, c_int, c_uint, c_ulong, c_void};
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::inject::{Call, fails};
use super::list::List;
use super::text::CPath;
use super::{Remapped, warn};
use crate::arch::{RseqArea, SIGNATURE};

/// The largest pages of any Linux that this is for, and a unit of the layer above.
const MAX_PAGE_SIZE: usize = 64 << 10;

/// Restores `errno` when dropped: a caller of `malloc` does not expect it to change, a signal handler even less.
pub(super) struct SavedErrno(c_int);

impl SavedErrno {
    pub(super) fn new() -> SavedErrno {
        // SAFETY: the address of this thread's `errno` is always valid.
        SavedErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for SavedErrno {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// Reserves `len` bytes of address space, whole pages, on a page boundary and inaccessible. Without `MAP_NORESERVE`: the kernel
/// does not account for what is inaccessible, and shall refuse to commit more than the machine has.
pub(crate) fn reserve(len: usize) -> Option<NonNull<u8>> {
    if fails(Call::Mmap) {
        return None;
    }
    let _errno = SavedErrno::new();
    // The kernel aligns to its own pages, which may be smaller than those we were told to assume.
    let page = page_size();
    let excess = page - system_page_size();
    let (mapped_len, flags) = (len.checked_add(excess)?, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), mapped_len, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let before = mapped.addr().wrapping_neg() & (page - 1);
    // SAFETY: both ends of a mapping that was made longer by as much; nobody has it yet.
    unsafe {
        for (from, len) in [(0, before), (before + len, excess - before)] {
            if len > 0 {
                libc::munmap(mapped.add(from), len);
            }
        }
        NonNull::new(mapped.add(before).cast())
    }
}

/// In debug builds: that there are only whole pages in a range.
#[track_caller]
fn debug_assert_pages(address: NonNull<u8>, len: usize) {
    let page = page_size();
    debug_assert!(
        address.addr().get().is_multiple_of(page) && len.is_multiple_of(page),
        "{len} bytes at {address:p} are not whole pages"
    );
}

/// Gives back address space from [`reserve`].
///
/// # Safety
/// `address..address + len` lies in one reservation and nobody uses it any more.
pub(crate) unsafe fn unreserve(address: NonNull<u8>, len: usize) {
    debug_assert_pages(address, len);
    if fails(Call::Munmap) {
        return;
    }
    let _errno = SavedErrno::new();
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(address.as_ptr().cast(), len) };
}

/// Makes reserved pages readable and writable; they read as zero. False if the machine has no memory for them.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn commit(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let _errno = SavedErrno::new();
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's promise; rights are only added.
    !fails(Call::Mprotect) && unsafe { libc::mprotect(address.as_ptr().cast(), len, rights) == 0 }
}

/// Gives the memory of committed pages back; they read as zero from now on. False where the kernel refused.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead.
pub(crate) unsafe fn decommit(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let _errno = SavedErrno::new();
    let address: *mut c_void = address.as_ptr().cast();
    // SAFETY: the caller's promise.
    !fails(Call::Madvise) && unsafe { libc::madvise(address, len, libc::MADV_DONTNEED) == 0 }
}

/// Asks for transparent huge pages, or for none; in vain where the system has them switched off.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn prefer_huge_pages(address: NonNull<u8>, len: usize, huge: bool) {
    debug_assert_pages(address, len);
    let _errno = SavedErrno::new();
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the caller's promise; contents do not change.
    unsafe { libc::madvise(address.as_ptr().cast(), len, advice) };
}

/// Has the kernel take the memory of reserved pages from one of its nodes, as long as that has some, whichever CPU touches them
/// first. In vain where there is no such node, or the process may not; and not where it runs under a policy of its user's
/// (`numactl --interleave`), which this one would override.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn prefer_node(address: NonNull<u8>, len: usize, node: usize) {
    if fails(Call::Mbind) {
        return;
    }
    let _errno = SavedErrno::new();
    let mut mode = libc::MPOL_DEFAULT;
    let mut nodes = NodeMask::default();
    let Some(word) = nodes.get_mut(node / c_ulong::BITS as usize) else { return };
    *word = 1 << (node % c_ulong::BITS as usize);
    let nothing: *mut c_void = ptr::null_mut();
    // SAFETY: the mode is ours to be written. The kernel looks at one bit less than it is told of, and the mask has all of
    // these. Contents do not change.
    unsafe {
        let none: c_ulong = 0;
        let mode_of_thread = &raw mut mode;
        if libc::syscall(libc::SYS_get_mempolicy, mode_of_thread, nothing, none, nothing, none) == 0
            && mode == libc::MPOL_DEFAULT
        {
            let (prefer, bits) = (libc::MPOL_PREFERRED as c_ulong, MAX_NUMNODES);
            let address = address.as_ptr();
            libc::syscall(libc::SYS_mbind, address, len, prefer, &raw const nodes, bits, none);
        }
    }
}

/// Nodes that a kernel tells apart at most. (`CONFIG_NODES_SHIFT` is 10 or less.)
const MAX_NUMNODES: usize = 1024;
/// Nodes of the kernel, a bit each.
type NodeMask = [c_ulong; MAX_NUMNODES / c_ulong::BITS as usize];

/// Moves the pages at `from` to `to` without copying them; `from` stays committed and reads as zero.
///
/// # Safety
/// Both ranges are committed, on page boundaries, and do not overlap; the contents at `to` are dead.
pub(crate) unsafe fn remap(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> Remapped {
    debug_assert_pages(from, len);
    debug_assert_pages(to, len);
    if fails(Call::Mremap) {
        return Remapped::Refused;
    }
    let _errno = SavedErrno::new();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let (from, to): (*mut c_void, *mut c_void) = (from.as_ptr().cast(), to.as_ptr().cast());
    // SAFETY: the caller's promise; DONTUNMAP keeps the hole at `from` ours.
    if unsafe { libc::mremap(from, len, len, flags, to) != libc::MAP_FAILED } {
        return Remapped::Moved;
    }
    // SAFETY: the address of this thread's `errno` is always valid.
    if let libc::EINVAL | libc::ENOSYS | libc::EPERM = unsafe { *libc::__errno_location() } {
        // It knows no such call, or nobody may make it: nothing has changed.
        return Remapped::Refused;
    }
    // The kernel unmaps `to` before it looks whether it can do the rest: whether it may commit as much once more, and before
    // 6.17, whether `from` is one mapping. Then another thread may map something there at any moment. So what is mapped there
    // counts as another's, unless it is mapped here.
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing that is mapped is replaced; what kernels before 4.17 map elsewhere, nobody has yet.
    unsafe {
        let mapped = libc::mmap(to, len, rights, flags, -1, 0);
        if mapped != to && mapped != libc::MAP_FAILED {
            libc::munmap(mapped, len);
        }
        if mapped == to { Remapped::Refused } else { Remapped::Lost }
    }
}

/// Sleeps while `word` holds `expected`; may return at any time.
#[cfg(not(loom))]
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32) {
    let _errno = SavedErrno::new();
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let forever: *const libc::timespec = ptr::null();
    // SAFETY: the word outlives the call, and the kernel only reads it.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, forever) };
}

/// Wakes one sleeper of [`futex_wait`].
#[cfg(not(loom))]
pub(crate) fn futex_wake_one(word: &AtomicU32) {
    let _errno = SavedErrno::new();
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the address only names a queue.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1) };
}

/// Lets other threads run.
pub(crate) fn yield_now() {
    // SAFETY: no arguments; it cannot fail on Linux.
    unsafe { libc::sched_yield() };
}

/// Lets other threads run for so long.
pub(crate) fn sleep_microseconds(count: u32) {
    let _errno = SavedErrno::new();
    // SAFETY: no memory of ours.
    unsafe { libc::usleep(count) };
}

/// The CPU this thread runs on, at the time of asking. No system call, where the kernel has a page to read it from.
pub(crate) fn current_cpu() -> usize {
    let _errno = SavedErrno::new();
    // SAFETY: no arguments, and no lock.
    let cpu = unsafe { libc::sched_getcpu() };
    usize::try_from(cpu).unwrap_or(0)
}

/// The CPU this thread runs on, and its node, at the time of asking.
pub(crate) fn current_cpu_and_node() -> (usize, usize) {
    let (mut cpu, mut node) = (0u32, 0u32);
    let _errno = SavedErrno::new();
    let nothing: *mut c_void = ptr::null_mut();
    // SAFETY: both words are ours to be written; the third argument is unused since Linux 2.6.24.
    unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, nothing) };
    (cpu as usize, node as usize)
}

/// An open file. It is opened, read, written and closed by bare system calls: those of the C library are where a thread may be
/// cancelled (`pthread_cancel`), which must not be in the midst of a slow path.
pub(crate) struct File(pub(super) c_int);

impl File {
    fn to_read(path: fmt::Arguments<'_>) -> Option<File> {
        let path = CPath::new(path)?;
        let _errno = SavedErrno::new();
        File::open(&path, libc::O_RDONLY, 0)
    }

    /// Opens a file; a new one with these rights. Where it cannot, `errno` says why.
    pub(super) fn open(path: &CPath, flags: c_int, rights: c_uint) -> Option<File> {
        let flags = flags | libc::O_CLOEXEC;
        // SAFETY: the path ends in a null byte.
        let file = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.0.as_ptr(), flags, rights)
        };
        (file >= 0).then(|| File(file as c_int))
    }

    /// What comes next, as far as there is room for it; nothing at the end.
    fn read<'a>(&self, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let _errno = SavedErrno::new();
        // SAFETY: the room is ours and its length is given.
        let len = unsafe { libc::syscall(libc::SYS_read, self.0, room.as_mut_ptr(), room.len()) };
        usize::try_from(len).ok().and_then(|len| room.get(..len))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _errno = SavedErrno::new();
        // SAFETY: the file is ours.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}

/// The text of a file, as far as there is room for it. `None` where it cannot be read, or is no text.
pub(crate) fn read<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a str> {
    core::str::from_utf8(read_bytes(path, room)?).ok()
}

/// As [`read`], of a file that need not be text.
pub(crate) fn read_bytes<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a [u8]> {
    File::to_read(path)?.read(room)
}

/// Has `each` called with each range of the list of numbers in a file, such as `/sys/devices/system/cpu/possible`, by its first
/// and last number. `None` where there is no such file, or something else in it; some ranges may have been passed on then.
pub(crate) fn list(path: fmt::Arguments<'_>, mut each: impl FnMut(usize, usize)) -> Option<()> {
    let file = File::to_read(path)?;
    let mut list = List::default();
    loop {
        let mut room = [0u8; 256];
        let text = file.read(&mut room)?;
        if text.is_empty() {
            return list.end(&mut each);
        }
        text.iter().try_for_each(|byte| list.push(*byte, &mut each))?;
    }
}

/// Registers this thread's `struct rseq`; false where the kernel refuses.
///
/// # Safety
/// The area stays valid until [`unregister_rseq`] or the end of the thread.
pub(crate) unsafe fn register_rseq(area: *mut RseqArea) -> bool {
    let _errno = SavedErrno::new();
    // SAFETY: the caller's promise.
    !fails(Call::Rseq)
        && unsafe { libc::syscall(libc::SYS_rseq, area, size_of::<RseqArea>(), 0, SIGNATURE) == 0 }
}

/// Takes back what [`register_rseq`] did.
///
/// # Safety
/// The same area, on the same thread.
pub(crate) unsafe fn unregister_rseq(area: *mut RseqArea) {
    const UNREGISTER: c_int = 1;
    let _errno = SavedErrno::new();
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_rseq, area, size_of::<RseqArea>(), UNREGISTER, SIGNATURE) };
}

/// Has `hook` called when this thread ends; false where the C library has no key left. The hook's argument means
/// nothing. May allocate.
pub(crate) fn at_thread_exit(hook: unsafe extern "C" fn(*mut c_void)) -> bool {
    /// The key plus one; 0 before it was made.
    static KEY: AtomicU32 = AtomicU32::new(0);
    let _errno = SavedErrno::new();
    // SAFETY: creating and setting a key of ours; a second key made in a race is only wasted.
    unsafe {
        let mut key = KEY.load(Ordering::Relaxed);
        if key == 0 {
            let mut made: libc::pthread_key_t = 0;
            if libc::pthread_key_create(&raw mut made, Some(hook)) != 0 {
                return false;
            }
            key = made as u32 + 1;
            KEY.store(key, Ordering::Relaxed);
        }
        let not_null = ptr::without_provenance(1);
        libc::pthread_setspecific((key - 1) as libc::pthread_key_t, not_null) == 0
    }
}

/// Has these functions called at each fork: before it, and after it in the parent and in the child.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: functions that may be called there. Without memory to note them they are not.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Whether this thread has any signal blocked, as it has in most handlers.
pub(crate) fn has_signals_blocked() -> bool {
    let _errno = SavedErrno::new();
    let mut mask = 0u64;
    let nothing: *const u64 = ptr::null();
    let length = size_of_val(&mask);
    // SAFETY: the mask is ours to be written, and as long as the kernel is told.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, nothing, &raw mut mask, length)
            != 0
            || mask != 0
    }
}

/// A thread that [`spawn`] made.
pub(crate) struct Thread(libc::pthread_t);

// SAFETY: a name of a thread, which some C libraries have as a pointer; any thread may use it.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

/// Starts a thread that runs `body` with `argument`, on a stack of so many bytes; `None` where there can be no more. May
/// allocate.
pub(crate) fn spawn(
    stack: usize,
    body: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Option<Thread> {
    if fails(Call::Clone) {
        return None;
    }
    let _errno = SavedErrno::new();
    // SAFETY: attributes and a thread that are ours to be written.
    unsafe {
        let (mut attributes, mut thread) = (core::mem::zeroed(), core::mem::zeroed());
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setstacksize(&raw mut attributes, stack);
        let result = libc::pthread_create(&raw mut thread, &raw const attributes, body, argument);
        libc::pthread_attr_destroy(&raw mut attributes);
        (result == 0).then_some(Thread(thread))
    }
}

impl Thread {
    /// Waits until the thread has ended.
    pub(crate) fn join(self) {
        // SAFETY: a thread that nobody else joins.
        unsafe { libc::pthread_join(self.0, ptr::null_mut()) };
    }
}

/// Names this thread; what the kernel has no room for is cut off.
pub(crate) fn name_thread(name: &CStr) {
    let _errno = SavedErrno::new();
    // SAFETY: the name ends in a null byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// This thread's number for the kernel.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no arguments; it cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Sends a signal to a thread of this process; false where there is no such thread, or the kernel refuses: it does so when
/// the user has too many signals queued (`RLIMIT_SIGPENDING`).
pub(crate) fn signal_thread(id: i32, signal: c_int) -> bool {
    let _errno = SavedErrno::new();
    // SAFETY: numbers only; the thread is of this process or gone.
    !fails(Call::Tgkill)
        && unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, signal) == 0 }
}

/// Whether `signal` is one that the C library leaves to programs for their own use.
pub(crate) fn is_realtime_signal(signal: c_int) -> bool {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal)
}

/// Installs `handler` for a signal: the one wanted, or the highest real-time signal that nobody handles. `None` where that is taken,
/// or the kernel refuses. It runs on the stack of the thread, as those for handlers are too small for a report: Rust's have 8 KiB.
pub(crate) fn take_signal(wanted: Option<c_int>, handler: extern "C" fn(c_int)) -> Option<c_int> {
    let _errno = SavedErrno::new();
    let take = |signal: &c_int| {
        // SAFETY: zeroed actions are valid ones; the handler is a function that keeps to what handlers may do.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            let got = libc::sigaction(*signal, ptr::null(), &raw mut action);
            if got != 0 || action.sa_sigaction != libc::SIG_DFL {
                return false;
            }
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(*signal, &raw const action, ptr::null_mut()) == 0
        }
    };
    match wanted {
        Some(signal) => Some(signal).filter(take),
        None => (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(take),
    }
}

/// The signal mask that this thread had before, to be restored when dropped.
pub(crate) struct OldMask(libc::sigset_t);

/// Blocks all signals on this thread.
pub(crate) fn block_signals() -> OldMask {
    // SAFETY: a set that is ours.
    unsafe {
        let mut all = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        change_mask(libc::SIG_SETMASK, &all)
    }
}

/// Admits `signal`, which is blocked, on this thread.
pub(crate) fn admit_signal(signal: c_int) -> OldMask {
    // SAFETY: a set that is ours.
    unsafe {
        let mut one = core::mem::zeroed();
        libc::sigemptyset(&raw mut one);
        libc::sigaddset(&raw mut one, signal);
        change_mask(libc::SIG_UNBLOCK, &one)
    }
}

fn change_mask(how: c_int, set: &libc::sigset_t) -> OldMask {
    // SAFETY: two sets that can be read and written; it cannot fail.
    unsafe {
        let mut old = core::mem::zeroed();
        libc::pthread_sigmask(how, set, &raw mut old);
        OldMask(old)
    }
}

impl Drop for OldMask {
    fn drop(&mut self) {
        // SAFETY: a set that the kernel filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// CPUs, a bit each.
pub(crate) type CpuMask = [u64; 16];

/// CPUs that the main thread may run on.
pub(crate) fn affinity() -> CpuMask {
    let _errno = SavedErrno::new();
    let mut mask = CpuMask::default();
    let length = size_of::<CpuMask>();
    // SAFETY: the mask is ours and its length is given.
    unsafe { libc::syscall(libc::SYS_sched_getaffinity, libc::getpid(), length, &raw mut mask) };
    mask
}

/// Restarts the critical section that is running on `cpu`, if one is; what was stored before this call is seen by the
/// sections that start after. False where this thread may not even run there.
pub(crate) fn restart_sections_on(cpu: usize) -> bool {
    let _errno = SavedErrno::new();
    restart_by_membarrier(cpu) || restart_by_visit(cpu)
}

/// Since Linux 5.10.
fn restart_by_membarrier(cpu: usize) -> bool {
    const FLAG_CPU: c_int = 1;
    const EXPEDITED_RSEQ: c_int = 1 << 7;
    const REGISTER_EXPEDITED_RSEQ: c_int = 1 << 8;
    // SAFETY: numbers only. Registering a second time changes nothing.
    !fails(Call::Membarrier)
        && unsafe {
            libc::syscall(libc::SYS_membarrier, REGISTER_EXPEDITED_RSEQ, 0, 0) == 0
                && libc::syscall(libc::SYS_membarrier, EXPEDITED_RSEQ, FLAG_CPU, cpu) == 0
        }
}

/// While this thread runs on a CPU, no other does, and whose section was preempted by that starts again.
fn restart_by_visit(cpu: usize) -> bool {
    const THIS_THREAD: c_int = 0;
    let (mut before, mut there) = (CpuMask::default(), CpuMask::default());
    let Some(word) = there.get_mut(cpu / 64) else { return false };
    *word = 1 << (cpu % 64);
    let length = size_of::<CpuMask>();
    // SAFETY: both masks are ours, and as long as the kernel is told.
    unsafe {
        let sys = libc::syscall;
        sys(libc::SYS_sched_getaffinity, THIS_THREAD, length, &raw mut before) > 0
            && sys(libc::SYS_sched_setaffinity, THIS_THREAD, length, &raw const there) == 0
            // If this fails the thread stays there, which is no harm but to speed.
            && sys(libc::SYS_sched_setaffinity, THIS_THREAD, length, &raw const before) == 0
    }
}

/// Bytes of a page: what the kernel says, or more, where a test wants to see larger pages (`HAYLOFT_PAGE_SIZE`).
pub(crate) fn page_size() -> usize {
    /// 0 before it was looked up.
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: a number that never changes once it is not 0, and guards nothing.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            let size = wanted_page_size().unwrap_or_else(system_page_size);
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// Bytes of a page, as the kernel says.
pub(crate) fn system_page_size() -> usize {
    // SAFETY: a number only; it cannot fail.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[cold]
fn wanted_page_size() -> Option<usize> {
    let text = env(c"HAYLOFT_PAGE_SIZE")?;
    let size = larger_pages(text, system_page_size());
    if size.is_none() {
        warn(format_args!(
            "HAYLOFT_PAGE_SIZE is no power of two from the system's up to {MAX_PAGE_SIZE}; ignored"
        ));
    }
    size
}

/// The number in `text`, if pages can be as large where those of the system have `least` bytes.
fn larger_pages(text: &[u8], least: usize) -> Option<usize> {
    let size: usize = core::str::from_utf8(text).ok()?.parse().ok()?;
    (size.is_power_of_two() && (least..=MAX_PAGE_SIZE).contains(&size)).then_some(size)
}

/// A clock for decay, in milliseconds; coarse, and no system call.
pub(crate) fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is ours to be written; the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The value of an environment variable; valid until the program changes its environment. None, if the program has rights that who
/// started it does not have, who must not have it open files then, or run out of memory.
pub(crate) fn env(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: `getenv` reads the environment as any library's start-up does; the value is read at once by our callers.
    unsafe {
        if libc::getauxval(libc::AT_SECURE) != 0 {
            return None;
        }
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

/// Writes to an open file; false where it takes no more.
pub(crate) fn write_all(file: c_int, mut bytes: &[u8]) -> bool {
    let _errno = SavedErrno::new();
    while !bytes.is_empty() {
        // SAFETY: the slice is readable for its length.
        let len = unsafe { libc::syscall(libc::SYS_write, file, bytes.as_ptr(), bytes.len()) };
        match usize::try_from(len) {
            Ok(len) if len > 0 => bytes = bytes.get(len..).unwrap_or_default(),
            // SAFETY: it may be read anywhere.
            Err(_) if unsafe { *libc::__errno_location() } == libc::EINTR => {}
            _ => return false,
        }
    }
    true
}

/// Maps a new file of so many zero bytes, which the user may read and this process write, its children not; `None` where that
/// cannot be done. Nothing unmaps it.
pub(crate) fn share(path: fmt::Arguments<'_>, len: usize) -> Option<NonNull<u8>> {
    let path = CPath::new(path)?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    let unlink = || unsafe { libc::unlink(path.0.as_ptr().cast()) };
    // One that a process of the same number left behind.
    unlink();
    let memory = map_all(&File::open(&path, flags, 0o600)?, len);
    if memory.is_none() {
        unlink();
    }
    memory
}

/// Makes a new file so long and maps it.
fn map_all(file: &File, len: usize) -> Option<NonNull<u8>> {
    let bytes = libc::off_t::try_from(len).ok()?;
    // With memory behind all of it: where the file system is full, writing would end the process by SIGBUS.
    // SAFETY: numbers only.
    let reserve = || unsafe { libc::posix_fallocate(file.0, 0, bytes) };
    while let error @ 1.. = reserve() {
        if error != libc::EINTR {
            return None;
        }
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping of our file, at an address of the kernel's choice.
    unsafe {
        let address = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.0, 0);
        if address == libc::MAP_FAILED {
            return None;
        }
        // In vain where the kernel refuses: a child leaves it alone.
        libc::madvise(address, len, libc::MADV_DONTFORK);
        NonNull::new(address.cast())
    }
}

/// Takes a file away, if it is there.
pub(crate) fn remove(path: fmt::Arguments<'_>) {
    let Some(path) = CPath::new(path) else { return };
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    unsafe { libc::unlink(path.0.as_ptr().cast()) };
}

/// This process's number.
pub(crate) fn process_id() -> i32 {
    // SAFETY: no arguments; it cannot fail.
    unsafe { libc::getpid() }
}

/// Has `hook` called when the program ends by `exit` or by returning from `main`.
pub(crate) fn at_exit(hook: extern "C" fn()) {
    // SAFETY: a function that lives as long as the program.
    unsafe { libc::atexit(hook) };
}

/// Ends the process by `SIGABRT`.
pub(super) fn abort() -> ! {
    // SAFETY: `abort` may be called anywhere.
    unsafe { libc::abort() }
}

#[cfg(test)]
mod tests {
    use super::larger_pages;

    #[test]
    fn page_sizes() {
        assert_eq!(larger_pages(b"16384", 4096), Some(16384));
        assert_eq!(larger_pages(b"65536", 65536), Some(65536));
        for (wrong, least) in [("4096", 16384), ("131072", 4096), ("12288", 4096), ("", 4096)] {
            assert_eq!(larger_pages(wrong.as_bytes(), least), None, "{wrong}");
        }
    }
}
