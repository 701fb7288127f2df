//! Workloads that are watched, not timed: how the memory of a process follows what its program has live.
//!
//! They begin with a short pause and have pauses in between, as what happens then is what they are about: a program that
//! waits should not hold what it does not use.

mod herd;
mod mix;
mod pipelines;

pub(super) use pipelines::run as pipelines;

use std::thread;
use std::time::{Duration, Instant};

use self::herd::Herd;
use self::mix::{BUFFERS, Mix, RECORDS, SMALL, STRINGS};
use crate::engine::Run;

/// In how many data structures a burst lies. Each is freed as a whole, and lies all over the memory of the others.
const STRUCTURES: usize = 64;

/// The program's memory before, then far more, then as before.
pub(super) fn burst_idle(run: &mut Run) {
    let bytes = run.pick(1 << 30, 128 << 20, 64 << 10);
    let idle = run.pick(5000, 2500, 1);
    run.watch(|gauge| {
        rest(200.min(idle));
        let mut burst = Herd::new(gauge, 43, STRUCTURES);
        burst.grow(&SMALL, bytes);
        rest(200.min(idle));
        drop(burst);
        gauge.mark_freed();
        rest(idle);
    });
}

/// One block in twenty stays, and keeps its surroundings. Then other sizes, until as much is live as before.
pub(super) fn survivors(run: &mut Run) {
    let bytes = run.pick(1 << 30, 128 << 20, 64 << 10);
    let idle = run.pick(3000, 2500, 1);
    run.watch(|gauge| {
        rest(200.min(idle));
        let mut herd = Herd::new(gauge, 47, STRUCTURES);
        herd.grow(&SMALL, bytes);
        rest(200.min(idle));
        herd.thin(20);
        gauge.mark_freed();
        rest(idle);
        herd.grow(&RECORDS, bytes);
        rest(idle / 3);
        gauge.mark_end();
    });
}

/// Growth and shrinking in turn, each time with blocks of other sizes and after another pause.
pub(super) fn sawtooth(run: &mut Run) {
    /// Milliseconds of rest when most has been freed: shorter and longer than allocators wait before they give back.
    const RESTS: [u64; 4] = [250, 500, 1000, 2000];
    const MIXES: [&Mix; 4] = [&SMALL, &RECORDS, &STRINGS, &BUFFERS];
    let (bytes, teeth) = run.pick((256 << 20, 8), (64 << 20, 4), (1 << 20, 4));
    let slower = run.pick(1, 4, 1000);
    let idle = run.pick(3000, 2500, 1);
    // One of them stays until the next tooth, another one each time.
    let structures = 16;
    run.watch(|gauge| {
        let mut herd = Herd::new(gauge, 53, structures);
        for tooth in 0..teeth {
            rest(RESTS[tooth % RESTS.len()] / slower);
            herd.grow(MIXES[tooth % MIXES.len()], bytes);
            rest(250 / slower);
            for structure in (0..structures).filter(|index| *index != tooth) {
                herd.clear(structure);
            }
        }
        rest(idle);
        gauge.mark_end();
    });
}

/// A server's life: it starts, warms its caches, serves, runs a batch job beside, and serves on. Its work is spread over
/// time, so that it is the same under a slow allocator as under a fast one.
pub(super) fn phases(run: &mut Run) {
    let megabyte = run.pick(1 << 20, 1 << 18, 1 << 10);
    let second = Duration::from_millis(run.pick(1000, 250, 2));
    let steps = run.pick(100, 25, 2);
    let churned = run.pick(2000, 500, 10);
    run.watch(|gauge| {
        let (mut start, mut cache, mut sessions) = (
            Herd::new(gauge, 59, STRUCTURES),
            Herd::new(gauge, 61, 4096),
            Herd::new(gauge, 67, 4096),
        );

        // Configuration and code are read; little of what that took is needed later.
        paced(second, steps, |step| start.grow(&STRINGS, 96 * megabyte * step / steps));
        start.thin(10);

        paced(2 * second, steps, |step| cache.grow(&RECORDS, 192 * megabyte * step / steps));

        paced(second, steps, |step| sessions.grow(&SMALL, 48 * megabyte * step / steps));
        let serve = |sessions: &mut Herd<'_>, cache: &mut Herd<'_>| {
            sessions.churn(&SMALL, churned);
            cache.churn(&RECORDS, churned / 8);
        };
        paced(2 * second, 2 * steps, |_| serve(&mut sessions, &mut cache));

        let mut batch = Herd::new(gauge, 71, STRUCTURES);
        paced(second, steps, |step| {
            batch.grow(&BUFFERS, 256 * megabyte * step / steps);
            serve(&mut sessions, &mut cache);
        });
        drop(batch);

        // The night: most sessions end.
        paced(second, steps, |_| serve(&mut sessions, &mut cache));
        sessions.thin(4);
        paced(2 * second, 2 * steps, |_| serve(&mut sessions, &mut cache));
        gauge.mark_end();
    });
}

/// Does nothing for so many milliseconds.
fn rest(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// Calls `step` with 1 to `steps`, evenly spaced over `span`. Late steps are made up for.
fn paced(span: Duration, steps: usize, mut step: impl FnMut(usize)) {
    let start = Instant::now();
    for index in 1..=steps {
        step(index);
        let due = start + span * index as u32 / steps as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
