//! What glibc tells of its heap, as far as it means something here: bytes held, used and free.

use core::ffi::{c_char, c_int};

use alloc_core::cache;
use alloc_core::stats::{self, Stats};

unsafe extern "C" {
    fn dprintf(file: c_int, format: *const c_char, ...) -> c_int;
}

/// `struct mallinfo2`, and `struct mallinfo` with its narrower numbers.
#[repr(C)]
struct Info<T> {
    arena: T,
    ordblks: T,
    smblks: T,
    hblks: T,
    hblkhd: T,
    usmblks: T,
    fsmblks: T,
    uordblks: T,
    fordblks: T,
    keepcost: T,
}

/// What there is, each number as `number` has it.
fn info<T: Copy>(number: impl Fn(usize) -> T) -> Info<T> {
    let Stats { held, free, unneeded, .. } = stats::gather_own();
    let none = number(0);
    Info {
        arena: number(held),
        ordblks: none,
        smblks: none,
        hblks: none,
        hblkhd: none,
        usmblks: none,
        fsmblks: none,
        uordblks: number(held - free),
        fordblks: number(free),
        keepcost: number(unneeded),
    }
}

/// Bytes held (`arena`), in use (`uordblks`), free (`fordblks`) and unneeded (`keepcost`).
#[unsafe(no_mangle)]
extern "C" fn mallinfo2() -> Info<usize> {
    info(|number| number)
}

/// As [`mallinfo2`]; a number that is too large is the largest there is.
#[unsafe(no_mangle)]
extern "C" fn mallinfo() -> Info<c_int> {
    info(|number| c_int::try_from(number).unwrap_or(c_int::MAX))
}

/// Writes what [`mallinfo2`] says as XML. The options must be 0.
///
/// # Safety
/// The stream is one of the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        return libc::EINVAL;
    }
    let Stats { held, free, unneeded, .. } = stats::gather_own();
    let format = c"<malloc version=\"hayloft\">\n<total type=\"held\" size=\"%zu\"/>\n<total type=\"free\" size=\"%zu\"/>\n\
        <total type=\"unneeded\" size=\"%zu\"/>\n</malloc>\n";
    // SAFETY: as many numbers as the format has; the rest is the caller's promise.
    let written = unsafe { libc::fprintf(stream, format.as_ptr(), held, free, unneeded) };
    if written < 0 { -1 } else { 0 }
}

/// Writes what [`mallinfo2`] says to standard error.
#[unsafe(no_mangle)]
extern "C" fn malloc_stats() {
    let Stats { held, free, unneeded, .. } = stats::gather_own();
    let format = c"hayloft: %zu bytes held, %zu of them in use, %zu free, %zu unneeded\n";
    // SAFETY: as many numbers as the format has.
    unsafe { dprintf(libc::STDERR_FILENO, format.as_ptr(), held, held - free, free, unneeded) };
}

/// Gives all memory back that no block in use needs; 1 if there was any. There is no top of the heap to leave `_pad` bytes at.
#[unsafe(no_mangle)]
extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(cache::trim() > 0)
}

/// Takes the settings of glibc, for programs that insist on it, and does nothing with them; 0 for what is no setting.
#[unsafe(no_mangle)]
extern "C" fn mallopt(setting: c_int, _value: c_int) -> c_int {
    // From `M_ARENA_MAX` to `M_TRIM_THRESHOLD`, and `M_MXFAST`.
    c_int::from(matches!(setting, -8..=-1 | 1))
}
