//! Writing a report to an open file.

#[cfg(feature = "serde")]
extern crate std;

use core::ffi::c_int;
use core::fmt::{self, Write as _};

use crate::os;
use crate::settings::Format;
use crate::stats;

/// Writes all statistics to an open file. Returns false if a write fails. May be called in any
/// context.
pub fn write(file: c_int, format: Format) -> bool {
    let stats = stats::gather();
    let mut to = Writer { file, room: [0; 2048], len: 0, failed: false };
    let done = match format {
        Format::Slabinfo => write!(to, "{}", stats.slabinfo()).is_ok(),
        // Tables of several processes may go to one destination.
        Format::Table => writeln!(to, "hayloft[{}]: {stats}", os::process_id()).is_ok(),
        Format::OpenMetrics => write!(to, "{}", stats.open_metrics()).is_ok(),
        #[cfg(feature = "serde")]
        Format::Json => {
            serde_json::to_writer(&mut to, &stats.report()).is_ok() && writeln!(to).is_ok()
        }
    };
    to.flush();
    done && !to.failed
}

/// A buffer that combines the output into few system calls.
struct Writer {
    file: c_int,
    room: [u8; 2048],
    len: usize,
    failed: bool,
}

impl Writer {
    fn push(&mut self, mut bytes: &[u8]) {
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

    fn flush(&mut self) {
        self.failed |= !os::write_all(self.file, self.room.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        if self.failed { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(feature = "serde")]
impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        if self.failed { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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
        let mut to = Writer { file: number, room: [0; 2048], len: 0, failed: false };
        for part in text.split_inclusive('7') {
            to.write_str(part).unwrap();
        }
        to.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::remove_file(&path).unwrap();
        let mut nowhere = Writer { file: -1, room: [0; 2048], len: 0, failed: false };
        assert!(nowhere.write_str(&text).is_err());
    }
}
