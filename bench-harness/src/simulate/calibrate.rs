//! Measures the parameters of the model on this machine.

use std::alloc::Layout;
use std::hint::{black_box, spin_loop};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hayloft_core::kmalloc;
use hayloft_core::size_class::MAX_MIDDLE;

use super::machine::{Costs, Topology};
use super::model::Model;
use super::outcome::Counts;
use super::real::{self, least};
use super::setup::Setup;
use super::trace::{Trace, bursts, class_of_size, shuffled_bursts};

/// Repetitions of each measurement, of which the least counts.
const ROUNDS: usize = 25;

/// Returns `costs` with everything replaced that can be measured here.
pub fn calibrate(costs: Costs) -> Costs {
    let mut costs = costs;
    costs.lock = lock();
    costs.spin = spin();
    costs.page = (page() - costs.lock).max(0.0);
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        costs = line(costs);
        (costs.sleep, costs.wake, costs.wake_up) = futex();
    }
    single(costs)
}

/// Measures the transfer of a cache line between the first two cores. It varies: a hypervisor may
/// move them nearer to each other, or farther away.
pub fn line(mut costs: Costs) -> Costs {
    costs.line[0] = ping_pong();
    costs.stream = (stream() / costs.line[0]).min(1.0);
    costs
}

/// Measures the costs of the operations of one CPU. Bursts are replayed and simulated, and the time
/// of each is explained by its counted operations.
fn single(mut costs: Costs) -> Costs {
    let within = bursts(1, class_of_size(64), 100, 10, 200);
    let (hayloft, nothing) = real::measure(&within, ROUNDS);
    costs.hit = (hayloft - nothing) / (2.0 * within.pairs());

    let class = class_of_size;
    let traces = [
        // From the barn: batches of 128, of 32, of 16.
        bursts(1, class(64), 1000, 10, 30),
        bursts(1, class(256), 250, 10, 100),
        bursts(1, class(768), 120, 10, 200),
        // From slabs, with neighbouring objects in a row.
        bursts(1, class(64), 10_000, 2, 10),
        bursts(1, class(32), 20_000, 2, 5),
        bursts(1, class(256), 3000, 2, 20),
        bursts(1, class(768), 1000, 2, 50),
        // From slabs, in random order.
        shuffled_bursts(class(64), 10_000, 2, 10),
        shuffled_bursts(class(256), 3000, 2, 20),
        shuffled_bursts(class(768), 1000, 2, 50),
        // With few objects per slab.
        bursts(1, class(4096), 300, 2, 50),
        bursts(1, class(8192), 120, 2, 50),
        shuffled_bursts(class(4096), 300, 2, 50),
    ];
    let rows: Vec<Row> = traces.iter().map(|trace| Row::of(trace, costs)).collect();
    let solved = explain(&rows);
    [costs.slow, costs.copy, costs.bit, costs.visit, costs.make] = solved;
    for row in &rows {
        let explained: f64 = row.did.iter().zip(solved).map(|(count, cost)| count * cost).sum();
        eprintln!("a burst took {:9.0} ns, explained {explained:9.0} ns", row.took);
    }
    costs
}

const UNKNOWN: usize = 5;

/// The counted operations of a trace, and their time without the part explained by known costs.
struct Row {
    did: [f64; UNKNOWN],
    took: f64,
}

impl Row {
    fn of(trace: &Trace, costs: Costs) -> Self {
        let topology = Topology { per_cache: 1, per_socket: 1, per_store: 1, stores: 1 };
        let Counts { hit, slow, lock, copy, bit, visit, page, make } =
            Model::new(trace, &Setup::new(topology, costs, 0.0)).run().counts;
        let (hayloft, nothing) = real::measure(trace, ROUNDS);
        let known = hit as f64 * costs.hit + lock as f64 * costs.lock + page as f64 * costs.page;
        let did = [slow, copy, bit, visit, make].map(|count| count as f64);
        Self { did, took: hayloft - nothing - known }
    }
}

/// Returns the non-negative costs that explain the rows best: least squares of the relative errors,
/// improving one cost after the other until they converge.
fn explain(rows: &[Row]) -> [f64; UNKNOWN] {
    let mut costs = [0.0; UNKNOWN];
    for _ in 0..100_000 {
        for unknown in 0..UNKNOWN {
            let (mut over, mut under) = (0.0, 0.0);
            for row in rows {
                let weight = 1.0 / (row.took * row.took).max(1.0);
                let others: f64 = (0..UNKNOWN)
                    .filter(|at| *at != unknown)
                    .map(|at| row.did[at] * costs[at])
                    .sum();
                over += weight * row.did[unknown] * (row.took - others);
                under += weight * row.did[unknown] * row.did[unknown];
            }
            costs[unknown] = if under > 0.0 { (over / under).max(0.0) } else { 0.0 };
        }
    }
    costs
}

/// Returns the nanoseconds of one call among `count` consecutive ones.
fn each(count: u32, mut body: impl FnMut()) -> f64 {
    let lap = |_| {
        let start = Instant::now();
        for _ in 0..count {
            body();
        }
        start.elapsed().as_nanos() as f64 / f64::from(count)
    };
    least((0..ROUNDS).map(lap).collect())
}

fn lock() -> f64 {
    let word = AtomicU32::new(0);
    each(20_000, || {
        let word = black_box(&word);
        let _ = word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        word.swap(0, Ordering::Release);
    })
}

/// Returns the cost of taking or freeing a run.
fn page() -> f64 {
    let layout = Layout::from_size_align(2 * MAX_MIDDLE, 8).expect("a valid layout");
    each(5_000, || {
        let run = black_box(kmalloc::alloc(layout));
        // SAFETY: the line above allocated `run` with this layout, and nothing else frees it.
        unsafe { kmalloc::free(run, layout) };
    }) / 2.0
}

fn spin() -> f64 {
    let word = AtomicU32::new(0);
    each(20_000, || {
        black_box(black_box(&word).load(Ordering::Relaxed));
        spin_loop();
    })
}

/// Runs both functions at once on the first two cores, and returns the result of the first.
fn on_two_cores<R: Send>(first: impl FnOnce() -> R + Send, second: impl FnOnce() + Send) -> R {
    let pin = |index: usize| {
        if let Some(core) = core_affinity::get_core_ids().and_then(|ids| ids.get(index).copied()) {
            core_affinity::set_for_current(core);
        }
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(move || {
            pin(0);
            first()
        });
        scope.spawn(move || {
            pin(1);
            second();
        });
        first.join().expect("no thread panics here")
    })
}

#[repr(align(128))]
struct Own<T>(T);

/// Returns the transfer time of a line from one core to the other: half of a round trip.
fn ping_pong() -> f64 {
    const TRIPS: u64 = 5_000;
    let lap = |_| {
        let line = Own(AtomicU64::new(0));
        let turn = |own: u64| {
            for trip in 0..TRIPS {
                while line
                    .0
                    .compare_exchange(
                        2 * trip + own,
                        2 * trip + own + 1,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    )
                    .is_err()
                {}
            }
        };
        let timed = || {
            let start = Instant::now();
            turn(0);
            start.elapsed().as_nanos() as f64 / (2 * TRIPS) as f64
        };
        on_two_cores(timed, || turn(1))
    };
    least((0..ROUNDS).map(lap).collect())
}

/// Returns the additional time for each line of a buffer that the other core has written.
fn stream() -> f64 {
    (pass_over(true) - pass_over(false)).max(0.0)
}

/// Returns the time per line to read and write buffers. With `by_other`, the other core has written
/// them before.
fn pass_over(by_other: bool) -> f64 {
    // About as many lines as a batch of pointers has.
    const LINES: usize = 16;
    const BUFFERS: usize = 256;
    const PASSES: u64 = 20;
    let lap = |_| {
        let words: Vec<AtomicU64> = (0..LINES * BUFFERS * 8).map(|_| AtomicU64::new(0)).collect();
        let barrier = Barrier::new(2);
        let read = || {
            let mut times = Vec::new();
            for pass in 0..PASSES {
                barrier.wait();
                let start = Instant::now();
                // Visits the buffers in scattered order, so that only the lines within one buffer
                // are consecutive.
                for buffer in (0..BUFFERS).map(|buffer| buffer * 77 % BUFFERS) {
                    let lines = &words[buffer * LINES * 8..(buffer + 1) * LINES * 8];
                    for word in lines {
                        black_box(word.load(Ordering::Relaxed));
                    }
                    lines.iter().step_by(8).for_each(|word| word.store(pass, Ordering::Relaxed));
                }
                times.push(start.elapsed().as_nanos() as f64 / (LINES * BUFFERS) as f64);
                barrier.wait();
            }
            least(times)
        };
        let write = || {
            for pass in 0..PASSES {
                if by_other {
                    words.iter().for_each(|word| word.store(pass, Ordering::Relaxed));
                }
                barrier.wait();
                barrier.wait();
            }
        };
        on_two_cores(read, write)
    };
    least((0..ROUNDS).map(lap).collect())
}

/// Returns the cost of a call that goes to sleep but returns at once, the cost of a wake, and the
/// time from a wake until the other thread runs.
fn futex() -> (f64, f64, f64) {
    let word = AtomicU32::new(0);
    let sleep = each(20_000, || {
        // The call returns at once, since the word has another value. A real sleep also releases
        // the core.
        futex_call(&word, libc::FUTEX_WAIT, 1);
    });
    let trips: u32 = 300;
    let lap = |_| {
        let (one, other) = (Own(AtomicU32::new(0)), Own(AtomicU32::new(0)));
        let pass = |word: &AtomicU32, trip: u32| {
            word.store(trip, Ordering::Release);
            let start = Instant::now();
            futex_call(word, libc::FUTEX_WAKE, 1);
            start.elapsed()
        };
        let wait = |word: &AtomicU32, trip: u32| {
            while word.load(Ordering::Acquire) < trip {
                futex_call(word, libc::FUTEX_WAIT, trip - 1);
            }
        };
        let timed = || {
            let start = Instant::now();
            let mut wakes = Duration::ZERO;
            for trip in 1..=trips {
                wakes += pass(&one.0, trip);
                wait(&other.0, trip);
            }
            let trip = start.elapsed().as_nanos() as f64 / f64::from(2 * trips);
            (wakes.as_nanos() as f64 / f64::from(trips), trip)
        };
        let answers = || {
            for trip in 1..=trips {
                wait(&one.0, trip);
                pass(&other.0, trip);
            }
        };
        on_two_cores(timed, answers)
    };
    let laps: Vec<(f64, f64)> = (0..ROUNDS).map(lap).collect();
    let wake = least(laps.iter().map(|lap| lap.0).collect());
    let trip = least(laps.iter().map(|lap| lap.1).collect());
    (sleep, wake, (trip - wake).max(0.0))
}

fn futex_call(word: &AtomicU32, operation: libc::c_int, value: u32) {
    // SAFETY: the word is a live atomic, and a null timeout means none.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_recovers_known_costs() {
        let costs = [3.0, 0.5, 5.0, 0.0, 7.0];
        let rows: Vec<Row> = (0..12u32)
            .map(|row| {
                let did = std::array::from_fn(|at| {
                    f64::from((row * 7 + at as u32 * 5 + row * at as u32) % 11)
                });
                let took =
                    did.iter().zip(costs).map(|(count, cost): (&f64, f64)| count * cost).sum();
                Row { did, took }
            })
            .collect();
        for (found, cost) in explain(&rows).iter().zip(costs) {
            assert!((found - cost).abs() < 0.01, "found {found}, expected {cost}");
        }
    }
}
