//! How long a sheaf stays idle before it is emptied.
//!
//! Hits are not counted, so a sheaf that serves only pairs of an allocation and a free looks idle.
//! Emptying it interrupts its CPU, and the next allocation refills it. Therefore a sheaf that is
//! refilled soon after it was emptied is left alone twice as long the next time.

/// The state of a sheaf that is kept between decay windows, in a byte. It starts as zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Idle {
    /// Log2 of the number of idle windows after which the sheaf is emptied.
    patience: u8,
    /// Whether the sheaf was emptied, and not used since.
    is_emptied: bool,
    /// Windows since the sheaf was emptied, or else windows in which it was idle, up to
    /// [`Idle::MOST`].
    windows: u8,
}

/// The use of a sheaf in a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It holds no objects.
    Empty,
    /// It was refilled or flushed, or its level changed.
    Busy,
    /// It holds as many objects as before, and was neither refilled nor flushed.
    Unchanged,
}

impl Idle {
    /// Largest `patience`. With it, a sheaf is emptied after a second and a half, if a window is a
    /// tenth of a second.
    const MOST_PATIENCE: u8 = 4;
    /// Most windows that are counted. After as many windows without use, an emptied sheaf returns
    /// to the initial state.
    const MOST: u8 = 15;

    /// Records the use of a sheaf in the window that ends. Returns whether the sheaf must be
    /// emptied.
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

    /// Returns the state as a byte.
    pub(crate) fn to_byte(self) -> u8 {
        self.patience << 5 | u8::from(self.is_emptied) << 4 | self.windows
    }

    /// Returns the state that [`Idle::to_byte`] encoded.
    pub(crate) fn from_byte(byte: u8) -> Idle {
        Idle { patience: byte >> 5, is_emptied: byte >> 4 & 1 != 0, windows: byte & 0xf }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends `windows` windows of a sheaf that one pair of an allocation and a free uses in each.
    /// Returns how often the sheaf was emptied.
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
    fn sheaf_of_pairs_is_emptied_ever_less_often() {
        let mut idle = Idle::default();
        assert!(pairs(&mut idle, 40) <= 6);
        assert!(pairs(&mut idle, 160) <= 10);
    }

    #[test]
    fn unused_sheaf_is_emptied_after_one_window() {
        let mut idle = Idle::default();
        assert!(!idle.end_window(Seen::Busy) && idle.end_window(Seen::Unchanged));
    }

    #[test]
    fn long_empty_sheaf_starts_afresh() {
        let mut idle = Idle::default();
        pairs(&mut idle, 100);
        while !idle.end_window(Seen::Unchanged) {}
        (0..=Idle::MOST).for_each(|_| assert!(!idle.end_window(Seen::Empty)));
        assert_eq!(idle, Idle::default());
    }
}
