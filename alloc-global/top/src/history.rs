//! Recent snapshots of a process, and the values derived from them: rates, growth, courses over
//! time.

use std::collections::VecDeque;

use hayloft::report::Snapshot;
use hayloft::stats::{CacheStats, CpuStats, NodeStats, SiteStats, TagStats};

use crate::symbols::Symbols;

/// Snapshots kept: as many as fit side by side on a wide screen.
const KEPT: usize = 240;
/// Snapshots that growth is measured across. From one snapshot to the next, a cache grows by whole
/// slabs or not at all.
const WINDOW: usize = 10;

/// Snapshots of one process, in order of time.
#[derive(Debug)]
pub(crate) struct History {
    snapshots: VecDeque<Snapshot>,
    pub(crate) symbols: Symbols,
}

impl History {
    pub(crate) fn new(first: Snapshot) -> History {
        let mut symbols = Symbols::of(first.process);
        symbols.look_up(&first.sites);
        History { snapshots: VecDeque::from([first]), symbols }
    }

    /// Adds a snapshot, unless it is no newer than the last one.
    pub(crate) fn push(&mut self, snapshot: Snapshot) {
        if snapshot.time <= self.now().time {
            return;
        }
        if self.snapshots.len() == KEPT {
            self.snapshots.pop_front();
        }
        self.symbols.look_up(&snapshot.sites);
        self.snapshots.push_back(snapshot);
    }

    /// Returns the last snapshot.
    pub(crate) fn now(&self) -> &Snapshot {
        self.snapshots.back().expect("there is one from the start")
    }

    /// Returns the change of a number per second since the snapshot `back` places before the last
    /// one, or since the first one kept. Returns `None` if the last snapshot lacks the number or no
    /// time has passed.
    fn slope(&self, back: usize, of: impl Fn(&Snapshot) -> Option<u64>) -> Option<f64> {
        let last = self.snapshots.len() - 1;
        let earlier = &self.snapshots[last - back.min(last)];
        let milliseconds = self.now().time - earlier.time;
        let change = of(self.now())? as f64 - of(earlier).unwrap_or(0) as f64;
        (milliseconds > 0).then(|| change * 1000.0 / milliseconds as f64)
    }

    /// Returns the growth per second of a counter since the last snapshot but one. Returns `None`
    /// if there is only one snapshot. A counter missing from the earlier snapshot counts as 0.
    pub(crate) fn rate(&self, of: impl Fn(&Snapshot) -> Option<u64>) -> Option<f64> {
        self.slope(1, of).map(|rate| rate.max(0.0))
    }

    /// Returns the recent growth of a number per second, or `None` if there is only one snapshot.
    pub(crate) fn growth(&self, of: impl Fn(&Snapshot) -> Option<u64>) -> Option<f64> {
        self.slope(WINDOW, of)
    }

    /// Returns the number in each snapshot, with 0 where it is missing.
    pub(crate) fn course(&self, of: impl Fn(&Snapshot) -> Option<u64>) -> Vec<u64> {
        self.snapshots.iter().map(|snapshot| of(snapshot).unwrap_or(0)).collect()
    }

    /// Returns the growth per second of a counter, from each snapshot to the next.
    pub(crate) fn rates(&self, of: impl Fn(&Snapshot) -> Option<u64>) -> Vec<u64> {
        let pairs = self.snapshots.iter().zip(self.snapshots.iter().skip(1));
        pairs
            .map(|(earlier, later)| {
                let change = of(later).unwrap_or(0).saturating_sub(of(earlier).unwrap_or(0));
                change.saturating_mul(1000) / (later.time - earlier.time)
            })
            .collect()
    }
}

/// The subject of a table line: one entry of a snapshot, which can be found again in other
/// snapshots.
pub(crate) trait Subject: Sized {
    /// Returns all entries of this type in a snapshot.
    fn all(snapshot: &Snapshot) -> &[Self];
    /// Returns whether two entries of different snapshots describe the same subject.
    fn is(&self, other: &Self) -> bool;
}

impl Subject for CacheStats {
    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.caches
    }

    fn is(&self, other: &Self) -> bool {
        self.name == other.name && self.stride == other.stride
    }
}

impl Subject for CpuStats {
    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.cpus
    }

    fn is(&self, other: &Self) -> bool {
        self.cpu == other.cpu
    }
}

impl Subject for NodeStats {
    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.nodes
    }

    fn is(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl Subject for SiteStats {
    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.sites
    }

    fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Subject for TagStats {
    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.tags
    }

    fn is(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A cache, CPU, node, site or tag across all snapshots.
#[derive(Debug)]
pub(crate) struct Line<'a, T> {
    pub(crate) history: &'a History,
    pub(crate) now: &'a T,
    /// Index in the last snapshot, which is mostly the same in the others.
    place: usize,
}

impl<'a, T: Subject> Line<'a, T> {
    /// Returns a line for each entry of the last snapshot.
    pub(crate) fn all(history: &'a History) -> impl Iterator<Item = Line<'a, T>> {
        let all = T::all(history.now()).iter().enumerate();
        all.map(|(place, now)| Line { history, now, place })
    }

    /// Returns a function that reads `number` of this subject in any snapshot.
    fn of<'b>(
        &'b self,
        number: fn(&T) -> u64,
    ) -> impl Fn(&Snapshot) -> Option<u64> + use<'b, 'a, T> {
        move |snapshot| {
            let all = T::all(snapshot);
            let here = all.get(self.place).filter(|other| self.now.is(other));
            here.or_else(|| all.iter().find(|other| self.now.is(other))).map(number)
        }
    }

    /// Does the same as [`History::rate`] for a number of this subject.
    pub(crate) fn rate(&self, number: fn(&T) -> u64) -> Option<f64> {
        self.history.rate(self.of(number))
    }

    /// Does the same as [`History::growth`] for a number of this subject.
    pub(crate) fn growth(&self, number: fn(&T) -> u64) -> Option<f64> {
        self.history.growth(self.of(number))
    }

    /// Does the same as [`History::course`] for a number of this subject.
    pub(crate) fn course(&self, number: fn(&T) -> u64) -> Vec<u64> {
        self.history.course(self.of(number))
    }

    /// Does the same as [`History::rates`] for a number of this subject.
    pub(crate) fn rates(&self, number: fn(&T) -> u64) -> Vec<u64> {
        self.history.rates(self.of(number))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hayloft::stats::Name;

    /// Returns a cache with slabs of 64 KiB and a thousand objects each.
    pub(crate) fn cache(name: &str, slabs: usize, in_use: usize, refills: u64) -> CacheStats {
        let mut cache = CacheStats::default();
        cache.name = Name::new(name);
        (cache.object_size, cache.stride) = (64, 64);
        (cache.slab_size, cache.objects_per_slab) = (1 << 16, 1000);
        (cache.slabs, cache.in_use) = (slabs, in_use);
        cache.events.refills = refills;
        cache
    }

    /// Returns a snapshot with one CPU and one node.
    pub(crate) fn snapshot(time: u64, caches: &[CacheStats]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        (snapshot.process, snapshot.time) = (std::process::id(), time);
        snapshot.stats.resident = 20 << 20;
        snapshot.stats.held = 10 << 20;
        snapshot.caches = caches.to_vec();
        snapshot.cpus = vec![CpuStats::default()];
        snapshot.cpus[0].events.refills = caches.iter().map(|cache| cache.events.refills).sum();
        snapshot.nodes = vec![NodeStats::default()];
        snapshot.nodes[0].bytes = caches.iter().map(|cache| cache.bytes()).sum();
        snapshot
    }

    pub(crate) fn history(snapshots: impl IntoIterator<Item = Snapshot>) -> History {
        let mut snapshots = snapshots.into_iter();
        let mut history = History::new(snapshots.next().unwrap());
        snapshots.for_each(|snapshot| history.push(snapshot));
        history
    }

    fn line<'a>(history: &'a History, name: &str) -> Line<'a, CacheStats> {
        Line::all(history)
            .find(|line: &Line<'_, CacheStats>| line.now.name.as_str() == name)
            .unwrap()
    }

    fn refills(cache: &CacheStats) -> u64 {
        cache.events.refills
    }

    fn bytes(cache: &CacheStats) -> u64 {
        cache.bytes() as u64
    }

    #[test]
    fn rates_compare_the_last_two_snapshots() {
        let mut history = history([snapshot(1000, &[cache("a", 1, 0, 10)])]);
        assert_eq!(line(&history, "a").rate(refills), None);
        history.push(snapshot(1500, &[cache("a", 1, 0, 20)]));
        assert_eq!(line(&history, "a").rate(refills), Some(20.0));
        history.push(snapshot(3500, &[cache("a", 1, 0, 24)]));
        assert_eq!(line(&history, "a").rate(refills), Some(2.0));
        assert_eq!(line(&history, "a").rates(refills), [20, 2]);
    }

    #[test]
    fn entries_that_appear_later_start_from_zero() {
        let first = snapshot(1000, &[cache("b", 1, 0, 10)]);
        let second = snapshot(2000, &[cache("a", 2, 0, 7), cache("b", 1, 0, 15)]);
        let history = history([first, second]);
        assert_eq!(line(&history, "a").rate(refills), Some(7.0));
        assert_eq!(line(&history, "b").rate(refills), Some(5.0));
        assert_eq!(line(&history, "a").course(bytes), [0, 2 << 16]);
        assert_eq!(line(&history, "b").course(bytes), [1 << 16, 1 << 16]);
    }

    #[test]
    fn growth_spans_ten_snapshots() {
        let at = |second: u64| snapshot(second * 1000, &[cache("a", second as usize, 0, 0)]);
        let mut history = history([at(1)]);
        assert_eq!(line(&history, "a").growth(bytes), None);
        history.push(at(3));
        assert_eq!(line(&history, "a").growth(bytes), Some(65536.0));
        (4..20).for_each(|second| history.push(at(second)));
        history.push(snapshot(20_000, &[cache("a", 9, 0, 0)]));
        assert_eq!(line(&history, "a").growth(bytes), Some(-6553.6), "from 10 slabs to 9");
    }

    #[test]
    fn history_drops_duplicates_and_old_snapshots() {
        let at = |time: u64| snapshot(time, &[cache("a", 1, 0, 0)]);
        let mut history = history([at(5), at(5), at(4)]);
        assert_eq!(history.snapshots.len(), 1);
        (6..1000).for_each(|time| history.push(at(time)));
        assert_eq!(history.snapshots.len(), KEPT);
        assert_eq!((history.now().time, history.snapshots[0].time), (999, 1000 - KEPT as u64));
    }
}
