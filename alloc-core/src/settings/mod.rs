//! Settings: the environment variables whose names begin with `HAYLOFT_`.
//!
//! `table` has a row for each: what it is for, its default, the values that it accepts. An invalid
//! value is ignored, with one line on standard error when the settings are read. So what the
//! functions below return is valid, and modules only convert it. They return `None` where the
//! default is in force.
//!
//! | module | holds |
//! |---|---|
//! | `source` | the environment at program start |
//! | `names` | warnings about unknown names |
//! | `table` | the table |
//! | `reports` `faults` `parse` | the grammars of values |
//!
//! A module imports only from lower rows. `os` reads settings, too, so they are below it.

mod faults;
mod names;
mod parse;
mod reports;
mod source;
mod table;

use core::fmt;

pub(crate) use faults::{Call, Faults};
pub(crate) use parse::Limit;
pub use reports::Format;
pub(crate) use reports::{Destination, PathFor, Reports};
pub(crate) use table::{DEFAULT_DECAY_MS, Name};
pub use table::{Setting, TABLE};

/// Returns the text of a setting.
pub(crate) fn text(name: Name) -> Option<&'static str> {
    source::value(name as usize)
}

/// Returns the settings that are not at their defaults, with their texts.
pub(crate) fn changed() -> impl Iterator<Item = (&'static Setting, &'static str)> {
    let texts = TABLE.iter().enumerate().map(|(index, setting)| (setting, source::value(index)));
    texts.filter_map(|(setting, text)| {
        Some((setting, text?)).filter(|_| text != Some(setting.default))
    })
}

/// Returns the value of a setting that is `0` or `1`.
pub(crate) fn flag(name: Name) -> Option<bool> {
    text(name).map(|text| text == "1")
}

/// Returns the value of a setting that is a number.
pub(crate) fn number<T: TryFrom<u64>>(name: Name) -> Option<T> {
    T::try_from(parse::number(text(name)?)?).ok()
}

/// Returns the value of `HAYLOFT_LIMIT`.
pub(crate) fn limit() -> Option<Limit> {
    parse::limit(text(Name::Limit)?).ok()
}

/// Returns the value of `HAYLOFT_STATS`, unless it disables reports.
pub(crate) fn reports() -> Option<Reports<'static>> {
    Reports::parse(text(Name::Stats)?).ok()?
}

/// Returns the value of `HAYLOFT_FAULT`.
pub(crate) fn faults() -> Option<Faults> {
    Faults::parse(text(Name::Fault)?)
}

/// Warns that a valid value cannot be used: `why`, and what is used instead.
#[cold]
pub(crate) fn refuse(name: Name, why: fmt::Arguments<'_>, instead: &str) {
    let value = text(name).unwrap_or_default();
    names::warn_of_value(name.setting(), value.as_bytes(), why, instead);
}
