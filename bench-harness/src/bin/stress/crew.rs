//! The supervisor: keeps one worker running per lane, and prints the progress each second.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use hayloft_core::{cpu, heap};

use crate::companion::{Companion, Task};
use crate::failure::{Actor, Role};
use crate::options::{Length, Plan};
use crate::pulse::Pulse;
use crate::totals::{Events, Outcome, Totals};
use crate::watchdog::{self, Watched};
use crate::worker::{Lane, Shared, Worker};
use crate::{irq, relay, signals, visit};

/// Stack size of a thread. Workers nest only shallow calls, and many of them start and end.
const STACK: usize = 256 << 10;

/// Interval between two lines of progress.
const SECOND: Duration = Duration::from_secs(1);

/// A worker's report at its end.
struct Finished {
    thread: u32,
    totals: Totals,
}

/// The current worker of a lane.
struct Post<'scope> {
    handle: Option<ScopedJoinHandle<'scope, ()>>,
    /// Generations begun.
    generations: u32,
    /// Operations still to do; [`u64::MAX`] when the run is limited by time.
    remaining: u64,
}

/// Runs the plan to its end.
pub(crate) fn run(plan: &Plan) -> Outcome {
    let shared = Shared::new(plan.clone());
    let supervisor = Pulse::new();
    visit::SEED.get_or_init(|| plan.seed);
    if plan.modes.signals {
        signals::install();
        // Handlers queue irq work from the first signal on, so the CPU threads must exist.
        cpu::start();
    }
    let start = Instant::now();
    watchdog::watch(watched(&shared, &supervisor), || {
        let (mut totals, threads) = std::thread::scope(|scope| {
            for companion in &shared.companions {
                let run = || companion.run(&shared.plan, &shared.stop);
                spawn(scope, run);
            }
            Crew::new(&shared, scope, &supervisor).run(start)
        });
        signals::HANDLERS.end();
        irq::settle();
        irq::RUN.end();
        supervisor.beat();
        totals += clear(&shared);
        heap::barrier();
        supervisor.beat();
        let events = Events {
            handler_operations: signals::operations(),
            handlers: signals::HANDLERS.beats(),
            irq: irq::counts(),
            deferred: heap::deferred_frees(),
            hotplug_cycles: Companion::done(&shared.companions, Task::Hotplug),
            forks: Companion::done(&shared.companions, Task::Fork),
            destroys: Companion::done(&shared.companions, Task::Caches),
        };
        Outcome {
            totals,
            events,
            threads,
            elapsed: start.elapsed(),
            repeatable: matches!(plan.length, Length::Operations(_)),
        }
    })
}

/// Returns everything whose progress the watchdog checks.
fn watched<'a>(shared: &'a Shared, supervisor: &'a Pulse) -> Vec<Watched<'a>> {
    let mut watched = vec![Watched::new("the supervisor", supervisor)];
    for (thread, lane) in shared.lanes.iter().enumerate() {
        watched.push(Watched::new(format!("thread {thread}"), &lane.operations));
    }
    for companion in &shared.companions {
        watched.push(Watched::new(companion.task.to_string(), &companion.pulse));
    }
    if shared.plan.modes.signals {
        watched.push(Watched::new("signal handlers", &signals::HANDLERS));
        watched.push(Watched::new("irq work", &irq::RUN));
    }
    watched
}

/// Frees the blocks left in the exchange and the relay after all threads have ended. Returns the
/// counts of these frees and of all visits.
fn clear(shared: &Shared) -> Totals {
    let Plan { seed, threads, .. } = shared.plan;
    let last = Actor { seed, role: Role::Worker, thread: threads, generation: 0, operation: 0 };
    let mut totals = visit::totals();
    for block in shared.exchange.drain().chain(relay::drain()) {
        block.free(last);
        totals.frees += 1;
        totals.foreign_frees += 1;
    }
    totals
}

/// Starts a thread with a small stack.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    body: impl FnOnce() + Send + 'scope,
) -> ScopedJoinHandle<'scope, ()> {
    let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, body);
    thread.expect("the system can start a thread")
}

struct Crew<'scope, 'env> {
    shared: &'env Shared,
    scope: &'scope Scope<'scope, 'env>,
    finished: (Sender<Finished>, mpsc::Receiver<Finished>),
    posts: Vec<Post<'scope>>,
    totals: Totals,
    spawned: u64,
    pulse: &'env Pulse,
}

impl<'scope, 'env> Crew<'scope, 'env> {
    fn new(shared: &'env Shared, scope: &'scope Scope<'scope, 'env>, pulse: &'env Pulse) -> Self {
        let remaining = match shared.plan.length {
            Length::Operations(operations) => operations,
            Length::Time(_) => u64::MAX,
        };
        let post = |_| Post { handle: None, generations: 0, remaining };
        Self {
            shared,
            scope,
            finished: mpsc::channel(),
            posts: (0..shared.plan.threads).map(post).collect(),
            totals: Totals::default(),
            spawned: 0,
            pulse,
        }
    }

    /// Runs all workers to their end. Returns the totals and the number of threads started.
    fn run(mut self, start: Instant) -> (Totals, u64) {
        for thread in 0..self.shared.plan.threads {
            self.spawn(thread);
        }
        let end = match self.shared.plan.length {
            Length::Time(time) => Some(start + time),
            Length::Operations(_) => None,
        };
        let mut progress = Progress::new(start);
        while self.posts.iter().any(|post| post.handle.is_some()) {
            self.pulse.beat();
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                self.shared.stop.store(true, Ordering::Relaxed);
            }
            if now >= progress.next {
                progress.print(now, &self.shared.lanes, self.spawned);
            }
            let wake = end.filter(|end| *end > now).map_or(progress.next, |e| e.min(progress.next));
            match self.finished.1.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(finished) => self.replace(finished),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept"),
            }
        }
        // Stops the companions when the number of operations ended the run.
        self.shared.stop.store(true, Ordering::Relaxed);
        (self.totals, self.spawned)
    }

    /// Joins a worker that ended and starts the next generation, unless the run is over.
    fn replace(&mut self, finished: Finished) {
        self.totals += finished.totals;
        let post = &mut self.posts[finished.thread as usize];
        post.remaining = post.remaining.saturating_sub(finished.totals.operations);
        let handle = post.handle.take().expect("this lane had a worker");
        handle.join().expect("a panic ends the process");
        if post.remaining > 0 && !self.shared.stop.load(Ordering::Relaxed) {
            self.spawn(finished.thread);
        } else {
            self.shared.lanes[finished.thread as usize].operations.end();
        }
    }

    /// Starts the next generation of a lane.
    fn spawn(&mut self, thread: u32) {
        let post = &mut self.posts[thread as usize];
        let (shared, finished) = (self.shared, self.finished.0.clone());
        let (generation, limit) = (post.generations, post.remaining);
        post.handle = Some(spawn(self.scope, move || {
            let totals = Worker::new(shared, thread, generation).run(limit);
            // The supervisor outlives every worker, so the receiver still exists.
            let _ = finished.send(Finished { thread, totals });
        }));
        post.generations += 1;
        self.spawned += 1;
    }
}

/// The line printed each second.
struct Progress {
    start: Instant,
    next: Instant,
    before: u64,
    at: Instant,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self { start, next: start + SECOND, before: 0, at: start }
    }

    fn print(&mut self, now: Instant, lanes: &[Lane], spawned: u64) {
        let operations: u64 = lanes.iter().map(|l| l.operations.beats()).sum();
        let live: u64 = lanes.iter().map(|l| l.live_bytes.load(Ordering::Relaxed)).sum();
        let rate = (operations - self.before) as f64 / (now - self.at).as_secs_f64();
        println!(
            "{:>5} s {:>10.0} operations/s {:>12} in all {:>8} threads {:>6} MiB kept",
            (now - self.start).as_secs(),
            rate,
            operations,
            spawned,
            live >> 20,
        );
        self.before = operations;
        self.at = now;
        while self.next <= now {
            self.next += SECOND;
        }
    }
}
