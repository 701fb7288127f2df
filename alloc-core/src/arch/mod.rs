//! Restartable sequences, what leads from a block to one, and bare system calls: the only assembly of the allocator.
//!
//! A sheaf is a stack of object pointers inside a *region* that belongs to one CPU. The region starts with one 8-byte
//! header per sheaf, of two 32-bit numbers that count 8-byte words from the start of the region:
//!
//! ```text
//! byte 0  top    the word of the topmost object; the word below the sheaf, its floor, when the sheaf is empty
//! byte 4  last   the word at which the sheaf ends for now; `top == last` when it is full
//! ```
//!
//! The floor always holds null. The first two words of a region are null, and its state: sheaves are opened in an open one only.
//! A region is memory from its first use on; before that it can be read, and all of it is zero. That goes for as many
//! CPU numbers as any kernel has, so one that nobody told of misses, too. (16-bit numbers would do, but forwarding a 16-bit store to the next load costs a pair
//! of operations 4.3 ns instead of 1.9 on Zen 4.)
//!
//! A header of zero is a *closed* sheaf, empty and full at once: word 0 of a region is the null that `pop` reads, and
//! `top >= last` refuses `push`. So neither needs a test for "is there a region yet". Another CPU closes a sheaf by halves:
//! sections store `last` in open regions only, so once the region is closed, then `last` is zero, and the sections that were
//! running have restarted each time, nothing is pushed any more; and once `top` is zero after the same, nothing is popped.
//!
//! Every operation is one critical section in the sense of Linux's `rseq(2)`:
//!
//! ```text
//! prepare:  store the address of the descriptor {start, length, abort} into rseq_cs
//! start:    load the CPU number, find its region, read, write words nobody reads yet
//!           store `top`                                              <- the commit
//! end:
//! abort:    count; jump to prepare, or leave (in a cold section, behind the signature the kernel demands)
//! ```
//!
//! If the thread is preempted, migrated or handles a signal between start and end, the kernel resumes it at `abort`.
//! That makes the section atomic towards everything that can run on this CPU, a handler on this very thread included,
//! without an atomic instruction. Nothing may be *called* between start and end.
//!
//! A thread that a debugger steps, or a timer interrupts all the time, never gets from start to end. So after
//! [`MOST_ABORTS`] restarts a section leaves as if there were no sheaf, and each one that is interrupted in the slow path
//! that follows does so at once. The end of that slow path counts from zero again.
//!
//! The CPU number is -1 in a thread not registered yet and -2 in one that cannot be. Two closed regions lie in front
//! of CPU 0's, so such a thread misses and takes the slow path, again without a test.
//!
//! Two words say where things are: the offset of the thread's `struct rseq` from the thread pointer, and the address
//! of CPU 0's region. They start at a thread-local of ours, with the CPU number -1, and behind two static closed
//! regions; the region is published before the offset, and before any thread is registered by us, and read after the
//! offset, so a thread never pairs a real CPU number with the static regions.
//!
//! Sources: `kernel/rseq.c`, `Documentation/userspace-api/rseq.rst`; the layout of headers follows TCMalloc's
//! *Per-CPU Mode* design note.

use core::ptr;
#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
use core::sync::atomic::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

/// Byte offset in a region of the word that is [`OPEN`] while sheaves may be opened in it.
pub(crate) const STATE: usize = 8;
/// The state of an open region. It is 0 where nothing may be written.
pub(crate) const OPEN: usize = 1;

/// Byte offset in a region of the header of sheaf 0; those of others follow.
pub(crate) const HEADERS: usize = 16;

/// How many times sections of a thread are interrupted, between two slow paths, before one gives up.
pub(crate) const MOST_ABORTS: u32 = 16;

/// Log2 of the bytes between the regions of neighbouring CPUs.
pub(crate) const REGION_SHIFT: u32 = 18;

#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
#[path = "x86_64.rs"]
mod imp;
#[cfg(all(target_arch = "aarch64", not(any(miri, loom))))]
#[path = "aarch64.rs"]
mod imp;
#[cfg(any(miri, loom, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "none.rs"]
mod imp;

#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
pub(crate) use imp::push_by_address;
pub(crate) use imp::{
    HAVE_RSEQ, add, cpu, libc_rseq, locals, open, own_rseq, pop, pop_bulk, publish_region,
    publish_rseq_offset, push, push_bulk, push_once, thread_pointer, widen,
};

#[cfg(not(miri))]
pub(crate) use imp::SIGNATURE;
#[cfg(not(any(miri, loom)))]
pub(crate) use imp::{start_thread, stream_locks, system_call};

/// All that the allocator keeps for a thread, zero at its start. It has a place from the start of the
/// thread, which no code of the C library has to find or to allocate, so any context may use it.
///
/// Only its own thread uses it, and handlers on that: the atomics are for these. No locked
/// instruction is needed, as a handler leaves each word as it found it.
#[repr(C)]
pub(crate) struct Locals {
    /// Readers on this thread, by side: those that survive when it forks.
    pub(crate) readers: [AtomicUsize; 2],
    /// The address of the lock that this thread takes or releases.
    pub(crate) changing: AtomicUsize,
    /// The CPU that this thread acts as, plus one.
    pub(crate) acts_as: AtomicUsize,
    /// Slow paths that this thread is in.
    pub(crate) depth: AtomicU32,
    /// Not 0 once somebody tried to register this thread for restartable sequences.
    pub(crate) registration: AtomicU32,
    /// Sections that were interrupted since a slow path last saw [`MOST_ABORTS`] of them. Counted by the sections themselves,
    /// those of handlers too, so these do not leave it as they found it.
    pub(crate) aborts: AtomicU32,
    /// The item of irq work that this thread is queueing, and what that interrupted.
    pub(crate) queueing: AtomicPtr<()>,
    /// What the lock witness knows of this thread.
    #[cfg(debug_assertions)]
    pub(crate) witness: [AtomicUsize; WITNESS_WORDS],
}

/// Words of the lock witness.
#[cfg(debug_assertions)]
pub(crate) const WITNESS_WORDS: usize = 34;

/// Where the units of the first arena are, and their metadata: on a line that is not written any more, unlike those of the arena.
#[repr(C, align(64))]
pub(crate) struct First {
    /// 0 before the others are known. Release then, pairs with the Acquire of whoever looks.
    pub(crate) bytes: AtomicUsize,
    pub(crate) base: AtomicPtr<u8>,
    pub(crate) meta: AtomicPtr<u8>,
}

pub(crate) static FIRST: First = First {
    bytes: AtomicUsize::new(0),
    // No address is near: whoever still reads this, and the length already, finds it foreign.
    base: AtomicPtr::new(ptr::without_provenance_mut(1 << (usize::BITS - 1))),
    meta: AtomicPtr::new(ptr::null_mut()),
};

/// What became of an object that was to be found by its address, and put on its sheaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Push {
    Done,
    /// As [`push_once`] refuses one.
    Refused,
    /// No object starts there in the first arena.
    Elsewhere,
}

/// Log2 of the bytes of a unit.
const UNIT_SHIFT: u32 = 16;

/// Puts the object at `address` on this CPU's sheaf, as [`push_once`], if it is one of the first arena. The metadata of a unit has
/// `SIZE` bytes. At byte `CLASS` it has the number of its objects' class, in 16 bits, and at `TEST` a word: an object starts at an
/// address whose last 16 bits, times that word, are less than the word, in 32 bits.
///
/// # Safety
/// If the address lies in the first arena, its metadata is committed, and an object that starts there is the caller's to give.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
#[inline(always)]
pub(crate) unsafe fn push_by_address<const SIZE: usize, const TEST: usize, const CLASS: usize>(
    address: *mut u8,
) -> Push {
    // Acquire: pairs with the Release of who makes the arena.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    if offset >= bytes {
        return Push::Elsewhere;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let meta = FIRST.meta.load(Ordering::Relaxed).add((offset >> UNIT_SHIFT) * SIZE);
        let word = meta.add(TEST).cast::<u32>().read();
        let in_unit = (address.addr() & ((1 << UNIT_SHIFT) - 1)) as u32;
        if in_unit.wrapping_mul(word) >= word {
            return Push::Elsewhere;
        }
        let class = usize::from(meta.add(CLASS).cast::<u16>().read());
        if push_once(class, address) { Push::Done } else { Push::Refused }
    }
}

/// The kernel's `struct rseq` of this thread, as far as this allocator uses it, and room for what newer kernels add. All but
/// `rseq_cs` is the kernel's to write while the thread is registered.
#[repr(C, align(64))]
pub(crate) struct RseqArea {
    pub(crate) cpu_id_start: u32,
    pub(crate) cpu_id: i32,
    pub(crate) rseq_cs: u64,
    pub(crate) rest: [u64; 6],
}
