//! Statistics for who runs the program, without a line of code in it: `HAYLOFT_STATS` and `HAYLOFT_STATS_SHM`.
//!
//! `HAYLOFT_STATS=DESTINATION[,FORMAT][,every=SECONDS][,signal=NUMBER]` writes a report at the end of the program, every so many
//! seconds, and in the handler of a signal that the program leaves alone, and that is none of a fault. The destination is `stderr`, the
//! number of an open file, or a path, in which `%p` stands for the number of the process; the file is replaced by a new one each
//! time. Formats are `slabinfo` (the one unless told otherwise), `openmetrics`, and with the feature `serde` `json`. A child that was
//! forked writes only where the path has `%p` in it. A program that ends by `_exit` or a signal writes nothing at its end.
//!
//! `HAYLOFT_STATS_SHM=1` shows the statistics to other processes of the same user, as they are four times a second: see
//! [`Reader`].
//!
//! Settings are read when the loader starts what this is linked into: before `main`, or with a library that is loaded later, when there
//! may be other threads. They are not read in programs that run with rights that who started them does not have. Where they ask for it,
//! there is one thread, with all signals blocked. The child of a fork makes one of its own, by the first allocation beyond sheaves that
//! may wait a second later: most children become another program before that.
//!
//! This file may touch `stats`, `sync` and `os`.

extern crate std;

mod shared;

use core::ffi::{c_int, c_void};
use core::fmt::{self, Write as _};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::os;
use crate::stats;
use crate::sync;

pub use shared::{AttachError, Reader, Snapshot, elsewhere, processes};

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
                "/dev/stdout" => Destination::File(1),
                "stderr" | "/dev/stderr" => Destination::File(2),
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

    /// Whether each process has a place of its own for reports.
    fn is_for_each_process(&self) -> bool {
        self.destination.parts().1.is_some()
    }
}

/// What was asked for.
struct Asked {
    setting: Setting,
    /// The process that read it.
    process: i32,
    /// Which file the number was of then; `None` if it was not open.
    file: Option<os::Identity>,
}

impl Asked {
    /// Whether this process writes reports: children do not write over those of their parents.
    fn is_ours(&self) -> bool {
        self.setting.is_for_each_process() || self.process == os::process_id()
    }

    /// Writes a report where it is to go.
    fn write(&self) {
        let Setting { destination, format, .. } = &self.setting;
        let write = |file| write(file, *format);
        let done = match (destination, destination.parts()) {
            (Destination::File(number), _) => match self.file {
                None => false,
                // It may be closed by now, or the number be that of another file, which is left alone.
                Some(_) => [COPY.load(Ordering::Relaxed), *number]
                    .into_iter()
                    .find(|number| os::identity(*number) == self.file)
                    .is_none_or(write),
            },
            (_, (path, None)) => os::replace(format_args!("{path}"), write),
            (_, (before, Some(after))) => {
                os::replace(format_args!("{before}{}{after}", os::process_id()), write)
            }
        };
        if !done {
            os::warn(format_args!("statistics cannot be written to {destination}"));
        }
    }
}

/// Written once, when the settings are read.
static ASKED: OnceLock<Asked> = OnceLock::new();

/// The destination once more, by a number that programs do not come to, as some close their standard error before the end; -1 if there is
/// none. Relaxed: a number that guards nothing.
static COPY: AtomicI32 = AtomicI32::new(-1);
/// The least such number.
const LEAST_COPY: c_int = 500;

/// Run by the loader: before `main`, or where a library with this allocator is loaded later, among other threads.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static READ: extern "C" fn() = start;

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
extern "C" fn start() {
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
    let every = setting.map_or(0, |setting| setting.every);
    if let Some(setting) = setting {
        ask(setting);
    }
    if setting.is_some() || is_shared {
        os::at_exit(end);
    }
    if every > 0 || is_shared {
        spawn();
    }
}

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
fn ask(setting: Setting) {
    let file = match setting.destination {
        Destination::Path { .. } => None,
        Destination::File(number) => {
            let copy = os::duplicate(number, LEAST_COPY);
            COPY.store(copy.unwrap_or(-1), Ordering::Relaxed);
            os::identity(number)
        }
    };
    let _ = ASKED.set(Asked { setting, process: os::process_id(), file });
    let signal = setting.signal;
    if signal > 0 && (is_of_a_fault(signal) || os::take_signal(Some(signal), on_signal).is_none()) {
        os::warn(format_args!("signal {signal} is taken, of a fault, or none; ignored"));
    }
}

/// Whether a handler that writes a report and returns would have the program fault again, for ever.
fn is_of_a_fault(signal: c_int) -> bool {
    matches!(
        signal,
        libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGFPE
            | libc::SIGILL
            | libc::SIGTRAP
            | libc::SIGABRT
            | libc::SIGSYS
    )
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

/// Milliseconds between looks of others at the page.
const TICK: u64 = 250;
/// Milliseconds that can be slept at once.
const LONGEST_SLEEP: u64 = 60 * 60 * 1000;

/// Milliseconds between reports; `None` where none are written.
fn period() -> Option<u64> {
    let asked = ASKED.get().filter(|asked| asked.setting.every > 0 && asked.is_ours())?;
    Some(u64::from(asked.setting.every) * 1000)
}

/// The life of the thread: as long as that of the process.
extern "C" fn live(_: *mut c_void) -> *mut c_void {
    os::name_thread(c"hayloft/stats");
    let is_shared = shared::is_open() || shared::open_again();
    let period = period();
    if !is_shared && period.is_none() {
        return ptr::null_mut();
    }
    let mut due = period.map(|period| os::milliseconds() + period);
    loop {
        if is_shared {
            shared::update();
        }
        let now = os::milliseconds();
        if let (Some(at), Some(period)) = (due, period)
            && at <= now
        {
            write_in_turn();
            // What was missed, as the process was stopped, is not made up for.
            due = Some(if at + period > now { at + period } else { now + period });
        }
        let left = due.map_or(LONGEST_SLEEP, |at| at.saturating_sub(os::milliseconds()));
        let left = left.clamp(1, if is_shared { TICK } else { LONGEST_SLEEP });
        os::sleep_microseconds(left as u32 * 1000);
    }
}

/// What the thread is at, which must not be left half done when the process ends. Relaxed: it guards files only, which are the kernel's.
static TURN: AtomicU32 = AtomicU32::new(0);
/// It writes a report.
const WRITES: u32 = 1;
/// The process ends: no report is to be begun.
const OVER: u32 = 2;

/// In the thread: writes a report, unless the process ends.
fn write_in_turn() {
    let begun = TURN.compare_exchange(0, WRITES, Ordering::Relaxed, Ordering::Relaxed);
    if let (Ok(_), Some(asked)) = (begun, ASKED.get()) {
        asked.write();
        TURN.fetch_and(!WRITES, Ordering::Relaxed);
    }
}

extern "C" fn on_signal(_: c_int) {
    if let Some(asked) = ASKED.get().filter(|asked| asked.is_ours()) {
        asked.write();
    }
}

/// Milliseconds that the end of the process waits at most for a report that is being written.
const LONGEST_END: u32 = 1000;

extern "C" fn end() {
    shared::close();
    let Some(asked) = ASKED.get().filter(|asked| asked.is_ours()) else { return };
    TURN.fetch_or(OVER, Ordering::Relaxed);
    for _ in 0..LONGEST_END {
        if TURN.load(Ordering::Relaxed) & WRITES == 0 {
            break;
        }
        os::sleep_microseconds(1000);
    }
    // A program that only reads the statistics of others has none.
    if stats::gather_own().held > 0 {
        asked.write();
    }
}

/// Milliseconds after which a child is one that stays.
const SETTLED: u64 = 1000;
/// When that is, by the clock. Relaxed: a number that guards nothing.
static SETTLES: AtomicU64 = AtomicU64::new(0);

/// In the child of a fork, which does not have the thread.
pub(crate) fn forget() {
    let was_shared = shared::forget();
    TURN.store(0, Ordering::Relaxed);
    if let Some(asked) = ASKED.get().filter(|asked| !asked.is_ours()) {
        // Who reads the other end of a pipe must not wait for children that write nothing.
        let copy = COPY.swap(-1, Ordering::Relaxed);
        if copy >= 0 && os::identity(copy) == asked.file {
            os::close(copy);
        }
    }
    if was_shared || period().is_some() {
        SETTLES.store(os::milliseconds() + SETTLED, Ordering::Relaxed);
        sync::leave_for_later(settle);
    }
}

/// Makes the thread of a child that stays; false where that is to be tried again. Not where signals are blocked, maybe in a handler
/// that interrupted the making of a thread.
fn settle() -> bool {
    let now = os::milliseconds();
    if now < SETTLES.load(Ordering::Relaxed) {
        return false;
    }
    if os::has_signals_blocked() {
        SETTLES.store(now + TICK, Ordering::Relaxed);
        return false;
    }
    spawn();
    true
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
        assert_eq!(parse("/dev/stdout").unwrap().destination, Destination::File(1));
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
