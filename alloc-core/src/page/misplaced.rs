//! Why no block in use starts at an address, for the messages about wrong frees.

use core::fmt;

use super::arena::Arena;
use super::descriptor::RunState;
use super::reserve::BLOCK;
use crate::os;
use crate::size_class::UNIT_SHIFT;
use crate::sync::Context;

/// The reason why no block in use starts at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Misplaced {
    /// The address lies in free memory of this many bytes.
    Free(usize),
    /// The address lies in a run in use that starts at the pointer and has this many bytes.
    Within(*mut u8, usize),
    /// The address was never part of a run, or the reason cannot be determined.
    Unknown,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Misplaced::Free(bytes) => write!(formatter, "double free, among {bytes} free bytes"),
            Misplaced::Within(start, bytes) => {
                write!(formatter, "in the midst of a block of {bytes} bytes at {start:p}")
            }
            Misplaced::Unknown => formatter.write_str("no block starts there"),
        }
    }
}

impl Arena {
    /// Ends the process, since a unit was freed at which no run in use starts.
    #[cold]
    pub(super) fn misused(&self, context: Context, index: u32) -> ! {
        let (address, misplaced) =
            (self.units.arrays().address(index), self.misplaced(context, index));
        os::abort(format_args!("free of {address:p}: {misplaced}"))
    }

    /// Explains why no block in use starts in unit `index`.
    pub(super) fn misplaced(&self, context: Context, index: u32) -> Misplaced {
        let Some(_units) = self.free_runs.acquire(context) else { return Misplaced::Unknown };
        let (mut at, end) = match self.units.reserved_block(index) {
            Some(_) => (self.units.arrays().reserve, self.units.arrays().units),
            None => (1, self.units.committed()),
        };
        while at <= index && at < end {
            // A block of the reserve is taken and committed as a whole, or not at all.
            let is_run = self.units.reserved_block(at).is_none_or(|block| self.reserve.has(block));
            // SAFETY: `at` is the first unit of a run and committed; the lock is held.
            let run = is_run.then(|| unsafe { self.units.tag(at) });
            let (len, state) = match (run, self.units.reserved_block(at)) {
                (Some((state, len)), None) => (len, state),
                (Some((state, len)), Some(_)) => (len.next_multiple_of(BLOCK), state),
                (None, _) => (BLOCK, RunState::Silent),
            };
            if index - at < len {
                let bytes = (len as usize) << UNIT_SHIFT;
                return match state {
                    RunState::Used => {
                        Misplaced::Within(self.units.arrays().address(at).as_ptr(), bytes)
                    }
                    RunState::Dirty | RunState::Clean | RunState::Leaving => Misplaced::Free(bytes),
                    RunState::Silent => Misplaced::Unknown,
                };
            }
            at += len.max(1);
        }
        Misplaced::Unknown
    }
}
