//! Statistics for who runs the program, without a line of code in it: `HAYLOFT_STATS` and `HAYLOFT_STATS_SHM`.
//!
//! `HAYLOFT_STATS=DESTINATION[,FORMAT][,every=SECONDS][,signal=NUMBER]` writes a report at the end of the program, every so many
//! seconds, and in the handler of a signal that the program leaves alone. The destination is `stderr`, the number of an open file, or a
//! path, in which `%p` stands for the number of the process; the file is written anew each time. Formats are `slabinfo` (the one
//! unless told otherwise), `openmetrics`, and with the feature `serde` `json`. A child that was forked writes at its end only where
//! the path has `%p` in it. A program that ends by `_exit` or a signal writes nothing at its end.
//!
//! `HAYLOFT_STATS_SHM=1` shows the statistics to other processes of the same user, as they are four times a second: see
//! [`Reader`].
//!
//! Settings are read by the loader before `main`, and not at all in programs that run with rights that who started them does not have. Where
//! they ask for it, there is one thread, with all signals blocked.
//!
//! This file may touch `stats`, `sync` and `os`.

extern crate std;

mod shared;

use core::ffi::{c_int, c_void};
use core::fmt::{self, Write as _};
use core::ptr;
use std::sync::OnceLock;

use crate::os;
use crate::stats;

pub use shared::{AttachError, Reader, Snapshot, processes};

/// How statistics are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Format {
    /// As `/proc/slabinfo`.
    Slabinfo,
    /// As Prometheus reads it.
    OpenMetrics,
    /// One line of JSON.
    #[cfg(feature = "serde")]
    Json,
}

impl Format {
    fn named(name: &str) -> Option<Format> {
        match name {
            "slabinfo" => Some(Format::Slabinfo),
            "openmetrics" => Some(Format::OpenMetrics),
            #[cfg(feature = "serde")]
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// Writes all statistics to an open file; false where it takes no more. In any context.
pub fn write(file: c_int, format: Format) -> bool {
    let stats = stats::gather();
    let mut to = Writer { file, room: [0; 2048], len: 0, failed: false };
    let done = match format {
        Format::Slabinfo => write!(to, "{}", stats.slabinfo()).is_ok(),
        Format::OpenMetrics => write!(to, "{}", stats.open_metrics()).is_ok(),
        #[cfg(feature = "serde")]
        Format::Json => {
            serde_json::to_writer(&mut to, &stats.report()).is_ok() && writeln!(to).is_ok()
        }
    };
    to.flush();
    done && !to.failed
}

/// Gathers what is written, so that it is few system calls.
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

/// Bytes that a path may have.
const MAX_PATH: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, and no heap")]
enum Destination {
    File(c_int),
    Path { bytes: [u8; MAX_PATH], len: usize },
}

impl Destination {
    /// The parts of a path around `%p`, which has none where there is no such.
    fn parts(&self) -> (&str, Option<&str>) {
        let Destination::Path { bytes, len } = self else { return ("", None) };
        let path = core::str::from_utf8(bytes.get(..*len).unwrap_or_default()).unwrap_or_default();
        path.split_once("%p").map_or((path, None), |(before, after)| (before, Some(after)))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.parts()) {
            (Destination::File(file), _) => write!(to, "file {file}"),
            (_, (path, None)) => to.write_str(path),
            (_, (before, Some(after))) => write!(to, "{before}%p{after}"),
        }
    }
}

/// What `HAYLOFT_STATS` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Setting {
    destination: Destination,
    format: Format,
    /// Seconds between reports; 0 for none before the end.
    every: u32,
    /// The signal that asks for one; 0 for none.
    signal: c_int,
}

impl Setting {
    fn parse(text: &str) -> Option<Setting> {
        let mut words = text.split(',');
        let mut setting = Setting {
            destination: match words.next()? {
                "" => return None,
                "stderr" => Destination::File(2),
                word => match word.parse() {
                    Ok(file) if file >= 0 => Destination::File(file),
                    _ => {
                        let mut bytes = [0; MAX_PATH];
                        bytes.get_mut(..word.len())?.copy_from_slice(word.as_bytes());
                        Destination::Path { bytes, len: word.len() }
                    }
                },
            },
            format: Format::Slabinfo,
            every: 0,
            signal: 0,
        };
        for word in words {
            match word.split_once('=') {
                Some(("every", seconds)) => {
                    setting.every = seconds.parse().ok().filter(|every| *every > 0)?;
                }
                Some(("signal", number)) => {
                    setting.signal = number.parse().ok().filter(|signal| *signal > 0)?;
                }
                Some(_) => return None,
                None => setting.format = Format::named(word)?,
            }
        }
        Some(setting)
    }

    /// Writes a report where it is to go.
    fn write(&self) {
        let done = match self.destination {
            Destination::File(file) => write(file, self.format),
            Destination::Path { .. } => {
                let (before, after) = self.destination.parts();
                let file = match after {
                    None => os::File::create(format_args!("{before}")),
                    Some(after) => {
                        os::File::create(format_args!("{before}{}{after}", os::process_id()))
                    }
                };
                file.is_some_and(|file| write(file.number(), self.format))
            }
        };
        if !done {
            os::warn(format_args!("statistics cannot be written to {}", self.destination));
        }
    }
}

/// What was asked for, and by the settings of which process. Written before `main`.
static SETTING: OnceLock<(Setting, i32)> = OnceLock::new();

/// Run by the loader before `main`, on the only thread.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static READ: extern "C" fn() = {
    extern "C" fn read() {
        if !os::is_secure() {
            start();
        }
    }
    read
};

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
fn start() {
    let setting = os::env(c"HAYLOFT_STATS").and_then(|text| {
        let setting = core::str::from_utf8(text).ok().and_then(Setting::parse);
        if setting.is_none() {
            os::warn(format_args!(
                "HAYLOFT_STATS is not like PATH or stderr,FORMAT,every=SECONDS,signal=NUMBER; ignored"
            ));
        }
        setting
    });
    let is_shared = match os::env(c"HAYLOFT_STATS_SHM") {
        None | Some(b"0") => false,
        Some(b"1") => shared::open(),
        Some(_) => {
            os::warn(format_args!("HAYLOFT_STATS_SHM is neither 0 nor 1; ignored"));
            false
        }
    };
    let Some(setting) = setting else {
        if is_shared {
            os::at_exit(end);
            spawn();
        }
        return;
    };
    let _ = SETTING.set((setting, os::process_id()));
    os::at_exit(end);
    if setting.signal > 0 && os::take_signal(Some(setting.signal), on_signal).is_none() {
        os::warn(format_args!("signal {} is taken, or none", setting.signal));
    }
    if setting.every > 0 || is_shared {
        spawn();
    }
}

/// Bytes of the thread's stack.
const STACK: usize = 256 << 10;

fn spawn() {
    // The new thread inherits the mask.
    let _masked = os::block_signals();
    if os::spawn(STACK, live, ptr::null_mut()).is_none() {
        os::warn(format_args!("there is no thread to report statistics"));
    }
}

/// Milliseconds between looks at the clock.
const TICK: u32 = 250;

/// The life of the thread: as long as that of the process.
extern "C" fn live(_: *mut c_void) -> *mut c_void {
    os::name_thread(c"hayloft/stats");
    let setting = SETTING.get().map(|(setting, _)| setting).filter(|setting| setting.every > 0);
    let mut left = setting.map_or(0, |setting| u64::from(setting.every) * 1000);
    loop {
        shared::update();
        os::sleep_microseconds(TICK * 1000);
        if let Some(setting) = setting {
            left = left.saturating_sub(u64::from(TICK));
            if left == 0 {
                setting.write();
                left = u64::from(setting.every) * 1000;
            }
        }
    }
}

extern "C" fn on_signal(_: c_int) {
    if let Some((setting, _)) = SETTING.get() {
        setting.write();
    }
}

extern "C" fn end() {
    shared::close();
    // A program that only reads the statistics of others has none.
    if stats::gather().held > 0
        && let Some((setting, process)) = SETTING.get()
        && (setting.destination.parts().1.is_some() || *process == os::process_id())
    {
        setting.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn settings() {
        let parse = Setting::parse;
        let stderr = Setting {
            destination: Destination::File(2),
            format: Format::Slabinfo,
            every: 0,
            signal: 0,
        };
        assert_eq!(parse("stderr"), Some(stderr));
        assert_eq!(parse("7"), Some(Setting { destination: Destination::File(7), ..stderr }));
        let all = parse("/tmp/x-%p.txt,openmetrics,every=5,signal=12").unwrap();
        assert_eq!((all.format, all.every, all.signal), (Format::OpenMetrics, 5, 12));
        assert_eq!(all.destination.parts(), ("/tmp/x-", Some(".txt")));
        assert_eq!(parse("x").unwrap().destination.parts(), ("x", None));
        let long = "x".repeat(MAX_PATH + 1);
        for wrong in ["", ",", "x,yaml", "x,every=0", "x,every=", "x,signal=-1", "x,often=2", &long]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "the stand-in has no files")]
    fn what_does_not_fit_at_once_is_written_all_the_same() {
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
