//! Restartable sequences, the lookup from a block to its sheaf, bare system calls, and probes for
//! tracers: the only assembly of the allocator.
//!
//! A sheaf is a stack of object pointers inside a *region*, which belongs to one CPU. A region
//! starts with one 8-byte header per sheaf. Its numbers `top` and `last` count 8-byte words from
//! the start of the region:
//!
//! ```text
//! byte 0  top    the word of the topmost object; in an empty sheaf the word below it, its floor
//! byte 2  count  the number of objects that may still be popped until a slow path is due
//! byte 4  last   the word at which the sheaf ends for now; `top == last` when it is full
//! ```
//!
//! The floor always holds null. The first word of a region is null and the second its state:
//! sheaves are opened in open regions only. `top` and `count` have 16 bits each, and are read and
//! written together: one subtraction pops an object and counts it. (Forwarding a 16-bit store to
//! the next load costs a pair of operations 4.3 ns instead of 1.9 on Zen 4.)
//!
//! The count costs no memory access and makes the number of allocations exact: the counts that a
//! header was given, less the present one. When it is used up, `pop` misses, although the sheaf has
//! objects; the slow path gives the header another. A sampler chooses counts at random.
//!
//! A region takes memory from its first use on. Before that it is readable, and all zero. That
//! holds for every CPU number a kernel may have, so operations on a CPU that was never announced
//! miss, too.
//!
//! A header of zero is a *closed* sheaf, empty and full at once: `pop` reads word 0 of the region,
//! which is null, and `push` is refused by `top >= last`. So neither needs a test for "is there a
//! region yet". Another CPU closes a sheaf by halves, and restarts the running sections each time:
//!
//! 1. It closes the region. Sections store `last` in open regions only, so after the restart none
//!    does.
//! 2. It sets `last` to zero. After the restart no section pushes.
//! 3. It sets `top` and `count` to zero. After the restart no section pops.
//!
//! Every operation is one critical section in the sense of Linux's `rseq(2)`:
//!
//! ```text
//! prepare:  store the address of the descriptor {start, length, abort} into rseq_cs
//! start:    load the CPU number, find its region, read, write words nobody reads yet
//!           store `top` and `count`                                  <- the commit
//! end:
//! abort:    count; jump to prepare, or leave (in a cold section, behind the kernel's signature)
//! ```
//!
//! If the thread is preempted, migrated or handles a signal between start and end, the kernel
//! resumes it at `abort`. So the section is atomic, without an atomic instruction, towards
//! everything that can run on this CPU, including a handler on this very thread. Nothing may be
//! *called* between start and end.
//!
//! A thread that is single-stepped by a debugger, or interrupted all the time by a timer, never
//! gets from start to end. So after [`MOST_ABORTS`] restarts a section leaves as if there were no
//! sheaf. In the slow path that follows, every section that is interrupted leaves at once. The end
//! of that slow path resets the count.
//!
//! The CPU number is -1 in a thread that is not registered yet and -2 in one that cannot be. Two
//! closed regions lie in front of CPU 0's, so such a thread misses and takes the slow path, again
//! without a test.
//!
//! Two words lead a section to its region: the offset of the thread's `struct rseq` from the thread
//! pointer, and the address of CPU 0's region. On x86-64 they initially name a thread-local of ours
//! with the CPU number -1, and the end of two static closed regions. On AArch64 both are initially
//! zero, and a section leaves on a zero offset. The region's address is published before the
//! offset, and before this allocator registers any thread; sections read it after the offset. So no
//! thread pairs a real CPU number with the static regions.
//!
//! Sources: `kernel/rseq.c`, `Documentation/userspace-api/rseq.rst`; the layout of headers follows
//! TCMalloc's *Per-CPU Mode* design note.

use core::ptr;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
use core::sync::atomic::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

/// Byte offset in a region of its state: [`OPEN`] while sheaves may be opened in it.
pub(crate) const STATE: usize = 8;
/// State of an open region. A region that must not be written to reads as 0.
pub(crate) const OPEN: usize = 1;

/// Byte offset in a region of sheaf 0's header; the other headers follow.
pub(crate) const HEADERS: usize = 16;

/// One allocation in the first half of a header, above the index of the topmost word.
pub(crate) const COUNTED: u32 = 1 << 16;

/// Interruptions of a thread's sections, between two slow paths, after which a section gives up.
pub(crate) const MOST_ABORTS: u32 = 16;

/// Log2 of the bytes between the regions of neighbouring CPUs.
pub(crate) const REGION_SHIFT: u32 = 18;

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[path = "x86_64/mod.rs"]
mod imp;
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[path = "aarch64/mod.rs"]
mod imp;
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "none.rs"]
mod imp;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
pub(crate) mod probes;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
pub(crate) use imp::frames;
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) use imp::probes;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use imp::push_by_address;
pub(crate) use imp::{
    HAVE_RSEQ, add, call_on_stack, cpu, libc_rseq, locals, lowest, open, own_rseq, pop, pop_bulk,
    program_settings, publish_region, publish_rseq_offset, push, push_bulk, push_once, recount,
    thread_pointer, widen,
};

#[cfg(not(miri))]
pub(crate) use imp::{SIGNATURE, start_thread, stream_locks, system_call};

/// The allocator's per-thread state, all zero when a thread starts. Its memory exists from the
/// start of the thread, and the C library has nothing to find or allocate for it, so any context
/// may use it.
///
/// Only the thread itself uses it, and signal handlers on that thread; the atomics are for these.
/// No locked instruction is needed, as a handler leaves each word as it found it.
#[repr(C)]
pub(crate) struct Locals {
    /// Numbers of RCU readers on this thread, by side: the readers that survive when it forks.
    pub(crate) readers: [AtomicUsize; 2],
    /// Number of read locks of CPU hotplug that this thread holds.
    pub(crate) hotplug_readers: AtomicUsize,
    /// Address of the lock that this thread is acquiring or releasing.
    pub(crate) changing: AtomicUsize,
    /// Number of the CPU that this thread acts as, plus one.
    pub(crate) acts_as: AtomicUsize,
    /// Number of slow paths that this thread is in.
    pub(crate) depth: AtomicU32,
    /// Not 0 once registration of this thread for restartable sequences was tried.
    pub(crate) registration: AtomicU32,
    /// Number of interrupted sections since a slow path last saw [`MOST_ABORTS`] of them. The
    /// sections themselves count, also in handlers, which therefore do not leave this word as they
    /// found it.
    pub(crate) aborts: AtomicU32,
    /// Not 0 in a thread of the allocator itself.
    pub(crate) is_service: AtomicU32,
    /// Number of the tag that this thread is in; 0 without one.
    pub(crate) tag: AtomicU32,
    /// List of the irq work items that this thread is queueing, innermost first.
    pub(crate) queueing: AtomicPtr<()>,
    /// The address from which on the stack of this thread is known to be mapped; 0 if it is not
    /// known. Handlers may lower it.
    pub(crate) checked_stack: AtomicUsize,
    /// Bytes that this thread allocated, and those that it freed, by samples: each with its
    /// variance, as the bits of an `f64`. Handlers may add to them.
    pub(crate) sampled: [[AtomicU64; 2]; 2],
    /// Bytes that this thread has allocated and freed. Handlers may add to them.
    #[cfg(feature = "thread-totals")]
    pub(crate) exact: [AtomicU64; 2],
    /// State of the lock witness.
    #[cfg(debug_assertions)]
    pub(crate) witness: [AtomicUsize; WITNESS_WORDS],
}

/// Number of words of the lock witness.
#[cfg(debug_assertions)]
pub(crate) const WITNESS_WORDS: usize = 34;

/// Address and length of the first arena's units, and the address of their entries. They lie on a
/// cache line that is never written again once they are set, unlike the lines of the arena.
#[repr(C, align(64))]
pub(crate) struct First {
    /// Length in bytes; 0 before the other fields are set. Stored with Release, which pairs with
    /// the Acquire of readers.
    pub(crate) bytes: AtomicUsize,
    pub(crate) base: AtomicPtr<u8>,
    pub(crate) entries: AtomicPtr<u8>,
    pub(crate) meta: AtomicPtr<u8>,
}

pub(crate) static FIRST: First = First {
    bytes: AtomicUsize::new(0),
    // No address is near this one: a reader that still sees it with the final length finds every
    // address foreign.
    base: AtomicPtr::new(ptr::without_provenance_mut(1 << (usize::BITS - 1))),
    entries: AtomicPtr::new(ptr::null_mut()),
    meta: AtomicPtr::new(ptr::null_mut()),
};

/// Outcome of pushing an object that is found by its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Push {
    Done,
    /// Refused, as by [`push_once`].
    Refused,
    /// No object starts there in the first arena.
    Elsewhere,
}

/// Log2 of the bytes of a unit.
const UNIT_SHIFT: u32 = 16;

/// Pushes the object at `address` onto this CPU's sheaf, as [`push_once`], if it is one of the
/// first arena.
///
/// The entry of a unit has `SIZE` bytes. At byte `CLASS` it has the class number of the unit's
/// objects, in 16 bits; at byte `TEST` it has a 32-bit word. An object starts at every address
/// whose low 16 bits times that word, modulo 2^32, are less than the word.
///
/// # Safety
/// If the address lies in the first arena, its entry is committed. An object that starts there
/// is of its unit's class, and nobody uses it.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
pub(crate) unsafe fn push_by_address<const SIZE: usize, const TEST: usize, const CLASS: usize>(
    address: *mut u8,
) -> Push {
    // Acquire: pairs with the Release of the thread that makes the arena.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    if offset >= bytes {
        return Push::Elsewhere;
    }
    // SAFETY: the address lies in the first arena, so the caller guarantees that its entry is
    // committed and that an object there is unused.
    unsafe {
        let entry = FIRST.entries.load(Ordering::Relaxed).add((offset >> UNIT_SHIFT) * SIZE);
        let word = entry.add(TEST).cast::<u32>().read();
        let in_unit = (address.addr() & ((1 << UNIT_SHIFT) - 1)) as u32;
        if in_unit.wrapping_mul(word) >= word {
            return Push::Elsewhere;
        }
        let class = usize::from(entry.add(CLASS).cast::<u16>().read());
        if push_once(class, address) { Push::Done } else { Push::Refused }
    }
}

/// The kernel's `struct rseq` of this thread, as far as this allocator uses it, and room for the
/// additions of newer kernels. While the thread is registered, the kernel may write all fields but
/// `rseq_cs`.
#[repr(C, align(64))]
pub(crate) struct RseqArea {
    pub(crate) cpu_id_start: u32,
    pub(crate) cpu_id: i32,
    pub(crate) rseq_cs: u64,
    pub(crate) rest: [u64; 6],
}
