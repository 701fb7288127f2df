//! Stacks: the return addresses of a thread's callers, in any context.
//!
//! A walk leads from each frame to its caller's by the tables that compilers write for exceptions
//! and debuggers, and which cover code with and without frame pointers alike. What the tables say
//! of a return address is remembered, so a walk over frames that were seen before costs little more
//! than one by frame pointers. Code without tables is walked by frame pointers, if these lead to
//! an address after a call.
//!
//! Nothing here allocates, waits, or takes a lock, and no memory is read that might not be mapped.
//! So a stack can be captured in any signal handler, in a fork child, and on any stack; it takes
//! about one KiB of that.
//!
//! Not covered are frames that have neither tables nor frame pointers, and libraries other than the
//! one with this allocator where the C library is not glibc 2.35 or newer: a walk ends there.
//! Nor are tables that a program registers for code that it generates. Elsewhere than on x86-64
//! and AArch64, and under Miri, there is `none` instead, which finds no frame.
//!
//! | module | holds |
//! |---|---|
//! | `names` | names of functions, for messages |
//! | `demangle` | names as in the source |
//! | `walk` | from each frame to its caller's |
//! | `cache` | rules that were found before |
//! | `expression` | expressions in tables |
//! | `memory` `registers` | reading a stack; registers of a frame |
//! | `rules` | where a frame ends, and where it saves registers |
//! | `images` | the program and libraries, by an address |
//! | `tables` | what compilers say of each function |
//!
//! A module imports only from lower rows.

mod cache;
mod demangle;
mod expression;
mod images;
mod memory;
mod names;
mod registers;
mod rules;
mod tables;
#[cfg(test)]
mod tests;
mod walk;

use core::ffi::c_void;

pub(crate) use self::names::describe;
use self::walk::{Follow, walk};
use crate::arch::frames::{CODE, SIGNAL_CONTEXT, SIGNAL_FRAME};
pub(crate) use crate::arch::frames::{REGISTERS, store_registers};

/// Writes the return addresses of this thread's callers to `to`, the innermost first, and returns
/// their number. Further callers than there is room for are left out.
///
/// The allocator's own frames are among them. Link-time optimisation merges these with the
/// program's, so only names can tell where they end. Tools that show profiles drop them by name, as
/// a field of the pprof format demands (`drop_frames`).
///
/// Code that a signal interrupted was not left by a call. Its entry is the address of the next
/// instruction plus one, so that one less than each entry is an address in the right function.
#[inline(never)]
pub fn capture(to: &mut [usize]) -> usize {
    let mut registers = [0; REGISTERS];
    store_registers(&mut registers);
    walk_from(&registers, false, to)
}

/// As [`capture`], from where a signal interrupted this thread: the first entry is that place.
///
/// # Safety
/// The kernel passed `context` to a signal handler, which has not returned yet.
pub(crate) unsafe fn capture_interrupted(context: *const c_void, to: &mut [usize]) -> usize {
    // SAFETY: the caller guarantees a `ucontext_t`, behind which the distances lead to its words.
    let frame = unsafe { context.byte_sub(SIGNAL_CONTEXT) };
    // SAFETY: as above.
    let registers = SIGNAL_FRAME.map(|distance| unsafe {
        frame.byte_add(distance.into()).cast::<usize>().read_unaligned()
    });
    let [first, callers @ ..] = to else { return 0 };
    *first = registers[CODE].wrapping_add(1);
    1 + walk_from(&registers, true, callers)
}

fn walk_from(registers: &[usize; REGISTERS], is_exact: bool, to: &mut [usize]) -> usize {
    for follow in [Follow::Few, Follow::All] {
        if let Ok(count) = walk(registers, is_exact, follow, to) {
            return count;
        }
    }
    0
}
