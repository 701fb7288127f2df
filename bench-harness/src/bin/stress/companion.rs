//! Threads beside the workers. Each repeats one task until the run ends.

use std::fmt;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::draw::Rng;
use crate::failure::{Actor, Role};
use crate::options::{Modes, Plan};
use crate::pulse::Pulse;
use crate::signals::Enlisted;
use crate::{caches, forks, hotplug};

/// A thread beside the workers.
#[derive(Debug)]
pub(crate) struct Companion {
    pub(crate) task: Task,
    /// Thread number. These numbers follow the workers' numbers.
    thread: u32,
    pub(crate) pulse: Pulse,
    done: AtomicU64,
}

/// The task of a companion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    Hotplug,
    Fork,
    Caches,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Hotplug => "hotplug",
            Task::Fork => "forks",
            Task::Caches => "caches",
        })
    }
}

impl Companion {
    /// Returns the companions that a plan asks for.
    pub(crate) fn all(plan: &Plan) -> Box<[Companion]> {
        let Modes { hotplug, fork, caches, .. } = plan.modes;
        let tasks = [(hotplug, Task::Hotplug, 1), (fork, Task::Fork, 1), (caches, Task::Caches, 3)];
        let wanted = tasks.into_iter().filter(|(wanted, ..)| *wanted);
        let wanted = wanted.flat_map(|(_, task, count)| iter::repeat_n(task, count));
        let companion = |(thread, task)| Companion {
            task,
            thread,
            pulse: Pulse::new(),
            done: AtomicU64::new(0),
        };
        (plan.threads..).zip(wanted).map(companion).collect()
    }

    /// Returns the work that a task has done so far: hotplug cycles, forks, or caches destroyed.
    pub(crate) fn done(companions: &[Companion], task: Task) -> u64 {
        let of_task = companions.iter().filter(|companion| companion.task == task);
        of_task.map(|companion| companion.done.load(Ordering::Relaxed)).sum()
    }

    /// Repeats the task until the run ends.
    pub(crate) fn run(&self, plan: &Plan, stop: &AtomicBool) {
        let _enlisted = plan.modes.signals.then(|| Enlisted::new(self.thread, 0));
        let mut rng = Rng::of_worker(plan.seed, self.thread, 0);
        let Plan { seed, .. } = *plan;
        let mut actor =
            Actor { seed, role: Role::Worker, thread: self.thread, generation: 0, operation: 0 };
        while !stop.load(Ordering::Relaxed) {
            let done = match self.task {
                Task::Hotplug => hotplug::cycle(&mut rng),
                Task::Fork => forks::cycle(&mut rng, actor),
                Task::Caches => caches::cycle(&mut rng, actor, false),
            };
            actor.operation += 1;
            self.done.fetch_add(done, Ordering::Relaxed);
            self.pulse.beat();
        }
        self.pulse.end();
    }
}
