//! The critical sections: operations on this CPU's sheaves.
//!
//! Registers of a section: `rs` is the address of `struct rseq`; `at` is scratch, then this CPU's
//! region; `slot` is the address of the sheaf's header; `top` is the header's first half: the
//! count, and in its lower 16 bits the index of the topmost word.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::{COUNTED, HEADERS, MOST_ABORTS, OPEN, REGION_SHIFT, STATE};

/// Opens a critical section. If the code from here to `44:` is interrupted, it restarts at `66:`,
/// or, after too many interruptions, leaves by executing the argument, as if there were no sheaf
/// (see [`crate::arch`]). Puts this CPU's region into `at`. Goes to `88:` as long as nothing is set
/// up.
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

/// A critical section: [`begin!`], its lines, its end, and the operands that all sections have, for
/// the sheaf of the class number `$class`. The lines after `first` come before the section; the one
/// after `else` is the argument of [`begin!`].
macro_rules! section {
    (
        $class:ident,
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
            "88:",
            rs = out(reg) _,
            at = out(reg) _,
            top = out(reg) _,
            slot = out(reg) _,
            offset = in(reg) HEADERS + $class * 8,
            shift = const REGION_SHIFT,
            most = const MOST_ABORTS,
            $($operands)*
            options(nostack),
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
    let lowest = super::lowest().load(Ordering::Relaxed);
    // SAFETY: the words that an open header names belong to its sheaf; a closed header names word
    // 0, which is null. The section's only store is its commit.
    unsafe {
        section!(
            class,
            first [
                "mov {object}, xzr",
            ],
            else "mov {object}, xzr",
            [
                "ldr {top:w}, [{slot}]",
                "add {at}, {at}, {top:w}, uxth #3",
                "ldr {object}, [{at}]",
                "subs {top:w}, {top:w}, {counted}",
                "ccmp {object}, {lowest}, #0, hs",
                "csel {object}, {object}, xzr, hs",
                "cbz {object}, 44f",
                "sub {top:w}, {top:w}, #1",
                "str {top:w}, [{slot}]",
            ],
            object = out(reg) object,
            lowest = in(reg) lowest,
            counted = const COUNTED,
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
        section!(
            class,
            first [
                "mov {pushed}, xzr",
            ],
            else "mov {pushed}, xzr",
            [
                "ldr {top:w}, [{slot}]",
                "ldr {pushed:w}, [{slot}, #4]",
                "subs {pushed:w}, {pushed:w}, {top:w}, uxth",
                "b.ls 44f",
                "add {at}, {at}, {top:w}, uxth #3",
                "add {top:w}, {top:w}, #1",
                "str {object}, [{at}, #8]",
                "str {top:w}, [{slot}]",
            ],
            pushed = out(reg) pushed,
            object = in(reg) object,
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
        section!(
            class,
            first [
                "mov {pushed}, xzr",
            ],
            else "mov {pushed}, xzr",
            [
                "ldr {top:w}, [{slot}]",
                "ldr {pushed:w}, [{slot}, #4]",
                "subs {pushed:w}, {pushed:w}, {top:w}, uxth",
                "b.ls 44f",
                "mov {pushed}, xzr",
                "add {at}, {at}, {top:w}, uxth #3",
                "ldp {below}, {on_top}, [{at}, #-8]",
                "cmp {object}, {on_top}",
                "ccmp {object}, {below}, #4, ne",
                "b.eq 44f",
                "mov {pushed}, #1",
                "add {top:w}, {top:w}, #1",
                "str {object}, [{at}, #8]",
                "str {top:w}, [{slot}]",
            ],
            below = out(reg) _,
            on_top = out(reg) _,
            pushed = out(reg) pushed,
            object = in(reg) object,
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
        section!(
            class,
            first [
                "mov {moved}, xzr",
            ],
            else "mov {moved}, xzr",
            [
                "ldr {top:w}, [{slot}]",
                "ldr {moved:w}, [{slot}, #4]",
                "subs {moved}, {moved}, {top:w}, uxth",
                "csel {moved}, {moved}, xzr, hi",
                "cmp {moved}, {len}",
                "csel {moved}, {len}, {moved}, hi",
                "cbz {moved}, 44f",
                "add {to}, {at}, {top:w}, uxth #3",
                "add {top:w}, {top:w}, {moved:w}",
                "mov {done}, xzr",
                "77:",
                "ldr {word}, [{from}, {done}, lsl #3]",
                "str {word}, [{to}, #8]!",
                "add {done}, {done}, #1",
                "cmp {done}, {moved}",
                "b.ne 77b",
                "str {top:w}, [{slot}]",
            ],
            to = out(reg) _,
            word = out(reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            from = in(reg) from,
            len = in(reg) len,
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
            class,
            first [
                "mov {moved}, xzr",
            ],
            else "mov {moved}, xzr",
            [
                "ldr {top:w}, [{slot}]",
                "and {moved}, {top}, #0xffff",
                "subs {moved}, {moved}, {floor}",
                "csel {moved}, {moved}, xzr, hi",
                "cmp {moved}, {len}",
                "csel {moved}, {len}, {moved}, hi",
                "cbz {moved}, 44f",
                "mul {done:w}, {moved:w}, {each:w}",
                "subs {top:w}, {top:w}, {done:w}",
                "csel {moved}, {moved}, xzr, hs",
                "cbz {moved}, 44f",
                "add {from}, {at}, {top:w}, uxth #3",
                "mov {done}, xzr",
                "77:",
                "ldr {word}, [{from}, #8]!",
                "str {word}, [{to}, {done}, lsl #3]",
                "add {done}, {done}, #1",
                "cmp {done}, {moved}",
                "b.ne 77b",
                "str {top:w}, [{slot}]",
            ],
            from = out(reg) _,
            word = out(reg) _,
            done = out(reg) _,
            moved = out(reg) moved,
            to = in(reg) to,
            len = in(reg) len,
            floor = in(reg) floor,
            each = in(reg) each,
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
            class,
            first [
                "mov {region}, xzr",
            ],
            else "mov {region}, xzr",
            [
                "mov {region}, xzr",
                "ldr {top}, [{slot}]",
                "cbnz {top}, 44f",
                "ldr {top}, [{at}, {state}]",
                "cmp {top}, {open}",
                "b.ne 44f",
                "strb {mark:w}, [{at}, {mark_at}]",
                "mov {region}, {at}",
                "str {header}, [{slot}]",
            ],
            region = out(reg) region,
            header = in(reg) header,
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
            class,
            first [
                "mov {region}, xzr",
                "mov {before:w}, wzr",
                "mov {mark_before:w}, wzr",
            ],
            else "mov {region}, xzr",
            [
                "mov {region}, xzr",
                "ldr {before:w}, [{slot}]",
                "cbz {before:w}, 44f",
                "ldrb {mark_before:w}, [{at}, {mark_at}]",
                "strb {mark:w}, [{at}, {mark_at}]",
                "mov {region}, {at}",
                "add {top:w}, {count:w}, {before:w}, uxth",
                "str {top:w}, [{slot}]",
            ],
            before = out(reg) before,
            mark_before = out(reg) mark_before,
            region = out(reg) region,
            count = in(reg) count,
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
            class,
            else "",
            [
                "ldr {top:w}, [{slot}, 4]",
                "cbz {top:w}, 44f",
                "cmp {top:w}, {last:w}",
                "b.hs 44f",
                "ldr {top}, [{at}, {state}]",
                "cmp {top}, {open}",
                "b.ne 44f",
                "str {last:w}, [{slot}, 4]",
            ],
            last = in(reg) last,
            state = const STATE,
            open = const OPEN,
        );
    }
}

/// Adds to a word that is mostly written by this CPU. Nothing else on this CPU comes between its
/// load and its store.
pub(crate) fn add(word: &AtomicU64, more: u64) {
    word.fetch_add(more, Ordering::Relaxed);
}
