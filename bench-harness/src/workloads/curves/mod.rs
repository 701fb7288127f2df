//! Workloads that are watched, not timed: they show how the memory of a process follows its live
//! bytes.
//!
//! They begin with a short pause and have pauses in between. The pauses are the point: a program
//! that waits should not hold memory that it does not use.
//!
//! | module | holds |
//! |---|---|
//! | `hour` `pipelines` | a simulated hour of a service; threads that free what others allocated |
//! | `herd` | live blocks, in structures that are freed as a whole |
//! | `mix` | mixtures of sizes |

mod herd;
mod hour;
mod mix;
mod pipelines;

pub(super) use hour::{latency as hour_latency, memory as hour};
pub(super) use pipelines::run as pipelines;

use std::thread;
use std::time::{Duration, Instant};

use self::herd::Herd;
use self::mix::{BUFFERS, Mix, RECORDS, SMALL, STRINGS};
use crate::run::Run;

/// Data structures of a burst. Each is freed as a whole, and its blocks lie among those of the
/// others.
const STRUCTURES: usize = 64;

/// Grows from a small heap to a very large one, frees the burst, and idles.
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

/// Keeps one block in twenty, each of which pins the memory around it. Then allocates other sizes,
/// until as much is live as before.
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

/// Grows and shrinks in turn, each time with blocks of other sizes and after another pause.
pub(super) fn sawtooth(run: &mut Run) {
    /// Milliseconds of rest after most blocks were freed: both shorter and longer than the delays
    /// of allocators before they return memory.
    const RESTS: [u64; 4] = [250, 500, 1000, 2000];
    const MIXES: [&Mix; 4] = [&SMALL, &RECORDS, &STRINGS, &BUFFERS];
    let (bytes, teeth) = run.pick((256 << 20, 8), (64 << 20, 4), (1 << 20, 4));
    let slower = run.pick(1, 4, 1000);
    let idle = run.pick(3000, 2500, 1);
    // At each tooth, another one of them survives until the next tooth.
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

/// Lives a server's life: starts, warms its caches, serves, runs a batch job meanwhile, and serves
/// on. The work is spread over time, so that it is the same under slow and fast allocators.
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

        // Reads configuration and code; little of the memory for it stays in use.
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

/// Sleeps for `milliseconds`.
fn rest(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// Calls `step` with 1 to `steps`, evenly spaced over `span`. After a late step, the next ones
/// follow sooner.
fn paced(span: Duration, steps: usize, mut step: impl FnMut(usize)) {
    let start = Instant::now();
    for index in 1..=steps {
        step(index);
        let due = start + span * index as u32 / steps as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
