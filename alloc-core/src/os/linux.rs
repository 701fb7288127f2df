//! Linux: bare system calls, and C library functions where the library keeps state of its own.
//!
//! Slow paths make their system calls directly. The C library's functions for these calls may be
//! wrapped by a library that allocates in the wrapper or holds a lock there, and they are
//! cancellation points. A slow path permits none of this. Nor do bare calls touch `errno`.

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

/// The largest page size in bytes of any supported Linux, and the unit of the page layer.
const MAX_PAGE_SIZE: usize = 64 << 10;

/// Restores `errno` when dropped: a caller of `malloc` does not expect it to change, a signal
/// handler even less.
pub(super) struct SavedErrno(c_int);

impl SavedErrno {
    pub(super) fn new() -> SavedErrno {
        // SAFETY: the address of this thread's `errno` is always valid.
        SavedErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for SavedErrno {
    fn drop(&mut self) {
        // SAFETY: the address of this thread's `errno` is always valid.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// Makes a system call.
///
/// # Errors
/// The kernel's error number.
///
/// # Safety
/// The effect of the call with these arguments is sound.
#[inline]
pub(super) unsafe fn call<const COUNT: usize>(
    number: c_long,
    arguments: [usize; COUNT],
) -> Result<usize, c_int> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = from;
    }
    // SAFETY: the caller guarantees that the call is sound.
    let result = unsafe { arch::system_call(number as usize, all) };
    // The kernel reserves the last page of numbers for errors.
    if (-4095..0).contains(&result) { Err(-result as c_int) } else { Ok(result as usize) }
}

/// Converts a number to the kernel's form: a negative one is sign-extended to a word.
fn word(number: c_int) -> usize {
    number as isize as usize
}

/// Maps anonymous memory.
///
/// # Safety
/// As `mmap(2)`.
unsafe fn map(address: usize, len: usize, rights: c_int, flags: c_int) -> Result<*mut u8, c_int> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the caller guarantees that the mapping is sound.
    let mapped =
        unsafe { call(libc::SYS_mmap, [address, len, word(rights), word(flags), word(-1), 0])? };
    Ok(ptr::with_exposed_provenance_mut(mapped))
}

/// Unmaps memory.
///
/// # Safety
/// As `munmap(2)`.
unsafe fn unmap(address: usize, len: usize) {
    // SAFETY: the caller guarantees that nobody uses the range. The call can fail only for lack of
    // mappings; then the memory stays mapped.
    let _ = unsafe { call(libc::SYS_munmap, [address, len]) };
}

/// Reserves `len` bytes of inaccessible address space on a page boundary. `len` is in whole pages.
/// The mapping is made without `MAP_NORESERVE`: the kernel does not account for inaccessible
/// memory, and must be able to refuse a commit beyond the memory of the system. Reserved memory is
/// left out of core files, where some debuggers write all of it as zeros.
pub(crate) fn reserve(len: usize) -> Option<NonNull<u8>> {
    if fails(Call::Mmap) {
        return None;
    }
    // The kernel aligns to its own pages, which may be smaller than those that a setting asks for.
    let page = page_size();
    let excess = page - system_page_size();
    let mapped_len = len.checked_add(excess)?;
    // SAFETY: a new mapping at an address of the kernel's choice affects no existing memory.
    let mapped = unsafe { map(0, mapped_len, libc::PROT_NONE, 0).ok()? };
    let before = mapped.addr().wrapping_neg() & (page - 1);
    // SAFETY: both ends lie in the mapping, which is `excess` bytes longer than needed; nobody uses
    // it yet.
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

/// Includes memory in core files, or excludes it.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn set_dumped(address: NonNull<u8>, len: usize, dumped: bool) {
    debug_assert_pages(address, len);
    let advice = if dumped { libc::MADV_DODUMP } else { libc::MADV_DONTDUMP };
    // SAFETY: the caller guarantees a range of one reservation; the advice does not change
    // contents.
    let _ = unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) };
}

/// Asserts, in debug builds, that a range consists of whole pages.
#[track_caller]
fn debug_assert_pages(address: NonNull<u8>, len: usize) {
    let page = page_size();
    debug_assert!(
        address.addr().get().is_multiple_of(page) && len.is_multiple_of(page),
        "{len} bytes at {address:p} are not whole pages"
    );
}

/// Unmaps address space from [`reserve`].
///
/// # Safety
/// `address..address + len` lies in one reservation and nobody uses it any longer.
pub(crate) unsafe fn unreserve(address: NonNull<u8>, len: usize) {
    debug_assert_pages(address, len);
    if fails(Call::Munmap) {
        return;
    }
    // SAFETY: the caller guarantees that the range is of a reservation and unused.
    unsafe { unmap(address.addr().get(), len) };
}

/// Makes reserved pages readable and writable; they read as zero. Returns false if the system has
/// no memory for them.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn commit(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let arguments = [address.addr().get(), len, word(rights)];
    // SAFETY: the caller guarantees a range of one reservation; the call only adds rights.
    let done = !fails(Call::Mprotect) && unsafe { call(libc::SYS_mprotect, arguments).is_ok() };
    if done {
        // SAFETY: the caller guarantees a range of one reservation.
        unsafe { set_dumped(address, len, true) };
    }
    done
}

/// Makes reserved pages readable; they read as zero and take no memory. Returns false if the kernel
/// refuses.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn let_read(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let arguments = [address.addr().get(), len, word(libc::PROT_READ)];
    // SAFETY: the caller guarantees a range of one reservation; the call only adds rights.
    !fails(Call::Mprotect) && unsafe { call(libc::SYS_mprotect, arguments).is_ok() }
}

/// Decommits pages: returns their memory to the system. They stay accessible and read as zero.
/// Returns false if the kernel refuses.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead.
pub(crate) unsafe fn decommit(address: NonNull<u8>, len: usize) -> bool {
    /// Like `MADV_DONTNEED`, but also for locked memory. Since Linux 5.18.
    const MADV_DONTNEED_LOCKED: c_int = 24;
    debug_assert_pages(address, len);
    let advise = |advice| {
        // SAFETY: the caller guarantees that the contents of the range are dead.
        unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) }
    };
    // The kernel rejects locked memory (`mlockall`) as an invalid argument.
    !fails(Call::Madvise)
        && match advise(libc::MADV_DONTNEED) {
            Err(libc::EINVAL) => advise(MADV_DONTNEED_LOCKED).is_ok(),
            result => result.is_ok(),
        }
}

/// Advises the kernel for or against transparent huge pages. Has no effect where the system
/// disables them.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries.
pub(crate) unsafe fn prefer_huge_pages(address: NonNull<u8>, len: usize, huge: bool) {
    debug_assert_pages(address, len);
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the caller guarantees a range of one reservation; the advice does not change
    // contents.
    let _ = unsafe { call(libc::SYS_madvise, [address.addr().get(), len, word(advice)]) };
}

/// Makes the kernel take the memory of reserved pages from one of its nodes while that node has
/// memory, whichever CPU touches the pages first. Has no effect if the node does not exist or the
/// process lacks the right. Does not override a memory policy that the user chose (such as by
/// `numactl --interleave`).
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
    // SAFETY: the kernel writes `mode`, and reads `MAX_NUMNODES - 1` bits of the mask, which has
    // `MAX_NUMNODES`. A policy does not change contents.
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

/// Maximum number of nodes of a kernel. (`CONFIG_NODES_SHIFT` is 10 or less.)
const MAX_NUMNODES: usize = 1024;
/// A set of the kernel's nodes, one bit each.
type NodeMask = [c_ulong; MAX_NUMNODES / c_ulong::BITS as usize];

/// Maps committed pages anew, so that they form one mapping with their neighbours again, even if
/// other pages were moved there. They read as zero. Returns false if the kernel cannot do this;
/// then the pages must not be touched any longer.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead.
pub(crate) unsafe fn renew(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller guarantees that the range is committed and its contents are dead.
    !fails(Call::Mmap) && unsafe { map(address.addr().get(), len, rights, libc::MAP_FIXED).is_ok() }
}

/// Moves the pages at `from` to `to` without copying. `from` stays committed and reads as zero.
///
/// # Safety
/// Both ranges are committed, on page boundaries, and do not overlap; the contents at `to` are
/// dead.
pub(crate) unsafe fn remap(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> Remapped {
    debug_assert_pages(from, len);
    debug_assert_pages(to, len);
    if fails(Call::Mremap) {
        return Remapped::Refused;
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let (from, to) = (from.addr().get(), to.addr().get());
    // SAFETY: the caller guarantees two committed ranges and dead contents at `to`;
    // `MREMAP_DONTUNMAP` keeps `from` mapped.
    match unsafe { call(libc::SYS_mremap, [from, len, len, word(flags), to]) } {
        Ok(_) => return Remapped::Moved,
        // The kernel lacks this call or forbids it; nothing has changed.
        Err(libc::EINVAL | libc::ENOSYS | libc::EPERM) => return Remapped::Refused,
        Err(_) => {}
    }
    // The kernel unmaps `to` before it checks the other conditions: that as much memory can be
    // committed once more, and before 6.17, that `from` is one mapping. From then on another thread
    // may map something at `to` at any moment. So whatever is mapped there belongs to another,
    // unless the call below maps it.
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `MAP_FIXED_NOREPLACE` replaces no mapping. Kernels before 4.17 may map elsewhere;
    // nobody uses such a mapping yet.
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

/// Sleeps while the futex holds `expected`. May return at any time.
#[cfg(not(loom))]
pub(crate) fn futex_wait(futex: &AtomicU32, expected: u32) {
    wait(futex, expected, ptr::null());
}

/// As [`futex_wait`], for at most `milliseconds`.
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
    // SAFETY: the futex outlives the call, and the kernel only reads it and the time.
    let _ = unsafe { call(libc::SYS_futex, [address, operation, expected as usize, time]) };
}

/// As [`futex_wait`], for a word that the kernel clears when a thread ends.
#[cfg(not(loom))]
pub(super) fn futex_wait_shared(futex: &AtomicU32, expected: u32) {
    let address = futex.as_ptr().expose_provenance();
    let arguments = [address, word(libc::FUTEX_WAIT), expected as usize, 0];
    // SAFETY: the futex outlives the call, and the kernel only reads it.
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

/// Yields the CPU to other threads.
pub(crate) fn yield_now() {
    // SAFETY: `sched_yield` takes no arguments.
    let _ = unsafe { call(libc::SYS_sched_yield, []) };
}

/// Sleeps for `count` microseconds; a signal handler ends the sleep early.
pub(crate) fn sleep_microseconds(count: u32) {
    let time = libc::timespec {
        tv_sec: (count / 1_000_000).into(),
        tv_nsec: (count % 1_000_000 * 1000).into(),
    };
    // SAFETY: the kernel only reads the time.
    let _ = unsafe { call(libc::SYS_nanosleep, [(&raw const time).expose_provenance(), 0]) };
}

/// Returns the CPU that this thread runs on at the moment of the call. Takes no system call if the
/// vDSO has `getcpu`.
pub(crate) fn current_cpu() -> usize {
    current_cpu_and_node().0
}

/// Returns the CPU that this thread runs on at the moment of the call, and the CPU's node.
pub(crate) fn current_cpu_and_node() -> (usize, usize) {
    let (mut cpu, mut node) = (0u32, 0u32);
    if !vdso::current_cpu(&mut cpu, &mut node) {
        let (cpu, node) = (&raw mut cpu, &raw mut node);
        let arguments = [cpu.expose_provenance(), node.expose_provenance(), 0];
        // SAFETY: both pointers are to local words that the kernel may write.
        let _ = unsafe { call(libc::SYS_getcpu, arguments) };
    }
    (cpu as usize, node as usize)
}

/// An open file. It is opened, read, written and closed by bare system calls. The C library's
/// functions are cancellation points (`pthread_cancel`), and no thread may be cancelled within a
/// slow path.
pub(crate) struct File(pub(super) c_int);

impl File {
    fn to_read(path: fmt::Arguments<'_>) -> Option<File> {
        File::open(&CPath::new(path)?, libc::O_RDONLY, 0).ok()
    }

    /// Opens a file. If that creates the file, it gets the permissions `rights`.
    ///
    /// # Errors
    /// The kernel's error number.
    pub(super) fn open(path: &CPath, flags: c_int, rights: c_uint) -> Result<File, c_int> {
        let (flags, path) = (flags | libc::O_CLOEXEC, path.0.as_ptr().expose_provenance());
        let arguments = [word(libc::AT_FDCWD), path, word(flags), rights as usize];
        // SAFETY: the path ends in a null byte.
        unsafe { call(libc::SYS_openat, arguments) }.map(|file| File(file as c_int))
    }

    /// Reads the next bytes into `room`. Returns the part of `room` that was filled, empty at the
    /// end of the file.
    fn read<'a>(&self, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let arguments = [word(self.0), room.as_mut_ptr().expose_provenance(), room.len()];
        // SAFETY: `room` is writable for its length.
        let len = unsafe { call(libc::SYS_read, arguments) };
        len.ok().and_then(|len| room.get(..len))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: this owns the descriptor.
        let _ = unsafe { call(libc::SYS_close, [word(self.0)]) };
    }
}

/// Returns the text of a file, as far as `room` has space for it. `None` if the file cannot be read
/// or is not text.
pub(crate) fn read<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a str> {
    core::str::from_utf8(read_bytes(path, room)?).ok()
}

/// As [`read`], for a file that need not be text.
pub(crate) fn read_bytes<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a [u8]> {
    File::to_read(path)?.read(room)
}

/// Calls `each` with the first and last number of every range in a file that holds a list of
/// numbers, such as `/sys/devices/system/cpu/possible`. Returns `None` if the file cannot be read
/// or does not hold a list; `each` may have been called for some ranges by then.
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

/// Registers this thread's `struct rseq`. Returns false if the kernel refuses. If a signal handler
/// has registered it in the meantime, that counts as success.
///
/// # Safety
/// The area stays valid until [`unregister_rseq`] or the end of the thread.
pub(crate) unsafe fn register_rseq(area: *mut RseqArea) -> bool {
    const REGISTER: usize = 0;
    // SAFETY: the caller guarantees that the area stays valid.
    !fails(Call::Rseq) && matches!(unsafe { rseq(area, REGISTER) }, Ok(_) | Err(libc::EBUSY))
}

/// Reverts [`register_rseq`].
///
/// # Safety
/// The area is the registered one, and this is the thread that registered it.
pub(crate) unsafe fn unregister_rseq(area: *mut RseqArea) {
    const UNREGISTER: usize = 1;
    // SAFETY: the caller guarantees that this thread registered the area.
    let _ = unsafe { rseq(area, UNREGISTER) };
}

/// # Safety
/// As [`register_rseq`].
unsafe fn rseq(area: *mut RseqArea, flags: usize) -> Result<usize, c_int> {
    // SAFETY: `getauxval` takes and returns only numbers.
    let [size, align] = [AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN]
        .map(|which| unsafe { libc::getauxval(which) } as usize);
    let arguments = [area.expose_provenance(), rseq_len(size, align), flags, SIGNATURE as usize];
    // SAFETY: the caller guarantees that the area stays valid while it is registered.
    unsafe { call(libc::SYS_rseq, arguments) }
}

/// Keys of the auxiliary vector, since Linux 6.3: the bytes of `struct rseq` that the kernel knows,
/// and its alignment.
const AT_RSEQ_FEATURE_SIZE: c_ulong = 27;
const AT_RSEQ_ALIGN: c_ulong = 28;

/// Returns the length in bytes to register an area with, for the feature size and alignment that
/// the kernel reports. If the area has room for every feature, that is the kernel's size, and the
/// kernel takes the area for one of the interface's second version. Otherwise it is the length of
/// the first version.
fn rseq_len(size: usize, align: usize) -> usize {
    const FIRST: usize = 32;
    let len = size.next_multiple_of(align.max(1));
    let fits = align <= align_of::<RseqArea>() && len <= size_of::<RseqArea>();
    if fits { len.max(FIRST) } else { FIRST }
}

/// Returns the kernel's version, such as `6.18.5-generic`, cut to the length of `room`.
#[cfg(target_arch = "aarch64")]
pub(crate) fn release(room: &mut [u8; 65]) -> &[u8] {
    // SAFETY: zeros are a valid `utsname`.
    let mut names: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a local struct that the kernel may write.
    let _ = unsafe { call(libc::SYS_uname, [(&raw mut names).expose_provenance()]) };
    for (to, from) in room.iter_mut().zip(names.release) {
        *to = from as u8;
    }
    CStr::from_bytes_until_nul(room).unwrap_or_default().to_bytes()
}

/// A hook that runs when a thread ends.
pub(crate) struct ThreadExit {
    /// The C library's key plus one; 0 before the key exists.
    key: AtomicU32,
    hook: unsafe extern "C" fn(*mut c_void),
}

impl ThreadExit {
    /// Creates a hook that is not installed yet. Its argument has no meaning.
    pub(crate) const fn new(hook: unsafe extern "C" fn(*mut c_void)) -> ThreadExit {
        ThreadExit { key: AtomicU32::new(0), hook }
    }

    /// Installs the hook on this thread. It runs when the thread ends; on the main thread only at
    /// `pthread_exit`. Returns false if the C library has no key left. May allocate.
    pub(crate) fn expect(&self) -> bool {
        let _errno = SavedErrno::new();
        // SAFETY: the key is this hook's own; a second key from a race is merely wasted.
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

/// Returns whether this is the main thread of the process.
pub(crate) fn is_main_thread() -> bool {
    thread_id() == process_id()
}

/// Registers functions to call at each fork: before it, and after it in the parent and in the
/// child.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions may be called at a fork. If the C library has no memory to record them,
    // they are never called.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Acquires the lock of the C library's list of all streams, if it has one. It is held across
/// forks.
pub(crate) fn lock_streams() {
    call_streams(0);
}

/// Releases the lock of [`lock_streams`].
pub(crate) fn unlock_streams() {
    call_streams(1);
}

/// Resets the lock of [`lock_streams`] to free, in a fork child.
pub(crate) fn renew_streams() {
    call_streams(2);
}

fn call_streams(which: usize) {
    let function = arch::stream_locks()[which];
    if !function.is_null() {
        // SAFETY: the function is glibc's `_IO_list_lock`, `_IO_list_unlock` or
        // `_IO_list_resetlock`, which take and return nothing.
        unsafe { core::mem::transmute::<*const (), unsafe extern "C" fn()>(function)() };
    }
}

/// Returns whether this thread blocks any signal, as it does in most handlers.
pub(crate) fn has_signals_blocked() -> bool {
    let mut mask = 0u64;
    let (to, len) = ((&raw mut mask).expose_provenance(), size_of_val(&mask));
    // SAFETY: the pointer is to a local mask of the length that is passed.
    let asked = unsafe { call(libc::SYS_rt_sigprocmask, [word(libc::SIG_BLOCK), 0, to, len]) };
    asked.is_err() || mask != 0
}

/// A thread created by [`spawn`].
pub(crate) struct Thread(libc::pthread_t);

/// Starts a thread that runs `body` with `argument`. Its stack has `stack` bytes beside the
/// thread-locals. Returns `None` if no further thread can be created. May allocate.
pub(crate) fn spawn(
    stack: usize,
    body: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Option<Thread> {
    /// Bytes reserved on the stack for thread-locals, which glibc places there: at first, and at
    /// most. The loader knows their size, but only under its lock, which in a fork child may be
    /// held by a thread that does not exist there. Unused parts of a stack take no memory.
    const LOCALS: usize = 1 << 20;
    const MOST_LOCALS: usize = 64 << 20;

    if fails(Call::Clone) {
        return None;
    }
    let _errno = SavedErrno::new();
    let mut locals = LOCALS;
    loop {
        // SAFETY: the attributes and the thread are locals that the calls may write.
        unsafe {
            let (mut attributes, mut thread) = (core::mem::zeroed(), core::mem::zeroed());
            libc::pthread_attr_init(&raw mut attributes);
            libc::pthread_attr_setstacksize(&raw mut attributes, stack + locals);
            let result =
                libc::pthread_create(&raw mut thread, &raw const attributes, body, argument);
            libc::pthread_attr_destroy(&raw mut attributes);
            match result {
                0 => return Some(Thread(thread)),
                // The thread-locals do not fit.
                libc::EINVAL if locals < MOST_LOCALS => locals *= 4,
                _ => return None,
            }
        }
    }
}

/// A place for a thread created by [`spawn`], or for none. Its users take turns.
pub(crate) struct ThreadSlot(UnsafeCell<Option<Thread>>);

// SAFETY: the users of a slot take turns, and any thread may use another's `pthread_t`.
unsafe impl Sync for ThreadSlot {}

impl ThreadSlot {
    pub(crate) const fn new() -> ThreadSlot {
        ThreadSlot(UnsafeCell::new(None))
    }

    pub(crate) fn set(&self, thread: Option<Thread>) {
        // SAFETY: the users of a slot take turns, and it is the caller's turn.
        unsafe { *self.0.get() = thread };
    }

    /// Restricts the thread to some CPUs. Returns false if there is no thread or it may not run
    /// there.
    pub(crate) fn pin(&self, cpus: &CpuMask) -> bool {
        // Exists in glibc and musl; the `libc` crate does not declare it for both.
        unsafe extern "C" {
            fn pthread_setaffinity_np(
                thread: libc::pthread_t,
                len: usize,
                cpus: *const CpuMask,
            ) -> c_int;
        }
        // SAFETY: it is the caller's turn to use the slot, the thread has not been joined, and the
        // mask has the length that is passed.
        unsafe {
            (*self.0.get()).as_ref().is_some_and(|thread| {
                pthread_setaffinity_np(thread.0, size_of::<CpuMask>(), cpus) == 0
            })
        }
    }

    /// Waits until the thread has ended, if there is one.
    pub(crate) fn join(&self) {
        // SAFETY: it is the caller's turn to use the slot, and nobody else joins the thread.
        unsafe {
            if let Some(thread) = (*self.0.get()).take() {
                libc::pthread_join(thread.0, ptr::null_mut());
            }
        }
    }
}

/// Returns the number of threads that this process may have, shared with other processes of its
/// user and its cgroup. Returns `usize::MAX` if there is no limit.
pub(crate) fn most_threads() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local limit that the call may write.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) } == 0;
    let mut most =
        if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { usize::MAX };
    let mut at = |path: fmt::Arguments<'_>| {
        let mut room = [0; 32];
        let number = read(path, &mut room).and_then(|text| text.trim().parse().ok());
        most = most.min(number.unwrap_or(usize::MAX));
    };
    let mut room = [0; 512];
    // A container sees its own cgroup there, in the unified hierarchy or in the old one. The paths
    // below are for a service.
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

/// Names this thread. The kernel cuts off a name that is too long.
pub(crate) fn name_thread(name: &CStr) {
    let arguments = [word(libc::PR_SET_NAME), name.as_ptr().expose_provenance()];
    // SAFETY: the name ends in a null byte.
    let _ = unsafe { call(libc::SYS_prctl, arguments) };
}

/// Returns the kernel's number of this thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: `gettid` takes no arguments; it cannot fail.
    unsafe { call(libc::SYS_gettid, []) }.unwrap_or(0) as i32
}

/// Sends a signal to a thread of this process. Returns false if the thread does not exist or the
/// kernel refuses, as it does when the user has too many signals queued (`RLIMIT_SIGPENDING`).
pub(crate) fn signal_thread(id: i32, signal: c_int) -> bool {
    let arguments = [word(process_id()), word(id), word(signal)];
    // SAFETY: the call takes only numbers; the thread is of this process or gone.
    !fails(Call::Tgkill) && unsafe { call(libc::SYS_tgkill, arguments).is_ok() }
}

/// Returns whether `signal` is one that the C library leaves for programs to use.
pub(crate) fn is_realtime_signal(signal: c_int) -> bool {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal)
}

/// The arguments of a signal handler.
pub(crate) struct Signal {
    number: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
}

/// A signal handler, as the kernel calls it.
pub(crate) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

impl Signal {
    /// # Safety
    /// The kernel called a handler with these arguments, and the handler has not returned yet.
    pub(crate) unsafe fn new(
        number: c_int,
        info: *mut libc::siginfo_t,
        context: *mut c_void,
    ) -> Signal {
        Signal { number, info, context }
    }

    /// Returns whether [`signal_thread`] sent the signal in this process.
    pub(crate) fn is_own(&self) -> bool {
        // SAFETY: by the contract of `new`, `info` is valid; a signal with this code has a sender.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == process_id() }
    }

    /// Passes the signal on to the program. Blocks it on this thread as soon as the handler
    /// returns, and sends it to the process again, with its information unchanged where the kernel
    /// permits that. So a thread of the program that waits for the signal receives it.
    pub(crate) fn pass_on(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: by the contract of `new`, `context` is the handler's, and the kernel restores the
        // mask from it.
        unsafe {
            libc::sigaddset(
                &raw mut (*self.context.cast::<libc::ucontext_t>()).uc_sigmask,
                self.number,
            )
        };
        let send = || {
            let arguments = [word(process_id()), word(self.number), self.info.expose_provenance()];
            // SAFETY: the kernel only reads the information.
            unsafe { call(libc::SYS_rt_sigqueueinfo, arguments).is_ok() }
        };
        // A code reserved to the kernel or to a sender's own process becomes one that any process
        // may send.
        let send_as_queued = || {
            // SAFETY: by the contract of `new`, `info` is valid. The fields of both codes are the
            // same except for the value.
            unsafe { (*self.info).si_code = libc::SI_QUEUE };
            send()
        };
        if !send() && !send_as_queued() {
            // The user has too many signals queued. The information is lost, but not the signal.
            // SAFETY: `kill` takes only numbers.
            let _ = unsafe { call(libc::SYS_kill, [word(process_id()), word(self.number)]) };
        }
    }

    /// Resets the signal to its default action and sends it to this thread again, so that the
    /// default action occurs when the handler returns.
    pub(crate) fn do_the_default(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: a zeroed action is the default one.
        unsafe { libc::sigaction(self.number, &core::mem::zeroed(), ptr::null_mut()) };
        signal_thread(thread_id(), self.number);
    }
}

/// Installs `handler` for the signal `wanted`, or without one for the highest real-time signal that
/// has no handler. Returns the signal, or `None` if it has a handler already or the kernel refuses.
/// The handler runs on the thread's stack: alternate signal stacks are too small for a report, and
/// Rust's have 8 KiB.
pub(crate) fn take_signal(wanted: Option<c_int>, handler: Handler) -> Option<c_int> {
    let _errno = SavedErrno::new();
    let take = |signal: &c_int| {
        // SAFETY: zeroed actions are valid, and the handler does only what signal handlers may do.
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

/// A thread's previous signal mask, which is restored when this is dropped.
pub(crate) struct OldMask(libc::sigset_t);

/// Blocks all signals on this thread.
pub(crate) fn block_signals() -> OldMask {
    // SAFETY: the calls write only a local set.
    unsafe {
        let mut all = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        change_mask(libc::SIG_SETMASK, &all)
    }
}

/// Unblocks `signal` on this thread.
pub(crate) fn admit_signal(signal: c_int) -> OldMask {
    // SAFETY: the calls write only a local set.
    unsafe {
        let mut one = core::mem::zeroed();
        libc::sigemptyset(&raw mut one);
        libc::sigaddset(&raw mut one, signal);
        change_mask(libc::SIG_UNBLOCK, &one)
    }
}

fn change_mask(how: c_int, set: &libc::sigset_t) -> OldMask {
    // SAFETY: one set may be read and the other written; the call cannot fail.
    unsafe {
        let mut old = core::mem::zeroed();
        libc::pthread_sigmask(how, set, &raw mut old);
        OldMask(old)
    }
}

impl Drop for OldMask {
    fn drop(&mut self) {
        // SAFETY: the kernel filled the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Sets this thread's signal mask, including the signals that the C library reserves. Stores the
/// previous mask in `before`.
pub(super) fn change_bare_mask(mask: &u64, before: Option<&mut u64>) {
    let to = before.map_or(ptr::null_mut(), ptr::from_mut).expose_provenance();
    let from = ptr::from_ref(mask).expose_provenance();
    let arguments = [word(libc::SIG_SETMASK), from, to, size_of::<u64>()];
    // SAFETY: both masks have the length that is passed.
    let _ = unsafe { call(libc::SYS_rt_sigprocmask, arguments) };
}

/// Resets this thread to ordinary scheduling and to the CPUs of the main thread: its creator may be
/// pinned, or a real-time thread.
pub(crate) fn schedule_as_the_process() {
    const THIS_THREAD: usize = 0;
    let parameter = 0 as c_int;
    let mut mask = affinity();
    let (parameter, to) =
        ((&raw const parameter).expose_provenance(), (&raw mut mask).expose_provenance());
    // SAFETY: the kernel only reads the number and the mask. Its refusal is ignored.
    unsafe {
        let ordinary = [THIS_THREAD, word(libc::SCHED_OTHER), parameter];
        let _ = call(libc::SYS_sched_setscheduler, ordinary);
        let _ = call(libc::SYS_sched_setaffinity, [THIS_THREAD, size_of::<CpuMask>(), to]);
    }
}

/// A set of CPUs, one bit each. It has as many bits as the mask of any kernel, since a kernel
/// refuses a shorter mask than its own.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct CpuMask([u64; 128]);

impl CpuMask {
    /// The empty set.
    pub(crate) const NONE: CpuMask = CpuMask([0; 128]);

    /// Returns the set of one CPU; the empty set if the number is too high.
    pub(crate) fn one(cpu: usize) -> CpuMask {
        let mut mask = CpuMask::NONE;
        if let Some(word) = mask.0.get_mut(cpu / 64) {
            *word = 1 << (cpu % 64);
        }
        mask
    }

    /// Returns whether the set contains a CPU.
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }
}

/// Returns the number of CPUs that the kernel's CPU masks have bits for; 0 if the kernel does not
/// report it.
#[cold]
#[inline(never)]
pub(crate) fn cpu_numbers() -> usize {
    const THIS_THREAD: usize = 0;
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [THIS_THREAD, size_of::<CpuMask>(), to];
    // SAFETY: the mask is writable for its length. The call returns the length of the kernel's mask
    // in bytes.
    unsafe { call(libc::SYS_sched_getaffinity, arguments) }.map_or(0, |bytes| bytes * 8)
}

/// Returns whether the address space of the process is limited.
pub(crate) fn has_little_address_space() -> bool {
    const THIS_PROCESS: usize = 0;
    let mut limit = [u64::MAX; 2];
    let to = (&raw mut limit).expose_provenance();
    let arguments = [THIS_PROCESS, libc::RLIMIT_AS as usize, 0, to];
    // SAFETY: the kernel writes two 64-bit numbers to the local array.
    unsafe { call(libc::SYS_prlimit64, arguments).is_ok() && limit[0] != u64::MAX }
}

/// Returns the CPUs that the main thread may run on.
pub(crate) fn affinity() -> CpuMask {
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [word(process_id()), size_of::<CpuMask>(), to];
    // SAFETY: the mask is writable for its length.
    let _ = unsafe { call(libc::SYS_sched_getaffinity, arguments) };
    mask
}

/// Restarts the critical section that is running on `cpu`, if there is one. Sections that start
/// later see all stores made before this call. Returns false if the kernel cannot do it and this
/// thread may not run on `cpu` either.
pub(crate) fn restart_sections_on(cpu: usize) -> bool {
    restart_by_membarrier(cpu) || restart_by_visit(cpu)
}

/// Restarts the section by a system call of Linux 5.10 and later.
fn restart_by_membarrier(cpu: usize) -> bool {
    const FLAG_CPU: usize = 1;
    const EXPEDITED_RSEQ: usize = 1 << 7;
    const REGISTER_EXPEDITED_RSEQ: usize = 1 << 8;
    // SAFETY: the call takes only numbers. Registering again changes nothing.
    !fails(Call::Membarrier)
        && unsafe {
            call(libc::SYS_membarrier, [REGISTER_EXPEDITED_RSEQ, 0, 0]).is_ok()
                && call(libc::SYS_membarrier, [EXPEDITED_RSEQ, FLAG_CPU, cpu]).is_ok()
        }
}

/// Restarts the section by running this thread on `cpu`. Meanwhile no other thread runs there, and
/// a section preempted by this one restarts. For kernels before 5.10, and filters that refuse
/// `membarrier`.
///
/// The thread's affinity is changed for this and then restored, unless another thread has changed
/// it in the meantime. (A change between the check and the restoring call is overwritten; the
/// kernel has no call that does both.) The restored affinity is what the thread's cpuset allowed.
/// Since 6.2 the kernel treats it as the thread's own wish from then on, so a cpuset that grows
/// later adds no CPUs to it.
#[cold]
#[inline(never)]
fn restart_by_visit(cpu: usize) -> bool {
    // Long masks are for kernels that refuse short ones. The short ones come first, since this may
    // run on a small stack.
    visit::<16>(cpu) || visit::<128>(cpu)
}

/// Runs this thread on a CPU for a moment. Returns false if the thread may not run there, or if the
/// kernel's masks are longer than `WORDS` words.
#[inline(never)]
fn visit<const WORDS: usize>(cpu: usize) -> bool {
    const THIS_THREAD: usize = 0;
    let (mut before, mut there) = ([0u64; WORDS], [0u64; WORDS]);
    let Some(word) = there.get_mut(cpu / 64) else { return false };
    *word = 1 << (cpu % 64);
    let arguments = |mask: *mut [u64; WORDS]| {
        [THIS_THREAD, size_of::<[u64; WORDS]>(), mask.expose_provenance()]
    };
    // SAFETY: both masks are local and have the length that is passed.
    unsafe {
        let visited = call(libc::SYS_sched_getaffinity, arguments(&raw mut before)).is_ok()
            && call(libc::SYS_sched_setaffinity, arguments(&raw mut there)).is_ok();
        let is_mine = visited
            && call(libc::SYS_sched_getaffinity, arguments(&raw mut there)).is_ok()
            && there.iter().map(|word| word.count_ones()).sum::<u32>() == 1
            && there.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1);
        if is_mine {
            // If this fails, the thread stays on that CPU, which costs only speed.
            let _ = call(libc::SYS_sched_setaffinity, arguments(&raw mut before));
        }
        visited
    }
}

/// Returns the bytes of a page: the kernel's page size, or a larger one that a test asks for
/// (`HAYLOFT_PAGE_SIZE`).
pub(crate) fn page_size() -> usize {
    /// 0 before the first call.
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the number never changes once it is not 0, and guards no other memory.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            let size = wanted_page_size().unwrap_or_else(system_page_size);
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// Returns the bytes of a page of the kernel.
pub(crate) fn system_page_size() -> usize {
    // SAFETY: `getauxval` returns only a number, which the kernel passes to each process.
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

/// Parses a page size. Returns `None` unless it is a power of two from `least`, the system's page
/// size, to [`MAX_PAGE_SIZE`].
fn larger_pages(text: &[u8], least: usize) -> Option<usize> {
    let size: usize = core::str::from_utf8(text).ok()?.parse().ok()?;
    (size.is_power_of_two() && (least..=MAX_PAGE_SIZE).contains(&size)).then_some(size)
}

/// Returns the time of a coarse monotonic clock in milliseconds, for decay. Takes no system call if
/// the vDSO has `clock_gettime`.
pub(crate) fn milliseconds() -> u64 {
    let now = time(libc::CLOCK_MONOTONIC_COARSE);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Returns the time of a precise clock, in nanoseconds, to measure how long something takes.
pub(crate) fn nanoseconds() -> u64 {
    let now = time(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn time(clock: c_int) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if !vdso::clock(clock, &mut now) {
        let to = (&raw mut now).expose_provenance();
        // SAFETY: the kernel writes only the local struct. Both clocks exist since Linux 2.6.32.
        let _ = unsafe { call(libc::SYS_clock_gettime, [word(clock), to]) };
    }
    now
}

/// Returns the page faults of this process that needed no file or device.
pub(crate) fn minor_faults() -> Option<u64> {
    // SAFETY: zero is a valid `rusage`, and the kernel writes only the local struct.
    unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        let to = (&raw mut usage).expose_provenance();
        call(libc::SYS_getrusage, [word(libc::RUSAGE_SELF), to]).ok()?;
        Some(usage.ru_minflt as u64)
    }
}

/// Writes all of `bytes` to an open file. Returns false if a write fails.
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

/// Creates a file of `len` zero bytes and maps it. Its user may read it, this process may write it,
/// and fork children do not have it mapped. Returns `None` on failure. The mapping is never
/// removed.
pub(crate) fn share(path: fmt::Arguments<'_>, len: usize) -> Option<NonNull<u8>> {
    let path = CPath::new(path)?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    let unlink = || unsafe { libc::unlink(path.0.as_ptr().cast()) };
    // A process with the same PID may have left a file behind.
    unlink();
    let memory = map_all(&File::open(&path, flags, 0o600).ok()?, len);
    if memory.is_none() {
        unlink();
    }
    memory
}

/// Extends a new file to `len` bytes and maps it.
fn map_all(file: &File, len: usize) -> Option<NonNull<u8>> {
    let bytes = libc::off_t::try_from(len).ok()?;
    // Allocates all of the file's memory: if the file system were full, a store would end the
    // process by SIGBUS.
    // SAFETY: `posix_fallocate` takes only numbers.
    let reserve = || unsafe { libc::posix_fallocate(file.0, 0, bytes) };
    while let error @ 1.. = reserve() {
        if error != libc::EINTR {
            return None;
        }
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the file is the caller's, and the kernel chooses an address that is free.
    unsafe {
        let address = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.0, 0);
        if address == libc::MAP_FAILED {
            return None;
        }
        // If the kernel refuses, a fork child has the mapping too, and leaves it alone.
        libc::madvise(address, len, libc::MADV_DONTFORK);
        NonNull::new(address.cast())
    }
}

/// Removes a file, if it exists.
pub(crate) fn remove(path: fmt::Arguments<'_>) {
    let Some(path) = CPath::new(path) else { return };
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    unsafe { libc::unlink(path.0.as_ptr().cast()) };
}

/// Returns the number of this process.
pub(crate) fn process_id() -> i32 {
    // SAFETY: `getpid` takes no arguments; it cannot fail.
    unsafe { call(libc::SYS_getpid, []) }.unwrap_or(0) as i32
}

/// Registers `hook` to run when the program ends by `exit` or by returning from `main`.
pub(crate) fn at_exit(hook: extern "C" fn()) {
    // SAFETY: the hook lives as long as the program.
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
        // Kernels before 6.3, one that reports only the first fields, 6.3, 7.0, and one that knows
        // more than the area has room for.
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
