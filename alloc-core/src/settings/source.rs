//! Where settings come from: the environment at program start.
//!
//! Valid values are copied once: before `main`, or by an earlier allocation. Later a program may
//! change its environment while other threads run, or overwrite the memory that held it, as
//! programs do that change their line in `ps`. The environment is read without `getenv`, which a
//! program may have replaced.

use core::cell::UnsafeCell;
#[cfg(not(miri))]
use core::ffi::c_int;
use core::ffi::{CStr, c_char};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use super::names;
use super::table::{PREFIX, Setting, TABLE};

/// Bytes for all values together: more than twice the longest path.
const ROOM: usize = 8192;

/// The values, one after the other.
struct Values(UnsafeCell<[u8; ROOM]>);

// SAFETY: only the thread that moves `STATE` from `UNREAD` to `READING` writes the values; they are
// read only after `STATE` is `READ`.
unsafe impl Sync for Values {}

static VALUES: Values = Values(UnsafeCell::new([0; ROOM]));

/// Position and length of each setting's value, as `start << 16 | len`; 0 for settings that are not
/// set, or not validly.
static SPANS: [AtomicU32; TABLE.len()] = [const { AtomicU32::new(0) }; TABLE.len()];

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
const UNREAD: u8 = 0;
/// One thread copies. Others, such as a signal handler, search the environment themselves.
const READING: u8 = 1;
const READ: u8 = 2;

/// The environment that glibc passes to constructors; null before that. A constructor that runs
/// before the C library's own has no other source.
static ENVIRONMENT: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

/// Runs before the other constructors, which may need settings: its section has a priority, theirs
/// has none.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array.00099")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

#[cfg(not(miri))]
extern "C" fn start(
    _arguments: c_int,
    _values: *const *const c_char,
    environment: *const *const c_char,
) {
    // Other C libraries pass no arguments; the register holds an arbitrary value.
    if cfg!(target_env = "gnu") {
        ENVIRONMENT.store(environment.cast_mut(), Ordering::Relaxed);
    }
    read();
    variables().for_each(|(name, _)| names::warn_if_unknown(name));
}

/// Returns the current environment: `environ`, or where that is null, the environment that was
/// passed to constructors. Null if that is null as well.
#[cfg(not(miri))]
fn environment() -> *const *const c_char {
    unsafe extern "C" {
        /// The C library's environment.
        static environ: *const *const c_char;
    }
    // SAFETY: the C library defines `environ`, and a volatile read of a pointer is sound at any
    // time.
    let environment = unsafe { ptr::read_volatile(&raw const environ) };
    if environment.is_null() { ENVIRONMENT.load(Ordering::Relaxed) } else { environment }
}

/// Returns null: tests under Miri have no settings.
#[cfg(miri)]
fn environment() -> *const *const c_char {
    ENVIRONMENT.load(Ordering::Relaxed)
}

/// Returns whether the program runs with more rights than its invoker (`AT_SECURE`). The invoker
/// must not make such a program open files or run out of memory.
fn is_privileged() -> bool {
    // SAFETY: `getauxval` takes and returns only numbers.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns names and values of the current environment's variables that have the prefix of
/// settings. There are none in a privileged program.
fn variables() -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
    let mut next = environment();
    let all = core::iter::from_fn(move || {
        // SAFETY: the environment is an array of C strings that ends in a null pointer.
        unsafe {
            if next.is_null() || (*next).is_null() {
                return None;
            }
            let variable = CStr::from_ptr(*next).to_bytes();
            next = next.add(1);
            Some(variable)
        }
    });
    all.filter(|variable| variable.starts_with(PREFIX.as_bytes()))
        .take_while(|_| !is_privileged())
        .filter_map(|variable| {
            let end = variable.iter().position(|byte| *byte == b'=')?;
            let (name, rest) = variable.split_at_checked(end)?;
            Some((name, rest.get(1..)?))
        })
}

/// Searches the current environment for a setting. Returns its text if it is set and valid. If it
/// is invalid, warns of that if `warns`.
fn search(setting: &Setting, warns: bool) -> Option<&'static str> {
    // The first of several equal names counts, as with `getenv`. Empty is not set.
    let (_, value) = variables().find(|(name, _)| *name == setting.name.as_bytes())?;
    let checked = setting.check(Some(value).filter(|value| !value.is_empty())?);
    if let (Err(why), true) = (checked, warns) {
        names::warn_of_value(setting, value, format_args!("{why}"), setting.default);
    }
    checked.ok()
}

/// Copies the settings. Does nothing if another thread has copied them or is copying them, or if
/// there is no environment yet.
#[cold]
fn read() {
    if environment().is_null()
        || STATE.compare_exchange(UNREAD, READING, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    // SAFETY: this thread moved `STATE` to `READING`; nobody else touches the values until it
    // stores `READ`.
    let values = unsafe { &mut *VALUES.0.get() };
    let mut used = 0;
    for (setting, span) in TABLE.iter().zip(&SPANS) {
        let Some(text) = search(setting, true) else { continue };
        let Some(to) = values.get_mut(used..used + text.len()) else {
            let why = format_args!("too long");
            names::warn_of_value(setting, text.as_bytes(), why, setting.default);
            continue;
        };
        to.copy_from_slice(text.as_bytes());
        span.store((used << 16 | text.len()) as u32, Ordering::Relaxed);
        used += text.len();
    }
    // Release: pairs with the Acquire in `value`.
    STATE.store(READ, Ordering::Release);
}

/// Returns the text of the setting in a row of the table, at program start. `None` if it is unset,
/// empty or invalid, or if the program is privileged and its invoker must not control it.
pub(super) fn value(index: usize) -> Option<&'static str> {
    // Acquire: pairs with the Release in `read`.
    if STATE.load(Ordering::Acquire) == UNREAD {
        read();
    }
    if STATE.load(Ordering::Acquire) != READ {
        return search(TABLE.get(index)?, false);
    }
    let span = SPANS.get(index)?.load(Ordering::Relaxed) as usize;
    let (start, len) = (span >> 16, span & 0xffff);
    // SAFETY: `STATE` is `READ`, so nobody writes the values any longer.
    let value = unsafe { &*VALUES.0.get() }.get(start..start + len)?;
    core::str::from_utf8(value).ok().filter(|text| !text.is_empty())
}
