//! The grammar of a program's own settings, as the variable `hayloft_conf` has them: words of the
//! form `NAME=VALUE`, separated by white space. Their names are those of the variables of the
//! environment without the prefix, in lower case. The compiler checks them where it can.

use core::ffi::{CStr, c_char};

use super::parse;
use super::table::Setting;

/// The value of the variable `hayloft_conf`, as the macro `hayloft::settings` defines it.
#[derive(Debug)]
#[repr(transparent)]
pub struct ProgramSettings(*const c_char);

// SAFETY: the pointer is to text that is never written.
unsafe impl Sync for ProgramSettings {}

impl ProgramSettings {
    /// Wraps a text, which ends in its only null byte.
    ///
    /// # Panics
    ///
    /// If the text has another null byte.
    #[must_use]
    pub const fn new(text: &'static str) -> ProgramSettings {
        match CStr::from_bytes_with_nul(text.as_bytes()) {
            Ok(text) => ProgramSettings(text.as_ptr()),
            Err(_) => panic!("a null byte in a setting"),
        }
    }
}

/// Checks settings.
///
/// # Panics
///
/// If a word has not the form `NAME=VALUE`, a name is unknown, or a value is invalid as far as the
/// compiler can know.
pub const fn check(text: &str) {
    if let Err(why) = examine(text) {
        panic!("{}", why);
    }
}

/// Does the work of [`check`].
///
/// # Errors
/// Returns what is wrong with the first word that is.
const fn examine(text: &str) -> Result<(), &'static str> {
    let mut left = text.as_bytes();
    while let Some((word, rest)) = split_word(left) {
        left = rest;
        let Some((name, value)) = parse::split_at_byte(word, b'=') else {
            return Err("a setting is not of the form name=value");
        };
        let Some(setting) = Setting::of_own_name(name) else {
            return Err("no such setting: docs/settings.md lists those that exist");
        };
        let Ok(value) = core::str::from_utf8(value) else {
            return Err("a value is no text");
        };
        if let (false, Err(why)) = (value.is_empty(), setting.check_early(value)) {
            return Err(why);
        }
    }
    Ok(())
}

/// Splits off the first word of a text. Returns it with the rest, or `None` if no word is left.
pub(super) const fn split_word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let mut rest = text;
    while let [first, after @ ..] = rest
        && !first.is_ascii_whitespace()
    {
        rest = after;
    }
    if text.is_empty() { None } else { Some((text.split_at(text.len() - rest.len()).0, rest)) }
}

/// Returns the words of a text.
pub(super) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut left = text;
    core::iter::from_fn(move || {
        let (word, rest) = split_word(left)?;
        left = rest;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn white_space_separates_words() {
        let split = |text: &'static str| words(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(split(" a=1\tb=2\n\n c=/d,e "), [&b"a=1"[..], b"b=2", b"c=/d,e"]);
        assert_eq!(split("a"), [b"a"]);
        assert!(split("").is_empty() && split(" \n").is_empty());
    }

    #[test]
    fn invalid_settings_are_errors() {
        for valid in [
            "",
            "limit=512M",
            "limit=1G decay_ms=0 stats=stderr,table",
            "thp=",
            "environment=0",
            "pressure=/dev/null irq=none irq_signal=40 page_size=4096",
        ] {
            assert_eq!(examine(valid), Ok(()), "{valid}");
        }
        for invalid in [
            "limit",
            "=",
            "limti=1G",
            "LIMIT=1G",
            "limit=x",
            "limit=2G:1G",
            "limit=1K",
            "limit=1G decay_ms=3600001",
            "thp=Always",
            "irq_signal=65",
            "page_size=5000",
            "pressure=x",
            "environment=no",
        ] {
            assert!(examine(invalid).is_err(), "{invalid}");
        }
    }
}
