//! System calls, bare threads, and symbols that only some programs and C libraries define.

use core::arch::asm;
use core::ffi::{c_char, c_void};

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

/// Returns the address of the variable `hayloft_conf`, or null if the program does not define it.
pub(crate) fn program_settings() -> *const *const c_char {
    let variable;
    // SAFETY: loads an address from the offset table, which is zero if the symbol is undefined.
    unsafe {
        asm!(
            // Unlike `.weak`, this leaves alone a definition in the same object, as link-time
            // optimisation makes one of all crates.
            ".weakref hayloft_conf_of_program, hayloft_conf",
            "adrp {0}, :got:hayloft_conf_of_program",
            "ldr {0}, [{0}, :got_lo12:hayloft_conf_of_program]",
            out(reg) variable,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    variable
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

/// Calls a function on another stack.
///
/// # Safety
/// `end` is the end of memory for a stack, aligned to 16 bytes, which nobody else uses. The call of
/// the function with this argument is sound, and it returns.
pub(crate) unsafe fn call_on_stack(
    end: *mut u8,
    function: extern "C" fn(*mut c_void),
    argument: *mut c_void,
) {
    // SAFETY: the caller guarantees the stack and the call. The function keeps x20, in which the
    // stack pointer waits.
    unsafe {
        asm!(
            "mov x20, sp",
            "mov sp, {end}",
            "blr {function}",
            "mov sp, x20",
            end = in(reg) end,
            function = in(reg) function,
            in("x0") argument,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}
