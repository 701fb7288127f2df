//! Messages and paths without a heap: text is assembled in a buffer on the stack. A message goes to
//! standard error in one write.

use core::ffi::CStr;
use core::fmt::{self, Write};

/// The descriptor of standard error.
const STDERR: core::ffi::c_int = 2;

/// A line of at most `ROOM` bytes; longer text is cut off.
pub(crate) struct Line<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Line<ROOM> {
    pub(crate) const fn new() -> Line<ROOM> {
        Line { bytes: [0; ROOM], len: 0 }
    }

    /// Returns the text, padded with zeros.
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

/// A path for the kernel, with its terminating null byte.
pub(super) struct CPath(pub(super) [u8; 512]);

impl CPath {
    /// Formats a path. Returns `None` if it is too long or contains a null byte.
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
    // Writing to a `Line` cannot fail; a failing `Display` is no reason to abort.
    let _ = writeln!(line, "hayloft[{}]: {message}", super::process_id());
    line.bytes[line.len - 1] = b'\n';
    super::imp::write_all(STDERR, &line.bytes[..line.len]);
}

/// Warns that the setting `name` is ignored because its value is invalid.
#[cold]
pub(crate) fn ignored(name: &CStr, why: fmt::Arguments<'_>) {
    let (name, value) = (name.to_bytes(), super::env(name).unwrap_or_default());
    warn(format_args!("{}={}: {why}; ignored", Shown(name), Shown(value)));
}

/// Text from outside, cut to the length that suits a message.
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 80;
        let (shown, is_cut) = self.0.get(..MOST).map_or((self.0, false), |start| (start, true));
        for chunk in shown.utf8_chunks() {
            for letter in chunk.valid().chars() {
                // A control character could end the line or control a terminal.
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
