//! The names of settings in the environment and in a program, and warnings about settings.

use core::fmt::{self, Write as _};

use super::table::{ENVIRONMENT, LONGEST_NAME, PREFIX, Setting, TABLE};
use crate::text::{Shown, warn};

/// Where a setting is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    Environment,
    /// The variable `hayloft_conf`.
    Program,
}

impl Origin {
    /// Returns the name of a setting: that of the variable, or for a program the same without the
    /// prefix, in lower case.
    fn name(self, setting: &Setting) -> impl Iterator<Item = u8> + Clone {
        let is_own = self == Origin::Program;
        let prefix = if is_own { PREFIX.len() } else { 0 };
        let letters = setting.name.bytes().skip(prefix);
        letters.map(move |letter| if is_own { letter.to_ascii_lowercase() } else { letter })
    }
}

/// Formats the name of a setting.
pub(crate) struct NameIn<'a>(pub(crate) Origin, pub(crate) &'a Setting);

impl fmt::Display for NameIn<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.name(self.1).try_for_each(|letter| to.write_char(letter.into()))
    }
}

/// Formats what comes before the name of a setting in a message.
struct Place(Origin);

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(if self.0 == Origin::Program { "hayloft_conf: " } else { "" })
    }
}

/// Warns that `value` is not used for `setting`: `why`, and what is used instead.
#[cold]
pub(super) fn warn_of_value(
    origin: Origin,
    setting: &Setting,
    value: &[u8],
    why: fmt::Arguments<'_>,
    instead: &str,
) {
    let (place, name, value) = (Place(origin), NameIn(origin, setting), Shown(value));
    let accepted = setting.accepted;
    warn(format_args!(
        "{place}{name}={value}: {why}; accepted: {accepted}; used instead: {instead}"
    ));
}

/// Warns about a word of the program's that is not of the form `NAME=VALUE`.
#[cold]
pub(super) fn warn_of_word(word: &[u8]) {
    warn(format_args!("{}{}: not NAME=VALUE", Place(Origin::Program), Shown(word)));
}

/// Warns about a name that is not a setting's, and suggests a setting of similar name.
#[cold]
pub(super) fn warn_of_unknown(origin: Origin, name: &[u8]) {
    // The prefix of a variable does not make it similar to others.
    let shortest = if origin == Origin::Environment { PREFIX.len() } else { 0 };
    let only_own = (origin == Origin::Program).then_some(&ENVIRONMENT);
    let names = TABLE.iter().chain(only_own).map(|setting| (setting, origin.name(setting)));
    let similar = names.filter(|(_, known)| {
        distance(name, known.clone()) <= NEAR
            || name.len() > shortest && known.clone().take(name.len()).eq(name.iter().copied())
    });
    let (place, shown) = (Place(origin), Shown(name));
    match similar.min_by_key(|(_, known)| distance(name, known.clone())) {
        Some((setting, _)) => {
            let known = NameIn(origin, setting);
            warn(format_args!("{place}{shown}: no such setting; {known} is one"));
        }
        None => warn(format_args!("{place}{shown}: no such setting")),
    }
}

/// The largest edit distance at which a name counts as a misspelt setting.
const NEAR: usize = 2;

/// Returns the number of bytes to insert, delete or change to turn one name into the other
/// (Levenshtein distance), of which the first [`LONGEST_NAME`] bytes count.
fn distance(one: &[u8], other: impl Iterator<Item = u8> + Clone) -> usize {
    let other = other.take(LONGEST_NAME);
    let mut row: [usize; LONGEST_NAME + 1] = core::array::from_fn(|column| column);
    for (done, letter) in one.iter().take(LONGEST_NAME).enumerate() {
        let mut corner = done;
        let mut left = done + 1;
        row[0] = left;
        for (cell, also) in row[1..].iter_mut().zip(other.clone()) {
            let change = corner + usize::from(*letter != also);
            corner = *cell;
            left = change.min(corner + 1).min(left + 1);
            *cell = left;
        }
    }
    row.get(other.count()).copied().unwrap_or(LONGEST_NAME)
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
            ("", "HAYLOFT_IRQ_SIGNAL_AND_MORE_AND_MORE", LONGEST_NAME),
        ] {
            assert_eq!(distance(one.as_bytes(), other.bytes()), edits, "from {one} to {other}");
            assert_eq!(distance(other.as_bytes(), one.bytes()), edits, "from {other} to {one}");
        }
    }
}
