//! Registers, as tables of stack frames number them, and code around calls.

use core::arch::asm;

/// Registers that frames are described by: `x0` to `x30`, `sp`, and the instruction pointer.
pub(crate) const REGISTERS: usize = 33;
/// Number of the frame pointer.
pub(crate) const FRAME: usize = 29;
/// Number of the stack pointer.
pub(crate) const STACK: usize = 31;
/// Number of the instruction pointer.
pub(crate) const CODE: usize = 32;
/// Number of the register that holds the return address when a function starts.
pub(crate) const LINK: usize = 30;
/// The bits of the registers that a function preserves for its caller, and of the link register,
/// which a function without calls leaves as it is.
pub(crate) const PRESERVED: u64 = ((1 << 12) - 1) << 19;

/// Whether a frame record, a frame pointer with the return address above it, is at the top of its
/// frame.
pub(crate) const RECORD_IS_TOP: bool = false;

/// The code to which a signal handler returns: `mov x8, SYS_rt_sigreturn; svc 0`.
pub(crate) const SIGNAL_RETURN: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4];
/// Distance from the stack pointer, at that code, to the `ucontext_t`.
pub(crate) const SIGNAL_CONTEXT: usize = 128;
/// Distance from the stack pointer, at that code, to the saved value of each register: a
/// `siginfo_t` of 128 bytes is there, then a `ucontext_t`, whose machine context begins after 176
/// bytes, with the address of a fault.
pub(crate) const SIGNAL_FRAME: [u16; REGISTERS] = {
    let mut offsets = [0; REGISTERS];
    let mut number = 0;
    while number < REGISTERS {
        offsets[number] = 128 + 176 + 8 + 8 * number as u16;
        number += 1;
    }
    offsets
};

/// Stores the registers at a point in the function into which this is inlined, except for those
/// that a function need not preserve.
#[inline(always)]
pub(crate) fn store_registers(to: &mut [usize; REGISTERS]) {
    // SAFETY: stores to the array only. The instruction pointer is that of the next instruction,
    // and no instruction of the block changes another register that it stores.
    unsafe {
        asm!(
            "adr x1, 22f",
            "22:",
            "str x1, [x0, #32*8]",
            "mov x1, sp",
            "str x1, [x0, #31*8]",
            "stp x19, x20, [x0, #19*8]",
            "stp x21, x22, [x0, #21*8]",
            "stp x23, x24, [x0, #23*8]",
            "stp x25, x26, [x0, #25*8]",
            "stp x27, x28, [x0, #27*8]",
            "stp x29, x30, [x0, #29*8]",
            in("x0") to.as_mut_ptr(),
            out("x1") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Returns the plain address of a signed return address (pointer authentication).
#[inline]
pub(crate) fn strip(address: usize) -> usize {
    let plain;
    // SAFETY: changes one register. `xpaclri` is a hint, and does nothing where return addresses
    // are not signed.
    unsafe {
        asm!(
            "hint #7",
            inout("x30") address => plain,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    plain
}

/// Returns whether these bytes, the last before some address, end in a call.
pub(crate) fn is_call(before: [u8; 8]) -> bool {
    let [.., a, b, c, d] = before;
    let word = u32::from_le_bytes([a, b, c, d]);
    // `bl`, `blr`, or a `blr` that authenticates its operand.
    word >> 26 == 0b10_0101
        || word & 0xffff_fc1f == 0xd63f_0000
        || word & 0xfeff_f800 == 0xd63f_0800
}

/// Returns the address of glibc's `_dl_find_object` (since 2.35); null elsewhere.
pub(crate) fn find_object() -> *const () {
    let function;
    // SAFETY: loads an address from the offset table, which is zero if a weak symbol is undefined.
    unsafe {
        asm!(
            ".weak _dl_find_object",
            "adrp {0}, :got:_dl_find_object",
            "ldr {0}, [{0}, :got_lo12:_dl_find_object]",
            out(reg) function,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    function
}
