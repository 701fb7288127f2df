//! Totals of the process, each with its name.

use hayloft::report::Snapshot;
use hayloft::stats::{CacheStats, Stats};

use crate::history::History;
use crate::number;

/// An amount of memory, now and over time.
#[derive(Debug)]
pub(crate) struct Amount {
    pub(crate) name: &'static str,
    pub(crate) now: u64,
    pub(crate) course: Vec<u64>,
}

/// Returns the amounts of memory.
pub(crate) fn memory(history: &History) -> [Amount; 6] {
    let amount = |name, of: fn(&Stats) -> usize| Amount {
        name,
        now: of(&history.now().stats) as u64,
        course: history.course(|snapshot| Some(of(&snapshot.stats) as u64)),
    };
    [
        amount("resident", |stats| stats.resident),
        amount("held", |stats| stats.held),
        amount("in slabs", |stats| stats.in_slabs),
        amount("large", |stats| stats.large),
        amount("free", |stats| stats.free),
        amount("unneeded", |stats| stats.unneeded),
    ]
}

/// Returns the share of its limit that the process holds, from 0 to 1, or `None` without a limit.
pub(crate) fn part_of_limit(history: &History) -> Option<f64> {
    let stats = &history.now().stats;
    (stats.limit > 0).then(|| (stats.held as f64 / stats.limit as f64).min(1.0))
}

/// Returns the events, formatted with their rates.
pub(crate) fn events(history: &History) -> [(&'static str, String); 8] {
    let stats = &history.now().stats;
    let per_second = |rate: Option<f64>, text: fn(f64) -> String| {
        format!("{}/s", rate.map_or_else(|| "-".into(), text))
    };
    let of_caches = |of: fn(&CacheStats) -> u64| {
        let sum =
            |snapshot: &Snapshot| Some(snapshot.caches.iter().map(of).fold(0, u64::wrapping_add));
        per_second(history.rate(sum), number::rate)
    };
    let rate = |of: fn(&Stats) -> u64, text| {
        per_second(history.rate(|snapshot| Some(of(&snapshot.stats))), text)
    };
    let counted = |of: fn(&Stats) -> u64| {
        format!("{} ({})", number::count(of(stats)), rate(of, number::rate))
    };
    let share = |of: fn(&Stats) -> u64| {
        let rate = history.rate(|snapshot| Some(of(&snapshot.stats)));
        rate.map_or_else(|| "-".into(), |rate| format!("{:.1} %", rate / 1e7))
    };
    [
        (
            "misses",
            format!(
                "{}, {} on to slabs",
                of_caches(|cache| cache.events.refills),
                of_caches(|cache| cache.events.barn_empty)
            ),
        ),
        (
            "flushes",
            format!(
                "{}, {} on to slabs",
                of_caches(|cache| cache.events.flushes),
                of_caches(|cache| cache.events.barn_full)
            ),
        ),
        (
            "given back",
            format!(
                "{} ({}), {} of the time; {} faults",
                number::bytes(stats.decommitted),
                rate(|stats| stats.decommitted, |rate| number::bytes(rate as u64)),
                share(|stats| stats.decommit_nanoseconds),
                rate(|stats| stats.faults, number::rate)
            ),
        ),
        (
            "huge pages",
            format!(
                "{} made, {} of the time; {} split, {} failed",
                number::count(stats.collapses),
                share(|stats| stats.collapse_nanoseconds),
                number::count(stats.collapse_splits),
                number::count(stats.collapse_failures)
            ),
        ),
        (
            "guarded",
            format!(
                "{}, {} in use",
                counted(|stats| stats.guarded),
                number::count(stats.guarded_in_use)
            ),
        ),
        (
            "nolock",
            format!(
                "{}, {} failed",
                counted(|stats| stats.nolock_tries),
                number::count(stats.nolock_failures)
            ),
        ),
        (
            "deferred",
            format!(
                "{}, {} waiting",
                counted(|stats| stats.deferred),
                number::count(stats.deferred.saturating_sub(stats.flushed))
            ),
        ),
        ("irq works", counted(|stats| stats.irq_works)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::{cache, history, snapshot};

    #[test]
    fn summary_has_totals_and_rates() {
        let first = snapshot(1000, &[cache("a", 1, 0, 10), cache("b", 1, 0, 10)]);
        let mut second = snapshot(3000, &[cache("a", 1, 0, 20), cache("b", 1, 0, 40)]);
        second.stats.deferred = 7;
        second.stats.flushed = 5;
        second.stats.decommitted = 4096;
        second.stats.decommit_nanoseconds = 30_000_000;
        second.stats.faults = 1;
        second.stats.collapses = 9;
        second.stats.collapse_splits = 2;
        second.stats.collapse_nanoseconds = 3_000_000;
        second.stats.guarded = 4;
        second.stats.guarded_in_use = 3;
        second.stats.limit = 20 << 20;
        let history = history([first, second]);
        let text = |name| {
            let events = events(&history);
            events.iter().find(|(other, _)| *other == name).unwrap().1.clone()
        };
        assert_eq!(text("misses"), "20/s, 0/s on to slabs");
        assert_eq!(text("deferred"), "7 (3.5/s), 2 waiting");
        assert_eq!(text("given back"), "4.0K (2.0K/s), 1.5 % of the time; 0.5/s faults");
        assert_eq!(text("guarded"), "4 (2.0/s), 3 in use");
        assert_eq!(text("huge pages"), "9 made, 0.1 % of the time; 2 split, 0 failed");
        assert_eq!(part_of_limit(&history), Some(0.5));
        let [resident, ..] = memory(&history);
        assert_eq!((resident.now, resident.course), (20 << 20, vec![20 << 20; 2]));
    }
}
