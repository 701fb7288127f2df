//! Memory pressure: whether programs wait for memory, so that what is kept for speed had better go back.
//!
//! What is looked at is how long somebody stalled since the last look (PSI, `Documentation/accounting/psi.rst` of Linux), on the
//! machine and in the cgroup of this process, and whether that cgroup came to its `memory.high` or `memory.max`. No file is kept
//! open, for programs close descriptors that they do not know of; so nothing is told at once, and whoever wants to know looks
//! now and then.
//!
//! `HAYLOFT_PRESSURE=0` looks at nothing; a path, at that file of stalls only.
//!
//! This file may touch `os`.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::os;

/// There is pressure where somebody stalled for this part of the time.
const SHARE: u64 = 10;

/// What is looked at: a setting, below.
static WATCHED: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
const SYSTEM: u8 = 1;
const FILE: u8 = 2;

/// The path of the file, up to a zero.
static PATH: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// When it was last looked, in milliseconds.
static LOOKED: AtomicU64 = AtomicU64::new(0);
/// Microseconds of stalls that were seen then, plus one.
static STALLED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Events that were seen then, plus one.
static EVENTS: AtomicU64 = AtomicU64::new(0);

/// Reads the setting. To be called once, before the first look.
pub(crate) fn read() {
    let watched = match os::env(c"HAYLOFT_PRESSURE") {
        None | Some(b"1") => SYSTEM,
        Some(b"0") => NOTHING,
        Some(path) if path.starts_with(b"/") && path.len() < PATH.len() => {
            for (to, from) in PATH.iter().zip(path) {
                // Relaxed, here and below: whoever looks was made by who read this, or is that.
                to.store(*from, Ordering::Relaxed);
            }
            FILE
        }
        Some(_) => {
            os::ignored(c"HAYLOFT_PRESSURE", format_args!("neither 0, 1 nor an absolute path"));
            SYSTEM
        }
    };
    WATCHED.store(watched, Ordering::Relaxed);
}

/// Whether there was pressure since the last look. The first one sees none.
pub(crate) fn is_high() -> bool {
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched == NOTHING {
        return false;
    }
    let now = os::milliseconds();
    let elapsed = now.saturating_sub(LOOKED.swap(now, Ordering::Relaxed));
    let mut text = [0; 1024];
    let stalled = |seen: &AtomicU64, text: Option<&str>| {
        let more = text.and_then(stalls).map_or(0, |stalls| since(seen, stalls));
        more > 0 && more >= elapsed.saturating_mul(1000) / SHARE
    };
    let [of_machine, of_cgroup] = &STALLED;
    if watched == FILE {
        let path: [u8; PATH.len()] = core::array::from_fn(|at| PATH[at].load(Ordering::Relaxed));
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        let Ok(path) = core::str::from_utf8(path) else { return false };
        return stalled(of_machine, os::read(format_args!("{path}"), &mut text));
    }
    // All of them, for each to know what it has seen.
    let mut high = stalled(of_machine, os::read(format_args!("/proc/pressure/memory"), &mut text));
    let mut cgroups = [0; 512];
    if let Some(cgroup) = os::read(format_args!("/proc/self/cgroup"), &mut cgroups).and_then(cgroup)
    {
        let root = "/sys/fs/cgroup";
        high |=
            stalled(of_cgroup, os::read(format_args!("{root}{cgroup}/memory.pressure"), &mut text));
        let events = os::read(format_args!("{root}{cgroup}/memory.events"), &mut text).map(events);
        high |= events.is_some_and(|events| since(&EVENTS, events) > 0);
    }
    high
}

/// How much there is of something that was not seen yet; nothing, the first time.
fn since(seen: &AtomicU64, now: u64) -> u64 {
    let before = seen.swap(now.saturating_add(1), Ordering::Relaxed);
    before.checked_sub(1).map_or(0, |before| now.saturating_sub(before))
}

/// Microseconds in which some task stalled, by a file in the format of PSI.
fn stalls(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|part| part.strip_prefix("total=")?.parse().ok())
}

/// How often a cgroup came to its limits, by its `memory.events`.
fn events(text: &str) -> u64 {
    let count = |line: &str| -> Option<u64> {
        let (name, count) = line.split_once(' ')?;
        matches!(name, "high" | "max").then(|| count.parse().ok())?
    };
    text.lines().filter_map(count).fold(0, u64::saturating_add)
}

/// The path of this process's cgroup in the unified hierarchy, by its `/proc/self/cgroup`.
fn cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        let psi = "some avg10=0.00 avg60=0.12 avg300=0.00 total=22168\n\
                   full avg10=0.00 avg60=0.00 avg300=0.00 total=2196\n";
        assert_eq!(stalls(psi), Some(22168));
        assert_eq!(
            (stalls(""), stalls("some total=x"), stalls("full total=7")),
            (None, None, None)
        );
        assert_eq!(events("low 0\nhigh 3\nmax 40\noom 1\noom_kill 1\n"), 43);
        assert_eq!(events(""), 0);
        assert_eq!(cgroup("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(cgroup("4:memory:/a\n"), None);
    }

    #[test]
    fn only_news_counts() {
        let seen = AtomicU64::new(0);
        assert_eq!([since(&seen, 5), since(&seen, 5), since(&seen, 9)], [0, 0, 4]);
    }
}
