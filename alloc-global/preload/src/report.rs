//! glibc's reports about the heap, with the numbers that apply to Hayloft: bytes held, in use and
//! free.

use core::ffi::{c_char, c_int};

use hayloft_core::heap;
use hayloft_core::stats::{self, Stats};

unsafe extern "C" {
    fn dprintf(file: c_int, format: *const c_char, ...) -> c_int;
}

/// `struct mallinfo2`, or, with narrower numbers, `struct mallinfo`.
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

/// Returns the current numbers, each converted by `number`.
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

/// Returns the bytes held (`arena`), in use (`uordblks`), free (`fordblks`), and free in idle pages
/// (`keepcost`).
#[unsafe(no_mangle)]
extern "C" fn mallinfo2() -> Info<usize> {
    info(|number| number)
}

/// Returns the same as [`mallinfo2`], with numbers that are too large replaced by the largest
/// `int`.
#[unsafe(no_mangle)]
extern "C" fn mallinfo() -> Info<c_int> {
    info(|number| c_int::try_from(number).unwrap_or(c_int::MAX))
}

/// Writes the numbers of [`mallinfo2`] to `stream` as XML. Returns 0, `EINVAL` if `options` is not
/// 0, or -1 if writing fails.
///
/// # Safety
/// `stream` is an open stream of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        return libc::EINVAL;
    }
    let Stats { held, free, unneeded, .. } = stats::gather_own();
    let format = c"<malloc version=\"hayloft\">\n<total type=\"held\" size=\"%zu\"/>\n<total type=\"free\" size=\"%zu\"/>\n\
        <total type=\"unneeded\" size=\"%zu\"/>\n</malloc>\n";
    // SAFETY: the arguments match the format. The caller guarantees that `stream` is open.
    let written = unsafe { libc::fprintf(stream, format.as_ptr(), held, free, unneeded) };
    if written < 0 { -1 } else { 0 }
}

/// Writes the numbers of [`mallinfo2`] to standard error.
#[unsafe(no_mangle)]
extern "C" fn malloc_stats() {
    let Stats { held, free, unneeded, .. } = stats::gather_own();
    let format = c"hayloft: %zu bytes held, %zu of them in use, %zu free, %zu unneeded\n";
    // SAFETY: the arguments match the format.
    unsafe { dprintf(libc::STDERR_FILENO, format.as_ptr(), held, held - free, free, unneeded) };
}

/// Releases all idle memory to the system. Returns 1 if there was any, and 0 otherwise. There is no
/// top of the heap at which to leave `_pad` bytes.
#[unsafe(no_mangle)]
extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(heap::trim() > 0)
}

/// Accepts the settings of glibc and ignores them, for programs that insist on success. Returns 1,
/// or 0 for an unknown setting.
#[unsafe(no_mangle)]
extern "C" fn mallopt(setting: c_int, _value: c_int) -> c_int {
    // `M_ARENA_MAX` (-8) to `M_TRIM_THRESHOLD` (-1), and `M_MXFAST` (1).
    c_int::from(matches!(setting, -8..=-1 | 1))
}
