//! The events of a simulation, in the order of their times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::machine::Time;

/// An event of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Event {
    /// The CPU continues with its step.
    Go,
    /// The CPU releases a lock.
    Release(usize),
    /// The CPU has spun for long enough, if it is still in the wait of that number.
    GiveUp(usize, u32),
    /// The CPU has slept.
    Retry(usize),
}

/// The pending events. Events of the same time happen in the order in which they were scheduled.
#[derive(Default)]
pub(super) struct Events {
    pending: BinaryHeap<Reverse<(Time, u64, usize, Event)>>,
    scheduled: u64,
}

impl Events {
    /// Schedules an event of `cpu`.
    pub(super) fn schedule(&mut self, time: Time, cpu: usize, event: Event) {
        self.scheduled += 1;
        self.pending.push(Reverse((time, self.scheduled, cpu, event)));
    }

    /// Removes the next event, and returns its time, its CPU and the event.
    pub(super) fn pop(&mut self) -> Option<(Time, usize, Event)> {
        let Reverse((time, _, cpu, event)) = self.pending.pop()?;
        Some((time, cpu, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_time_and_then_in_order() {
        let mut events = Events::default();
        for (time, cpu) in [(7, 0), (5, 1), (7, 2), (5, 3)] {
            events.schedule(time, cpu, Event::Go);
        }
        let order: Vec<(Time, usize)> =
            std::iter::from_fn(|| events.pop()).map(|(time, cpu, _)| (time, cpu)).collect();
        assert_eq!(order, [(5, 1), (5, 3), (7, 0), (7, 2)]);
    }
}
