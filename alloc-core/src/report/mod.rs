//! Statistics for the program's operator, without code in the program: `HAYLOFT_STATS` and
//! `HAYLOFT_STATS_SHM`.
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
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::os;
use crate::settings::{self, Destination, Name, PathFor, Reports};
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
}

impl Asked {
    /// Returns whether this process writes reports. A child must not overwrite the reports of its
    /// parent.
    fn is_ours(&self) -> bool {
        self.reports.destination.has_process() || self.process == os::process_id()
    }

    /// Writes a report to the destination.
    fn write(&self) {
        let Reports { destination, format, .. } = &self.reports;
        let write = |file| write(file, *format);
        let done = match destination {
            Destination::File(number) => match self.file {
                None => false,
                // Either descriptor may be closed by now, or refer to another file, which is left
                // alone.
                Some(_) => [COPY.load(Ordering::Relaxed), *number]
                    .into_iter()
                    .find(|number| os::identity(*number) == self.file)
                    .is_none_or(write),
            },
            Destination::Path(path) => {
                os::replace(format_args!("{}", PathFor(path, os::process_id())), write)
            }
        };
        if !done {
            os::warn(format_args!("statistics cannot be written to {destination}"));
        }
    }
}

/// Written once, when the settings are read.
static ASKED: OnceLock<Asked> = OnceLock::new();

/// A duplicate of the destination's descriptor, since some programs close their standard error
/// before the end; -1 if there is none. Its number is higher than programs reach. Relaxed: the
/// number guards no other memory.
static COPY: AtomicI32 = AtomicI32::new(-1);
/// The lowest number of that duplicate.
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
    let reports = settings::reports();
    let is_shared = settings::flag(Name::StatsShm) == Some(true) && shared::open();
    let every = reports.map_or(0, |reports| reports.every);
    if let Some(reports) = reports {
        ask(reports);
    }
    if reports.is_some() || is_shared {
        os::at_exit(end);
    }
    if every > 0 || is_shared {
        spawn();
    }
}

#[cfg_attr(miri, allow(dead_code, reason = "called by the loader"))]
fn ask(reports: Reports<'static>) {
    let file = match reports.destination {
        Destination::Path(_) => None,
        Destination::File(number) => {
            let copy = os::duplicate(number, LEAST_COPY);
            COPY.store(copy.unwrap_or(-1), Ordering::Relaxed);
            os::identity(number)
        }
    };
    let _ = ASKED.set(Asked { reports, process: os::process_id(), file });
    let signal = reports.signal;
    if signal > 0 && (is_of_a_fault(signal) || os::take_signal(Some(signal), on_signal).is_none()) {
        settings::refuse(
            Name::Stats,
            format_args!("signal {signal} is taken, of a fault, or none"),
            "no signal",
        );
    }
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

/// Returns the milliseconds between reports; `None` if this process writes no periodic ones.
fn period() -> Option<u64> {
    let asked = ASKED.get().filter(|asked| asked.reports.every > 0 && asked.is_ours())?;
    Some(u64::from(asked.reports.every) * 1000)
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
    let period = period();
    if !is_shared && period.is_none() {
        return;
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
            // Reports that were missed while the process was stopped are skipped.
            due = Some(if at + period > now { at + period } else { now + period });
        }
        let left = due.map_or(LONGEST_SLEEP, |at| at.saturating_sub(os::milliseconds()));
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
fn write_in_turn() {
    let begun = TURN.compare_exchange(0, WRITES, Ordering::Relaxed, Ordering::Relaxed);
    if let (Ok(_), Some(asked)) = (begun, ASKED.get()) {
        asked.write();
        TURN.fetch_and(!WRITES, Ordering::Relaxed);
    }
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    if let Some(asked) = ASKED.get().filter(|asked| asked.is_ours()) {
        asked.write();
    }
}

/// Maximum milliseconds that the end of the process waits for a report being written.
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
    // A process that only reads the statistics of others has none of its own.
    if stats::gather_own().held > 0 {
        asked.write();
    }
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
    if let Some(asked) = ASKED.get().filter(|asked| !asked.is_ours()) {
        // A reader of the other end of a pipe must not wait for children that write nothing.
        let copy = COPY.swap(-1, Ordering::Relaxed);
        if copy >= 0 && os::identity(copy) == asked.file {
            os::close(copy);
        }
    }
    if was_shared || period().is_some() {
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
