//! Demangling of the names that Rust and C++ give to functions in simple cases: a path of names.

use core::fmt;

/// A symbol, displayed as the path that it stands for if it has the form `_ZN…E`, without the hash
/// that Rust adds, and otherwise as it is.
pub(super) struct Demangled<'a>(pub(super) &'a [u8]);

impl fmt::Display for Demangled<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = str::from_utf8(self.0).unwrap_or("?");
        let Some(path) = text.strip_prefix("_ZN").filter(|path| parts(path).1.starts_with('E'))
        else {
            return to.write_str(text);
        };
        let count = parts(path).0;
        let mut rest = path;
        for number in 0..count {
            let Some((name, after)) = part(rest) else { break };
            rest = after;
            if number + 1 == count && number > 0 && is_hash(name) {
                break;
            }
            if number > 0 {
                to.write_str("::")?;
            }
            write_name(name, to)?;
        }
        Ok(())
    }
}

/// Returns the number of names at the start of a path, and the text behind them.
fn parts(mut path: &str) -> (usize, &str) {
    let mut count = 0;
    while let Some((_, after)) = part(path) {
        path = after;
        count += 1;
    }
    (count, path)
}

/// Splits off a name, which follows its length.
fn part(path: &str) -> Option<(&str, &str)> {
    let name = path.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let len: usize = path.get(..path.len() - name.len())?.parse().ok()?;
    name.split_at_checked(len)
}

/// Returns whether a name is the hash that Rust puts behind a path.
fn is_hash(name: &str) -> bool {
    name.strip_prefix('h').is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// Writes a name, and for the escapes in it the characters that they stand for.
fn write_name(name: &str, to: &mut fmt::Formatter<'_>) -> fmt::Result {
    const ESCAPES: [(&str, &str); 11] = [
        ("$LT$", "<"),
        ("$GT$", ">"),
        ("$RF$", "&"),
        ("$BP$", "*"),
        ("$LP$", "("),
        ("$RP$", ")"),
        ("$C$", ","),
        ("$u20$", " "),
        ("$u7b$", "{"),
        ("$u7d$", "}"),
        ("..", "::"),
    ];
    // A name that would begin with an escape has a line before it.
    let mut rest = name.strip_prefix('_').filter(|rest| rest.starts_with('$')).unwrap_or(name);
    while let Some(letter) = rest.chars().next() {
        let escape = ESCAPES.iter().find(|(escape, _)| rest.starts_with(escape));
        let (len, text) =
            escape.map_or((letter.len_utf8(), None), |(escape, text)| (escape.len(), Some(*text)));
        let (before, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
        to.write_str(text.unwrap_or(before))?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn paths_are_demangled() {
        for (symbol, name) in [
            ("main", "main"),
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_ZN3foo3BarE", "foo::Bar"),
            (
                "_ZN42_$LT$$RF$T$u20$as$u20$core..fmt..Debug$GT$3fmt17h0123456789abcdefE",
                "<&T as core::fmt::Debug>::fmt",
            ),
            ("_ZN3foo9barE", "_ZN3foo9barE"),
            ("_ZN3fooC2Ev", "_ZN3fooC2Ev"),
            ("_RNvC3foo3bar", "_RNvC3foo3bar"),
            ("_ZN", "_ZN"),
            ("", ""),
        ] {
            assert_eq!(format!("{}", Demangled(symbol.as_bytes())), name);
        }
    }
}
