//! Writing a report to an open file.

#[cfg(feature = "serde")]
extern crate std;

use core::ffi::c_int;
use core::fmt::Write as _;

use crate::os;
use crate::settings::Format;
use crate::stats;
use crate::text::Writer;

/// Writes all statistics to an open file. Returns false if a write fails. May be called in any
/// context.
pub fn write(file: c_int, format: Format) -> bool {
    let stats = stats::gather();
    let mut to = Writer::new(file);
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
    to.finish() && done
}

#[cfg(feature = "serde")]
impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        if self.has_failed() { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
