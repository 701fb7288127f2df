//! The critical sections: operations on this CPU's sheaves.
//!
//! Registers of a section: `rs` is the offset of `struct rseq` from the thread pointer, then the
//! index of the topmost word; `at` is scratch, then this CPU's region; `class` is the number of the
//! sheaf's header in it; `top` is the header's first half, the count and that index.
//!
//! Intel cores forward a store to a load before either address is known (memory renaming), but only
//! if both addresses are a bare register; an address with an index waits. `pop` and `push` read
//! what the operation before wrote, so they compute addresses in separate instructions. On Sapphire
//! Rapids a pair then takes 1.9 ns instead of 4, and through `free`, where the class depends on the
//! block, 3 ns instead of 8.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use super::super::{
    COUNTED, FIRST, First, HEADERS, MOST_ABORTS, OPEN, Push, REGION_SHIFT, STATE, UNIT_SHIFT,
};

/// Opens a critical section. If the code from here to `44:` is interrupted, it restarts at `66:`,
/// or, after too many interruptions, leaves by executing the argument, as if there were no sheaf
/// (see [`crate::arch`]). Puts this CPU's region into `at`. `jc 88b` and `jb 88b` leave in the same
/// way.
///
/// A signal that interrupts the section finds the thread at the abort handler, so a stack walk from
/// a signal handler starts there. The abort handler's unwind table says that it was called from
/// `66:`, with all registers unchanged; from there the walk continues by the table of the
/// surrounding function. The address of `66:` is read from the start of the abort handler. The
/// handler is aligned to 64 bytes and no longer than that, so one rule serves every instruction of
/// every handler.
macro_rules! begin {
    ($miss:literal) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\", @progbits\n",
            ".balign 32\n",
            "22: .long 0, 0\n",
            ".quad 33f, 44f - 33f, 55f\n",
            ".popsection\n",
            ".pushsection .text.rseq_abort, \"ax\", @progbits\n",
            ".balign 64\n",
            ".cfi_startproc\n",
            ".cfi_def_cfa 7, 0\n",
            // Register 16, the instruction pointer, by DW_CFA_val_expression: its value with the
            // last 6 bits zero (DW_OP_breg16 0, DW_OP_const1s -64, DW_OP_and), plus the word at
            // that address (DW_OP_dup, DW_OP_deref, DW_OP_plus).
            ".cfi_escape 0x16, 16, 8, 0x80, 0, 0x09, 0xc0, 0x1a, 0x12, 0x06, 0x22\n",
            ".quad 66f - .\n",
            // RSEQ_SIG, encoded as the displacement of an undefined instruction.
            ".byte 0x0f, 0xb9, 0x3d\n",
            ".long 0x53053053\n",
            "55: mov {at}, qword ptr [rip + hayloft_aborts@GOTTPOFF]\n",
            "inc dword ptr fs:[{at}]\n",
            "cmp dword ptr fs:[{at}], {most}\n",
            "jb 66f\n",
            "88:\n",
            $miss,
            "\n.cfi_endproc\n",
            ".popsection\n",
            "66:\n",
            "mov {rs}, qword ptr [rip + hayloft_rseq_offset]\n",
            "lea {at}, [rip + 22b]\n",
            "mov qword ptr fs:[{rs} + 8], {at}\n",
            "33:\n",
            "movsxd {at}, dword ptr fs:[{rs} + 4]\n",
            "shl {at}, {shift}\n",
            "add {at}, qword ptr [rip + hayloft_region]\n",
        )
    };
}

/// A critical section: [`begin!`], its lines, its end, and the operands that all sections have. The
/// lines after `first` come before the section; the one after `else` is the argument of [`begin!`].
macro_rules! section {
    (
        $(first [$($first:expr),* $(,)?],)?
        else $miss:literal,
        [$($line:expr),* $(,)?],
        $($operands:tt)*
    ) => {
        asm!(
            $($($first,)*)?
            begin!($miss),
            $($line,)*
            "44:",
            rs = out(reg) _,
            at = out(reg) _,
            headers = const HEADERS,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            $($operands)*
            options(nostack),
        )
    };
}

/// Copies `moved` words, at least one, from `from` to `to`: an odd one first, then pairs.
macro_rules! copy {
    () => {
        concat!(
            "xor {done:e}, {done:e}\n",
            "test {moved:l}, 1\n",
            "je 77f\n",
            "mov {word}, qword ptr [{from}]\n",
            "mov qword ptr [{to}], {word}\n",
            "inc {done:e}\n",
            "cmp {done}, {moved}\n",
            "je 78f\n",
            "77:\n",
            "movups {pair}, xmmword ptr [{from} + {done}*8]\n",
            "movups xmmword ptr [{to} + {done}*8], {pair}\n",
            "add {done}, 2\n",
            "cmp {done}, {moved}\n",
            "jne 77b\n",
            "78:\n",
        )
    };
}

/// Pushes `object`, or goes to `refused` if the sheaf is full or closed, or if `object` is one of
/// its topmost two already.
macro_rules! push_unless_on_top {
    () => {
        concat!(
            "lea {header}, [{at} + {class}*8 + {headers}]\n",
            "mov {top:e}, dword ptr [{header}]\n",
            "movzx {rs:e}, {top:x}\n",
            "lea {at}, [{at} + {rs}*8]\n",
            "cmp {rs:e}, dword ptr [{header} + 4]\n",
            "jae {refused}\n",
            "cmp {object}, qword ptr [{at}]\n",
            "je {refused}\n",
            "cmp {object}, qword ptr [{at} - 8]\n",
            "je {refused}\n",
            "mov qword ptr [{at} + 8], {object}\n",
            "inc dword ptr [{header}]\n",
        )
    };
}

/// Pops the topmost object of this CPU's sheaf, and counts it. Returns null if the sheaf is empty
/// or closed, if its count is used up, or if the object is a sampled one, which lies below
/// [`lowest`](super::lowest).
///
/// # Safety
/// `class` is the number of a sheaf.
#[inline(always)]
pub(crate) unsafe fn pop(class: usize) -> *mut u8 {
    let object: *mut u8;
    // SAFETY: the words that an open header names belong to its sheaf; a closed header names word
    // 0, which is null, and so below `lowest`. The section's only store is its commit.
    unsafe {
        section!(
            else "xor {object:e}, {object:e}\njmp 44f",
            [
                "lea {header}, [{at} + {class}*8 + {headers}]",
                "mov {top:e}, dword ptr [{header}]",
                "movzx {rs:e}, {top:x}",
                "lea {at}, [{at} + {rs}*8]",
                "mov {object}, qword ptr [{at}]",
                "cmp {object}, qword ptr [rip + hayloft_lowest]",
                "jb 88b",
                "sub {top:e}, {one}",
                "jc 88b",
                "mov dword ptr [{header}], {top:e}",
            ],
            top = out(reg) _,
            header = out(reg) _,
            object = out(reg) object,
            class = in(reg) class,
            one = const COUNTED + 1,
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
    let mut pushed = true;
    // SAFETY: the word above `top` is inside the sheaf as long as `top` is below `last`. Nobody
    // reads that word before the commit.
    unsafe {
        section!(
            else "jmp {refused}",
            [
                "lea {header}, [{at} + {class}*8 + {headers}]",
                "mov {top:e}, dword ptr [{header}]",
                "movzx {rs:e}, {top:x}",
                "lea {at}, [{at} + {rs}*8]",
                "cmp {rs:e}, dword ptr [{header} + 4]",
                "jae {refused}",
                "mov qword ptr [{at} + 8], {object}",
                "inc {top:e}",
                "mov dword ptr [{header}], {top:e}",
            ],
            top = out(reg) _,
            header = out(reg) _,
            object = in(reg) object,
            class = in(reg) class,
            refused = label { pushed = false },
        );
    }
    pushed
}

/// As [`push`], but also returns false if `object` is one of the topmost two already. In a sheaf of
/// fewer than two objects, `object` may be compared with other words of the region, and be refused
/// without need.
///
/// # Safety
/// As [`push`].
#[inline(always)]
pub(crate) unsafe fn push_once(class: usize, object: *mut u8) -> bool {
    let mut pushed = true;
    // SAFETY: as in `push`. The two words at and below `top` lie in the region, as `top` is not
    // zero when it is below `last`. The commit is one instruction that reads `top` again; nobody
    // else changes `top` of a sheaf that can be pushed to.
    unsafe {
        section!(
            else "jmp {refused}",
            [push_unless_on_top!()],
            top = out(reg) _,
            header = out(reg) _,
            object = in(reg) object,
            class = in(reg) class,
            refused = label { pushed = false },
        );
    }
    pushed
}

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
#[inline(always)]
pub(crate) unsafe fn push_by_address<const SIZE: usize, const TEST: usize, const CLASS: usize>(
    address: *mut u8,
) -> Push {
    let mut push = Push::Done;
    // SAFETY: `base` is loaded before `bytes` and `entries` after it, and x86-64 keeps that order.
    // So entries are read for addresses of the first arena only, for which the caller guarantees
    // that they are committed. Then as in `push_once`.
    unsafe {
        section!(
            first [
                "sub {unit}, qword ptr [rip + {first} + {base}]",
                "cmp {unit}, qword ptr [rip + {first} + {bytes}]",
                "jae {elsewhere}",
                "mov {class}, qword ptr [rip + {first} + {entries}]",
                "shr {unit}, {unit_shift}",
                "movzx {top:e}, {object:x}",
                "imul {top:e}, dword ptr [{class} + {unit}*{size} + {test}]",
                "cmp {top:e}, dword ptr [{class} + {unit}*{size} + {test}]",
                "jae {elsewhere}",
                "movzx {class:e}, word ptr [{class} + {unit}*{size} + {number}]",
            ],
            else "jmp {refused}",
            [push_unless_on_top!()],
            unit = inout(reg) address => _,
            class = out(reg) _,
            top = out(reg) _,
            header = out(reg) _,
            object = in(reg) address,
            first = sym FIRST,
            base = const offset_of!(First, base),
            bytes = const offset_of!(First, bytes),
            entries = const offset_of!(First, entries),
            unit_shift = const UNIT_SHIFT,
            size = const SIZE,
            test = const TEST,
            number = const CLASS,
            elsewhere = label { push = Push::Elsewhere },
            refused = label { push = Push::Refused },
        );
    }
    push
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
        section!(
            else "xor {moved:e}, {moved:e}\njmp 44f",
            [
                "mov {top:e}, dword ptr [{at} + {class}*8 + {headers}]",
                "mov {moved:e}, dword ptr [{at} + {class}*8 + {headers} + 4]",
                "movzx {rs:e}, {top:x}",
                "xor {done:e}, {done:e}",
                "sub {moved}, {rs}",
                "cmovbe {moved}, {done}",
                "cmp {moved}, {len}",
                "cmova {moved}, {len}",
                "test {moved}, {moved}",
                "je 44f",
                "lea {to}, [{at} + {rs}*8 + 8]",
                "add {top:e}, {moved:e}",
                copy!(),
                "mov dword ptr [{at} + {class}*8 + {headers}], {top:e}",
            ],
            top = out(reg) _,
            to = out(reg) _,
            word = out(reg) _,
            pair = out(xmm_reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            from = in(reg) from,
            len = in(reg) len,
            class = in(reg) class,
        );
    }
    moved
}

/// Pops up to `len` topmost objects of this CPU's sheaf into `to`, in the order in which they lie.
/// Returns the number of objects popped.
///
/// Subtracts `each` from the first half of the header for each object: 1, or `COUNTED + 1` to count
/// the objects as well. Pops none, and returns 0, if the count is smaller than their number.
///
/// # Safety
/// `class` is the number of a sheaf, `floor` the word below it, and `to` is writable for `len`
/// pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(
    class: usize,
    floor: usize,
    to: *mut *mut u8,
    len: usize,
    each: u32,
) -> usize {
    let moved: usize;
    // SAFETY: at most `top - floor` words are read, all inside the sheaf; the caller guarantees
    // that `to` is writable.
    unsafe {
        section!(
            else "xor {moved:e}, {moved:e}\njmp 44f",
            [
                "mov {top:e}, dword ptr [{at} + {class}*8 + {headers}]",
                "movzx {rs:e}, {top:x}",
                "mov {moved}, {rs}",
                "xor {done:e}, {done:e}",
                "sub {moved}, {floor}",
                "cmovbe {moved}, {done}",
                "cmp {moved}, {len}",
                "cmova {moved}, {len}",
                "test {moved}, {moved}",
                "je 44f",
                "sub {rs}, {moved}",
                "lea {from}, [{at} + {rs}*8 + 8]",
                "mov {rs:e}, {each:e}",
                "imul {rs:e}, {moved:e}",
                "sub {top:e}, {rs:e}",
                "jc 88b",
                copy!(),
                "mov dword ptr [{at} + {class}*8 + {headers}], {top:e}",
            ],
            top = out(reg) _,
            from = out(reg) _,
            word = out(reg) _,
            pair = out(xmm_reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            to = in(reg) to,
            len = in(reg) len,
            floor = in(reg) floor,
            each = in(reg) each,
            class = in(reg) class,
        );
    }
    moved
}

/// Stores `header` if this CPU's sheaf is closed and its region is open, and `mark` as the byte
/// `at` of the region. Returns the region if it did, or null; then the byte may have been stored.
///
/// # Safety
/// `class` is the number of a sheaf, `header` that sheaf's header when empty, and the thread has a
/// CPU number. The byte is in no sheaf.
#[inline]
pub(crate) unsafe fn open(class: usize, header: u64, at: usize, mark: u8) -> *mut u8 {
    let region: *mut u8;
    // SAFETY: the stores write a header of words that nobody else uses, and a byte that the caller
    // guarantees to be in no sheaf.
    unsafe {
        section!(
            else "xor {region:e}, {region:e}\njmp 44f",
            [
                "xor {region:e}, {region:e}",
                "cmp qword ptr [{at} + {class}*8 + {headers}], 0",
                "jne 44f",
                "cmp qword ptr [{at} + {state}], {open}",
                "jne 44f",
                "mov byte ptr [{at} + {mark_at}], {mark:l}",
                "mov {region}, {at}",
                "mov qword ptr [{at} + {class}*8 + {headers}], {header}",
            ],
            region = out(reg) region,
            header = in(reg) header,
            class = in(reg) class,
            mark_at = in(reg) at,
            mark = in(reg) u32::from(mark),
            state = const STATE,
            open = const OPEN,
        );
    }
    region
}

/// Sets the count of this CPU's sheaf to `count`, a multiple of [`COUNTED`], and the byte `at` of
/// the region to `mark`, unless the sheaf is closed. Returns the first half of the header and the
/// byte as they were, and the region if the count was set, or null.
///
/// # Safety
/// `class` is the number of a sheaf, and the thread has a CPU number. The byte is in no sheaf.
#[inline]
pub(crate) unsafe fn recount(class: usize, count: u32, at: usize, mark: u8) -> (u32, u8, *mut u8) {
    let (before, mark_before, region): (u32, u32, *mut u8);
    // SAFETY: the stores change the count of an open sheaf, and not the index below it, and a byte
    // that the caller guarantees to be in no sheaf.
    unsafe {
        section!(
            else "xor {region:e}, {region:e}\njmp 44f",
            [
                "xor {region:e}, {region:e}",
                "mov {before:e}, dword ptr [{at} + {class}*8 + {headers}]",
                "test {before:e}, {before:e}",
                "je 44f",
                "movzx {mark_before:e}, byte ptr [{at} + {mark_at}]",
                "mov byte ptr [{at} + {mark_at}], {mark:l}",
                "mov {region}, {at}",
                "movzx {rs:e}, {before:x}",
                "add {rs:e}, {count:e}",
                "mov dword ptr [{at} + {class}*8 + {headers}], {rs:e}",
            ],
            before = out(reg) before,
            mark_before = out(reg) mark_before,
            region = out(reg) region,
            count = in(reg) count,
            class = in(reg) class,
            mark_at = in(reg) at,
            mark = in(reg) u32::from(mark),
        );
    }
    (before, mark_before as u8, region)
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
        section!(
            else "jmp 44f",
            [
                "mov {old:e}, dword ptr [{at} + {class}*8 + {headers} + 4]",
                "test {old:e}, {old:e}",
                "je 44f",
                "cmp {old:e}, {last:e}",
                "jae 44f",
                "cmp qword ptr [{at} + {state}], {open}",
                "jne 44f",
                "mov dword ptr [{at} + {class}*8 + {headers} + 4], {last:e}",
            ],
            old = out(reg) _,
            last = in(reg) last,
            class = in(reg) class,
            state = const STATE,
            open = const OPEN,
        );
    }
}

/// Adds to a word that is mostly written by this CPU. Nothing else on this CPU comes between its
/// load and its store.
#[inline(always)]
pub(crate) fn add(word: &AtomicU64, more: u64) {
    // SAFETY: the word is only accessed as an atomic. An interrupted thread has executed a single
    // instruction completely or not at all. Without a lock prefix it costs what a store does.
    unsafe {
        asm!("add qword ptr [{}], {}", in(reg) word.as_ptr(), in(reg) more, options(nostack))
    };
}
