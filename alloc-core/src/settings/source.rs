//! Where settings come from: the environment at program start, and before it the program itself, in
//! the variable `hayloft_conf`. What is valid in the environment counts first, unless the program
//! has `environment=0`, or runs with more rights than its invoker.
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

use super::names::{self, Origin};
use super::table::{ENVIRONMENT, Name, PREFIX, Setting, TABLE};
use super::{parse, program};
use crate::arch;

/// Bytes for all values together: more than twice the longest path.
const ROOM: usize = 8192;

/// The values, one after the other.
struct Values(UnsafeCell<[u8; ROOM]>);

// SAFETY: only the thread that moves `STATE` from `UNREAD` to `READING` writes the values; they are
// read only after `STATE` is `READ`.
unsafe impl Sync for Values {}

static VALUES: Values = Values(UnsafeCell::new([0; ROOM]));

/// Position and length of each setting's value, as `start << 16 | len`, and [`OF_PROGRAM`]; 0 for
/// settings that are not set, or not validly.
static SPANS: [AtomicU32; TABLE.len()] = [const { AtomicU32::new(0) }; TABLE.len()];

/// The bit of a span whose value the program set.
const OF_PROGRAM: usize = 1 << 31;

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
const UNREAD: u8 = 0;
/// One thread copies. Others, such as a signal handler, search the environment themselves.
const READING: u8 = 1;
const READ: u8 = 2;

/// The environment that glibc passes to constructors; null before that. A constructor that runs
/// before the C library's own has no other source.
static PASSED: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

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
        PASSED.store(environment.cast_mut(), Ordering::Relaxed);
    }
    read();
    variables()
        .filter(|(name, _)| TABLE.iter().all(|setting| setting.name.as_bytes() != *name))
        .for_each(|(name, _)| names::warn_of_unknown(Origin::Environment, name));
    for word in program::words(of_program()) {
        let Some((name, value)) = parse::split_at_byte(word, b'=') else {
            names::warn_of_word(word);
            continue;
        };
        match Setting::of_own_name(name) {
            None => names::warn_of_unknown(Origin::Program, name),
            Some(setting) if ptr::eq(setting, &ENVIRONMENT) && !value.is_empty() => {
                if let Err(why) = setting.check(value) {
                    warn_of_value(Origin::Program, setting, value, why, setting.default);
                }
            }
            Some(_) => {}
        }
    }
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
    if environment.is_null() { PASSED.load(Ordering::Relaxed) } else { environment }
}

/// Returns null: tests under Miri have no settings.
#[cfg(miri)]
fn environment() -> *const *const c_char {
    PASSED.load(Ordering::Relaxed)
}

/// Returns the settings that the program defines.
fn of_program() -> &'static [u8] {
    let variable = arch::program_settings();
    // SAFETY: `hayloft.h` demands of a program that defines the variable that it is a pointer, null
    // or to a constant C string; so does the macro `settings`.
    unsafe {
        if variable.is_null() || (*variable).is_null() {
            return &[];
        }
        CStr::from_ptr(*variable).to_bytes()
    }
}

/// Returns whether the program runs with more rights than its invoker (`AT_SECURE`). The invoker
/// must not make such a program open files or run out of memory.
pub(super) fn is_privileged() -> bool {
    // SAFETY: `getauxval` takes and returns only numbers.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns names and values of the current environment's variables that have the prefix of
/// settings. There are none in a privileged program, and in one that forbids them.
fn variables() -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
    let mut next = environment();
    let all = core::iter::from_fn(move || {
        // SAFETY: the environment is an array of C strings that ends in a null pointer.
        unsafe {
            if next.is_null() || (*next).is_null() {
                return None;
            }
            let variable = *next;
            next = next.add(1);
            Some(variable)
        }
    });
    // The start searches for each setting, so the lengths of other variables are not computed.
    // SAFETY: an element of the environment is a C string. It is read up to the first byte that
    // differs from the prefix, so not beyond its end.
    let has_prefix = |variable: &*const c_char| unsafe {
        PREFIX.bytes().enumerate().all(|(at, byte)| variable.add(at).cast::<u8>().read() == byte)
    };
    all.filter(has_prefix)
        // SAFETY: an element of the environment is a C string.
        .map(|variable| unsafe { CStr::from_ptr(variable) }.to_bytes())
        .take_while(|_| !is_privileged() && in_program(&ENVIRONMENT) != Some(b"0"))
        .filter_map(|variable| parse::split_at_byte(variable, b'='))
}

/// Returns the value of a setting in the current environment, unless it is empty. The first of
/// several equal names counts, as with `getenv`.
fn in_environment(setting: &Setting) -> Option<&'static [u8]> {
    let (_, value) = variables().find(|(name, _)| *name == setting.name.as_bytes())?;
    Some(value).filter(|value| !value.is_empty())
}

/// Returns the value of a setting that the program sets, unless it is empty. The first of several
/// equal names counts.
fn in_program(setting: &Setting) -> Option<&'static [u8]> {
    let settings = program::words(of_program()).filter_map(|word| parse::split_at_byte(word, b'='));
    let (_, value) = { settings }.find(|(name, _)| setting.has_own_name(name))?;
    Some(value).filter(|value| !value.is_empty())
}

/// A valid value, and where it is set.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) text: &'static str,
    pub(crate) origin: Origin,
}

/// Searches the current environment and the program for a valid value of a setting. If `warns`,
/// warns of each invalid one.
fn search(setting: &Setting, warns: bool) -> Option<Found> {
    let values =
        [(Origin::Environment, in_environment(setting)), (Origin::Program, in_program(setting))];
    let values = || values.iter().filter_map(|(origin, value)| Some((*origin, (*value)?)));
    let found = values()
        .find_map(|(origin, value)| Some(Found { text: setting.check(value).ok()?, origin }));
    for (origin, value) in values().filter(|_| warns) {
        if let Err(why) = setting.check(value) {
            let instead = found.map_or(setting.default, |found| found.text);
            warn_of_value(origin, setting, value, why, instead);
        }
    }
    found
}

fn warn_of_value(origin: Origin, setting: &Setting, value: &[u8], why: &str, instead: &str) {
    names::warn_of_value(origin, setting, value, format_args!("{why}"), instead);
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
        let Some(Found { text, origin }) = search(setting, true) else { continue };
        let Some(to) = values.get_mut(used..used + text.len()) else {
            warn_of_value(origin, setting, text.as_bytes(), "too long", setting.default);
            continue;
        };
        to.copy_from_slice(text.as_bytes());
        let origin = if origin == Origin::Program { OF_PROGRAM } else { 0 };
        span.store((origin | used << 16 | text.len()) as u32, Ordering::Relaxed);
        used += text.len();
    }
    // Release: pairs with the Acquire in `value`.
    STATE.store(READ, Ordering::Release);
}

/// Returns the value of a setting at program start. `None` if it is unset, empty or invalid.
pub(super) fn value(name: Name) -> Option<Found> {
    // Acquire: pairs with the Release in `read`.
    if STATE.load(Ordering::Acquire) == UNREAD {
        read();
    }
    if STATE.load(Ordering::Acquire) != READ {
        return search(name.setting(), false);
    }
    let span = SPANS.get(name as usize)?.load(Ordering::Relaxed) as usize;
    let (start, len) = ((span & !OF_PROGRAM) >> 16, span & 0xffff);
    // SAFETY: `STATE` is `READ`, so nobody writes the values any longer.
    let value = unsafe { &*VALUES.0.get() }.get(start..start + len)?;
    let text = core::str::from_utf8(value).ok().filter(|text| !text.is_empty())?;
    let is_of_program = span & OF_PROGRAM != 0;
    Some(Found { text, origin: if is_of_program { Origin::Program } else { Origin::Environment } })
}
