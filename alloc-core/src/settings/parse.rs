//! Parsers of single values: numbers, limits, and what the system restricts.

use core::ffi::c_int;

/// The largest page size in bytes of any supported Linux, and the unit of the page layer.
const MAX_PAGE_SIZE: u64 = 64 << 10;

/// Lowest hard limit in bytes: the memory that a program needs to report that it has none.
const LEAST_LIMIT: u64 = 1 << 20;

/// Limits on memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub(crate) soft: Option<u64>,
    pub(crate) hard: u64,
}

/// Parses a decimal number.
pub(super) const fn number(text: &str) -> Option<u64> {
    match u64::from_str_radix(text, 10) {
        Ok(number) => Some(number),
        Err(_) => None,
    }
}

/// Returns whether the C library leaves this signal for programs to use.
pub(super) fn is_realtime_signal(number: u64) -> bool {
    c_int::try_from(number)
        .is_ok_and(|signal| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal))
}

/// Returns whether pages have this size on some system.
pub(super) const fn is_page_size(bytes: u64) -> bool {
    bytes.is_power_of_two() && bytes <= MAX_PAGE_SIZE
}

/// Returns whether this system's pages fit into pages of this size.
pub(super) fn holds_system_pages(bytes: u64) -> bool {
    // SAFETY: `getauxval` returns only a number, which the kernel passes to each process.
    bytes >= unsafe { libc::getauxval(libc::AT_PAGESZ) }
}

/// Parses `[SOFT:]HARD`. Returns the reason if it is invalid.
pub(super) const fn limit(text: &str) -> Result<Limit, &'static str> {
    let limit = match split_at_byte(text.as_bytes(), b':') {
        Some((soft, _)) => {
            let (soft, hard) = text.split_at(soft.len());
            match (bytes(soft), bytes(hard.split_at(1).1)) {
                (Some(soft), Some(hard)) => Limit { soft: Some(soft), hard },
                _ => return Err(NO_BYTES),
            }
        }
        None => match bytes(text) {
            Some(hard) => Limit { soft: None, hard },
            None => return Err(NO_BYTES),
        },
    };
    match limit {
        Limit { soft: Some(soft), hard } if soft > hard => {
            Err("the soft limit, which comes first, is above the hard one")
        }
        Limit { hard, .. } if hard < LEAST_LIMIT => Err("a limit of less than 1M"),
        limit => Ok(limit),
    }
}

const NO_BYTES: &str = "no number of bytes";

/// Splits `text` at the first `byte`, which is in neither part. Returns `None` if there is none.
pub(super) const fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first == byte {
            return Some((text.split_at(text.len() - rest.len()).0, after));
        }
        rest = after;
    }
    None
}

/// Returns whether two texts are equal.
pub(super) const fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let (mut one, mut other) = (one, other);
    while let ([first, rest @ ..], [also, other_rest @ ..]) = (one, other) {
        if *first != *also {
            return false;
        }
        (one, other) = (rest, other_rest);
    }
    one.is_empty() && other.is_empty()
}

/// Returns whether `text` is one of `words`.
pub(super) const fn is_among(text: &str, words: &[&str]) -> bool {
    let mut words = words;
    while let [word, rest @ ..] = words {
        if is_equal(text.as_bytes(), word.as_bytes()) {
            return true;
        }
        words = rest;
    }
    false
}

/// Parses a number of bytes: a number, which may be followed by one of the letters K, M, G and T,
/// each 1024 times the one before, and that by B or iB. Case does not matter.
pub(super) const fn bytes(text: &str) -> Option<u64> {
    let mut digits = text.as_bytes();
    while let [rest @ .., last] = digits
        && !last.is_ascii_digit()
    {
        digits = rest;
    }
    let (digits, unit) = text.split_at(digits.len());
    let (shift, rest) = match unit.as_bytes() {
        [b'K' | b'k', rest @ ..] => (10, rest),
        [b'M' | b'm', rest @ ..] => (20, rest),
        [b'G' | b'g', rest @ ..] => (30, rest),
        [b'T' | b't', rest @ ..] => (40, rest),
        rest => (0, rest),
    };
    match rest {
        [] | [b'B' | b'b'] => {}
        [b'I' | b'i', b'B' | b'b'] if shift > 0 => {}
        _ => return None,
    }
    match number(digits) {
        Some(number) => number.checked_mul(1 << shift),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed() {
        const MIB: u64 = 1 << 20;
        assert_eq!(limit("16M"), Ok(Limit { soft: None, hard: 16 * MIB }));
        let both = Limit { soft: Some(100 * MIB), hard: 1024 * MIB };
        assert_eq!(limit("100m:1g"), Ok(both));
        assert_eq!(limit("0:1048576"), Ok(Limit { soft: Some(0), hard: MIB }));
        for same in ["3M", "3MB", "3mib", "3072KiB", "3145728B", "+3M"] {
            assert_eq!(limit(same), limit("3145728"), "{same}");
        }
        assert_eq!(limit("1TiB"), limit("1024G"));
        assert!(limit("600M:500M").is_err_and(|why| why.contains("above the hard one")));
        assert!(limit("999K").is_err_and(|why| why.contains("less than 1M")));
        let wrong = ["", "M", "1023K", "x", "2G:1G", "1:2:3M", "-5M", "99999999999G", "1P", "é"];
        for wrong in wrong.into_iter().chain(["3iB", "3 M", "3MBB", "5é", "3é5M"]) {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
