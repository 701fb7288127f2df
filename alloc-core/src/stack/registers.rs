//! The registers of a frame, as far as they are known.

use crate::arch::frames::{CODE, REGISTERS};

/// Why a walk does not continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// The frame is the outermost one, or nothing leads further.
    End,
    /// A register is needed whose value was not followed.
    Lost,
}

/// Registers by their numbers in tables of stack frames.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    values: [usize; REGISTERS],
    /// The bits of those that are known.
    known: u64,
}

impl Registers {
    pub(super) fn new(values: &[usize; REGISTERS], known: u64) -> Registers {
        Registers { values: *values, known }
    }

    #[inline]
    pub(super) fn get(&self, number: usize) -> Result<usize, Stop> {
        match self.values.get(number) {
            Some(value) if self.known >> number & 1 != 0 => Ok(*value),
            _ => Err(Stop::Lost),
        }
    }

    #[inline]
    pub(super) fn set(&mut self, number: usize, value: usize) {
        if let Some(to) = self.values.get_mut(number) {
            *to = value;
            self.known |= 1 << number;
        }
    }

    /// Forgets the registers whose bits are not in `kept`.
    #[inline]
    pub(super) fn keep(&mut self, kept: u64) {
        self.known &= kept;
    }

    /// Returns the instruction pointer.
    #[inline]
    pub(super) fn code(&self) -> usize {
        self.values.get(CODE).copied().unwrap_or(0)
    }
}
