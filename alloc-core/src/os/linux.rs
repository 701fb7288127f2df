//! Linux: bare system calls, and the C library where it has more to say than the kernel.
//!
//! The calls that slow paths make are made directly. The C library's functions for them may be
//! wrapped by somebody who allocates in the wrapper, or holds a lock there, and they are where a
//! thread can be cancelled; neither may happen in the midst of a slow path. Nor do bare calls touch
//! `errno`.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_long, c_uint, c_ulong, c_void};
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::inject::{Call, fails};
use super::list::List;
use super::text::CPath;
use super::{Remapped, env, ignored, vdso};
use crate::arch::{self, RseqArea, SIGNATURE};

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

/// Makes a system call.
///
/// # Errors
/// The kernel's error number.
///
/// # Safety
/// What the call does with these arguments is sound.
#[inline]
pub(super) unsafe fn call<const COUNT: usize>(
    number: c_long,
    arguments: [usize; COUNT],
) -> Result<usize, c_int> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = from;
    }
    // SAFETY: the caller's promise.
    let result = unsafe { arch::system_call(number as usize, all) };
    // The kernel has the last page of numbers for errors.
    if (-4095..0).contains(&result) { Err(-result as c_int) } else { Ok(result as usize) }
}

/// A number as the kernel takes it: negative ones extended to a word.
fn word(number: c_int) -> usize {
    number as isize as usize
}

/// Maps anonymous memory.
///
/// # Safety
/// As `mmap(2)`.
unsafe fn map(address: usize, len: usize, rights: c_int, flags: c_int) -> Result<*mut u8, c_int> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the caller's promise.
    let mapped =
        unsafe { call(libc::SYS_mmap, [address, len, word(rights), word(flags), word(-1), 0])? };
    Ok(ptr::with_exposed_provenance_mut(mapped))
}

/// Unmaps memory.
///
/// # Safety
/// As `munmap(2)`.
unsafe fn unmap(address: usize, len: usize) {
    // SAFETY: the caller's promise. It fails for want of mappings only; then the memory stays.
    let _ = unsafe { call(libc::SYS_munmap, [address, len]) };
}

/// Reserves `len` bytes of address space, whole pages, on a page boundary and inaccessible. Without `MAP_NORESERVE`: the kernel
/// does not account for what is inaccessible, and shall refuse to commit more than the machine has. Not for core files, where some
/// debuggers write all of it as zeros.
pub(crate) fn reserve(len: usize) -> Option<NonNull<u8>> {
    if fails(Call::Mmap) {
        return None;
    }
    // The kernel aligns to its own pages, which may be smaller than those we were told to assume.
    let page = page_size();
    let excess = page - system_page_size();
    let mapped_len = len.checked_add(excess)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let mapped = unsafe { map(0, mapped_len, libc::PROT_NONE, 0).ok()? };
    let before = mapped.addr().wrapping_neg() & (page - 1);
    // SAFETY: both ends of a mapping that was made longer by as much; nobody has it yet.
    unsafe {
        for (from, len) in [(0, before), (before + len, excess - before)] {
            if len > 0 {
                unmap(mapped.addr() + from, len);
            }
        }
        let reserved = NonNull::new(mapped.add(before))?;
        set_dumped(reserved, len, false);
        Some(reserved)
    }
}

/// Says whether memory is for core files.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn set_dumped(address: NonNull<u8>, len: usize, dumped: bool) {
    debug_assert_pages(address, len);
    let advice = if dumped { libc::MADV_DODUMP } else { libc::MADV_DONTDUMP };
    // SAFETY: the caller's promise; contents do not change.
    let _ = unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) };
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
    // SAFETY: the caller's promise.
    unsafe { unmap(address.addr().get(), len) };
}

/// Makes reserved pages readable and writable; they read as zero. False if the machine has no memory for them.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn commit(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let arguments = [address.addr().get(), len, word(rights)];
    // SAFETY: the caller's promise; rights are only added.
    let done = !fails(Call::Mprotect) && unsafe { call(libc::SYS_mprotect, arguments).is_ok() };
    if done {
        // SAFETY: the caller's promise.
        unsafe { set_dumped(address, len, true) };
    }
    done
}

/// Makes reserved pages readable; they read as zero, and take no memory. False where the kernel refused.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn let_read(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let arguments = [address.addr().get(), len, word(libc::PROT_READ)];
    // SAFETY: the caller's promise; rights are only added.
    !fails(Call::Mprotect) && unsafe { call(libc::SYS_mprotect, arguments).is_ok() }
}

/// Gives the memory of committed pages back; they read as zero from now on. False where the kernel refused.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead.
pub(crate) unsafe fn decommit(address: NonNull<u8>, len: usize) -> bool {
    /// As `MADV_DONTNEED`, of memory that is locked, too. Since Linux 5.18.
    const MADV_DONTNEED_LOCKED: c_int = 24;
    debug_assert_pages(address, len);
    let advise = |advice| {
        // SAFETY: the caller's promise.
        unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) }
    };
    // What is locked (`mlockall`) is an invalid argument.
    !fails(Call::Madvise)
        && match advise(libc::MADV_DONTNEED) {
            Err(libc::EINVAL) => advise(MADV_DONTNEED_LOCKED).is_ok(),
            result => result.is_ok(),
        }
}

/// Asks for transparent huge pages, or for none; in vain where the system has them switched off.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn prefer_huge_pages(address: NonNull<u8>, len: usize, huge: bool) {
    debug_assert_pages(address, len);
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the caller's promise; contents do not change.
    let _ = unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) };
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
    let mut mode = libc::MPOL_DEFAULT;
    let mut nodes = NodeMask::default();
    let Some(bits) = nodes.get_mut(node / c_ulong::BITS as usize) else { return };
    *bits = 1 << (node % c_ulong::BITS as usize);
    // SAFETY: the mode is ours to be written. The kernel looks at one bit less than it is told of, and the mask has all of
    // these. Contents do not change.
    unsafe {
        let of_thread = [(&raw mut mode).expose_provenance(), 0, 0, 0, 0];
        if call(libc::SYS_get_mempolicy, of_thread).is_ok() && mode == libc::MPOL_DEFAULT {
            let prefer = word(libc::MPOL_PREFERRED);
            let mask = (&raw const nodes).expose_provenance();
            let arguments = [address.addr().get(), len, prefer, mask, MAX_NUMNODES, 0];
            let _ = call(libc::SYS_mbind, arguments);
        }
    }
}

/// Nodes that a kernel tells apart at most. (`CONFIG_NODES_SHIFT` is 10 or less.)
const MAX_NUMNODES: usize = 1024;
/// Nodes of the kernel, a bit each.
type NodeMask = [c_ulong; MAX_NUMNODES / c_ulong::BITS as usize];

/// Maps committed pages anew, so that they are of one mapping with those around them again, whatever was moved there; they read as
/// zero. False where the kernel cannot, and then they must not be touched any more.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead.
pub(crate) unsafe fn renew(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's promise.
    !fails(Call::Mmap) && unsafe { map(address.addr().get(), len, rights, libc::MAP_FIXED).is_ok() }
}

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
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let (from, to) = (from.addr().get(), to.addr().get());
    // SAFETY: the caller's promise; DONTUNMAP keeps the hole at `from` ours.
    match unsafe { call(libc::SYS_mremap, [from, len, len, word(flags), to]) } {
        Ok(_) => return Remapped::Moved,
        // It knows no such call, or nobody may make it: nothing has changed.
        Err(libc::EINVAL | libc::ENOSYS | libc::EPERM) => return Remapped::Refused,
        Err(_) => {}
    }
    // The kernel unmaps `to` before it looks whether it can do the rest: whether it may commit as much once more, and before
    // 6.17, whether `from` is one mapping. Then another thread may map something there at any moment. So what is mapped there
    // counts as another's, unless it is mapped here.
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: nothing that is mapped is replaced; what kernels before 4.17 map elsewhere, nobody has yet.
    unsafe {
        match map(to, len, rights, libc::MAP_FIXED_NOREPLACE) {
            Ok(mapped) if mapped.addr() == to => Remapped::Refused,
            Ok(mapped) => {
                unmap(mapped.addr(), len);
                Remapped::Lost
            }
            Err(_) => Remapped::Lost,
        }
    }
}

/// Sleeps while `word` holds `expected`; may return at any time.
#[cfg(not(loom))]
pub(crate) fn futex_wait(futex: &AtomicU32, expected: u32) {
    wait(futex, expected, ptr::null());
}

/// As [`futex_wait`], for so many milliseconds at most.
#[cfg(not(loom))]
pub(crate) fn futex_wait_for(futex: &AtomicU32, expected: u32, milliseconds: u64) {
    let time = libc::timespec {
        tv_sec: (milliseconds / 1000) as libc::time_t,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as libc::c_long,
    };
    wait(futex, expected, &raw const time);
}

#[cfg(not(loom))]
fn wait(futex: &AtomicU32, expected: u32, time: *const libc::timespec) {
    let operation = word(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    let (address, time) = (futex.as_ptr().expose_provenance(), time.expose_provenance());
    // SAFETY: the word outlives the call, and the kernel only reads it and the time.
    let _ = unsafe { call(libc::SYS_futex, [address, operation, expected as usize, time]) };
}

/// As [`futex_wait`], for a word that the kernel clears when a thread ends.
#[cfg(not(loom))]
pub(super) fn futex_wait_shared(futex: &AtomicU32, expected: u32) {
    let address = futex.as_ptr().expose_provenance();
    let arguments = [address, word(libc::FUTEX_WAIT), expected as usize, 0];
    // SAFETY: the word outlives the call, and the kernel only reads it.
    let _ = unsafe { call(libc::SYS_futex, arguments) };
}

/// Wakes one sleeper of [`futex_wait`].
#[cfg(not(loom))]
pub(crate) fn futex_wake_one(futex: &AtomicU32) {
    wake(futex, 1);
}

/// Wakes all sleepers of [`futex_wait`].
#[cfg(not(loom))]
pub(crate) fn futex_wake_all(futex: &AtomicU32) {
    wake(futex, c_int::MAX);
}

#[cfg(not(loom))]
fn wake(futex: &AtomicU32, count: c_int) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let arguments = [futex.as_ptr().addr(), word(operation), word(count)];
    // SAFETY: the address only names a queue.
    let _ = unsafe { call(libc::SYS_futex, arguments) };
}

/// Lets other threads run.
pub(crate) fn yield_now() {
    // SAFETY: no arguments.
    let _ = unsafe { call(libc::SYS_sched_yield, []) };
}

/// Lets other threads run for so long; a signal handler ends it early.
pub(crate) fn sleep_microseconds(count: u32) {
    let time = libc::timespec {
        tv_sec: (count / 1_000_000).into(),
        tv_nsec: (count % 1_000_000 * 1000).into(),
    };
    // SAFETY: the time is only read.
    let _ = unsafe { call(libc::SYS_nanosleep, [(&raw const time).expose_provenance(), 0]) };
}

/// The CPU this thread runs on, at the time of asking. No system call, where the kernel has a page to read it from.
pub(crate) fn current_cpu() -> usize {
    current_cpu_and_node().0
}

/// The CPU this thread runs on, and its node, at the time of asking.
pub(crate) fn current_cpu_and_node() -> (usize, usize) {
    let (mut cpu, mut node) = (0u32, 0u32);
    if !vdso::current_cpu(&mut cpu, &mut node) {
        let (cpu, node) = (&raw mut cpu, &raw mut node);
        let arguments = [cpu.expose_provenance(), node.expose_provenance(), 0];
        // SAFETY: both words are ours to be written.
        let _ = unsafe { call(libc::SYS_getcpu, arguments) };
    }
    (cpu as usize, node as usize)
}

/// An open file. It is opened, read, written and closed by bare system calls: those of the C library are where a thread may be
/// cancelled (`pthread_cancel`), which must not be in the midst of a slow path.
pub(crate) struct File(pub(super) c_int);

impl File {
    fn to_read(path: fmt::Arguments<'_>) -> Option<File> {
        File::open(&CPath::new(path)?, libc::O_RDONLY, 0).ok()
    }

    /// Opens a file; a new one with these rights.
    ///
    /// # Errors
    /// The kernel's error number.
    pub(super) fn open(path: &CPath, flags: c_int, rights: c_uint) -> Result<File, c_int> {
        let (flags, path) = (flags | libc::O_CLOEXEC, path.0.as_ptr().expose_provenance());
        let arguments = [word(libc::AT_FDCWD), path, word(flags), rights as usize];
        // SAFETY: the path ends in a null byte.
        unsafe { call(libc::SYS_openat, arguments) }.map(|file| File(file as c_int))
    }

    /// What comes next, as far as there is room for it; nothing at the end.
    fn read<'a>(&self, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let arguments = [word(self.0), room.as_mut_ptr().expose_provenance(), room.len()];
        // SAFETY: the room is ours and its length is given.
        let len = unsafe { call(libc::SYS_read, arguments) };
        len.ok().and_then(|len| room.get(..len))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the file is ours.
        let _ = unsafe { call(libc::SYS_close, [word(self.0)]) };
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

/// Registers this thread's `struct rseq`; false where the kernel refuses. One that a handler has registered meanwhile is.
///
/// # Safety
/// The area stays valid until [`unregister_rseq`] or the end of the thread.
pub(crate) unsafe fn register_rseq(area: *mut RseqArea) -> bool {
    const REGISTER: usize = 0;
    // SAFETY: the caller's promise.
    !fails(Call::Rseq) && matches!(unsafe { rseq(area, REGISTER) }, Ok(_) | Err(libc::EBUSY))
}

/// Takes back what [`register_rseq`] did.
///
/// # Safety
/// The same area, on the same thread.
pub(crate) unsafe fn unregister_rseq(area: *mut RseqArea) {
    const UNREGISTER: usize = 1;
    // SAFETY: the caller's promise.
    let _ = unsafe { rseq(area, UNREGISTER) };
}

/// # Safety
/// As [`register_rseq`].
unsafe fn rseq(area: *mut RseqArea, flags: usize) -> Result<usize, c_int> {
    // SAFETY: numbers only.
    let [size, align] = [AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN]
        .map(|which| unsafe { libc::getauxval(which) } as usize);
    let arguments = [area.expose_provenance(), rseq_len(size, align), flags, SIGNATURE as usize];
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_rseq, arguments) }
}

/// Bytes of what the kernel knows of `struct rseq`, and its alignment: of the auxiliary vector since Linux 6.3.
const AT_RSEQ_FEATURE_SIZE: c_ulong = 27;
const AT_RSEQ_ALIGN: c_ulong = 28;

/// Returns as how long an area is to be registered, by what the kernel says it knows: all of that where there is room, so that
/// the kernel takes it for one of the second version of the interface; else as long as areas were at first.
fn rseq_len(size: usize, align: usize) -> usize {
    const FIRST: usize = 32;
    let len = size.next_multiple_of(align.max(1));
    let fits = align <= align_of::<RseqArea>() && len <= size_of::<RseqArea>();
    if fits { len.max(FIRST) } else { FIRST }
}

/// The version of the kernel, such as `6.18.5-generic`, as far as there is room for it.
#[cfg(target_arch = "aarch64")]
pub(crate) fn release(room: &mut [u8; 65]) -> &[u8] {
    // SAFETY: zeros are a valid value.
    let mut names: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: the names are ours to be written.
    let _ = unsafe { call(libc::SYS_uname, [(&raw mut names).expose_provenance()]) };
    for (to, from) in room.iter_mut().zip(names.release) {
        *to = from as u8;
    }
    CStr::from_bytes_until_nul(room).unwrap_or_default().to_bytes()
}

/// A hook for the ends of threads.
pub(crate) struct ThreadExit {
    /// The C library's key plus one; 0 before it was made.
    key: AtomicU32,
    hook: unsafe extern "C" fn(*mut c_void),
}

impl ThreadExit {
    /// The argument of the hook means nothing.
    pub(crate) const fn new(hook: unsafe extern "C" fn(*mut c_void)) -> ThreadExit {
        ThreadExit { key: AtomicU32::new(0), hook }
    }

    /// Has the hook called when this thread ends: the main one by `pthread_exit` only. False where
    /// the C library has no key left. May allocate.
    pub(crate) fn expect(&self) -> bool {
        let _errno = SavedErrno::new();
        // SAFETY: creating and setting a key of ours; a second key made in a race is only wasted.
        unsafe {
            let mut key = self.key.load(Ordering::Relaxed);
            if key == 0 {
                let mut made: libc::pthread_key_t = 0;
                if libc::pthread_key_create(&raw mut made, Some(self.hook)) != 0 {
                    return false;
                }
                key = made as u32 + 1;
                self.key.store(key, Ordering::Relaxed);
            }
            let not_null = ptr::without_provenance(1);
            libc::pthread_setspecific((key - 1) as libc::pthread_key_t, not_null) == 0
        }
    }
}

/// Whether this is the main thread of the process.
pub(crate) fn is_main_thread() -> bool {
    thread_id() == process_id()
}

/// Has these functions called at each fork: before it, and after it in the parent and in the child.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: functions that may be called there. Without memory to note them they are not.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Takes the lock of the list of all streams, if the C library has one: it is held across forks.
pub(crate) fn lock_streams() {
    call_streams(0);
}

/// Releases the lock of [`lock_streams`].
pub(crate) fn unlock_streams() {
    call_streams(1);
}

/// Makes the lock of [`lock_streams`] a free one, in the child of a fork.
pub(crate) fn renew_streams() {
    call_streams(2);
}

fn call_streams(which: usize) {
    let function = arch::stream_locks()[which];
    if !function.is_null() {
        // SAFETY: glibc's `_IO_list_lock`, `_IO_list_unlock` or `_IO_list_resetlock`, which take and return nothing.
        unsafe { core::mem::transmute::<*const (), unsafe extern "C" fn()>(function)() };
    }
}

/// Whether this thread has any signal blocked, as it has in most handlers.
pub(crate) fn has_signals_blocked() -> bool {
    let mut mask = 0u64;
    let (to, len) = ((&raw mut mask).expose_provenance(), size_of_val(&mask));
    // SAFETY: the mask is ours to be written, and as long as the kernel is told.
    let asked = unsafe { call(libc::SYS_rt_sigprocmask, [word(libc::SIG_BLOCK), 0, to, len]) };
    asked.is_err() || mask != 0
}

/// A thread that [`spawn`] made.
pub(crate) struct Thread(libc::pthread_t);

/// Starts a thread that runs `body` with `argument`, on a stack of so many bytes and what
/// thread-locals take; `None` where there can be no more. May allocate.
pub(crate) fn spawn(
    stack: usize,
    body: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Option<Thread> {
    /// Bytes of thread-locals, which glibc takes from the stack, that there is room for at first, and
    /// at most. The loader could say how many there are, by its lock, which the child of a fork may
    /// find held by a thread that it does not have. A stack takes memory where it is used only.
    const LOCALS: usize = 1 << 20;
    const MOST_LOCALS: usize = 64 << 20;

    if fails(Call::Clone) {
        return None;
    }
    let _errno = SavedErrno::new();
    let mut locals = LOCALS;
    loop {
        // SAFETY: attributes and a thread that are ours to be written.
        unsafe {
            let (mut attributes, mut thread) = (core::mem::zeroed(), core::mem::zeroed());
            libc::pthread_attr_init(&raw mut attributes);
            libc::pthread_attr_setstacksize(&raw mut attributes, stack + locals);
            let result =
                libc::pthread_create(&raw mut thread, &raw const attributes, body, argument);
            libc::pthread_attr_destroy(&raw mut attributes);
            match result {
                0 => return Some(Thread(thread)),
                // They do not fit.
                libc::EINVAL if locals < MOST_LOCALS => locals *= 4,
                _ => return None,
            }
        }
    }
}

/// A place for a thread that [`spawn`] made, or none. Its users take turns.
pub(crate) struct ThreadSlot(UnsafeCell<Option<Thread>>);

// SAFETY: its users take turns; any thread may use the name of another.
unsafe impl Sync for ThreadSlot {}

impl ThreadSlot {
    pub(crate) const fn new() -> ThreadSlot {
        ThreadSlot(UnsafeCell::new(None))
    }

    pub(crate) fn set(&self, thread: Option<Thread>) {
        // SAFETY: it is the caller's turn.
        unsafe { *self.0.get() = thread };
    }

    /// Has the thread run on some CPUs only; false where it may not run there, or there is none.
    pub(crate) fn pin(&self, cpus: &CpuMask) -> bool {
        // Of glibc and musl, not named by the crate for both.
        unsafe extern "C" {
            fn pthread_setaffinity_np(
                thread: libc::pthread_t,
                len: usize,
                cpus: *const CpuMask,
            ) -> c_int;
        }
        // SAFETY: it is the caller's turn; a thread that nobody has joined, and a mask of that
        // length.
        unsafe {
            (*self.0.get()).as_ref().is_some_and(|thread| {
                pthread_setaffinity_np(thread.0, size_of::<CpuMask>(), cpus) == 0
            })
        }
    }

    /// Waits until the thread has ended, if there is one.
    pub(crate) fn join(&self) {
        // SAFETY: it is the caller's turn; a thread that nobody else joins.
        unsafe {
            if let Some(thread) = (*self.0.get()).take() {
                libc::pthread_join(thread.0, ptr::null_mut());
            }
        }
    }
}

/// How many threads this process may have, with others of its user and its cgroup.
pub(crate) fn most_threads() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is ours to be written.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) } == 0;
    let mut most =
        if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { usize::MAX };
    let mut at = |path: fmt::Arguments<'_>| {
        let mut room = [0; 32];
        let number = read(path, &mut room).and_then(|text| text.trim().parse().ok());
        most = most.min(number.unwrap_or(usize::MAX));
    };
    let mut room = [0; 512];
    // As a container sees its own, with the unified hierarchy and the old one; and of a service.
    at(format_args!("/sys/fs/cgroup/pids.max"));
    at(format_args!("/sys/fs/cgroup/pids/pids.max"));
    if let Some(text) = read(format_args!("/proc/self/cgroup"), &mut room) {
        for line in text.lines() {
            match line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) {
                Some(("", cgroup)) => at(format_args!("/sys/fs/cgroup{cgroup}/pids.max")),
                Some(("pids", cgroup)) => at(format_args!("/sys/fs/cgroup/pids{cgroup}/pids.max")),
                _ => {}
            }
        }
    }
    most
}

/// Names this thread; what the kernel has no room for is cut off.
pub(crate) fn name_thread(name: &CStr) {
    let arguments = [word(libc::PR_SET_NAME), name.as_ptr().expose_provenance()];
    // SAFETY: the name ends in a null byte.
    let _ = unsafe { call(libc::SYS_prctl, arguments) };
}

/// This thread's number for the kernel.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no arguments; it cannot fail.
    unsafe { call(libc::SYS_gettid, []) }.unwrap_or(0) as i32
}

/// Sends a signal to a thread of this process; false where there is no such thread, or the kernel refuses: it does so when
/// the user has too many signals queued (`RLIMIT_SIGPENDING`).
pub(crate) fn signal_thread(id: i32, signal: c_int) -> bool {
    let arguments = [word(process_id()), word(id), word(signal)];
    // SAFETY: numbers only; the thread is of this process or gone.
    !fails(Call::Tgkill) && unsafe { call(libc::SYS_tgkill, arguments).is_ok() }
}

/// Whether `signal` is one that the C library leaves to programs for their own use.
pub(crate) fn is_realtime_signal(signal: c_int) -> bool {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal)
}

/// What a handler is told of a signal.
pub(crate) struct Signal {
    number: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
}

/// A handler of signals, as the kernel calls it.
pub(crate) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

impl Signal {
    /// # Safety
    /// These are the arguments that the kernel called a handler with, which has not returned yet.
    pub(crate) unsafe fn new(
        number: c_int,
        info: *mut libc::siginfo_t,
        context: *mut c_void,
    ) -> Signal {
        Signal { number, info, context }
    }

    /// Whether [`signal_thread`] sent it, in this process.
    pub(crate) fn is_own(&self) -> bool {
        // SAFETY: the promise of `new`; a signal of that code has a sender.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == process_id() }
    }

    /// Blocks the signal on this thread from when the handler returns, and sends it to the process
    /// once more, as it was, as far as the kernel allows that: so another thread gets it that waits
    /// for it.
    pub(crate) fn pass_on(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: the promise of `new`: the kernel restores the mask from there.
        unsafe {
            libc::sigaddset(
                &raw mut (*self.context.cast::<libc::ucontext_t>()).uc_sigmask,
                self.number,
            )
        };
        let send = || {
            let arguments = [word(process_id()), word(self.number), self.info.expose_provenance()];
            // SAFETY: the information is read.
            unsafe { call(libc::SYS_rt_sigqueueinfo, arguments).is_ok() }
        };
        // What only the kernel, or a process itself, may say, becomes what anybody may say.
        let send_as_queued = || {
            // SAFETY: the promise of `new`. The fields of both codes are the same, but for the
            // value.
            unsafe { (*self.info).si_code = libc::SI_QUEUE };
            send()
        };
        if !send() && !send_as_queued() {
            // There are too many queued. What there is to know of it is lost, and not the signal.
            // SAFETY: numbers only.
            let _ = unsafe { call(libc::SYS_kill, [word(process_id()), word(self.number)]) };
        }
    }

    /// Does what would have been done if there was no handler, when this one returns.
    pub(crate) fn do_the_default(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: a zeroed action is the default one.
        unsafe { libc::sigaction(self.number, &core::mem::zeroed(), ptr::null_mut()) };
        signal_thread(thread_id(), self.number);
    }
}

/// Installs `handler` for a signal: the one wanted, or the highest real-time signal that nobody handles. `None` where that is taken,
/// or the kernel refuses. It runs on the stack of the thread, as those for handlers are too small for a report: Rust's have 8 KiB.
pub(crate) fn take_signal(wanted: Option<c_int>, handler: Handler) -> Option<c_int> {
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
            action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
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

/// Sets the signals that this thread has blocked, those of the C library included; stores the ones
/// of before.
pub(super) fn change_bare_mask(mask: &u64, before: Option<&mut u64>) {
    let to = before.map_or(ptr::null_mut(), ptr::from_mut).expose_provenance();
    let from = ptr::from_ref(mask).expose_provenance();
    let arguments = [word(libc::SIG_SETMASK), from, to, size_of::<u64>()];
    // SAFETY: two masks that are as long as the kernel is told.
    let _ = unsafe { call(libc::SYS_rt_sigprocmask, arguments) };
}

/// Has this thread scheduled as an ordinary one, on the CPUs that the main thread may use: whoever
/// made it may be pinned, or a real-time thread.
pub(crate) fn schedule_as_the_process() {
    const THIS_THREAD: usize = 0;
    let parameter = 0 as c_int;
    let mut mask = affinity();
    let (parameter, to) =
        ((&raw const parameter).expose_provenance(), (&raw mut mask).expose_provenance());
    // SAFETY: a number and a mask that are only read. In vain where the kernel refuses.
    unsafe {
        let ordinary = [THIS_THREAD, word(libc::SCHED_OTHER), parameter];
        let _ = call(libc::SYS_sched_setscheduler, ordinary);
        let _ = call(libc::SYS_sched_setaffinity, [THIS_THREAD, size_of::<CpuMask>(), to]);
    }
}

/// CPUs, a bit each: as many as any kernel has, since one that has more refuses a shorter mask.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct CpuMask([u64; 128]);

impl CpuMask {
    /// No CPU.
    pub(crate) const NONE: CpuMask = CpuMask([0; 128]);

    /// One CPU; none if there is no such.
    pub(crate) fn one(cpu: usize) -> CpuMask {
        let mut mask = CpuMask::NONE;
        if let Some(word) = mask.0.get_mut(cpu / 64) {
            *word = 1 << (cpu % 64);
        }
        mask
    }

    /// Whether a CPU is among them.
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }
}

/// Returns how many CPU numbers the kernel tells apart, as it has a mask of them; 0 where it does not say.
#[cold]
#[inline(never)]
pub(crate) fn cpu_numbers() -> usize {
    const THIS_THREAD: usize = 0;
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [THIS_THREAD, size_of::<CpuMask>(), to];
    // SAFETY: the mask is ours and its length is given. What is returned is the length of the kernel's own.
    unsafe { call(libc::SYS_sched_getaffinity, arguments) }.map_or(0, |bytes| bytes * 8)
}

/// Whether the address space of the process is limited.
pub(crate) fn has_little_address_space() -> bool {
    const THIS_PROCESS: usize = 0;
    let mut limit = [u64::MAX; 2];
    let to = (&raw mut limit).expose_provenance();
    let arguments = [THIS_PROCESS, libc::RLIMIT_AS as usize, 0, to];
    // SAFETY: the limits are ours to be written, two numbers of 64 bits.
    unsafe { call(libc::SYS_prlimit64, arguments).is_ok() && limit[0] != u64::MAX }
}

/// CPUs that the main thread may run on.
pub(crate) fn affinity() -> CpuMask {
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [word(process_id()), size_of::<CpuMask>(), to];
    // SAFETY: the mask is ours and its length is given.
    let _ = unsafe { call(libc::SYS_sched_getaffinity, arguments) };
    mask
}

/// Restarts the critical section that is running on `cpu`, if one is; what was stored before this call is seen by the
/// sections that start after. False where this thread may not even run there.
pub(crate) fn restart_sections_on(cpu: usize) -> bool {
    restart_by_membarrier(cpu) || restart_by_visit(cpu)
}

/// Since Linux 5.10.
fn restart_by_membarrier(cpu: usize) -> bool {
    const FLAG_CPU: usize = 1;
    const EXPEDITED_RSEQ: usize = 1 << 7;
    const REGISTER_EXPEDITED_RSEQ: usize = 1 << 8;
    // SAFETY: numbers only. Registering a second time changes nothing.
    !fails(Call::Membarrier)
        && unsafe {
            call(libc::SYS_membarrier, [REGISTER_EXPEDITED_RSEQ, 0, 0]).is_ok()
                && call(libc::SYS_membarrier, [EXPEDITED_RSEQ, FLAG_CPU, cpu]).is_ok()
        }
}

/// While this thread runs on a CPU, no other does, and whose section was preempted by that starts again. For kernels before 5.10,
/// and filters that refuse `membarrier`. This thread's affinity is changed for that, and then what it was, unless somebody else
/// has changed it meanwhile. (One who does so between the look and the change is overridden; the kernel has no call for both.)
/// What it was is what its cpuset allowed of it: from then on, the kernel (since 6.2) takes that for the thread's wish, and a
/// cpuset that grows later does not add CPUs to it.
#[cold]
#[inline(never)]
fn restart_by_visit(cpu: usize) -> bool {
    // Long masks are for machines that the short ones are refused on: this may be a small stack.
    visit::<16>(cpu) || visit::<128>(cpu)
}

/// Has this thread run on a CPU for a moment; false where it may not, or masks of so many words are too short.
#[inline(never)]
fn visit<const WORDS: usize>(cpu: usize) -> bool {
    const THIS_THREAD: usize = 0;
    let (mut before, mut there) = ([0u64; WORDS], [0u64; WORDS]);
    let Some(word) = there.get_mut(cpu / 64) else { return false };
    *word = 1 << (cpu % 64);
    let arguments = |mask: *mut [u64; WORDS]| {
        [THIS_THREAD, size_of::<[u64; WORDS]>(), mask.expose_provenance()]
    };
    // SAFETY: both masks are ours, and as long as the kernel is told.
    unsafe {
        let visited = call(libc::SYS_sched_getaffinity, arguments(&raw mut before)).is_ok()
            && call(libc::SYS_sched_setaffinity, arguments(&raw mut there)).is_ok();
        let is_mine = visited
            && call(libc::SYS_sched_getaffinity, arguments(&raw mut there)).is_ok()
            && there.iter().map(|word| word.count_ones()).sum::<u32>() == 1
            && there.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1);
        if is_mine {
            // If this fails the thread stays there, which is no harm but to speed.
            let _ = call(libc::SYS_sched_setaffinity, arguments(&raw mut before));
        }
        visited
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
    // SAFETY: a number only; the kernel tells each process.
    unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
}

#[cold]
fn wanted_page_size() -> Option<usize> {
    let text = env(c"HAYLOFT_PAGE_SIZE")?;
    let size = larger_pages(text, system_page_size());
    if size.is_none() {
        ignored(
            c"HAYLOFT_PAGE_SIZE",
            format_args!("no power of two from the system's up to {MAX_PAGE_SIZE}"),
        );
    }
    size
}

/// The number in `text`, if pages can be as large where those of the system have `least` bytes.
fn larger_pages(text: &[u8], least: usize) -> Option<usize> {
    let size: usize = core::str::from_utf8(text).ok()?.parse().ok()?;
    (size.is_power_of_two() && (least..=MAX_PAGE_SIZE).contains(&size)).then_some(size)
}

/// A clock for decay, in milliseconds; coarse, and no system call where the kernel has a page to read it from.
pub(crate) fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if !vdso::clock(libc::CLOCK_MONOTONIC_COARSE, &mut now) {
        let to = (&raw mut now).expose_provenance();
        // SAFETY: the struct is ours to be written; the clock exists since Linux 2.6.32.
        let _ = unsafe { call(libc::SYS_clock_gettime, [word(libc::CLOCK_MONOTONIC_COARSE), to]) };
    }
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Writes to an open file; false where it takes no more.
pub(crate) fn write_all(file: c_int, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let arguments = [word(file), bytes.as_ptr().expose_provenance(), bytes.len()];
        // SAFETY: the slice is readable for its length.
        match unsafe { call(libc::SYS_write, arguments) } {
            Ok(len) if len > 0 => bytes = bytes.get(len..).unwrap_or_default(),
            Err(libc::EINTR) => {}
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
    let memory = map_all(&File::open(&path, flags, 0o600).ok()?, len);
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
    unsafe { call(libc::SYS_getpid, []) }.unwrap_or(0) as i32
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
    use super::{larger_pages, rseq_len};

    #[test]
    fn lengths_of_rseq_areas() {
        // Before 6.3, with what 6.3 knows, with what 7.0 knows, and with what there is no room for.
        for ((size, align), len) in
            [((0, 0), 32), ((20, 32), 32), ((28, 32), 32), ((33, 64), 64), ((80, 128), 32)]
        {
            assert_eq!(rseq_len(size, align), len, "{size} {align}");
        }
    }

    #[test]
    fn page_sizes() {
        assert_eq!(larger_pages(b"16384", 4096), Some(16384));
        assert_eq!(larger_pages(b"65536", 65536), Some(65536));
        for (wrong, least) in [("4096", 16384), ("131072", 4096), ("12288", 4096), ("", 4096)] {
            assert_eq!(larger_pages(wrong.as_bytes(), least), None, "{wrong}");
        }
    }
}
