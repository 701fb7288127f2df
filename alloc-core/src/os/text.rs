//! Messages and paths without a heap: parts are gathered in a buffer on the stack, messages written to standard error at once.

use core::ffi::CStr;
use core::fmt::{self, Write};

/// The file of standard error.
const STDERR: core::ffi::c_int = 2;

/// One line; what does not fit is cut off.
pub(crate) struct Line<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Line<ROOM> {
    pub(crate) const fn new() -> Line<ROOM> {
        Line { bytes: [0; ROOM], len: 0 }
    }

    /// What was written, and zeros.
    pub(crate) fn into_bytes(self) -> [u8; ROOM] {
        self.bytes
    }
}

impl<const ROOM: usize> Write for Line<ROOM> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = part.len().min(room.len());
        room[..len].copy_from_slice(&part.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// A path for the kernel; the null byte at its end included.
pub(super) struct CPath(pub(super) [u8; 512]);

impl CPath {
    /// `None` for one that is too long, or has a null byte in it.
    pub(super) fn new(path: fmt::Arguments<'_>) -> Option<CPath> {
        let mut line = Line::<512>::new();
        line.write_fmt(path).ok()?;
        let text = line.bytes.get(..line.len)?;
        let fits = line.len < line.bytes.len() && !text.contains(&0);
        fits.then_some(CPath(line.bytes))
    }
}

/// Writes one line `hayloft[PROCESS]: …` to standard error.
#[cold]
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    let mut line = Line::<512>::new();
    // Writing to a `Line` cannot fail; a `Display` that does is not worth dying for.
    let _ = writeln!(line, "hayloft[{}]: {message}", super::process_id());
    line.bytes[line.len - 1] = b'\n';
    super::imp::write_all(STDERR, &line.bytes[..line.len]);
}

/// Warns that a setting is ignored, as its value is not what it should be.
#[cold]
pub(crate) fn ignored(name: &CStr, why: fmt::Arguments<'_>) {
    let (name, value) = (name.to_bytes(), super::env(name).unwrap_or_default());
    warn(format_args!("{}={}: {why}; ignored", Shown(name), Shown(value)));
}

/// Text from outside, or as much of it as a line should have.
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 80;
        let (shown, is_cut) = self.0.get(..MOST).map_or((self.0, false), |start| (start, true));
        for chunk in shown.utf8_chunks() {
            for letter in chunk.valid().chars() {
                // Whatever would end the line, or do more to a terminal.
                to.write_char(if letter.is_control() { '?' } else { letter })?;
            }
            if !chunk.invalid().is_empty() {
                to.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        to.write_str(if is_cut { "…" } else { "" })
    }
}

/// Writes one line `hayloft[PROCESS]: …` to standard error and ends the process by `SIGABRT`.
#[cold]
pub(crate) fn abort(message: fmt::Arguments<'_>) -> ! {
    warn(message);
    super::imp::abort()
}
