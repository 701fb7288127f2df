//! Settings: the environment variables whose names begin with `HAYLOFT_`, and those that a program
//! has in the variable `hayloft_conf`.
//!
//! `table` has a row for each: what it is for, its default, the values that it accepts. An invalid
//! value is ignored, with one line on standard error when the settings are read. So what the
//! functions below return is valid, and modules only convert it. They return `None` where the
//! default is in force.
//!
//! | module | holds |
//! |---|---|
//! | `source` | the environment at program start, and the program |
//! | `names` | names in both, and warnings |
//! | `program` | the grammar of the program's settings |
//! | `check` | checks of values |
//! | `table` | the table |
//! | `reports` `faults` | the grammars of lists |
//! | `parse` | the grammars of other values |
//!
//! A module imports only from lower rows. `os` reads settings, too, so they are below it.

mod check;
mod faults;
mod names;
mod parse;
mod program;
mod reports;
mod source;
mod table;

use core::fmt;

pub(crate) use faults::{Call, Faults};
pub(crate) use names::{NameIn, Origin};
pub(crate) use parse::Limit;
pub use program::{ProgramSettings, check};
pub use reports::Format;
pub(crate) use reports::{Content, Destination, Leaks, PathFor, Reports};
use source::Found;
pub(crate) use table::{DEFAULT_DECAY_MS, Name};
pub use table::{Setting, TABLE};

/// Returns the text of a setting.
pub(crate) fn text(name: Name) -> Option<&'static str> {
    source::value(name).map(|found| found.text)
}

/// Returns the settings that are set in `origin` and are not at their defaults, with their texts.
pub(crate) fn changed(origin: Origin) -> impl Iterator<Item = (&'static Setting, &'static str)> {
    let all = Name::ALL.into_iter();
    all.filter_map(|name| Some((name.setting(), source::value(name)?)))
        .filter(move |(setting, found)| found.origin == origin && found.text != setting.default)
        .map(|(setting, found)| (setting, found.text))
}

/// Returns whether the program runs with more rights than its invoker.
pub(crate) fn is_privileged() -> bool {
    source::is_privileged()
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

/// Returns the value of `HAYLOFT_PROFILE`, unless it disables profiles.
pub(crate) fn profile() -> Option<Reports<'static>> {
    Reports::parse_profile(text(Name::Profile)?).ok()?
}

/// Returns the value of `HAYLOFT_LEAKS`, unless it disables the report.
pub(crate) fn leaks() -> Option<Reports<'static>> {
    Reports::parse_leaks(text(Name::Leaks)?).ok()?
}

/// Returns the value of `HAYLOFT_FAULT`.
pub(crate) fn faults() -> Option<Faults> {
    Faults::parse(text(Name::Fault)?)
}

/// Warns that a valid value cannot be used: `why`, and what is used instead.
#[cold]
pub(crate) fn refuse(name: Name, why: fmt::Arguments<'_>, instead: &str) {
    if let Some(Found { text, origin }) = source::value(name) {
        names::warn_of_value(origin, name.setting(), text.as_bytes(), why, instead);
    }
}
