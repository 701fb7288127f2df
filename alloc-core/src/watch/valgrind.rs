//! Requests to Valgrind: rotations that cancel out, and an exchange of a register with itself.
//! Valgrind recognises this sequence, and finds the address of the request in a register. A program
//! that does not run under Valgrind just continues. (`valgrind.h` and `memcheck.h`, versions 3.8
//! and later.)

/// Requests of all tools: `VG_USERREQ__MALLOCLIKE_BLOCK` and its like.
const MALLOCLIKE: usize = 0x1301;
const FREELIKE: usize = 0x1302;
/// Requests of memcheck, `VG_USERREQ__MAKE_MEM_NOACCESS` and so on: two letters and a number.
const MEMCHECK: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16;
const MAKE_NOACCESS: usize = MEMCHECK;
const MAKE_UNDEFINED: usize = MEMCHECK + 1;
const MAKE_DEFINED: usize = MEMCHECK + 2;
const DISABLE_ERRORS_IN_RANGE: usize = MEMCHECK + 14;

#[inline(always)]
fn request(code: usize, arguments: [usize; 4]) {
    let [first, second, third, fourth] = arguments;
    let words = [code, first, second, third, fourth, 0];
    // SAFETY: the instructions change no register except the one for the answer.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const words,
            inlateout("rdx") 0usize => _,
            options(nostack),
        );
    }
    // SAFETY: the instructions change no register except the one for the answer.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "ror x12, x12, 3",
            "ror x12, x12, 13",
            "ror x12, x12, 51",
            "ror x12, x12, 61",
            "orr x10, x10, x10",
            inlateout("x3") 0usize => _,
            in("x4") &raw const words,
            options(nostack),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = words;
}

/// Reports a block of the program in memory that it could not use before. Its contents are
/// meaningful if `is_defined`.
#[inline(always)]
pub(super) fn allocated(block: *mut u8, size: usize, is_defined: bool) {
    request(MALLOCLIKE, [block.addr(), size, 0, is_defined.into()]);
}

/// Reports that the program freed a block.
#[inline(always)]
pub(super) fn freed(block: *mut u8) {
    request(FREELIKE, [block.addr(), 0, 0, 0]);
}

/// Forbids access to these bytes.
#[inline(always)]
pub(super) fn make_noaccess(address: *mut u8, len: usize) {
    request(MAKE_NOACCESS, [address.addr(), len, 0, 0]);
}

/// Permits writing these bytes, and also reading them if they are defined.
#[inline(always)]
pub(super) fn make_accessible(address: *mut u8, len: usize, is_defined: bool) {
    let code = if is_defined { MAKE_DEFINED } else { MAKE_UNDEFINED };
    request(code, [address.addr(), len, 0, 0]);
}

/// As [`make_noaccess`], but memcheck reports no accesses to these bytes.
#[inline(always)]
pub(super) fn hide(address: *mut u8, len: usize) {
    make_noaccess(address, len);
    request(DISABLE_ERRORS_IN_RANGE, [address.addr(), len, 0, 0]);
}
