//! Suppressions of leaks, in LeakSanitizer's format: a line `leak:PATTERN` each, and comments that
//! begin with `#`.
//!
//! A pattern matches any part of a text. `*` stands for any bytes, `^` at the start of the pattern
//! for the start of the text, and `$` for its end.

use core::ops::Range;

use super::scratch::Scratch;
use crate::os;

/// The text of a file of suppressions.
pub(crate) struct Suppressions {
    text: Scratch<u8>,
    len: usize,
}

/// Bytes of the longest file.
const MOST: usize = 1 << 20;
/// Bytes of the longest line.
const LONGEST_LINE: usize = 1024;

/// Why a file of suppressions cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    Unreadable,
    TooLong,
    /// The line of this number is none.
    Line(usize),
}

impl Suppressions {
    /// Reads a file.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub(crate) fn read(path: &str) -> Result<Suppressions, Problem> {
        let mut text = Scratch::new(MOST).ok_or(Problem::Unreadable)?;
        let mut room = [0; LONGEST_LINE];
        let (mut len, mut number, mut problem) = (0, 0, None);
        let read = os::lines(format_args!("{path}"), &mut room, &mut |line| {
            number += 1;
            let line = line.trim_ascii();
            let end: Range<usize> = len..len + line.len() + 1;
            match (line.first(), text.get_mut(end.clone())) {
                (None | Some(b'#'), _) => {}
                _ if line.strip_prefix(b"leak:").is_none_or(<[u8]>::is_empty) => {
                    problem = problem.or(Some(Problem::Line(number)));
                }
                (_, Some([to @ .., newline])) => {
                    to.copy_from_slice(line);
                    *newline = b'\n';
                    len = end.end;
                }
                _ => problem = problem.or(Some(Problem::TooLong)),
            }
        });
        match problem {
            _ if read.is_none() => Err(Problem::Unreadable),
            Some(problem) => Err(problem),
            None => Ok(Suppressions { text, len }),
        }
    }

    /// Returns whether a pattern matches a text.
    pub(super) fn match_any(&self, text: &[u8]) -> bool {
        let lines = self.text.get(..self.len).unwrap_or_default().split(|byte| *byte == b'\n');
        { lines }
            .filter_map(|line| line.strip_prefix(b"leak:"))
            .any(|pattern| is_match(pattern, text))
    }
}

/// Returns whether a pattern matches a text.
fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (pattern, is_anchored) = match pattern.strip_prefix(b"^") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (pattern, ends) = match pattern.strip_suffix(b"$") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let mut rest = text;
    // Whether the next part may begin further on.
    let mut is_free = !is_anchored;
    let mut parts = pattern.split(|byte| *byte == b'*').peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let at = if is_last && ends && is_free {
            rest.ends_with(part).then(|| rest.len() - part.len())
        } else if is_free {
            (0..=rest.len()).find(|at| rest.get(*at..).is_some_and(|rest| rest.starts_with(part)))
        } else {
            rest.starts_with(part).then_some(0)
        };
        let Some(after) = at.and_then(|at| rest.get(at + part.len()..)) else { return false };
        rest = after;
        is_free = true;
    }
    !ends || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_leak_sanitizer() {
        for (pattern, text, expected) in [
            ("lib", "/usr/lib/libssl.so.3", true),
            ("libx", "/usr/lib/libssl.so.3", false),
            ("lib*ssl", "/usr/lib/libssl.so.3", true),
            ("ssl*lib", "/usr/libssl.so", false),
            ("^/usr", "/usr/lib", true),
            ("^usr", "/usr/lib", false),
            ("^*usr", "/usr/lib", true),
            (".so$", "/lib/a.so", true),
            (".so$", "/lib/a.so.3", false),
            ("lib*.so$", "/lib/a.so.b.so", true),
            ("^/lib$", "/lib", true),
            ("^/lib$", "/lib/", false),
            ("^/lib/a$", "/lib/b/a", false),
            ("*", "", true),
            ("a", "", false),
        ] {
            let found = is_match(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern} in {text}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "the stand-in has no files")]
    fn files_are_read_strictly() {
        let path = std::env::temp_dir().join(std::format!("hayloft-supp-{}", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Suppressions::read(path.to_str().unwrap())
        };
        let found = read("# known\n\nleak:libone\r\n  leak:^/two$\n").ok().unwrap();
        assert!(found.match_any(b"/lib/libone.so") && found.match_any(b"/two"));
        assert!(!found.match_any(b"/twofold") && !found.match_any(b""));
        assert!(!read("").ok().unwrap().match_any(b"/two"));
        assert_eq!(read("leak:a\nrace:b\n").err(), Some(Problem::Line(2)));
        assert_eq!(read("leak:").err(), Some(Problem::Line(1)));
        let long = "leak:0123456789012345678901234567890123456789012345678901234567\n";
        assert_eq!(read(&long.repeat(MOST / long.len() + 1)).err(), Some(Problem::TooLong));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Suppressions::read("/nowhere").err(), Some(Problem::Unreadable));
    }
}
