//! How long a sheaf is idle before it is emptied.
//!
//! Hits are not counted, so a sheaf through which only pairs of an allocation and a free go looks idle. Emptying it interrupts its
//! CPU, and the next allocation refills it. So a sheaf that is refilled soon after it was emptied is left alone twice as long the
//! next time.
//!
//! This file may touch nothing.

/// What is remembered of a sheaf between windows, in a byte; at first all is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Idle {
    /// The sheaf is emptied after 2 to the power of this many windows in which it is idle.
    patience: u8,
    /// The sheaf was emptied, and not used since.
    is_emptied: bool,
    /// Windows since then, or in which it was idle, up to [`Idle::MOST`].
    windows: u8,
}

/// What a sheaf was like in a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It holds nothing.
    Empty,
    /// It was refilled or flushed, or its level changed.
    Busy,
    /// It holds what it held before.
    Unchanged,
}

impl Idle {
    /// Most that `patience` is: a sheaf is emptied after a second and a half, if a window is a tenth of one.
    const MOST_PATIENCE: u8 = 4;
    /// Most windows that are counted; as many after a sheaf was emptied, it is as at first.
    const MOST: u8 = 15;

    /// Notes what a sheaf was like in the window that ends. Returns whether it is to be emptied.
    pub(crate) fn end_window(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Empty if !self.is_emptied => {}
            Seen::Empty if self.windows < Idle::MOST => self.windows += 1,
            Seen::Empty => *self = Idle::default(),
            Seen::Busy => {
                let patience = self.patience + u8::from(self.is_emptied);
                *self = Idle { patience: patience.min(Idle::MOST_PATIENCE), ..Idle::default() };
            }
            Seen::Unchanged => {
                self.windows += 1;
                if self.windows >= 1 << self.patience || self.windows >= Idle::MOST {
                    *self = Idle { patience: self.patience, is_emptied: true, windows: 0 };
                    return true;
                }
            }
        }
        false
    }

    /// Returns it as a byte.
    pub(crate) fn to_byte(self) -> u8 {
        self.patience << 5 | u8::from(self.is_emptied) << 4 | self.windows
    }

    /// The inverse of [`Idle::to_byte`].
    pub(crate) fn from_byte(byte: u8) -> Idle {
        Idle { patience: byte >> 5, is_emptied: byte >> 4 & 1 != 0, windows: byte & 0xf }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Ends so many windows of a sheaf through which a pair goes in each; returns how often it was emptied.
    fn pairs(idle: &mut Idle, windows: usize) -> usize {
        let (mut emptied, mut is_empty) = (0, true);
        for _ in 0..windows {
            let seen = if is_empty { Seen::Busy } else { Seen::Unchanged };
            is_empty = idle.end_window(seen);
            *idle = Idle::from_byte(idle.to_byte());
            emptied += usize::from(is_empty);
        }
        emptied
    }

    #[test]
    fn pairs_are_seen_in_the_end() {
        let mut idle = Idle::default();
        assert!(pairs(&mut idle, 40) <= 6);
        assert!(pairs(&mut idle, 160) <= 10);
    }

    #[test]
    fn what_is_not_used_is_emptied_at_once() {
        let mut idle = Idle::default();
        assert!(!idle.end_window(Seen::Busy) && idle.end_window(Seen::Unchanged));
    }

    #[test]
    fn what_was_long_empty_is_as_at_first() {
        let mut idle = Idle::default();
        pairs(&mut idle, 100);
        while !idle.end_window(Seen::Unchanged) {}
        (0..=Idle::MOST).for_each(|_| assert!(!idle.end_window(Seen::Empty)));
        assert_eq!(idle, Idle::default());
    }
}
