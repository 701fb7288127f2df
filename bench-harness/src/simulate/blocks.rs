//! The blocks of a trace during a simulation, and the CPUs that wait for them.

use std::collections::HashMap;

use super::machine::Time;
use super::store::Object;

/// The state of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Block {
    Unborn,
    Live(Object),
    Freed,
}

/// All blocks, by their numbers.
pub(super) struct Blocks {
    /// State of each block, and the time of its last change.
    states: Vec<(Block, Time)>,
    /// CPU that waits for a block to change.
    waiting: HashMap<u32, usize>,
}

impl Blocks {
    /// Returns `count` blocks that are not allocated yet.
    pub(super) fn new(count: usize) -> Self {
        Self { states: vec![(Block::Unborn, 0); count], waiting: HashMap::new() }
    }

    /// Returns the state of a block.
    pub(super) fn state(&self, number: u32) -> Block {
        self.states[number as usize].0
    }

    /// Returns the time of a block's last change.
    pub(super) fn changed(&self, number: u32) -> Time {
        self.states[number as usize].1
    }

    /// Makes a CPU wait for the next change of a block.
    pub(super) fn wait(&mut self, number: u32, cpu: usize) {
        self.waiting.insert(number, cpu);
    }

    /// Changes a block, and returns the CPU that waits for the change. That CPU no longer waits.
    pub(super) fn change(&mut self, number: u32, block: Block, time: Time) -> Option<usize> {
        self.states[number as usize] = (block, time);
        self.waiting.remove(&number)
    }

    /// Returns the objects of all live blocks.
    #[cfg(test)]
    pub(super) fn live(&self) -> impl Iterator<Item = Object> {
        self.states.iter().filter_map(|(block, _)| match block {
            Block::Live(object) => Some(*object),
            _ => None,
        })
    }
}
