//! The limit on the memory of runs: `HAYLOFT_LIMIT=[SOFT:]HARD`, in bytes or with one of the
//! letters K, M, G and T. Each letter stands for 1024 times the one before, and may be followed by
//! B or iB.
//!
//! All units that are not clean count, in whole units: those of runs in use, touched or not, and
//! those of dirty free runs. Beyond the soft limit, free runs are decommitted at once. The soft
//! limit is 7/8 of the hard one unless it is set. At the hard limit, no clean run is allocated.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::os;
use crate::size_class::UNIT_SHIFT;

/// Lowest hard limit, in units: the memory that a program needs to report that it has none.
const LEAST: usize = (1 << 20) >> UNIT_SHIFT;

/// Number of units that are not clean.
static CHARGED: AtomicUsize = AtomicUsize::new(0);
/// The limits, in units.
static SOFT: AtomicUsize = AtomicUsize::new(usize::MAX);
static HARD: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Most units that may be charged when room to grow is allocated. Room cannot be taken back before
/// an allocation is refused, so only programs far from their limit get it.
static WITH_ROOM: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The divisor of a limit that yields [`WITH_ROOM`].
const ROOM_PART: usize = 4;

/// Reads the setting. Call before any memory is allocated; a second call changes nothing.
pub(super) fn read() {
    // Committed memory counts as data, touched or not.
    if let Some(bytes) = os::data_limit() {
        WITH_ROOM.fetch_min((bytes >> UNIT_SHIFT) / ROOM_PART, Ordering::Relaxed);
    }
    let Some(text) = os::env(c"HAYLOFT_LIMIT") else { return };
    match core::str::from_utf8(text).map_err(|_| NO_LIMIT).and_then(parse) {
        Ok((soft, hard)) => {
            // Relaxed, here and below: numbers that guard nothing.
            SOFT.store(soft, Ordering::Relaxed);
            HARD.store(hard, Ordering::Relaxed);
            WITH_ROOM.fetch_min(soft / ROOM_PART, Ordering::Relaxed);
        }
        Err(why) => os::ignored(c"HAYLOFT_LIMIT", format_args!("{why}")),
    }
}

const NO_LIMIT: &str = "no limit like 512M or 400M:512M";

/// Parses a setting. Returns the soft and the hard limit in units, or the reason why it is invalid.
fn parse(text: &str) -> Result<(usize, usize), &'static str> {
    let limit = |text| units(text).ok_or(NO_LIMIT);
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (limit(soft)?, limit(hard)?),
        None => (limit(text)? / 8 * 7, limit(text)?),
    };
    if soft > hard {
        Err("the soft limit, which comes first, is above the hard one")
    } else if hard < LEAST {
        Err("a limit of less than 1M")
    } else {
        Ok((soft, hard))
    }
}

fn units(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    const UNITS: [(&str, &str, &str, u32); 5] = [
        ("", "B", "B", 0),
        ("K", "KB", "KiB", 10),
        ("M", "MB", "MiB", 20),
        ("G", "GB", "GiB", 30),
        ("T", "TB", "TiB", 40),
    ];
    let unit = text.get(digits.len()..)?;
    let is = |other: &str| unit.eq_ignore_ascii_case(other);
    let (.., shift) =
        UNITS.iter().find(|(short, long, full, _)| is(short) || is(long) || is(full))?;
    let number: usize = digits.parse().ok()?;
    Some(number.checked_mul(1 << shift)? >> UNIT_SHIFT)
}

/// Counts `units` units that are no longer clean. Returns false, and counts nothing, if that would
/// exceed the hard limit.
#[must_use]
pub(super) fn charge(units: u32) -> bool {
    let hard = HARD.load(Ordering::Relaxed);
    let add = |charged: usize| charged.checked_add(units as usize).filter(|sum| *sum <= hard);
    CHARGED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

/// Counts `units` units as clean again.
pub(super) fn uncharge(units: u32) {
    CHARGED.fetch_sub(units as usize, Ordering::Relaxed);
}

/// Returns the hard limit, in units.
pub(super) fn hard() -> usize {
    HARD.load(Ordering::Relaxed)
}

/// Returns the number of units that are not clean.
pub(super) fn charged() -> usize {
    CHARGED.load(Ordering::Relaxed)
}

/// Returns whether allocating `units` clean units would exceed the hard limit.
pub(super) fn forbids(units: u32) -> bool {
    charged().saturating_add(units as usize) > HARD.load(Ordering::Relaxed)
}

/// Returns whether `units` clean units may be allocated as room for a block to grow.
pub(super) fn allows_room(units: u32) -> bool {
    charged().saturating_add(units as usize) <= WITH_ROOM.load(Ordering::Relaxed)
}

/// Returns whether the soft limit is exceeded.
pub(super) fn is_soft_exceeded() -> bool {
    charged() > SOFT.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed() {
        const MIB: usize = (1 << 20) >> UNIT_SHIFT;
        assert_eq!(parse("16M"), Ok((14 * MIB, 16 * MIB)));
        assert_eq!(parse("100m:1g"), Ok((100 * MIB, 1024 * MIB)));
        assert_eq!(parse("0:1048576"), Ok((0, MIB)));
        for same in ["3M", "3MB", "3mib", "3072KiB", "3145728B"] {
            assert_eq!(parse(same), parse("3145728"), "{same}");
        }
        assert_eq!(parse("1TiB"), parse("1024G"));
        assert!(parse("600M:500M").is_err_and(|why| why.contains("above the hard one")));
        assert!(parse("999K").is_err_and(|why| why.contains("less than 1M")));
        assert_eq!(parse("2048K"), Ok((28, 2 * MIB)));
        for wrong in ["", "M", "1023K", "x", "2G:1G", "1:2:3M", "-5M", "99999999999G", "1P", "é"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
