//! Warnings about settings: invalid values and unknown names.

use core::fmt;

use super::table::{LONGEST_NAME, PREFIX, Setting, TABLE};
use crate::text::{Shown, warn};

/// Warns that `value` is not used for `setting`: `why`, and what is used instead.
#[cold]
pub(super) fn warn_of_value(
    setting: &Setting,
    value: &[u8],
    why: fmt::Arguments<'_>,
    instead: &str,
) {
    let Setting { name, accepted, .. } = setting;
    let value = Shown(value);
    warn(format_args!("{name}={value}: {why}; accepted: {accepted}; used instead: {instead}"));
}

/// Warns about a variable that has the prefix but is not a setting, and suggests a setting of
/// similar name.
pub(super) fn warn_if_unknown(name: &[u8]) {
    let names = || TABLE.iter().map(|setting| setting.name);
    if names().any(|known| known.as_bytes() == name) {
        return;
    }
    let is_meant = |known: &&str| {
        distance(name, known.as_bytes()) <= NEAR
            || name.len() > PREFIX.len() && known.as_bytes().starts_with(name)
    };
    match names().filter(is_meant).min_by_key(|known| distance(name, known.as_bytes())) {
        Some(known) => warn(format_args!("{}: no such setting; {known} is one", Shown(name))),
        None => warn(format_args!("{}: no such setting", Shown(name))),
    }
}

/// The largest edit distance at which a name counts as a misspelt setting.
const NEAR: usize = 2;

/// Returns the number of bytes to insert, delete or change to turn one name into the other
/// (Levenshtein distance), of which the first [`LONGEST_NAME`] bytes count.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let [one, other] = [one, other].map(|name| name.get(..LONGEST_NAME).unwrap_or(name));
    let mut row: [usize; LONGEST_NAME + 1] = core::array::from_fn(|column| column);
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
    row.get(other.len()).copied().unwrap_or(LONGEST_NAME)
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
            assert_eq!(distance(one.as_bytes(), other.as_bytes()), edits, "from {one} to {other}");
            assert_eq!(distance(other.as_bytes(), one.as_bytes()), edits, "from {other} to {one}");
        }
    }
}
