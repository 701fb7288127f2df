//! Messages and other text without a heap: text is assembled in a buffer on the stack. A message
//! goes to standard error in one write.
//!
//! The system calls for it are here and not in `os`, which reads settings and may warn about them.

#[cfg(miri)]
extern crate std;

use core::ffi::c_int;
use core::fmt::{self, Write};

/// The descriptor of standard error.
const STDERR: c_int = 2;

/// A line of at most `ROOM` bytes; longer text is cut off.
pub(crate) struct Line<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Line<ROOM> {
    pub(crate) const fn new() -> Line<ROOM> {
        Line { bytes: [0; ROOM], len: 0 }
    }

    /// Returns the text.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
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

/// Text from outside, cut to the length that suits a message.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

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

/// Writes one line `hayloft[PROCESS]: …` to standard error, cut to 512 bytes.
#[cold]
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    write_line::<512>(message);
}

/// Writes one line `hayloft[PROCESS]: …` to standard error, cut to `ROOM` bytes.
pub(crate) fn write_line<const ROOM: usize>(message: fmt::Arguments<'_>) {
    let mut line = Line::<ROOM>::new();
    // Writing to a `Line` cannot fail; a failing `Display` is no reason to abort.
    let _ = writeln!(line, "hayloft[{}]: {message}", process_id());
    line.bytes[line.len - 1] = b'\n';
    write_all(STDERR, line.as_bytes());
}

/// Writes one line `hayloft[PROCESS]: …` to standard error and ends the process by `SIGABRT`.
#[cold]
pub(crate) fn abort(message: fmt::Arguments<'_>) -> ! {
    warn(message);
    // SAFETY: `abort` may be called anywhere.
    unsafe { libc::abort() }
}

/// Writes all of `bytes` to an open file. Returns false if a write fails.
#[cfg(not(miri))]
pub(crate) fn write_all(file: c_int, mut bytes: &[u8]) -> bool {
    const INTERRUPTED: isize = -(libc::EINTR as isize);
    while !bytes.is_empty() {
        let (from, len) = (bytes.as_ptr().expose_provenance(), bytes.len());
        let arguments = [file as isize as usize, from, len, 0, 0, 0];
        // SAFETY: the slice is readable for its length.
        match unsafe { crate::arch::system_call(libc::SYS_write as usize, arguments) } {
            len @ 1.. => bytes = bytes.get(len as usize..).unwrap_or_default(),
            INTERRUPTED => {}
            _ => return false,
        }
    }
    true
}

/// Returns the number of this process.
#[cfg(not(miri))]
pub(crate) fn process_id() -> i32 {
    // SAFETY: `getpid` takes no arguments; it cannot fail.
    unsafe { crate::arch::system_call(libc::SYS_getpid as usize, [0; 6]) as i32 }
}

/// Writes all of `bytes` to standard error, the only file under Miri.
#[cfg(miri)]
pub(crate) fn write_all(file: c_int, bytes: &[u8]) -> bool {
    file == STDERR && std::io::Write::write_all(&mut std::io::stderr(), bytes).is_ok()
}

#[cfg(miri)]
pub(crate) fn process_id() -> i32 {
    1
}

/// A buffer that combines the output into few system calls.
pub(crate) struct Writer {
    file: c_int,
    room: [u8; 2048],
    len: usize,
    failed: bool,
}

impl Writer {
    pub(crate) fn new(file: c_int) -> Writer {
        Writer { file, room: [0; 2048], len: 0, failed: false }
    }

    /// Returns whether a write failed.
    #[cfg(feature = "serde")]
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Writes what is left. Returns false if any write failed.
    pub(crate) fn finish(mut self) -> bool {
        self.flush();
        !self.failed
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.failed {
            let free = self.room.get_mut(self.len..).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(free.len()));
            free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.len += now.len();
            bytes = later;
            if self.len == self.room.len() {
                self.flush();
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        self.failed |= !write_all(self.file, self.room.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        if self.failed { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    #[cfg_attr(miri, ignore = "the stand-in has no files")]
    fn text_longer_than_the_buffer_is_written_in_full() {
        let text = format!("{}é\n", "0123456789".repeat(1000));
        let path = std::env::temp_dir().join(format!("hayloft-writer-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let mut to = Writer::new(number);
        for part in text.split_inclusive('7') {
            to.write_str(part).unwrap();
        }
        assert!(to.finish());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::remove_file(&path).unwrap();
        let mut nowhere = Writer::new(-1);
        assert!(nowhere.write_str(&text).is_err());
    }
}
