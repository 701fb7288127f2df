//! The two words that lead a section to its region, and the thread-locals of this allocator: their
//! symbols, publishing them, and finding what they name.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicUsize;

use super::super::{Locals, RseqArea};

// AArch64 has no data relocation for the offset of a thread-local. So the first word starts at 0,
// which no thread-local has as its offset (the thread control block is there), and `begin!` leaves
// on 0.
global_asm!(
    ".pushsection .tdata.hayloft_rseq, \"awT\", @progbits",
    ".balign {align}",
    ".type hayloft_rseq_area, @object",
    ".size hayloft_rseq_area, {area}",
    ".hidden hayloft_rseq_area",
    ".globl hayloft_rseq_area",
    "hayloft_rseq_area:",
    ".long 0, -1",
    ".zero {area} - 8",
    ".type hayloft_locals, %object",
    ".size hayloft_locals, {locals}",
    ".hidden hayloft_locals",
    ".globl hayloft_locals",
    "hayloft_locals: .zero {aborts}",
    ".hidden hayloft_aborts",
    ".globl hayloft_aborts",
    "hayloft_aborts: .zero {locals} - {aborts}",
    ".popsection",
    ".pushsection .data.hayloft_hot, \"aw\", @progbits",
    ".balign 64",
    ".hidden hayloft_rseq_offset",
    ".globl hayloft_rseq_offset",
    "hayloft_rseq_offset: .xword 0",
    ".hidden hayloft_region",
    ".globl hayloft_region",
    "hayloft_region: .xword 0",
    ".hidden hayloft_lowest",
    ".globl hayloft_lowest",
    "hayloft_lowest: .xword 1",
    ".zero 48",
    ".popsection",
    locals = const size_of::<Locals>(),
    area = const size_of::<RseqArea>(),
    align = const align_of::<RseqArea>(),
    aborts = const offset_of!(Locals, aborts),
);

/// Publishes the address of CPU 0's region to all threads.
///
/// # Safety
/// Two closed regions lie below it; the regions of all CPUs start at it, for the rest of the life
/// of the process.
pub(crate) unsafe fn publish_region(region: *mut u8) {
    // SAFETY: a store of a word, ordered before the offset by the release in `publish_rseq_offset`.
    unsafe {
        asm!(
            "adrp {at}, hayloft_region",
            "str {region}, [{at}, :lo12:hayloft_region]",
            at = out(reg) _,
            region = in(reg) region,
            options(nostack),
        );
    }
}

/// Publishes the offset of `struct rseq` to all threads. Call after [`publish_region`].
///
/// # Safety
/// Every thread, present and future, has a `struct rseq` at this offset from its thread pointer. It
/// is registered or has a negative CPU number.
pub(crate) unsafe fn publish_rseq_offset(offset: isize) {
    // SAFETY: a store of a word. Release: pairs with the acquire in `begin!`.
    unsafe {
        asm!(
            "adrp {at}, hayloft_rseq_offset",
            "add {at}, {at}, :lo12:hayloft_rseq_offset",
            "stlr {offset}, [{at}]",
            at = out(reg) _,
            offset = in(reg) offset,
            options(nostack),
        );
    }
}

/// Returns the offset from the thread pointer at which the C library has registered every thread's
/// `struct rseq`, if it has.
pub(crate) fn libc_rseq() -> Option<isize> {
    let offset: *const isize;
    let size: *const u32;
    // SAFETY: loads two addresses from the offset table, which are zero if a weak symbol is
    // undefined.
    unsafe {
        asm!(
            // Weak: C libraries that register rseq define these two (glibc since 2.35).
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "adrp {0}, :got:__rseq_offset",
            "ldr {0}, [{0}, :got_lo12:__rseq_offset]",
            "adrp {1}, :got:__rseq_size",
            "ldr {1}, [{1}, :got_lo12:__rseq_size]",
            out(reg) offset,
            out(reg) size,
            options(pure, readonly, nostack, preserves_flags),
        );
        if offset.is_null() || size.is_null() || *size == 0 { None } else { Some(*offset) }
    }
}

/// Returns the number of the CPU that this thread runs on, if the thread is registered.
pub(crate) fn cpu() -> Option<usize> {
    let cpu: u64;
    // SAFETY: reads the thread's `struct rseq`, if its offset is known.
    unsafe {
        asm!(
            "mov {cpu:w}, #-1",
            "adrp {offset}, hayloft_rseq_offset",
            "ldr {offset}, [{offset}, :lo12:hayloft_rseq_offset]",
            "cbz {offset}, 88f",
            "mrs {cpu}, tpidr_el0",
            "add {offset}, {offset}, {cpu}",
            "ldr {cpu:w}, [{offset}, #4]",
            "88:",
            cpu = out(reg) cpu,
            offset = out(reg) _,
            options(readonly, nostack),
        );
    }
    usize::try_from(cpu as i32).ok()
}

/// Returns this thread's thread pointer.
pub(crate) fn thread_pointer() -> *mut u8 {
    let pointer: *mut u8;
    // SAFETY: only reads a register.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer
}

/// Computes the address of a thread-local of ours in the initial-exec model, by an offset that the
/// loader has filled in. In a shared library, the compiler's own thread-locals call the C library,
/// which may allocate.
macro_rules! thread_local {
    ($symbol:literal) => {{
        let address: *mut u8;
        // SAFETY: only computes an address.
        unsafe {
            asm!(
                "mrs {0}, tpidr_el0",
                concat!("adrp {1}, :gottprel:", $symbol),
                concat!("ldr {1}, [{1}, :gottprel_lo12:", $symbol, "]"),
                "add {0}, {0}, {1}",
                out(reg) address,
                out(reg) _,
                options(pure, readonly, nostack),
            );
        }
        address.cast()
    }};
}

/// Returns this thread's own `struct rseq`, for use if the C library registers none.
pub(crate) fn own_rseq() -> *mut RseqArea {
    thread_local!("hayloft_rseq_area")
}

/// Returns the allocator's state for this thread. The reference must not leave the thread.
#[inline]
pub(crate) fn locals() -> &'static Locals {
    let locals: *mut Locals = thread_local!("hayloft_locals");
    // SAFETY: the symbol is a thread-local block with the size and alignment of `Locals`. It starts
    // as zeros and is only accessed as atomics.
    unsafe { &*locals }
}

/// Returns the lowest address of an object that a pop returns: 1, so that it returns no null, or
/// the end of the memory of sampled blocks, which lies below all others. Relaxed: the owner of a
/// sampled block has seen it.
#[inline(always)]
pub(crate) fn lowest() -> &'static AtomicUsize {
    let word: *const AtomicUsize;
    // SAFETY: only computes the address of a word, which lives as long as the program or library
    // and is only accessed as an atomic.
    unsafe {
        asm!(
            "adrp {word}, hayloft_lowest",
            "add {word}, {word}, :lo12:hayloft_lowest",
            word = out(reg) word,
            options(pure, nomem, nostack, preserves_flags)
        );
        &*word
    }
}
