//! Settings: the variables of the environment whose names begin with `HAYLOFT_`, as they were at the start.
//!
//! They are copied once, before `main`, or by what allocates before that. Later a program may change its environment while other
//! threads run, or write over where it was, as those do that change what `ps` shows. It is read without `getenv`, which programs
//! may have replaced.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};

use super::text::Shown;
use super::warn;

/// All settings.
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

/// What the names of settings begin with.
const PREFIX: &[u8] = b"HAYLOFT_";

/// Bytes that all values may have together: more than twice the longest path.
const ROOM: usize = 8192;

/// The values, one after the other.
struct Values(UnsafeCell<[u8; ROOM]>);

// SAFETY: written by the one who took `STATE` from `UNREAD` only, and read after it was stored as `READ`.
unsafe impl Sync for Values {}

static VALUES: Values = Values(UnsafeCell::new([0; ROOM]));

/// Where the value of each setting begins, and how long it is: `start << 16 | len`, plus one; 0 for those that are not set.
static SPANS: [AtomicU32; NAMES.len()] = [const { AtomicU32::new(0) }; NAMES.len()];

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
const UNREAD: u8 = 0;
/// Somebody copies; others, such as a handler, look for themselves.
const READING: u8 = 1;
const READ: u8 = 2;

unsafe extern "C" {
    /// The C library's.
    static environ: *const *const c_char;
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

/// The environment, as glibc tells constructors; null before. One that runs before the C library's has no other.
static ENVIRONMENT: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

extern "C" fn start(
    _arguments: c_int,
    _values: *const *const c_char,
    environment: *const *const c_char,
) {
    // Other C libraries tell nothing: whatever is in the register.
    if cfg!(target_env = "gnu") {
        ENVIRONMENT.store(environment.cast_mut(), Ordering::Relaxed);
    }
    read();
    if !is_privileged() {
        variables().for_each(warn_of_unknown);
    }
}

/// Whether the program has rights that who started it does not have, who must not have it open files then, or run out of memory.
fn is_privileged() -> bool {
    // SAFETY: a number only.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Where the environment is now; null where nobody has come to it yet, or somebody has set it to null.
fn environment() -> *const *const c_char {
    // SAFETY: the C library's.
    let environment = unsafe { ptr::read_volatile(&raw const environ) };
    if environment.is_null() { ENVIRONMENT.load(Ordering::Relaxed) } else { environment }
}

/// Variables of the environment as it is now, each as `NAME=VALUE`.
fn variables() -> impl Iterator<Item = &'static [u8]> {
    let mut next = environment();
    core::iter::from_fn(move || {
        // SAFETY: it ends in a null pointer; each of the others is a text that ends in a null byte.
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

/// Name and value of a variable that may be a setting.
fn parts(variable: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = variable.iter().position(|byte| *byte == b'=')?;
    let (name, rest) = variable.split_at_checked(end)?;
    name.starts_with(PREFIX).then_some((name, rest.get(1..)?))
}

fn index(name: &[u8]) -> Option<usize> {
    NAMES.iter().position(|known| known.to_bytes() == name)
}

/// Copies the settings, unless somebody has done so, does so, or it is too early.
#[cold]
fn read() {
    if environment().is_null()
        || STATE.compare_exchange(UNREAD, READING, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    // SAFETY: nobody else does until `READ` is stored.
    let values = unsafe { &mut *VALUES.0.get() };
    let mut used = 0;
    let settings = variables().take_while(|_| !is_privileged()).filter_map(parts);
    for (name, value) in settings {
        let Some(span) = index(name).and_then(|index| SPANS.get(index)) else { continue };
        // As for `getenv`, the first counts.
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

/// The value of a setting, as it was at the start; `None` if it is not set, or to nothing, or the program is one whose user must
/// not choose.
pub(crate) fn env(name: &CStr) -> Option<&'static [u8]> {
    // Acquire: pairs with the Release in `read`.
    if STATE.load(Ordering::Acquire) == UNREAD {
        read();
    }
    let name = name.to_bytes();
    let value = if STATE.load(Ordering::Acquire) == READ {
        let span = SPANS.get(index(name)?)?.load(Ordering::Relaxed).checked_sub(1)? as usize;
        let (start, len) = (span >> 16, span & 0xffff);
        // SAFETY: nobody writes it any more.
        unsafe { &*VALUES.0.get() }.get(start..start + len)
    } else {
        let mut settings = variables().take_while(|_| !is_privileged()).filter_map(parts);
        settings.find(|(other, _)| *other == name).map(|(_, value)| value)
    };
    value.filter(|value| !value.is_empty())
}

/// Warns of a variable that is none of the settings, though its name begins like one.
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

/// Edits that a slip of a finger or two makes.
const NEAR: usize = 2;
/// Bytes of a name that count.
const LONGEST: usize = 24;

/// How many bytes must be inserted, taken out or changed to make one name the other (Levenshtein).
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
    fn distances() {
        for (one, other, edits) in [
            ("HAYLOFT_STAT", "HAYLOFT_STATS", 1),
            ("HAYLOFT_LIMTI", "HAYLOFT_LIMIT", 2),
            ("HAYLOFT_DECAY", "HAYLOFT_DECAY_MS", 3),
            ("HAYLOFT_", "HAYLOFT_THP", 3),
            ("", "HAYLOFT_IRQ_SIGNAL_AND_MORE_AND_MORE", LONGEST),
        ] {
            assert_eq!(distance(one.as_bytes(), other.as_bytes()), edits, "{one} {other}");
            assert_eq!(distance(other.as_bytes(), one.as_bytes()), edits, "{other} {one}");
        }
    }

    #[test]
    fn names_are_sorted_and_short() {
        assert!(NAMES.is_sorted());
        assert!(NAMES.iter().all(|name| name.to_bytes().starts_with(PREFIX)));
        assert!(NAMES.iter().all(|name| name.count_bytes() <= LONGEST));
    }
}
