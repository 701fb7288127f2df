//! Statistics and profiles for the program's operator, without code in the program:
//! `HAYLOFT_STATS`, `HAYLOFT_PROFILE`, `HAYLOFT_LEAKS` and `HAYLOFT_STATS_SHM`.
//!
//! `HAYLOFT_STATS=DESTINATION[,FORMAT][,every=SECONDS][,signal=NUMBER]` writes a report at the end
//! of the program, every `SECONDS` seconds, and in the handler of the signal `NUMBER`. The program
//! must not handle that signal, and it must not be one that a fault raises.
//!
//! - The destination is `stderr`, or `1` for the same; `stdout`; `fd:NUMBER` for an open file; or a
//!   path, in which `%p` stands for the process number. A new file replaces the file at the path
//!   each time. With `0` there is no report.
//! - Formats are `slabinfo` (the default), `table`, `openmetrics`, and with the feature `serde`
//!   `json`.
//!
//! `HAYLOFT_PROFILE=DESTINATION[,mean=BYTES][,growth][,every=SECONDS][,signal=NUMBER]` samples
//! allocations from the start on, and writes [heap profiles](crate::profile) in the same way.
//! Nothing is written to stderr. With `growth` each profile but the first has only what was
//! allocated since the first and is in use.
//!
//! `HAYLOFT_LEAKS=DESTINATION[,mean=BYTES][,reachable=1][,suppress=FILE]` samples allocations, too,
//! and writes what is still in use at the end of the program.
//!
//! A forked child writes reports only if the path contains `%p`. A program that ends by `_exit` or
//! by a signal writes no report at its end.
//!
//! `HAYLOFT_STATS_SHM=1` shows the statistics to other processes of the same user, updated four
//! times a second: see [`Reader`]. `HAYLOFT_VERBOSE=1` writes one line at the start: what is in
//! force.
//!
//! Settings are read when the loader starts the program or library that this is linked into. That
//! is before `main`, or when the library is loaded later, with other threads perhaps running.
//! Settings are ignored in programs that run with more rights than their invoker.
//!
//! If the settings require it, there is one thread, with all signals blocked. A fork child creates
//! its own in the first allocation beyond sheaves that may wait and comes at least a second later:
//! most children become another program before that.

extern crate std;

mod format;
mod shared;
mod verbose;

use core::ffi::{c_int, c_void};
use core::fmt;
use core::hint;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use crate::os;
use crate::profile::suppressions::{Problem, Suppressions};
use crate::profile::{self, leaks};
use crate::settings::{self, Content, Destination, Leaks, Name, PathFor, Reports};
use crate::stack;
use crate::stats;
use crate::sync::{self, WakeFlag};

pub use crate::settings::Format;
pub use format::write;
pub use shared::{AttachError, Reader, Snapshot, elsewhere, processes};

/// A request for reports.
struct Asked {
    reports: Reports<'static>,
    /// The process that read the setting.
    process: i32,
    /// Identity of the file behind the descriptor at that time; `None` if it was not open.
    file: Option<os::Identity>,
    /// A duplicate of the destination's descriptor, since some programs close their standard error
    /// before the end; -1 if there is none. Its number is higher than programs reach. Relaxed: the
    /// number guards no other memory.
    copy: AtomicI32,
    /// Number of the mark of the first profile, for growth since then; 0 before that. Relaxed: the
    /// number guards nothing.
    first: AtomicU32,
    /// What a report of leaks leaves out.
    suppressions: Option<Suppressions>,
}

impl Asked {
    /// Returns whether this process writes reports. A child must not overwrite the reports of its
    /// parent.
    fn is_ours(&self) -> bool {
        self.reports.destination.has_process() || self.process == os::process_id()
    }

    /// Writes a report to the destination.
    fn write(&self) {
        let Reports { destination, content, .. } = &self.reports;
        let write = |file| match content {
            Content::Statistics(format) => write(file, *format),
            Content::Profile(profile) if profile.growth => self.write_growth(file),
            Content::Profile(_) => profile::write_to(file),
            Content::Leaks(leaks) => {
                let reached_from = leaks.reachable.then(|| STACK.load(Ordering::Relaxed));
                let suppressions = self.suppressions.as_ref();
                leaks::write(file, &leaks::Request { reached_from, suppressions })
            }
        };
        let done = match destination {
            Destination::File(number) => match self.file {
                None => false,
                // Either descriptor may be closed by now, or refer to another file, which is left
                // alone.
                Some(_) => [self.copy.load(Ordering::Relaxed), *number]
                    .into_iter()
                    .find(|number| os::identity(*number) == self.file)
                    .is_none_or(write),
            },
            Destination::Path(path) => {
                os::replace(format_args!("{}", PathFor(path, os::process_id())), write)
            }
        };
        if !done {
            let what = match content {
                Content::Statistics(_) => "statistics",
                Content::Profile(_) => "a profile",
                Content::Leaks(_) => "leaks",
            };
            os::warn(format_args!("{what} cannot be written to {destination}"));
        }
    }
}

impl Asked {
    /// Writes a profile, of the growth since the first one if there was one.
    fn write_growth(&self, file: c_int) -> bool {
        let now = profile::mark().number();
        match self.first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => profile::write_to(file),
            Err(first) => profile::write_growth_to(profile::Mark::from_number(first), file),
        }
    }
}

/// What each of these settings requests. Written once, when the settings are read.
static ASKED: [(Name, OnceLock<Asked>); 3] = [
    (Name::Stats, OnceLock::new()),
    (Name::Profile, OnceLock::new()),
    (Name::Leaks, OnceLock::new()),
];

/// Returns all requests, whether this process writes the reports or not.
fn all_asked() -> impl Iterator<Item = &'static Asked> {
    ASKED.iter().filter_map(|(_, asked)| asked.get())
}

/// Returns the requests for reports of this process.
fn asked() -> impl Iterator<Item = &'static Asked> {
    all_asked().filter(|asked| asked.is_ours())
}

/// The lowest number of the duplicate of a descriptor.
const LEAST_COPY: c_int = 500;

/// Run by the loader: before `main`, or when a library with this allocator is loaded later, with
/// other threads perhaps running.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static READ: extern "C" fn() = start;

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
extern "C" fn start() {
    verbose::announce();
    let is_shared = settings::flag(Name::StatsShm) == Some(true) && shared::open();
    let all = [settings::reports(), settings::profile(), settings::leaks()];
    for ((name, asked), reports) in ASKED.iter().zip(all) {
        if let Some(reports) = reports {
            ask(*name, asked, reports);
        }
    }
    if all_asked().next().is_some() || is_shared {
        os::at_exit(end);
    }
    if all_asked().any(|asked| asked.reports.every > 0) || is_shared {
        spawn();
    }
}

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
fn ask(name: Name, asked: &OnceLock<Asked>, reports: Reports<'static>) {
    if let Some(mean) = reports.content.mean() {
        // Two settings get the samples of the smaller mean.
        let is_enough = profile::mean().is_some_and(|other| other as u64 <= mean);
        if !is_enough && !profile::start(mean as usize) {
            settings::refuse(name, format_args!("there is no memory for samples"), "none");
            return;
        }
    }
    let suppressions = match reports.content {
        Content::Leaks(Leaks { suppress: Some(path), .. }) => suppressions(name, path),
        _ => None,
    };
    let (file, copy) = match reports.destination {
        Destination::Path(_) => (None, None),
        Destination::File(number) => (os::identity(number), os::duplicate(number, LEAST_COPY)),
    };
    let signal = reports.signal;
    let is_ours_already = all_asked().any(|asked| asked.reports.signal == signal);
    let copy = AtomicI32::new(copy.unwrap_or(-1));
    let first = AtomicU32::new(0);
    let process = os::process_id();
    let _ = asked.set(Asked { reports, process, file, copy, first, suppressions });
    if signal > 0
        && !is_ours_already
        && (is_of_a_fault(signal) || os::take_signal(Some(signal), on_signal).is_none())
    {
        settings::refuse(
            name,
            format_args!("signal {signal} is taken, of a fault, or none"),
            "no signal",
        );
    }
}

/// Reads a file of suppressions. Warns if that is impossible.
#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
fn suppressions(name: Name, path: &str) -> Option<Suppressions> {
    let refuse = |why: fmt::Arguments<'_>| settings::refuse(name, why, "no suppressions");
    match Suppressions::read(path) {
        Ok(all) => return Some(all),
        Err(Problem::Unreadable) => refuse(format_args!("{path} cannot be read")),
        Err(Problem::TooLong) => refuse(format_args!("{path} is too long")),
        Err(Problem::Line(number)) => {
            refuse(format_args!("line {number} of {path} is not leak:PATTERN"));
        }
    }
    None
}

/// Returns whether a fault raises `signal`. A handler that writes a report and returns would make
/// the program fault again, forever.
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

fn spawn() {
    if os::is_main_thread() {
        MAIN_EXIT.expect();
    }
    if os::spawn::<Reporter>(0).is_none() {
        os::warn(format_args!("there is no thread to report statistics"));
    }
}

/// Milliseconds between updates of the shared page.
const TICK: u64 = 250;
/// Maximum milliseconds of a single sleep.
const LONGEST_SLEEP: u64 = 60 * 60 * 1000;

impl Asked {
    /// Returns the milliseconds between reports; `None` if there are no periodic ones.
    fn period(&self) -> Option<u64> {
        (self.reports.every > 0).then_some(u64::from(self.reports.every) * 1000)
    }
}

/// Set when the reporting thread must end.
static END: WakeFlag = WakeFlag::new();
static MAIN_EXIT: os::ThreadExit = os::ThreadExit::new(end_thread);

/// Ends the reporting thread when the main thread ends by `pthread_exit`. The process must then end
/// with the last thread of the program, but the C library counts this thread as well.
unsafe extern "C" fn end_thread(_: *mut c_void) {
    if END.set() {
        END.wake();
    }
}

/// The reporting thread. It lives as long as the process, or as its main thread.
struct Reporter;

impl os::Service for Reporter {
    const NAME: Option<&'static str> = Some("stats");
    const SCHEDULING: os::Scheduling = os::Scheduling::AsItsCreator;
    const MAIN: fn(usize) = thread_main;
}

fn thread_main(_: usize) {
    let is_shared = shared::is_open() || shared::open_again();
    let all = || asked().filter_map(|asked| Some((asked, asked.period()?)));
    if !is_shared && all().next().is_none() {
        return;
    }
    // The time of the next report of each request.
    let mut due = [u64::MAX; ASKED.len()];
    due.iter_mut().zip(all()).for_each(|(due, (_, period))| *due = os::milliseconds() + period);
    loop {
        if is_shared {
            shared::update();
        }
        for (due, (asked, period)) in due.iter_mut().zip(all()) {
            let now = os::milliseconds();
            if *due <= now {
                write_in_turn(asked);
                // Reports that were missed while the process was stopped are skipped.
                *due = if *due + period > now { *due + period } else { now + period };
            }
        }
        let next = due.iter().copied().min().unwrap_or(u64::MAX);
        let left = next.saturating_sub(os::milliseconds());
        let left = left.clamp(1, if is_shared { TICK } else { LONGEST_SLEEP });
        END.sleep_for(left);
        if !END.is_clear() {
            return;
        }
    }
}

/// Prevents the process from ending in the middle of the thread's report. Relaxed: it guards only
/// files, which the kernel keeps.
static TURN: AtomicU32 = AtomicU32::new(0);
/// The thread is writing a report.
const WRITES: u32 = 1;
/// The process is ending: no report may begin.
const OVER: u32 = 2;

/// Writes a report on the reporting thread, unless the process is ending.
fn write_in_turn(asked: &Asked) {
    if TURN.compare_exchange(0, WRITES, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        asked.write();
        TURN.fetch_and(!WRITES, Ordering::Relaxed);
    }
}

extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    asked().filter(|asked| asked.reports.signal == signal).for_each(Asked::write);
}

/// Maximum milliseconds that the end of the process waits for a report being written.
const LONGEST_END: u32 = 1000;

/// The lowest address on the stack of the thread that ends the process that the program uses, or
/// its registers were stored at. Relaxed: only that thread uses it.
static STACK: AtomicUsize = AtomicUsize::new(0);

extern "C" fn end() {
    // The program may have the only address of a block in a register.
    let mut registers = [0; stack::REGISTERS];
    stack::store_registers(&mut registers);
    STACK.store(registers.as_ptr().addr(), Ordering::Relaxed);
    shared::close();
    if asked().next().is_none() {
        return;
    }
    TURN.fetch_or(OVER, Ordering::Relaxed);
    for _ in 0..LONGEST_END {
        if TURN.load(Ordering::Relaxed) & WRITES == 0 {
            break;
        }
        os::sleep_microseconds(1000);
    }
    // A process that only reads the statistics of others has none of its own.
    if stats::gather_own().held > 0 {
        asked().for_each(Asked::write);
    }
    hint::black_box(&registers);
}

/// Milliseconds after which a child is assumed not to be about to `exec`.
const STAYS_AFTER: u64 = 1000;
/// The time at which that is so, by the monotonic clock. Relaxed: the number guards no other
/// memory.
static STAYS_AT: AtomicU64 = AtomicU64::new(0);

/// Adapts a fork child, which does not have the reporting thread.
pub(crate) fn in_child() {
    let was_shared = shared::in_child();
    TURN.store(0, Ordering::Relaxed);
    END.clear();
    for asked in all_asked().filter(|asked| !asked.is_ours()) {
        // A reader of the other end of a pipe must not wait for children that write nothing.
        let copy = asked.copy.swap(-1, Ordering::Relaxed);
        if copy >= 0 && os::identity(copy) == asked.file {
            os::close(copy);
        }
    }
    if was_shared || asked().any(|asked| asked.period().is_some()) {
        // The thread that forked is the main thread of the child.
        MAIN_EXIT.expect();
        STAYS_AT.store(os::milliseconds() + STAYS_AFTER, Ordering::Relaxed);
        sync::leave_for_later(start_in_child);
    }
}

/// Creates the reporting thread of a child that did not `exec`. Returns false if it must be called
/// again later. That includes a time when signals are blocked, since this may then be a handler
/// that interrupted the creation of a thread.
fn start_in_child() -> bool {
    let now = os::milliseconds();
    if now < STAYS_AT.load(Ordering::Relaxed) {
        return false;
    }
    if os::has_signals_blocked() {
        STAYS_AT.store(now + TICK, Ordering::Relaxed);
        return false;
    }
    spawn();
    true
}
