//! Restartable sequences on AArch64.
//!
//! Registers of a critical section: `rs` is the address of `struct rseq`; `at` is scratch, then
//! this CPU's region; `slot` is the address of the sheaf's header; `top` is the index of the
//! topmost word.

use super::{HEADERS, Locals, MOST_ABORTS, OPEN, REGION_SHIFT, RseqArea, STATE};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// This build has restartable sequences. Whether the kernel grants them is found out at run time.
pub(crate) const HAVE_RSEQ: bool = true;

/// Signature that the kernel requires in front of an abort handler, and at registration.
pub(crate) const SIGNATURE: u32 = 0xd428_bc00;

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
    ".zero 48",
    ".popsection",
    locals = const size_of::<Locals>(),
    area = const size_of::<RseqArea>(),
    align = const align_of::<RseqArea>(),
    aborts = const offset_of!(Locals, aborts),
);

/// Opens a critical section. If the code from here to `44:` is interrupted, it restarts at `66:`,
/// or, after too many interruptions, leaves by executing the argument, as if there were no sheaf
/// (see [`super`]). Puts this CPU's region into `at`. Goes to `88:` as long as nothing is set up.
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
            // Acquire: pairs with the release in `publish_rseq_offset`, so that the region read
            // below is set.
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

/// Pops the topmost object of this CPU's sheaf. Returns null if the sheaf is empty or closed.
///
/// # Safety
/// `class` is the number of a sheaf.
#[inline(always)]
pub(crate) unsafe fn pop(class: usize) -> *mut u8 {
    let object: *mut u8;
    // SAFETY: the words that an open header names belong to its sheaf; a closed header names word
    // 0, which is null. The section's only store is its commit.
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

/// Pushes `object` onto this CPU's sheaf. Returns false if the sheaf is full or closed.
///
/// # Safety
/// `class` is the number of a sheaf, and `object` an object for it that nobody uses.
#[inline(always)]
pub(crate) unsafe fn push(class: usize, object: *mut u8) -> bool {
    let pushed: u64;
    // SAFETY: the word above `top` is inside the sheaf as long as `top` is below `last`. Nobody
    // reads that word before the commit.
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
    // `last - top`: zero in a full sheaf, negative in one that is being closed, whose `last` is
    // zero.
    (pushed as i32) > 0
}

/// As [`push`], but also returns false if `object` is one of the topmost two already. In a sheaf of
/// fewer than two objects, `object` may be compared with other words of the region, and be refused
/// without need.
///
/// # Safety
/// As [`push`].
#[inline(always)]
pub(crate) unsafe fn push_once(class: usize, object: *mut u8) -> bool {
    let pushed: u64;
    // SAFETY: as in `push`. The two words at and below `top` lie in the region, as `top` is not
    // zero when it is below `last`.
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

/// Pushes the first objects of `from[..len]` onto this CPU's sheaf, as many as fit, later ones
/// above earlier ones. Returns their number.
///
/// # Safety
/// `class` is the number of a sheaf, `from` is readable for `len` pointers, and these are objects
/// for the sheaf that nobody uses.
#[inline]
pub(crate) unsafe fn push_bulk(class: usize, from: *const *mut u8, len: usize) -> usize {
    let moved: usize;
    // SAFETY: at most `last - top` words above `top` are written. All of them are inside the sheaf,
    // and nobody reads them before the commit.
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

/// Pops up to `len` topmost objects of this CPU's sheaf into `to`, in the order in which they lie.
/// Returns their number.
///
/// # Safety
/// `class` is the number of a sheaf, `floor` the word below it, and `to` is writable for `len`
/// pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(class: usize, floor: usize, to: *mut *mut u8, len: usize) -> usize {
    let moved: usize;
    // SAFETY: at most `top - floor` words are read, all inside the sheaf; the caller guarantees
    // that `to` is writable.
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

/// Stores `header` if this CPU's sheaf is closed and its region is open; does nothing otherwise.
///
/// # Safety
/// `class` is the number of a sheaf, `header` that sheaf's header when empty, and the thread has a
/// CPU number.
#[inline]
pub(crate) unsafe fn open(class: usize, header: u64) {
    // SAFETY: the only store writes a header of words that nobody else uses.
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

/// Moves the end of this CPU's sheaf up to the word `last`, if the sheaf is open and ends below it.
/// Does nothing in a region that is not open.
///
/// # Safety
/// `class` is the number of a sheaf that has words up to `last` at least, and the thread has a CPU
/// number.
#[inline]
pub(crate) unsafe fn widen(class: usize, last: u32) {
    // SAFETY: the only store writes an end up to which the caller guarantees that the sheaf has
    // words.
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

/// Adds to a word that is mostly written by this CPU. Nothing else on this CPU comes between its
/// load and its store.
pub(crate) fn add(word: &AtomicU64, more: u64) {
    word.fetch_add(more, Ordering::Relaxed);
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

/// Makes a system call. Returns its result, or the negated error number.
///
/// # Safety
/// The effect of the call with these arguments is sound.
#[inline]
pub(crate) unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result: isize;
    // SAFETY: the caller guarantees that the call is sound; the registers follow the kernel's
    // calling convention.
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

/// Returns the addresses of glibc's functions that take, release and reset the lock of the list of
/// all streams; null where the C library has no such function.
pub(crate) fn stream_locks() -> [*const (); 3] {
    let (lock, unlock, renew): (*const (), *const (), *const ());
    // SAFETY: loads addresses from the offset table, which are zero if a weak symbol is undefined.
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

/// Starts a thread by a bare `clone` with these flags; it runs `body` and ends. Returns its number,
/// or the negated error number. The kernel stores the number at `number`, and clears it there when
/// the thread has left its stack. The `clone` of the C library does not start threads everywhere
/// (musl).
///
/// # Safety
/// `stack` is the end of memory for a stack, aligned to 16 bytes, and `pointer` a thread pointer.
/// Nobody else uses either. `body` needs nothing of the C library beyond these.
pub(crate) unsafe fn start_thread(
    flags: i32,
    stack: *mut u8,
    number: *mut u32,
    pointer: *mut u8,
    body: extern "C" fn(),
) -> isize {
    let result: isize;
    // SAFETY: the caller guarantees that nobody else uses the stack and the thread pointer; the
    // registers follow the kernel's calling convention. The new thread has the registers of this
    // one, except for its stack, and does not leave the block.
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
