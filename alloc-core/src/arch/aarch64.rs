//! Restartable sequences on AArch64.
//!
//! Registers of a critical section: `rs` the address of `struct rseq`, `at` scratch and then the region of this CPU,
//! `slot` the address of the sheaf's header, `top` its index.

use super::{HEADERS, Locals, MOST_ABORTS, OPEN, REGION_SHIFT, RseqArea, STATE};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// This build has restartable sequences; whether the kernel grants them is seen at run time.
pub(crate) const HAVE_RSEQ: bool = true;

/// What the kernel wants to see in front of an abort handler, and at registration.
pub(crate) const SIGNATURE: u32 = 0xd428_bc00;

// There is no data relocation for the offset of a thread-local here, so the first word starts at 0, which no
// thread-local can have (the thread control block is there), and `begin!` leaves on it.
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
    ".zero 48",
    ".popsection",
    locals = const size_of::<Locals>(),
    area = const size_of::<RseqArea>(),
    align = const align_of::<RseqArea>(),
    aborts = const offset_of!(Locals, aborts),
);

/// Opens a critical section: from here to `44:` the code restarts at `66:` when interrupted, or leaves with what the argument
/// does as if there were no sheaf (see [`super`]). Leaves this CPU's region in `at`; goes to `88:` where nothing is set up yet.
macro_rules! begin {
    ($miss:literal) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\", @progbits\n",
            ".balign 32\n",
            "22: .long 0, 0\n",
            ".xword 33f, 44f - 33f, 55f\n",
            ".popsection\n",
            ".pushsection .text.rseq_abort, \"ax\", @progbits\n",
            // RSEQ_SIG: `brk #0x45e0`.
            ".inst 0xd428bc00\n",
            "55: mrs {at}, tpidr_el0\n",
            "adrp {top}, :gottprel:hayloft_aborts\n",
            "ldr {top}, [{top}, :gottprel_lo12:hayloft_aborts]\n",
            "add {at}, {at}, {top}\n",
            "ldr {top:w}, [{at}]\n",
            "add {top:w}, {top:w}, #1\n",
            "str {top:w}, [{at}]\n",
            "cmp {top:w}, #{most}\n",
            "b.hs 56f\n",
            "b 66f\n",
            "56:\n",
            $miss,
            "\nb 44f\n",
            ".popsection\n",
            "adrp {at}, hayloft_rseq_offset\n",
            "add {at}, {at}, :lo12:hayloft_rseq_offset\n",
            // Acquire: pairs with the release in `publish_rseq_offset`, so the region read below is set.
            "ldar {rs}, [{at}]\n",
            "cbz {rs}, 88f\n",
            "mrs {at}, tpidr_el0\n",
            "add {rs}, {rs}, {at}\n",
            "66:\n",
            "adrp {at}, 22b\n",
            "add {at}, {at}, :lo12:22b\n",
            "str {at}, [{rs}, #8]\n",
            "33:\n",
            "adrp {top}, hayloft_region\n",
            "ldr {top}, [{top}, :lo12:hayloft_region]\n",
            "ldrsw {at}, [{rs}, #4]\n",
            "add {at}, {top}, {at}, lsl #{shift}\n",
            "add {slot}, {at}, {offset}\n",
        )
    };
}

/// Takes the topmost object of this CPU's sheaf; null if it is empty or closed.
///
/// # Safety
/// `class` is the number of a sheaf.
#[inline(always)]
pub(crate) unsafe fn pop(class: usize) -> *mut u8 {
    let object: *mut u8;
    // SAFETY: the words named by an open header belong to its sheaf, those named by a closed one are word 0, null;
    // the one store of the section commits it.
    unsafe {
        asm!(
            "mov {object}, xzr",
            begin!("mov {object}, xzr"),
            "ldr {top:w}, [{slot}]",
            "ldr {object}, [{at}, {top}, lsl #3]",
            "cbz {object}, 44f",
            "sub {top:w}, {top:w}, #1",
            "str {top:w}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            object = out(reg) object,
            offset = in(reg) HEADERS + class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
    object
}

/// Puts `object` on this CPU's sheaf; false if it is full or closed.
///
/// # Safety
/// `class` is the number of a sheaf.
#[inline(always)]
pub(crate) unsafe fn push(class: usize, object: *mut u8) -> bool {
    let pushed: u64;
    // SAFETY: the word above `top` is inside the sheaf as long as `top` is not `last`; nobody reads it before the
    // commit.
    unsafe {
        asm!(
            "mov {pushed}, xzr",
            begin!("mov {pushed}, xzr"),
            "ldr {top:w}, [{slot}]",
            "ldr {pushed:w}, [{slot}, #4]",
            "subs {pushed:w}, {pushed:w}, {top:w}",
            "b.ls 44f",
            "add {top:w}, {top:w}, #1",
            "str {object}, [{at}, {top}, lsl #3]",
            "str {top:w}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            pushed = out(reg) pushed,
            object = in(reg) object,
            offset = in(reg) HEADERS + class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
    // How far `last` is above `top`; what is not above it is at it, or zero in a sheaf that is being closed.
    (pushed as i32) > 0
}

/// As [`push`]; false also if `object` is one of the two topmost already. In a sheaf of less than two objects the words compared
/// with may be others, of the same region: then perhaps false for nothing.
///
/// # Safety
/// As [`push`].
#[inline(always)]
pub(crate) unsafe fn push_once(class: usize, object: *mut u8) -> bool {
    let pushed: u64;
    // SAFETY: as in `push`; the two words at and below `top` are in the region, as `top` is not zero where it is below `last`.
    unsafe {
        asm!(
            "mov {pushed}, xzr",
            begin!("mov {pushed}, xzr"),
            "ldr {top:w}, [{slot}]",
            "ldr {pushed:w}, [{slot}, #4]",
            "subs {pushed:w}, {pushed:w}, {top:w}",
            "b.ls 44f",
            "mov {pushed}, xzr",
            "add {at}, {at}, {top}, lsl #3",
            "ldp {below}, {on_top}, [{at}, #-8]",
            "cmp {object}, {on_top}",
            "ccmp {object}, {below}, #4, ne",
            "b.eq 44f",
            "mov {pushed}, #1",
            "add {top:w}, {top:w}, #1",
            "str {object}, [{at}, #8]",
            "str {top:w}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            below = out(reg) _,
            on_top = out(reg) _,
            pushed = out(reg) pushed,
            object = in(reg) object,
            offset = in(reg) HEADERS + class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
    (pushed as i32) > 0
}

/// Puts the first objects of `from[..len]` on this CPU's sheaf, as many as fit, the later above the earlier; how many.
///
/// # Safety
/// `class` is the number of a sheaf; `from` is readable for `len` pointers.
#[inline]
pub(crate) unsafe fn push_bulk(class: usize, from: *const *mut u8, len: usize) -> usize {
    let moved: usize;
    // SAFETY: at most `last - top` words above `top` are written, all inside the sheaf and unread before the commit.
    unsafe {
        asm!(
            "mov {moved}, xzr",
            begin!("mov {moved}, xzr"),
            "ldr {top:w}, [{slot}]",
            "ldr {moved:w}, [{slot}, #4]",
            "subs {moved}, {moved}, {top}",
            "csel {moved}, {moved}, xzr, hi",
            "cmp {moved}, {len}",
            "csel {moved}, {len}, {moved}, hi",
            "cbz {moved}, 44f",
            "add {to}, {at}, {top}, lsl #3",
            "add {top}, {top}, {moved}",
            "mov {done}, xzr",
            "77:",
            "ldr {word}, [{from}, {done}, lsl #3]",
            "str {word}, [{to}, #8]!",
            "add {done}, {done}, #1",
            "cmp {done}, {moved}",
            "b.ne 77b",
            "str {top:w}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            to = out(reg) _,
            word = out(reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            from = in(reg) from,
            len = in(reg) len,
            offset = in(reg) HEADERS + class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
    moved
}

/// Takes up to `len` topmost objects of this CPU's sheaf into `to`, in the order in which they lie; how many.
///
/// # Safety
/// `class` is the number of a sheaf, `floor` the word below the sheaf; `to` is writable for `len` pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(class: usize, floor: usize, to: *mut *mut u8, len: usize) -> usize {
    let moved: usize;
    // SAFETY: at most `top - floor` words are read, all inside the sheaf; `to` is the caller's.
    unsafe {
        asm!(
            "mov {moved}, xzr",
            begin!("mov {moved}, xzr"),
            "ldr {top:w}, [{slot}]",
            "subs {moved}, {top}, {floor}",
            "csel {moved}, {moved}, xzr, hi",
            "cmp {moved}, {len}",
            "csel {moved}, {len}, {moved}, hi",
            "cbz {moved}, 44f",
            "sub {top}, {top}, {moved}",
            "add {from}, {at}, {top}, lsl #3",
            "mov {done}, xzr",
            "77:",
            "ldr {word}, [{from}, #8]!",
            "str {word}, [{to}, {done}, lsl #3]",
            "add {done}, {done}, #1",
            "cmp {done}, {moved}",
            "b.ne 77b",
            "str {top:w}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            from = out(reg) _,
            word = out(reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            to = in(reg) to,
            len = in(reg) len,
            floor = in(reg) floor,
            offset = in(reg) HEADERS + class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
    moved
}

/// Writes `header` where this CPU's sheaf is still closed; does nothing on one that is open, or in a region that is not.
///
/// # Safety
/// `class` is the number of a sheaf, `header` the empty state of that sheaf, and the thread has a CPU.
#[inline]
pub(crate) unsafe fn open(class: usize, header: u64) {
    // SAFETY: one store, of a value that describes words nobody else uses.
    unsafe {
        asm!(
            begin!(""),
            "ldr {top}, [{slot}]",
            "cbnz {top}, 44f",
            "ldr {top}, [{at}, {state}]",
            "cmp {top}, {open}",
            "b.ne 44f",
            "str {header}, [{slot}]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            header = in(reg) header,
            offset = in(reg) HEADERS + class * 8,
            state = const STATE,
            open = const OPEN,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
}

/// Has this CPU's sheaf end at the word `last`, where it is open and ends below; does nothing in a region that is not open.
///
/// # Safety
/// `class` is the number of a sheaf, whose words go on to `last` at least, and the thread has a CPU.
#[inline]
pub(crate) unsafe fn widen(class: usize, last: u32) {
    // SAFETY: one store, of a value that describes words of the sheaf.
    unsafe {
        asm!(
            begin!(""),
            "ldr {top:w}, [{slot}, 4]",
            "cbz {top:w}, 44f",
            "cmp {top:w}, {last:w}",
            "b.hs 44f",
            "ldr {top}, [{at}, {state}]",
            "cmp {top}, {open}",
            "b.ne 44f",
            "str {last:w}, [{slot}, 4]",
            "44:",
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            last = in(reg) last,
            offset = in(reg) HEADERS + class * 8,
            state = const STATE,
            open = const OPEN,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            options(nostack),
        );
    }
}

/// Tells all threads where CPU 0's region is.
///
/// # Safety
/// Two closed regions lie below it; all CPUs' regions lie from it on, for the rest of the process's life.
pub(crate) unsafe fn publish_region(region: *mut u8) {
    // SAFETY: a word store; ordered before the offset by the release there.
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

/// Tells all threads where their `struct rseq` is. To be called after [`publish_region`].
///
/// # Safety
/// Every thread, present and future, has one at this offset from its thread pointer, registered or with a negative
/// CPU number.
pub(crate) unsafe fn publish_rseq_offset(offset: isize) {
    // SAFETY: a word store. Release: pairs with the acquire in `begin!`.
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

/// The offset at which the C library has registered every thread's `struct rseq`, if it did.
pub(crate) fn libc_rseq() -> Option<isize> {
    let offset: *const isize;
    let size: *const u32;
    // SAFETY: loads of two addresses from the offset table; zero where a weak symbol is undefined.
    unsafe {
        asm!(
            // Weak: a C library that registers rseq defines these two (glibc since 2.35).
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

/// Adds to a word that mostly this CPU writes, such that nobody on it comes in between.
pub(crate) fn add(word: &AtomicU64, more: u64) {
    word.fetch_add(more, Ordering::Relaxed);
}

/// The number of the CPU this thread runs on, if the thread is registered.
pub(crate) fn cpu() -> Option<usize> {
    let cpu: u64;
    // SAFETY: reads the thread's `struct rseq`, once its place is known.
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

/// The thread pointer of this thread.
pub(crate) fn thread_pointer() -> *mut u8 {
    let pointer: *mut u8;
    // SAFETY: reads a register.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer
}

/// The address of a thread-local of ours, in the initial-exec model: by an offset that the loader has filled in. What the
/// compiler has in a shared library asks the C library, which may allocate.
macro_rules! thread_local {
    ($symbol:literal) => {{
        let address: *mut u8;
        // SAFETY: computes an address.
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

/// This thread's own `struct rseq`, for use where the C library registers none.
pub(crate) fn own_rseq() -> *mut RseqArea {
    thread_local!("hayloft_rseq_area")
}

/// What the allocator keeps for this thread. The reference is not for others.
#[inline]
pub(crate) fn locals() -> &'static Locals {
    let locals: *mut Locals = thread_local!("hayloft_locals");
    // SAFETY: a block of this thread, as large and aligned as that, zero at first, and only used as atomics.
    unsafe { &*locals }
}

/// Makes a system call; returns its result, or the negated error number.
///
/// # Safety
/// What the call does with these arguments is sound.
#[inline]
pub(crate) unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result: isize;
    // SAFETY: the caller's promise; the kernel's calling convention.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second,
            in("x2") third,
            in("x3") fourth,
            in("x4") fifth,
            in("x5") sixth,
            options(nostack),
        );
    }
    result
}

/// Returns the addresses of the functions by which glibc takes, releases and renews the lock of the
/// list of all streams; null where the C library has none such.
pub(crate) fn stream_locks() -> [*const (); 3] {
    let (lock, unlock, renew): (*const (), *const (), *const ());
    // SAFETY: loads of addresses from the offset table; zero where a weak symbol is undefined.
    unsafe {
        asm!(
            ".weak _IO_list_lock",
            ".weak _IO_list_unlock",
            ".weak _IO_list_resetlock",
            "adrp {0}, :got:_IO_list_lock",
            "ldr {0}, [{0}, :got_lo12:_IO_list_lock]",
            "adrp {1}, :got:_IO_list_unlock",
            "ldr {1}, [{1}, :got_lo12:_IO_list_unlock]",
            "adrp {2}, :got:_IO_list_resetlock",
            "ldr {2}, [{2}, :got_lo12:_IO_list_resetlock]",
            out(reg) lock,
            out(reg) unlock,
            out(reg) renew,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [lock, unlock, renew]
}

/// Starts a thread that runs `body` and ends, by a bare `clone` with these flags; returns its number,
/// or the negated error number. The kernel stores the number at `number`, and clears it there when the
/// thread has left its stack. The C libraries' `clone` does not start threads everywhere (musl).
///
/// # Safety
/// `stack` is the end of memory for a stack, aligned to 16 bytes, and `pointer` a thread pointer, both
/// of which nobody else uses; `body` needs no more of the C library than these give it.
pub(crate) unsafe fn start_thread(
    flags: i32,
    stack: *mut u8,
    number: *mut u32,
    pointer: *mut u8,
    body: extern "C" fn(),
) -> isize {
    let result: isize;
    // SAFETY: the caller's promise; the kernel's calling convention. The new thread has the registers
    // of this one, but for its stack, and does not leave the block.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 22f",
            "mov x29, xzr",
            "blr x20",
            "mov x0, #0",
            "mov x8, #93",
            "svc #0",
            "brk #1",
            "22:",
            in("x8") 220usize,
            inlateout("x0") flags as usize => result,
            in("x1") stack,
            in("x2") number,
            in("x3") pointer,
            in("x4") number,
            in("x20") body,
        );
    }
    result
}
