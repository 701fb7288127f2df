//! Samples the resident memory while a workload runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::memory::Status;
use crate::measurement::{Curve, Point};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(20);
/// Capacity of a curve, allocated before the workload begins: 160 seconds of samples. Of later
/// samples, only the one at the end is kept.
const MOST: usize = 8000;

/// Receives a workload's reports about itself while it is watched.
pub struct Gauge {
    start: Instant,
    status: Status,
    live: AtomicUsize,
    freed_ms: OnceLock<u64>,
    end: OnceLock<Point>,
}

impl Gauge {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            status: Status::open(),
            live: AtomicUsize::new(0),
            freed_ms: OnceLock::new(),
            end: OnceLock::new(),
        }
    }

    /// Records that `bytes` more bytes are live.
    #[inline(always)]
    pub fn grew(&self, bytes: usize) {
        // Relaxed here and below: the number is only sampled, and publishes nothing.
        self.live.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records that `bytes` fewer bytes are live.
    #[inline(always)]
    pub fn shrank(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Marks the end of the free after which memory should return to the system. Only the first
    /// call counts.
    pub fn mark_freed(&self) {
        self.freed_ms.get_or_init(|| self.now_ms());
    }

    /// Marks the end of the watched part, which only clean-up follows. Without this call, the end
    /// is the workload's return.
    pub fn mark_end(&self) {
        self.end.get_or_init(|| self.point());
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn point(&self) -> Point {
        Point {
            ms: self.now_ms(),
            resident_kib: self.status.resident_kib(),
            live_kib: self.live.load(Ordering::Relaxed) as u64 / 1024,
        }
    }
}

/// Runs `body` and samples the resident memory meanwhile. The first point precedes `body`; the last
/// is at its end.
pub(super) fn watch(body: impl FnOnce(&Gauge)) -> Curve {
    let gauge = Gauge::new();
    let over = AtomicBool::new(false);
    let mut points = Vec::with_capacity(MOST);
    points.push(gauge.point());
    // The workload stays in the main thread, since some allocators treat that thread differently.
    let mut points = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                thread::park_timeout(INTERVAL);
                if points.len() < MOST - 1 {
                    points.push(gauge.point());
                }
            }
            points
        });
        let end = End { over: &over, watcher: watcher.thread() };
        body(&gauge);
        drop(end);
        watcher.join().expect("the watcher does not panic")
    });
    gauge.mark_end();
    if let Some(&end) = gauge.end.get() {
        points.retain(|point| point.ms <= end.ms);
        points.push(end);
    }
    Curve { freed_ms: gauge.freed_ms.into_inner(), points }
}

/// Signals the end of the workload to the watcher when dropped, even by a panic: the scope waits
/// for the watcher.
struct End<'a> {
    over: &'a AtomicBool,
    watcher: &'a Thread,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.watcher.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curve_covers_the_run_from_start_to_end() {
        let curve = watch(|gauge| {
            gauge.grew(3 << 20);
            thread::sleep(30 * INTERVAL);
            gauge.shrank(2 << 20);
            gauge.mark_freed();
            gauge.mark_freed();
        });
        let live: Vec<u64> = curve.points.iter().map(|point| point.live_kib).collect();
        assert_eq!((live.first(), live.last()), (Some(&0), Some(&1024)));
        assert!(live.contains(&3072), "{live:?}");
        assert!(curve.points.iter().all(|point| point.resident_kib > 100));
        assert!(curve.points.is_sorted_by_key(|point| point.ms));
        assert!(curve.freed_ms.is_some_and(|ms| ms >= 60));
    }

    #[test]
    fn samples_after_the_end_are_dropped() {
        let curve = watch(|gauge| {
            gauge.grew(1 << 20);
            gauge.mark_end();
            gauge.grew(1 << 20);
            thread::sleep(2 * INTERVAL);
        });
        assert_eq!(curve.end().map(|point| point.live_kib), Some(1024));
    }

    #[test]
    #[should_panic = "as intended"]
    fn panic_ends_the_sampling() {
        watch(|_| panic!("as intended"));
    }
}
