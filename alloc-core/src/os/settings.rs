//! Settings: the environment variables whose names begin with `HAYLOFT_`, with their values at
//! program start.
//!
//! They are copied once: before `main`, or by an earlier allocation. Later a program may change its
//! environment while other threads run, or overwrite the memory that held it, as programs do that
//! change their line in `ps`. The environment is read without `getenv`, which a program may have
//! replaced.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use super::text::Shown;
use super::warn;

/// The names of all settings.
const NAMES: [&CStr; 13] = [
    c"HAYLOFT_BACKEND",
    c"HAYLOFT_BACKGROUND",
    c"HAYLOFT_DECAY_MS",
    c"HAYLOFT_FAULT",
    c"HAYLOFT_IRQ",
    c"HAYLOFT_IRQ_SIGNAL",
    c"HAYLOFT_LIMIT",
    c"HAYLOFT_PAGE_SIZE",
    c"HAYLOFT_PRESSURE",
    c"HAYLOFT_STATS",
    c"HAYLOFT_STATS_SHM",
    c"HAYLOFT_SYSFS",
    c"HAYLOFT_THP",
];

/// The prefix of every setting's name.
const PREFIX: &[u8] = b"HAYLOFT_";

/// Bytes for all values together: more than twice the longest path.
const ROOM: usize = 8192;

/// The values, one after the other.
struct Values(UnsafeCell<[u8; ROOM]>);

// SAFETY: only the thread that moves `STATE` from `UNREAD` to `READING` writes the values; they are
// read only after `STATE` is `READ`.
unsafe impl Sync for Values {}

static VALUES: Values = Values(UnsafeCell::new([0; ROOM]));

/// Position and length of each setting's value, as `(start << 16 | len) + 1`; 0 for settings that
/// are not set.
static SPANS: [AtomicU32; NAMES.len()] = [const { AtomicU32::new(0) }; NAMES.len()];

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
const UNREAD: u8 = 0;
/// One thread copies. Others, such as a signal handler, search the environment themselves.
const READING: u8 = 1;
const READ: u8 = 2;

unsafe extern "C" {
    /// The C library's environment.
    static environ: *const *const c_char;
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

/// The environment that glibc passes to constructors; null before that. A constructor that runs
/// before the C library's own has no other source.
static ENVIRONMENT: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

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
    if !is_privileged() {
        variables().for_each(warn_of_unknown);
    }
}

/// Returns whether the program runs with more rights than its invoker (`AT_SECURE`). The invoker
/// must not make such a program open files or run out of memory.
fn is_privileged() -> bool {
    // SAFETY: `getauxval` takes and returns only numbers.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns the current environment: `environ`, or where that is null, the environment that was
/// passed to constructors. Null if that is null as well.
fn environment() -> *const *const c_char {
    // SAFETY: the C library defines `environ`, and a volatile read of a pointer is sound at any
    // time.
    let environment = unsafe { ptr::read_volatile(&raw const environ) };
    if environment.is_null() { ENVIRONMENT.load(Ordering::Relaxed) } else { environment }
}

/// Returns the variables of the current environment, each as `NAME=VALUE`.
fn variables() -> impl Iterator<Item = &'static [u8]> {
    let mut next = environment();
    core::iter::from_fn(move || {
        // SAFETY: the environment is an array of C strings that ends in a null pointer.
        unsafe {
            if next.is_null() || (*next).is_null() {
                return None;
            }
            let variable = CStr::from_ptr(*next).to_bytes();
            next = next.add(1);
            Some(variable)
        }
    })
}

/// Splits a variable into name and value. Returns `None` if its name lacks the prefix of settings.
fn parts(variable: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = variable.iter().position(|byte| *byte == b'=')?;
    let (name, rest) = variable.split_at_checked(end)?;
    name.starts_with(PREFIX).then_some((name, rest.get(1..)?))
}

fn index(name: &[u8]) -> Option<usize> {
    NAMES.iter().position(|known| known.to_bytes() == name)
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
    let settings = variables().take_while(|_| !is_privileged()).filter_map(parts);
    for (name, value) in settings {
        let Some(span) = index(name).and_then(|index| SPANS.get(index)) else { continue };
        // The first of several equal names counts, as with `getenv`.
        if span.load(Ordering::Relaxed) != 0 {
            continue;
        }
        let Some(to) = values.get_mut(used..used + value.len()) else {
            warn(format_args!("{}: too long; ignored", Shown(name)));
            continue;
        };
        to.copy_from_slice(value);
        span.store((used << 16 | value.len()) as u32 + 1, Ordering::Relaxed);
        used += value.len();
    }
    // Release: pairs with the Acquire in `env`.
    STATE.store(READ, Ordering::Release);
}

/// Returns the value of a setting at program start. `None` if the setting is unset or empty, or if
/// the program is privileged and its invoker must not control it.
pub(crate) fn env(name: &CStr) -> Option<&'static [u8]> {
    // Acquire: pairs with the Release in `read`.
    if STATE.load(Ordering::Acquire) == UNREAD {
        read();
    }
    let name = name.to_bytes();
    let value = if STATE.load(Ordering::Acquire) == READ {
        let span = SPANS.get(index(name)?)?.load(Ordering::Relaxed).checked_sub(1)? as usize;
        let (start, len) = (span >> 16, span & 0xffff);
        // SAFETY: `STATE` is `READ`, so nobody writes the values any longer.
        unsafe { &*VALUES.0.get() }.get(start..start + len)
    } else {
        let mut settings = variables().take_while(|_| !is_privileged()).filter_map(parts);
        settings.find(|(other, _)| *other == name).map(|(_, value)| value)
    };
    value.filter(|value| !value.is_empty())
}

/// Warns about a variable that has the prefix but is not a setting, and suggests a setting of
/// similar name.
fn warn_of_unknown(variable: &[u8]) {
    let Some((name, _)) = parts(variable).filter(|(name, _)| index(name).is_none()) else { return };
    let names = NAMES.iter().map(|known| known.to_bytes());
    let is_meant = |known: &&[u8]| {
        distance(name, known) <= NEAR || name.len() > PREFIX.len() && known.starts_with(name)
    };
    match names.filter(is_meant).min_by_key(|known| distance(name, known)) {
        Some(known) => {
            warn(format_args!("{}: no such setting; {} is one", Shown(name), Shown(known)));
        }
        None => warn(format_args!("{}: no such setting", Shown(name))),
    }
}

/// The largest edit distance at which a name counts as a misspelt setting.
const NEAR: usize = 2;
/// Bytes of a name that are compared.
const LONGEST: usize = 24;

/// Returns the number of bytes to insert, delete or change to turn one name into the other
/// (Levenshtein distance).
fn distance(one: &[u8], other: &[u8]) -> usize {
    let [one, other] = [one, other].map(|name| name.get(..LONGEST).unwrap_or(name));
    let mut row: [usize; LONGEST + 1] = core::array::from_fn(|column| column);
    for (done, letter) in one.iter().enumerate() {
        let mut corner = done;
        let mut left = done + 1;
        row[0] = left;
        for (cell, also) in row[1..].iter_mut().zip(other) {
            let change = corner + usize::from(letter != also);
            corner = *cell;
            left = change.min(corner + 1).min(left + 1);
            *cell = left;
        }
    }
    row.get(other.len()).copied().unwrap_or(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (one, other, edits) in [
            ("HAYLOFT_STAT", "HAYLOFT_STATS", 1),
            ("HAYLOFT_LIMTI", "HAYLOFT_LIMIT", 2),
            ("HAYLOFT_DECAY", "HAYLOFT_DECAY_MS", 3),
            ("HAYLOFT_", "HAYLOFT_THP", 3),
            ("", "HAYLOFT_IRQ_SIGNAL_AND_MORE_AND_MORE", LONGEST),
        ] {
            assert_eq!(distance(one.as_bytes(), other.as_bytes()), edits, "from {one} to {other}");
            assert_eq!(distance(other.as_bytes(), one.as_bytes()), edits, "from {other} to {one}");
        }
    }

    #[test]
    fn names_are_sorted_and_short() {
        assert!(NAMES.is_sorted());
        assert!(NAMES.iter().all(|name| name.to_bytes().starts_with(PREFIX)));
        assert!(NAMES.iter().all(|name| name.count_bytes() <= LONGEST));
    }
}
