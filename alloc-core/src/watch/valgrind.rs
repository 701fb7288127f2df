//! Requests to Valgrind: some rotations that add up to nothing, and an exchange of a register with itself, in which it sees who runs
//! under it an address. Whoever runs by itself runs on. (`valgrind.h` and `memcheck.h`, versions 3.8 and later.)

/// `VG_USERREQ__MALLOCLIKE_BLOCK` and its like, for all tools.
const MALLOCLIKE: usize = 0x1301;
const FREELIKE: usize = 0x1302;
/// Memcheck's, `VG_USERREQ__MAKE_MEM_NOACCESS` and so on: two letters, and a number.
const MEMCHECK: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16;
const MAKE_NOACCESS: usize = MEMCHECK;
const MAKE_UNDEFINED: usize = MEMCHECK + 1;
const MAKE_DEFINED: usize = MEMCHECK + 2;
const DISABLE_ERRORS_IN_RANGE: usize = MEMCHECK + 14;

#[inline(always)]
fn request(code: usize, arguments: [usize; 4]) {
    let [first, second, third, fourth] = arguments;
    let words = [code, first, second, third, fourth, 0];
    // SAFETY: the registers are as they were, but for the answer.
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
    // SAFETY: as above.
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

/// The program has a block, in memory that it had not; what is in it means something or not.
#[inline(always)]
pub(super) fn allocated(block: *mut u8, size: usize, is_defined: bool) {
    request(MALLOCLIKE, [block.addr(), size, 0, is_defined.into()]);
}

/// The program has a block no more.
#[inline(always)]
pub(super) fn freed(block: *mut u8) {
    request(FREELIKE, [block.addr(), 0, 0, 0]);
}

/// Nobody may use these bytes.
#[inline(always)]
pub(super) fn make_noaccess(address: *mut u8, len: usize) {
    request(MAKE_NOACCESS, [address.addr(), len, 0, 0]);
}

/// These bytes may be written, or read as well.
#[inline(always)]
pub(super) fn make_accessible(address: *mut u8, len: usize, is_defined: bool) {
    let code = if is_defined { MAKE_DEFINED } else { MAKE_UNDEFINED };
    request(code, [address.addr(), len, 0, 0]);
}

/// As [`close`], but nobody is told who does.
#[inline(always)]
pub(super) fn hide(address: *mut u8, len: usize) {
    close(address, len);
    request(DISABLE_ERRORS_IN_RANGE, [address.addr(), len, 0, 0]);
}
