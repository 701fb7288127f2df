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
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
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
            "mov {}, qword ptr [rip + _IO_list_lock@GOTPCREL]",
            "mov {}, qword ptr [rip + _IO_list_unlock@GOTPCREL]",
            "mov {}, qword ptr [rip + _IO_list_resetlock@GOTPCREL]",
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
            "mov {}, qword ptr [rip + hayloft_conf_of_program@GOTPCREL]",
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
            "syscall",
            "test rax, rax",
            "jnz 22f",
            "xor ebp, ebp",
            "call r12",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "ud2",
            "22:",
            inlateout("rax") 56usize => result,
            in("rdi") flags as usize,
            in("rsi") stack,
            in("rdx") number,
            in("r10") number,
            in("r8") pointer,
            in("r12") body,
            lateout("rcx") _,
            lateout("r11") _,
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
    // SAFETY: the caller guarantees the stack and the call. The function keeps r12, in which the
    // stack pointer waits.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {end}",
            "call {function}",
            "mov rsp, r12",
            end = in(reg) end,
            function = in(reg) function,
            in("rdi") argument,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}
