//! Reports of leaks with functions and lines in the place of addresses. The text is that of
//! `HAYLOFT_LEAKS`, or of LeakSanitizer without a symboliser; all other lines stay as they are.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use hayloft_core::profile::pprof::ALLOCATOR;
use hayloft_symbols::{Binary, demangle};
use regex::Regex;

use crate::failure::Failure;
use crate::stacks::{Frame, Pruning};
use crate::symbols::{Found, Symbols};

/// A frame: its number, its address, perhaps the name of the function, the path of its file, its
/// address in the file, and perhaps the build ID.
static FRAME: LazyLock<Regex> = LazyLock::new(|| {
    let frame = r"^ *#\d+ (0x[0-9a-f]+)(?: in (.+?))? +\((.+)\+0x([0-9a-f]+)\)(?: +\(BuildId: ([0-9a-f]+)\))?$";
    Regex::new(frame).expect("the expression is valid")
});

/// Prints a report. Returns lines that say which files are missing.
pub(crate) fn print(
    report: &str,
    symbols: &Symbols<'_>,
    all_frames: bool,
    to: &mut dyn Write,
) -> Result<Vec<String>, Failure> {
    let pruning = Pruning::new(ALLOCATOR, "", all_frames);
    let mut files = Files { symbols, open: HashMap::new(), said: Vec::new() };
    let mut stack = Vec::new();
    // A line that is none ends the last stack.
    for line in report.lines().map(Some).chain([None]) {
        if let Some(frame) = line.and_then(|line| FRAME.captures(line)) {
            stack.extend(files.frames(&frame));
            continue;
        }
        for (number, frame) in pruning.cut(std::mem::take(&mut stack)).iter().rev().enumerate() {
            writeln!(to, "    #{number} {}", frame.shown)?;
        }
        if let Some(line) = line {
            writeln!(to, "{line}")?;
        }
    }
    files.said.sort();
    files.said.dedup();
    Ok(files.said)
}

/// Files with functions that were opened, by path and build ID.
struct Files<'a> {
    symbols: &'a Symbols<'a>,
    open: HashMap<(String, String), Option<Binary>>,
    said: Vec<String>,
}

impl Files<'_> {
    /// Returns the functions of a frame, the innermost of those that are inlined first. If they are
    /// not known, the frame stays as it is.
    fn frames(&mut self, frame: &regex::Captures<'_>) -> Vec<Frame> {
        let part = |index| frame.get(index).map_or("", |part| part.as_str());
        let (address, name, path, linked, id) = (part(1), part(2), part(3), part(4), part(5));
        let binary =
            self.open.entry((path.to_owned(), id.to_owned())).or_insert_with(|| {
                match self.symbols.find_file(Path::new(path), id) {
                    Found::NoFile => None,
                    Found::File(file, debug) => Binary::open(&file, debug.as_deref())
                        .map_err(|error| self.said.push(format!("no functions of {path}: {error}")))
                        .ok(),
                    other => {
                        self.said.push(format!("no functions of {path}: {other}"));
                        None
                    }
                }
            });
        let at = u64::from_str_radix(linked, 16).ok();
        let found = binary.as_ref().zip(at).map(|(binary, at)| binary.frames_at(at));
        let known = found.unwrap_or_default().into_iter().filter(|frame| !frame.name.is_empty());
        let mut frames: Vec<_> = known
            .map(|frame| {
                let name = demangle(&frame.name);
                let place = match (frame.file.as_str(), frame.line) {
                    ("", _) => format!("({path}+0x{linked})"),
                    (file, 0) => file.to_owned(),
                    (file, line) => format!("{file}:{line}"),
                };
                let shown = format!("{address} in {name} {place}");
                Frame { shown, name, file: frame.file }
            })
            .collect();
        if frames.is_empty() {
            let said = if name.is_empty() { String::new() } else { format!(" in {name}") };
            let shown = format!("{address}{said} ({path}+0x{linked})");
            frames.push(Frame { shown, name: demangle(name), file: String::new() });
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(report: &str) -> (String, Vec<String>) {
        let mut text = Vec::new();
        let said = print(report, &Symbols::new(&[]), false, &mut text).unwrap();
        (String::from_utf8(text).unwrap(), said)
    }

    #[test]
    fn other_lines_stay() {
        for text in ["", "hayloft[1]: leaks: none\n", "#0 nothing\n    #x 0x1 (a+0x1)\n\n"] {
            assert_eq!(printed(text), (text.into(), vec![]));
        }
    }

    #[test]
    fn frames_without_a_file_keep_what_is_known() {
        let (text, said) = printed(
            "Direct leak of 9 byte(s) in 1 object(s) allocated from:\n\
             \x20   #0 0x7f01 in malloc (/nowhere/libhayloft.so+0x101) (BuildId: abcdef)\n\
             \x20   #1 0x5501 in f(int) (/nowhere/a program (x)+0x1f) (BuildId: 012345)\n\
             \x20   #2 0x5502  (/nowhere/a program (x)+0x2f)\n\
             \n\
             Direct leak of 8 byte(s) in 1 object(s) allocated from:\n\
             \x20   #0 0x5503  (//anon+0x0)",
        );
        assert_eq!(
            text,
            "Direct leak of 9 byte(s) in 1 object(s) allocated from:\n\
             \x20   #0 0x5501 in f(int) (/nowhere/a program (x)+0x1f)\n\
             \x20   #1 0x5502 (/nowhere/a program (x)+0x2f)\n\
             \n\
             Direct leak of 8 byte(s) in 1 object(s) allocated from:\n\
             \x20   #0 0x5503 (//anon+0x0)\n"
        );
        let missing = |path| format!("no functions of /nowhere/{path}: not on this machine");
        assert_eq!(said, ["a program (x)", "libhayloft.so"].map(missing));
    }
}
