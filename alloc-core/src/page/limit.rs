//! How much memory runs may have: `HAYLOFT_LIMIT=[SOFT:]HARD`, in bytes or with one of the letters K, M and G.
//!
//! Whatever is not clean counts, in whole units: runs in use, touched or not, and dirty ones. Beyond the soft limit, 7/8 of the
//! hard one unless it is given, free runs go back to the system at once. At the hard one there is no clean run for anybody.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::os;
use crate::size_class::UNIT_SHIFT;

/// The least that a limit can be, in units: what a program needs to say that it has no memory.
const LEAST: usize = (1 << 20) >> UNIT_SHIFT;

/// Units that are not clean.
static CHARGED: AtomicUsize = AtomicUsize::new(0);
/// The limits, in units.
static SOFT: AtomicUsize = AtomicUsize::new(usize::MAX);
static HARD: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Reads the setting. To be called before there is memory; a second time changes nothing.
pub(super) fn read() {
    let Some(text) = os::env(c"HAYLOFT_LIMIT") else { return };
    match core::str::from_utf8(text).ok().and_then(parse) {
        Some((soft, hard)) => {
            // Relaxed, here and below: numbers that guard nothing.
            SOFT.store(soft, Ordering::Relaxed);
            HARD.store(hard, Ordering::Relaxed);
        }
        None => os::warn(format_args!(
            "HAYLOFT_LIMIT is no limit like 512M or 400M:512M, from 1M on; ignored"
        )),
    }
}

/// Limits in units.
fn parse(text: &str) -> Option<(usize, usize)> {
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (units(soft)?, units(hard)?),
        None => (units(text)? / 8 * 7, units(text)?),
    };
    (soft <= hard && hard >= LEAST).then_some((soft, hard))
}

fn units(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    let number: usize = digits.parse().ok()?;
    Some(number.checked_mul(1 << shift)? >> UNIT_SHIFT)
}

/// Counts units that are clean no more; false, and nothing is counted, where that would exceed the hard limit.
#[must_use]
pub(super) fn charge(units: u32) -> bool {
    let before = CHARGED.fetch_add(units as usize, Ordering::Relaxed);
    let fits = before.saturating_add(units as usize) <= HARD.load(Ordering::Relaxed);
    if !fits {
        uncharge(units);
    }
    fits
}

/// Counts units that are clean again.
pub(super) fn uncharge(units: u32) {
    CHARGED.fetch_sub(units as usize, Ordering::Relaxed);
}

/// Units that there may be at most.
pub(super) fn hard() -> usize {
    HARD.load(Ordering::Relaxed)
}

/// Units that are not clean.
pub(super) fn charged() -> usize {
    CHARGED.load(Ordering::Relaxed)
}

/// Whether so many more clean units would exceed the hard limit.
pub(super) fn forbids(units: u32) -> bool {
    charged().saturating_add(units as usize) > HARD.load(Ordering::Relaxed)
}

/// Whether there is more than the soft limit allows.
pub(super) fn is_soft_exceeded() -> bool {
    charged() > SOFT.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        const MIB: usize = (1 << 20) >> UNIT_SHIFT;
        assert_eq!(parse("16M"), Some((14 * MIB, 16 * MIB)));
        assert_eq!(parse("100m:1g"), Some((100 * MIB, 1024 * MIB)));
        assert_eq!(parse("0:1048576"), Some((0, MIB)));
        assert_eq!(parse("2048K"), Some((28, 2 * MIB)));
        for wrong in ["", "M", "1023K", "x", "2G:1G", "1:2:3M", "-5M", "99999999999G", "1T", "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
