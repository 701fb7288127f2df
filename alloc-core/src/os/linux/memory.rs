//! Address space: reserving, committing and decommitting it, moving pages, and advice about pages.
//!
//! A reservation is inaccessible. Committing makes pages of it accessible, and decommitting returns
//! their memory while they stay so. Ranges consist of whole pages of [`page_size`], which may be
//! larger than the kernel's own.

use core::ffi::{c_int, c_ulong};
use core::ptr::{self, NonNull};

use super::super::inject::{Call, fails};
use super::super::{Remapped, Renewed};
use super::clock::nanoseconds;
use super::environment::{page_size, system_page_size};
use super::file::File;
use super::futex::holds;
use super::system_call::{call, word};
use crate::text::process_id;

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
    reserve_at(0, len)
}

/// Returns whether there are `len` bytes of address space at this moment.
pub(crate) fn may_reserve(len: usize) -> bool {
    let reserved = reserve(len);
    // SAFETY: a whole reservation that nobody uses.
    reserved.map(|address| unsafe { unreserve(address, len) }).is_some()
}

/// As [`reserve`], at `address` or little above it. Returns `None` if the system grants only
/// another address.
pub(crate) fn reserve_near(address: usize, len: usize) -> Option<NonNull<u8>> {
    let reserved = reserve_at(address & !(page_size() - 1), len)?;
    if reserved.addr().get().wrapping_sub(address) <= 2 * page_size() {
        return Some(reserved);
    }
    // SAFETY: a whole reservation that nobody uses.
    unsafe { unreserve(reserved, len) };
    None
}

/// As [`reserve`], preferably at `address`; 0 stands for any.
fn reserve_at(address: usize, len: usize) -> Option<NonNull<u8>> {
    if fails(Call::Mmap) {
        return None;
    }
    // The kernel aligns to its own pages, which may be smaller than those that a setting asks for.
    let page = page_size();
    let excess = page - system_page_size();
    let mapped_len = len.checked_add(excess)?;
    // SAFETY: without `MAP_FIXED`, a new mapping affects no existing memory.
    let mapped = unsafe { map(address, mapped_len, libc::PROT_NONE, 0).ok()? };
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

/// Makes committed pages inaccessible and returns their memory. Returns false if the kernel
/// refuses.
///
/// # Safety
/// `address..address + len` lies in one reservation, on page boundaries, and its contents are dead.
pub(crate) unsafe fn forbid(address: NonNull<u8>, len: usize) -> bool {
    debug_assert_pages(address, len);
    let arguments = [address.addr().get(), len, word(libc::PROT_NONE)];
    // SAFETY: the caller guarantees that the contents of the range are dead.
    unsafe {
        let done = !fails(Call::Mprotect) && call(libc::SYS_mprotect, arguments).is_ok();
        decommit(address, len);
        set_dumped(address, len, false);
        done
    }
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

/// Makes huge pages of all committed memory of a range, except for parts of huge pages at its ends.
/// Pages in it that had no memory get some, and read as zero. Returns false if the kernel refuses:
/// it is older than 6.1, has no huge pages, or finds no memory for one; some of the range is
/// advised against huge pages, or used by a device.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and lies in one reservation.
pub(crate) unsafe fn collapse(address: NonNull<u8>, len: usize) -> bool {
    const MADV_COLLAPSE: c_int = 25;
    debug_assert_pages(address, len);
    let arguments = [address.addr().get(), len, word(MADV_COLLAPSE)];
    // SAFETY: the caller guarantees committed memory; the call does not change contents.
    !fails(Call::Madvise) && unsafe { call(libc::SYS_madvise, arguments).is_ok() }
}

/// Returns how many of the kernel's pages of a range are in memory and shared with no other
/// process. `None` if the kernel does not report that.
pub(crate) fn private_pages(address: NonNull<u8>, len: usize) -> Option<usize> {
    /// Bits of an entry of `/proc/self/pagemap`.
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVE: u64 = 1 << 56;
    const WANTED: u64 = PRESENT | EXCLUSIVE;
    /// Bytes of an entry.
    const ENTRY: usize = size_of::<u64>();
    let (first, count) = (address.addr().get() / system_page_size(), len / system_page_size());
    let mut room = [0; 512 * ENTRY];
    let room = room.get_mut(..count * ENTRY)?;
    let entries = File::to_read(format_args!("/proc/self/pagemap"))?;
    if !entries.read_at(room, first * ENTRY) {
        return None;
    }
    let (entries, _) = room.as_chunks();
    let is_wanted = |entry: &&[u8; ENTRY]| u64::from_ne_bytes(**entry) & WANTED == WANTED;
    Some(entries.iter().filter(is_wanted).count())
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

/// Copies memory of this process that may be unmapped, also by another thread during the call.
/// Returns false, with `to` filled in part, if the memory cannot be read or the kernel refuses.
pub(crate) fn copy_memory(from: usize, to: &mut [u8]) -> bool {
    // SAFETY: `to` is writable.
    match unsafe { copy_readable(from, to.as_mut_ptr(), to.len()) } {
        Some(len) => len == to.len(),
        // A container may forbid the call.
        None => File::to_read(format_args!("/proc/self/mem"))
            .is_some_and(|memory| memory.read_at(to, from)),
    }
}

/// The kernel's list of the pages of this process.
pub(crate) struct PageMap(File);

impl PageMap {
    /// Opens the list. `None` if the system hides it.
    pub(crate) fn open() -> Option<PageMap> {
        File::to_read(format_args!("/proc/self/pagemap")).map(PageMap)
    }

    /// Fills `room` with 8 bytes for each page from `address` on. Returns false on failure.
    pub(crate) fn read(&self, address: usize, room: &mut [u8]) -> bool {
        self.0.read_at(room, address / system_page_size() * 8)
    }

    /// Returns whether a page with these 8 bytes has contents: it is present, or swapped out.
    pub(crate) fn has_contents(page: [u8; 8]) -> bool {
        u64::from_ne_bytes(page) >> 62 != 0
    }
}

/// Maximum number of nodes of a kernel. (`CONFIG_NODES_SHIFT` is 10 or less.)
const MAX_NUMNODES: usize = 1024;
/// A set of the kernel's nodes, one bit each.
type NodeMask = [c_ulong; MAX_NUMNODES / c_ulong::BITS as usize];

/// A mark at the start of a range, by which to recognise the range after a call that may have
/// unmapped it. Another thread may map something there then, at any moment.
struct Mark {
    address: usize,
    words: [u32; 2],
}

impl Mark {
    /// Marks a range.
    ///
    /// # Safety
    /// The range at `address` is committed, has at least a page, and its contents are dead.
    unsafe fn new(address: NonNull<u8>) -> Mark {
        let now = nanoseconds();
        // Not zero, as the words of a new mapping are.
        let words = [now as u32 | 1, (now >> 32) as u32 | 1];
        // SAFETY: the caller guarantees a committed page with dead contents.
        unsafe { address.cast().write(words) };
        Mark { address: address.addr().get(), words }
    }

    /// Returns whether the range is the same as when it was marked.
    fn is_there(&self) -> bool {
        let mut address = self.address;
        self.words.iter().all(|word| {
            let is_there = holds(address, *word);
            address += size_of::<u32>();
            is_there
        })
    }
}

/// Maps committed pages anew, so that they form one mapping with their neighbours again, even if
/// other pages were moved there.
///
/// # Safety
/// `address..address + len` is committed, on page boundaries, and its contents are dead. `len` is
/// not 0.
pub(crate) unsafe fn renew(address: NonNull<u8>, len: usize) -> Renewed {
    debug_assert_pages(address, len);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller guarantees that the range is committed and its contents are dead.
    unsafe {
        let mark = Mark::new(address);
        let done =
            !fails(Call::Mmap) && map(address.addr().get(), len, rights, libc::MAP_FIXED).is_ok();
        match done {
            true => Renewed::Anew,
            false if mark.is_there() => Renewed::Kept,
            false => Renewed::Lost,
        }
    }
}

/// Moves the pages at `from` to `to` without copying. `from` stays committed and reads as zero.
///
/// # Safety
/// Both ranges are committed, on page boundaries, and do not overlap; the contents at `to` are
/// dead. `len` is not 0.
pub(crate) unsafe fn remap(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> Remapped {
    debug_assert_pages(from, len);
    debug_assert_pages(to, len);
    // SAFETY: the caller guarantees that `to` is committed, and its contents are dead.
    let mark = unsafe { Mark::new(to) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let (from, to) = (from.addr().get(), to.addr().get());
    let moved = if fails(Call::Mremap) {
        Err(libc::ENOMEM)
    } else {
        // SAFETY: the caller guarantees two committed ranges and dead contents at `to`;
        // `MREMAP_DONTUNMAP` keeps `from` mapped.
        unsafe { call(libc::SYS_mremap, [from, len, len, word(flags), to]) }
    };
    match moved {
        Ok(_) => return Remapped::Moved,
        // The kernel lacks this call or forbids it; nothing has changed.
        Err(libc::EINVAL | libc::ENOSYS | libc::EPERM) => return Remapped::Refused,
        Err(_) => {}
    }
    // The kernel unmaps `to` as a whole, after it has checked that the process may have more
    // mappings, and before it checks the other conditions: that as much memory can be committed
    // once more, and before 6.17, that `from` is one mapping.
    if mark.is_there() {
        return Remapped::Refused;
    }
    // Another thread may have mapped something at `to` in the meantime. So whatever is mapped there
    // belongs to another, unless the call below maps it.
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

/// Copies up to `len` bytes of this process from `from` to `to`: those before the first one that is
/// not readable. Returns their number; `None` if the kernel does not permit the call. Never faults.
///
/// # Safety
/// `to` is writable for `len` bytes.
pub(crate) unsafe fn copy_readable(from: usize, to: *mut u8, len: usize) -> Option<usize> {
    let [to, from] = [to.expose_provenance(), from].map(|start| [start, len]);
    let [to, from] = [&raw const to, &raw const from].map(|range| range.expose_provenance());
    // SAFETY: the kernel writes only to the range at `to`, which the caller guarantees.
    match unsafe { call(libc::SYS_process_vm_readv, [word(process_id()), to, 1, from, 1, 0]) } {
        Err(libc::EFAULT) => Some(0),
        copied => copied.ok(),
    }
}

/// Returns whether the byte at an address can be read.
pub(crate) fn is_readable(address: usize) -> bool {
    let mut byte = 0;
    // SAFETY: the byte is writable.
    if let Some(copied) = unsafe { copy_readable(address, &raw mut byte, 1) } {
        return copied == 1;
    }
    // Few processes may not call this. The kernel reads the mask before it refuses to change it in
    // a way that does not exist. (Memcheck would report a mask that is not initialised.)
    let arguments = [word(-1), address & !7, 0, size_of::<u64>()];
    // SAFETY: the call fails.
    let refusal = unsafe { call(libc::SYS_rt_sigprocmask, arguments) };
    refusal != Err(libc::EFAULT)
}
