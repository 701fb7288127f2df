//! Memory pressure: detects that this process waits for memory, so that memory kept for speed had
//! better return to the system.
//!
//! The kernel counts the time in which a task of a cgroup stalled for memory (PSI,
//! `Documentation/accounting/psi.rst` of Linux), no matter at which level of the hierarchy the
//! limit was reached. There is pressure if stalls in this process's own cgroup took a tenth of the
//! time since the last look. Other cgroups do not count. The system as a whole counts only where no
//! cgroup has such a file.
//!
//! A cgroup that reads many files is at its limit all the time, and stalls a little, for page cache
//! alone. That is no pressure: at least half of the memory must be that of programs (`anon`).
//!
//! Purging everything has its price. So it is done at most once a second, and less often while it
//! yields nothing.
//!
//! No file is kept open, and only a thread with a descriptor table of its own looks.
//!
//! `HAYLOFT_PRESSURE=0` disables the look. A path makes it look at that file only, in the format of
//! PSI.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::os;
use crate::settings::{self, Name};

/// There is pressure if tasks stalled for one in this many parts of the time.
const SHARE: u64 = 10;

/// Shortest and longest pause from one report of pressure to the next, in milliseconds.
const LEAST_PAUSE: u64 = 1000;
const MOST_PAUSE: u64 = 64_000;
/// Bytes that must be decommitted because of pressure for the pause to be the shortest.
const YIELD: u64 = 1 << 20;

/// The observations so far. Relaxed everywhere, as only one thread looks.
struct Seen {
    /// Time of the last look, in milliseconds.
    looked: AtomicU64,
    /// Microseconds of stalls counted at that time, plus one.
    stalled: AtomicU64,
    /// Earliest time of the next report of pressure, and the pause before it, in milliseconds.
    next: AtomicU64,
    pause: AtomicU64,
}

static SEEN: Seen = Seen::new();

impl Seen {
    const fn new() -> Seen {
        Seen {
            looked: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            next: AtomicU64::new(0),
            pause: AtomicU64::new(LEAST_PAUSE),
        }
    }

    /// Returns whether `stalls`, a count of microseconds, has grown by a tenth of the time since
    /// the last look. The first look reports no pressure.
    fn is_new(&self, stalls: u64, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.looked.swap(now, Ordering::Relaxed));
        let before = self.stalled.swap(stalls.saturating_add(1), Ordering::Relaxed);
        let more = before.checked_sub(1).map_or(0, |before| stalls.saturating_sub(before));
        more > 0
            && more >= elapsed.saturating_mul(1000) / SHARE
            && now >= self.next.load(Ordering::Relaxed)
    }

    /// Records that `bytes` bytes were decommitted because of pressure, and sets the next pause.
    fn note(&self, bytes: u64, now: u64) {
        let before = self.pause.load(Ordering::Relaxed);
        let pause = if bytes >= YIELD { LEAST_PAUSE } else { (2 * before).min(MOST_PAUSE) };
        self.pause.store(pause, Ordering::Relaxed);
        self.next.store(now + pause, Ordering::Relaxed);
    }
}

/// Returns whether pressure counts at all, by the setting.
pub(crate) fn counts() -> bool {
    settings::text(Name::Pressure) != Some("0")
}

/// Returns whether there was pressure since the last look. Call where pressure [`counts`], on a
/// thread with a descriptor table of its own.
pub(crate) fn is_high() -> bool {
    let stalls = match settings::text(Name::Pressure) {
        None | Some("1") => stalls_of_system(),
        Some(path) => stalls_of_file(path),
    };
    stalls.is_some_and(|stalls| SEEN.is_new(stalls, os::milliseconds()))
}

/// Records how many bytes were decommitted because [`is_high`] returned true.
pub(crate) fn note_yield(bytes: u64) {
    SEEN.note(bytes, os::milliseconds());
}

/// Returns the microseconds of stalls that the file of the setting counts.
fn stalls_of_file(path: &str) -> Option<u64> {
    /// 1 after a warning was written.
    static WARNED: AtomicU8 = AtomicU8::new(0);
    let stalls = os::read(format_args!("{path}"), &mut [0; 1024]).and_then(stalls);
    if stalls.is_none() && WARNED.swap(1, Ordering::Relaxed) == 0 {
        settings::refuse(Name::Pressure, format_args!("no file in the format of PSI"), "0");
    }
    stalls
}

/// Returns the microseconds of stalls of this process's cgroup, or of the whole system if no cgroup
/// counts any. Returns `None` also if most memory there is page cache.
fn stalls_of_system() -> Option<u64> {
    let root = settings::text(Name::Sysfs).unwrap_or("/sys");
    let mut text = [0; 1024];
    let mut cgroups = [0; 4096];
    let cgroup =
        os::read(format_args!("/proc/self/cgroup"), &mut cgroups).and_then(cgroup).unwrap_or("/");
    // A container may see its own cgroup as the root, while `/proc/self/cgroup` has another path
    // for it.
    let places = [("", cgroup), ("", "/"), ("/unified", cgroup)];
    for (mount, cgroup) in places {
        let file =
            os::read(format_args!("{root}/fs/cgroup{mount}{cgroup}/memory.pressure"), &mut text);
        let Some(stalls) = file.and_then(stalls) else { continue };
        let memory =
            os::read(format_args!("{root}/fs/cgroup{mount}{cgroup}/memory.stat"), &mut text);
        let is_of_programs = memory.is_none_or(|memory| is_of_programs(memory, "anon ", "file "));
        return is_of_programs.then_some(stalls);
    }
    let memory = os::read(format_args!("/proc/meminfo"), &mut cgroups);
    let is_of_programs = memory.is_none_or(|text| is_of_programs(text, "AnonPages:", "Cached:"));
    let stalls = os::read(format_args!("/proc/pressure/memory"), &mut text).and_then(stalls);
    stalls.filter(|_| is_of_programs)
}

/// Returns the microseconds in which some task stalled, from a file in the format of PSI.
fn stalls(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|part| part.strip_prefix("total=")?.parse().ok())
}

/// Returns whether at least half of the memory is that of programs. `table` lists it and page cache
/// under the given names. If one of them is missing, the answer is yes.
fn is_of_programs(table: &str, programs: &str, cache: &str) -> bool {
    let number = |name: &str| -> Option<u64> {
        let line = table.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    number(programs).zip(number(cache)).is_none_or(|(programs, cache)| programs >= cache)
}

/// Returns the path of this process's cgroup in the unified hierarchy, from its
/// `/proc/self/cgroup`.
fn cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_and_cgroup_files_are_parsed() {
        let psi = "some avg10=0.00 avg60=0.12 avg300=0.00 total=22168\n\
                   full avg10=0.00 avg60=0.00 avg300=0.00 total=2196\n";
        assert_eq!(stalls(psi), Some(22168));
        assert_eq!(
            (stalls(""), stalls("some total=x"), stalls("full total=7")),
            (None, None, None)
        );
        assert_eq!(cgroup("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(cgroup("4:memory:/a\n"), None);
    }

    #[test]
    fn stalls_for_page_cache_are_not_attributed_to_programs() {
        let of = |text: &str| is_of_programs(text, "anon ", "file ");
        assert!(of("anon 500\nfile 400\n") && !of("anon 300\nfile 400\nkernel 9\n"));
        assert!(of("") && of("anon x\nfile 400\n"));
        let meminfo = "MemTotal: 9 kB\nCached:   700 kB\nAnonPages:   100 kB\n";
        assert!(!is_of_programs(meminfo, "AnonPages:", "Cached:"));
    }

    #[test]
    fn stalls_for_a_tenth_of_the_time_are_pressure() {
        let seen = Seen::new();
        assert!(!seen.is_new(5_000_000, 1000), "the first look has no earlier one to compare with");
        assert!(!seen.is_new(5_000_000, 2000) && !seen.is_new(5_099_000, 3000));
        assert!(seen.is_new(5_200_000, 4000));
    }

    #[test]
    fn reclaim_that_yields_nothing_becomes_rare() {
        let seen = Seen::new();
        let mut stalls = 0;
        seen.is_new(stalls, 0);
        // Some task stalls all the time.
        let times = |yields: u64, from: u64, stalls: &mut u64| {
            let pressed = (from..from + 100).filter(|second| {
                *stalls += 1_000_000;
                let pressed = seen.is_new(*stalls, second * 1000);
                if pressed {
                    seen.note(yields, second * 1000);
                }
                pressed
            });
            pressed.count()
        };
        assert_eq!(times(YIELD, 1, &mut stalls), 100);
        let rare = times(0, 200, &mut stalls);
        assert!((3..10).contains(&rare), "{rare} times");
        assert!(times(YIELD, 1000, &mut stalls) > 90, "reclaim that yields again stays rare");
    }
}
