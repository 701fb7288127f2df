//! The lock of `alloc-core` as a model: a word that is tried, spun on, and then slept on in a futex.

use std::collections::VecDeque;

use super::machine::{Distances, Here, SharedLine, Time};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Free,
    Held,
    /// Held, and its release has to wake somebody.
    Contended,
}

/// A lock, and who waits for it.
pub(super) struct Lock {
    word: Word,
    /// The word's line, and what else is in it: the length of a barn.
    line: SharedLine,
    spinners: VecDeque<usize>,
    sleepers: VecDeque<usize>,
}

/// What a release leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Released {
    /// The CPU that has the lock now, and how long it takes until it knows.
    pub(super) next: Option<(usize, Time)>,
    /// The CPU whose sleep ends, after a while.
    pub(super) woken: Option<usize>,
    /// The release had to call the kernel.
    pub(super) called: bool,
}

impl Lock {
    /// One that so many CPUs may take.
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            word: Word::Free,
            line: SharedLine::new(cpus),
            spinners: VecDeque::new(),
            sleepers: VecDeque::new(),
        }
    }

    /// A CPU looks at what is in the line of the word.
    pub(super) fn look(&mut self, here: Here<'_>) -> Time {
        self.line.read(here)
    }

    /// A CPU comes: what the way of the word costs if it has the lock now. If not, it spins.
    pub(super) fn come(&mut self, here: Here<'_>) -> Option<Time> {
        if self.word != Word::Free {
            self.spinners.push_back(here.cpu);
            return None;
        }
        self.word = Word::Held;
        Some(self.line.write(here))
    }

    /// A CPU has spun for long enough; whether it sleeps now. If not, it has the lock already.
    pub(super) fn give_up(&mut self, cpu: usize) -> bool {
        let Some(at) = self.spinners.iter().position(|spinner| *spinner == cpu) else {
            return false;
        };
        self.spinners.remove(at);
        self.word = Word::Contended;
        self.sleepers.push_back(cpu);
        true
    }

    /// A CPU has slept: as [`come`](Self::come), but it sleeps again.
    pub(super) fn retry(&mut self, here: Here<'_>) -> Option<Time> {
        // It cannot know whether others sleep, so it takes the lock as contended.
        let was = std::mem::replace(&mut self.word, Word::Contended);
        if was == Word::Free {
            return Some(self.line.write(here));
        }
        self.sleepers.push_back(here.cpu);
        None
    }

    /// Its holder lets go of it. Those who spin get it in the order in which they came; newcomers may be faster than those who
    /// sleep.
    pub(super) fn release(&mut self, holder: usize, distances: &Distances) -> Released {
        let called = self.word == Word::Contended;
        self.word = Word::Free;
        let woken = if called { self.sleepers.pop_front() } else { None };
        let next = self.spinners.pop_front().map(|next| {
            self.word = Word::Held;
            // The holder takes the word back from a waiter who looked at it; the next one sees it free, and takes it. One half
            // of the others looks at it between, one after the other.
            let looks: Time =
                self.spinners.iter().map(|spinner| distances.between(next, *spinner)).sum();
            let way = distances.between(holder, next);
            self.line.hand_over(next);
            (next, 3 * way + looks / 2)
        });
        Released { next, woken, called }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.word == Word::Free && self.spinners.is_empty() && self.sleepers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::machine::{Costs, Topology, ns};

    fn distances() -> Distances {
        let topology = Topology { per_cache: 8, per_socket: 8, per_depot: 8, depots: 1 };
        Distances::new(topology, &Costs { line: [1.0, 2.0, 3.0], ..Costs::recorded() })
    }

    #[test]
    fn one_has_it_at_a_time_and_each_in_the_end() {
        let distances = distances();
        let here = |cpu| Here { cpu, distances: &distances };
        let mut lock = Lock::new(4);
        assert_eq!(lock.come(here(0)), Some(0));
        assert_eq!([lock.come(here(1)), lock.come(here(2))], [None, None]);
        let released = lock.release(0, &distances);
        assert_eq!(released.next, Some((1, ns(3.5))));
        // The other has spun for long enough, and sleeps.
        assert!(lock.give_up(2) && !lock.give_up(1));
        let released = lock.release(1, &distances);
        assert_eq!((released.next, released.woken, released.called), (None, Some(2), true));
        // Somebody else is faster, and the sleeper sleeps again.
        assert_eq!(lock.come(here(3)), Some(ns(1.0)));
        assert_eq!(lock.retry(here(2)), None);
        assert_eq!(lock.release(3, &distances).woken, Some(2));
        assert_eq!(lock.retry(here(2)), Some(ns(1.0)));
        // It wakes nobody, but does not know.
        let released = lock.release(2, &distances);
        assert_eq!((released.next, released.woken, released.called), (None, None, true));
        assert!(lock.is_idle());
    }
}
