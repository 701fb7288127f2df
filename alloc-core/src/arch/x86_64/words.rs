//! The two words that lead a section to its region, the lowest address that a pop returns, and the
//! thread-locals of this allocator: their symbols, publishing them, and finding what they name.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicUsize;

use super::super::{Locals, REGION_SHIFT, RseqArea};

/// Initial values by which the offset of our own thread-local gets into the hot words. Without
/// glibc the linker fills the offset in, which it does in executables only. With glibc, whose
/// loader knows indirect functions, the resolver of such a function stores the offset; its address
/// is kept beside the hot words.
#[cfg(not(target_env = "gnu"))]
macro_rules! initial {
    (offset) => {
        "hayloft_rseq_area@tpoff"
    };
    (resolver) => {
        "0"
    };
}
#[cfg(target_env = "gnu")]
macro_rules! initial {
    (offset) => {
        "0"
    };
    (resolver) => {
        "hayloft_place_rseq_area"
    };
}

// Linkers refuse `@tpoff` in the data of a shared library, although the loader could fill it in.
// They let the loader fill it only into the offset table, which is read-only from then on. But a
// word that refers to an indirect function makes the loader call the function's resolver, after all
// else of the library is relocated and before any of its code runs. This resolver is there for its
// side effect; nobody uses its return value. (Some linkers would store that value in the word,
// others let the word refer to a stub.) In a static program the resolver runs before thread-locals
// exist, so it must not touch any.
#[cfg(target_env = "gnu")]
global_asm!(
    ".pushsection .text.hayloft_place_rseq_area, \"ax\", @progbits",
    ".type hayloft_place_rseq_area, @gnu_indirect_function",
    ".hidden hayloft_place_rseq_area",
    ".globl hayloft_place_rseq_area",
    "hayloft_place_rseq_area:",
    "mov rax, qword ptr [rip + hayloft_rseq_area@GOTTPOFF]",
    "mov qword ptr [rip + hayloft_rseq_offset], rax",
    "ret",
    ".size hayloft_place_rseq_area, . - hayloft_place_rseq_area",
    ".popsection",
);

// The hot words share a cache line. The first operation of a process must find a valid,
// unregistered area through them: our own thread-local.
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
    ".type hayloft_locals, @object",
    ".size hayloft_locals, {locals}",
    ".hidden hayloft_locals",
    ".globl hayloft_locals",
    "hayloft_locals: .zero {aborts}",
    ".hidden hayloft_aborts",
    ".globl hayloft_aborts",
    "hayloft_aborts: .zero {locals} - {aborts}",
    ".popsection",
    ".pushsection .bss.hayloft_closed_region, \"aw\", @nobits",
    ".balign 64",
    // The regions of CPU -2, for threads that were refused, and of CPU -1.
    "hayloft_closed_region: .zero (1 << {shift}) + 4096",
    ".popsection",
    ".pushsection .data.hayloft_hot, \"aw\", @progbits",
    ".balign 64",
    ".hidden hayloft_rseq_offset",
    ".globl hayloft_rseq_offset",
    concat!("hayloft_rseq_offset: .quad ", initial!(offset)),
    ".hidden hayloft_region",
    ".globl hayloft_region",
    "hayloft_region: .quad hayloft_closed_region + (2 << {shift})",
    ".hidden hayloft_lowest",
    ".globl hayloft_lowest",
    "hayloft_lowest: .quad 1",
    concat!(".quad ", initial!(resolver)),
    ".zero 40",
    ".popsection",
    shift = const REGION_SHIFT,
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
    // SAFETY: an aligned store of a word is a release on x86-64; the readers are the loads in
    // `begin!`.
    unsafe { asm!("mov qword ptr [rip + hayloft_region], {}", in(reg) region, options(nostack)) };
}

/// Publishes the offset of `struct rseq` to all threads. Call after [`publish_region`].
///
/// # Safety
/// Every thread, present and future, has a `struct rseq` at this offset from its thread pointer. It
/// is registered or has a negative CPU number.
pub(crate) unsafe fn publish_rseq_offset(offset: isize) {
    // SAFETY: an aligned store of a word is a release on x86-64; the readers are the loads in
    // `begin!` and `cpu`.
    unsafe {
        asm!("mov qword ptr [rip + hayloft_rseq_offset], {}", in(reg) offset, options(nostack));
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
            "mov {}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {}, qword ptr [rip + __rseq_size@GOTPCREL]",
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
    // SAFETY: reads the thread's `struct rseq`.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + hayloft_rseq_offset]",
            "movsxd {0}, dword ptr fs:[{0} + 4]",
            out(reg) cpu,
            options(readonly, nostack, preserves_flags),
        );
    }
    usize::try_from(cpu as i64).ok()
}

/// Returns this thread's thread pointer.
pub(crate) fn thread_pointer() -> *mut u8 {
    let pointer: *mut u8;
    // SAFETY: the ABI keeps the thread pointer in the first word it points to.
    unsafe {
        asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
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
                concat!("mov {0}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                "add {0}, qword ptr fs:[0]",
                out(reg) address,
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
    // and is only accessed as an atomic, or by sections.
    unsafe {
        asm!(
            "lea {}, [rip + hayloft_lowest]",
            out(reg) word,
            options(pure, nomem, nostack, preserves_flags)
        );
        &*word
    }
}
