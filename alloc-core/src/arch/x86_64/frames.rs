//! Registers, as tables of stack frames number them, and code around calls.

use core::arch::asm;

/// Registers that frames are described by: `rax`, `rdx`, `rcx`, `rbx`, `rsi`, `rdi`, `rbp`, `rsp`,
/// `r8` to `r15`, and the return address, which of the running frame is the instruction pointer.
pub(crate) const REGISTERS: usize = 17;
/// Number of the frame pointer.
pub(crate) const FRAME: usize = 6;
/// Number of the stack pointer.
pub(crate) const STACK: usize = 7;
/// Number of the instruction pointer.
pub(crate) const CODE: usize = 16;
/// The bits of the registers that a function preserves for its caller.
pub(crate) const PRESERVED: u64 = 1 << 3 | 1 << FRAME | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15;

/// Whether a frame record, a frame pointer with the return address above it, is at the top of its
/// frame.
pub(crate) const RECORD_IS_TOP: bool = true;

/// The code to which a signal handler returns: `mov rax, SYS_rt_sigreturn; syscall`.
pub(crate) const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Distance from the stack pointer, at that code, to the `ucontext_t`.
pub(crate) const SIGNAL_CONTEXT: usize = 0;
/// Distance from the stack pointer, at that code, to the saved value of each register: a
/// `ucontext_t` is there, whose machine context begins after 40 bytes.
pub(crate) const SIGNAL_FRAME: [u16; REGISTERS] = {
    // `enum` of `sys/ucontext.h`: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    let places = [13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7, 16];
    let mut offsets = [0; REGISTERS];
    let mut number = 0;
    while number < REGISTERS {
        offsets[number] = 40 + 8 * places[number];
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
            "lea rcx, [rip]",
            "mov qword ptr [rax + 16*8], rcx",
            "mov qword ptr [rax + 3*8], rbx",
            "mov qword ptr [rax + 6*8], rbp",
            "mov qword ptr [rax + 7*8], rsp",
            "mov qword ptr [rax + 12*8], r12",
            "mov qword ptr [rax + 13*8], r13",
            "mov qword ptr [rax + 14*8], r14",
            "mov qword ptr [rax + 15*8], r15",
            in("rax") to.as_mut_ptr(),
            out("rcx") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Returns the plain address of a signed return address.
#[inline]
pub(crate) fn strip(address: usize) -> usize {
    address
}

/// Returns whether these bytes, the last before some address, end in a call.
pub(crate) fn is_call(before: [u8; 8]) -> bool {
    // `call rel32`, or `call r/m64` with an operand of 1, 2, 3, 5 or 6 bytes.
    before[3] == 0xe8
        || [(6, 7), (5, 6), (4, 5), (2, 3), (1, 2)]
            .iter()
            .any(|&(opcode, operand)| before[opcode] == 0xff && before[operand] >> 3 & 7 == 2)
}

/// Returns the address of glibc's `_dl_find_object` (since 2.35); null elsewhere.
pub(crate) fn find_object() -> *const () {
    let function;
    // SAFETY: loads an address from the offset table, which is zero if a weak symbol is undefined.
    unsafe {
        asm!(
            ".weak _dl_find_object",
            "mov {}, qword ptr [rip + _dl_find_object@GOTPCREL]",
            out(reg) function,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    function
}
