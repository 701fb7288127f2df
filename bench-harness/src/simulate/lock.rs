//! A model of the lock of `hayloft-core`: a word that CPUs try, spin on, and then sleep on in a
//! futex.

use std::collections::VecDeque;

use super::machine::{Distances, Here, SharedLine, Time};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Free,
    Held,
    /// Held, and its release must wake a sleeper.
    Contended,
}

/// A lock, and the CPUs that wait for it.
pub(super) struct Lock {
    word: Word,
    /// Line of the word. It also holds the length of a barn.
    line: SharedLine,
    spinners: VecDeque<usize>,
    sleepers: VecDeque<usize>,
}

/// The effects of a release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Released {
    /// CPU that has the lock now, and the time until it notices.
    pub(super) next: Option<(usize, Time)>,
    /// CPU that is woken, after a while.
    pub(super) woken: Option<usize>,
    /// Whether the release had to call the kernel.
    pub(super) called: bool,
}

impl Lock {
    /// Creates a lock for `cpus` CPUs.
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            word: Word::Free,
            line: SharedLine::new(cpus),
            spinners: VecDeque::new(),
            sleepers: VecDeque::new(),
        }
    }

    /// Reads the line of the word on a CPU, and returns the time for its transfer.
    pub(super) fn look(&mut self, here: Here<'_>) -> Time {
        self.line.read(here)
    }

    /// Requests the lock for a CPU. Returns the transfer time of the word if the CPU gets the lock
    /// at once. Otherwise the CPU spins.
    pub(super) fn come(&mut self, here: Here<'_>) -> Option<Time> {
        if self.word != Word::Free {
            self.spinners.push_back(here.cpu);
            return None;
        }
        self.word = Word::Held;
        Some(self.line.write(here))
    }

    /// Ends the spinning of a CPU. Returns whether it sleeps now; if not, it already has the lock.
    pub(super) fn give_up(&mut self, cpu: usize) -> bool {
        let Some(at) = self.spinners.iter().position(|spinner| *spinner == cpu) else {
            return false;
        };
        self.spinners.remove(at);
        self.word = Word::Contended;
        self.sleepers.push_back(cpu);
        true
    }

    /// Requests the lock for a CPU that has slept: like [`come`](Self::come), but the CPU sleeps
    /// again if it does not get the lock.
    pub(super) fn retry(&mut self, here: Here<'_>) -> Option<Time> {
        // The CPU cannot know whether others sleep, so it takes the lock as contended.
        let was = std::mem::replace(&mut self.word, Word::Contended);
        if was == Word::Free {
            return Some(self.line.write(here));
        }
        self.sleepers.push_back(here.cpu);
        None
    }

    /// Releases the lock. Spinning CPUs get it in the order of their arrival. New arrivals may be
    /// faster than woken sleepers.
    pub(super) fn release(&mut self, holder: usize, distances: &Distances) -> Released {
        let called = self.word == Word::Contended;
        self.word = Word::Free;
        let woken = if called { self.sleepers.pop_front() } else { None };
        let next = self.spinners.pop_front().map(|next| {
            self.word = Word::Held;
            // Three transfers: the holder takes the word back from a waiter that looked at it, the
            // next CPU sees it free, and then takes it. In between, half of the other spinning CPUs
            // look at the word one after the other.
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
        let topology = Topology { per_cache: 8, per_socket: 8, per_store: 8, stores: 1 };
        Distances::new(topology, &Costs { line: [1.0, 2.0, 3.0], ..Costs::recorded() })
    }

    #[test]
    fn lock_is_exclusive_and_every_waiter_gets_it() {
        let distances = distances();
        let here = |cpu| Here { cpu, distances: &distances };
        let mut lock = Lock::new(4);
        assert_eq!(lock.come(here(0)), Some(0));
        assert_eq!([lock.come(here(1)), lock.come(here(2))], [None, None]);
        let released = lock.release(0, &distances);
        assert_eq!(released.next, Some((1, ns(3.5))));
        // CPU 2 has spun for long enough, and sleeps.
        assert!(lock.give_up(2) && !lock.give_up(1));
        let released = lock.release(1, &distances);
        assert_eq!((released.next, released.woken, released.called), (None, Some(2), true));
        // Another CPU is faster, and the sleeper sleeps again.
        assert_eq!(lock.come(here(3)), Some(ns(1.0)));
        assert_eq!(lock.retry(here(2)), None);
        assert_eq!(lock.release(3, &distances).woken, Some(2));
        assert_eq!(lock.retry(here(2)), Some(ns(1.0)));
        // The release calls the kernel without waking any CPU: the holder cannot know.
        let released = lock.release(2, &distances);
        assert_eq!((released.next, released.woken, released.called), (None, None, true));
        assert!(lock.is_idle());
    }
}
