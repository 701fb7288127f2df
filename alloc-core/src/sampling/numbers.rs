//! A stack of numbers without a lock: free slots or records. All operations work in any context.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A stack of numbers below a bound, each of which has a link of its own. Numbers that were never
/// pushed are popped in order when the stack is empty.
pub(super) struct Numbers {
    /// The topmost number plus one in the lower half, or 0. The upper half counts the changes, so
    /// that an exchange fails if the top was popped and pushed again meanwhile.
    top: AtomicU64,
    /// Number of numbers that were popped at least once.
    fresh: AtomicU32,
}

/// A change, as counted in the upper half of `top`.
const CHANGE: u64 = 1 << 32;

impl Numbers {
    pub(super) const fn new() -> Numbers {
        Numbers { top: AtomicU64::new(0), fresh: AtomicU32::new(0) }
    }

    /// Pushes a number that nobody else uses.
    pub(super) fn push<'a>(&self, number: u32, link: impl Fn(u32) -> &'a AtomicU32) {
        // Release: pairs with the Acquire in `reused`, for the link and for what the number names.
        let _ = self.top.fetch_update(Ordering::Release, Ordering::Relaxed, |top| {
            link(number).store(top as u32, Ordering::Relaxed);
            Some((top & !(CHANGE - 1)).wrapping_add(CHANGE) | u64::from(number + 1))
        });
    }

    /// Pops a number that was pushed.
    pub(super) fn reused<'a>(&self, link: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        let next = |top: u64| {
            let number = (top as u32).checked_sub(1)?;
            // Perhaps it was popped meanwhile and its link is another: then the exchange fails.
            let below = link(number).load(Ordering::Relaxed);
            Some((top & !(CHANGE - 1)).wrapping_add(CHANGE) | u64::from(below))
        };
        // Acquire: pairs with the Release in `push`.
        let top = self.top.fetch_update(Ordering::Acquire, Ordering::Acquire, next).ok()?;
        (top as u32).checked_sub(1)
    }

    /// Takes a number below `bound` that was never popped.
    pub(super) fn fresh(&self, bound: u32) -> Option<u32> {
        let next = |fresh: u32| (fresh < bound).then_some(fresh + 1);
        self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// Takes all numbers below `bound` that were never popped, and returns the first of them.
    pub(super) fn take_fresh(&self, bound: u32) -> u32 {
        self.fresh.swap(bound, Ordering::Relaxed)
    }

    /// Returns the number of numbers that were popped at least once: all of them are below it.
    pub(super) fn taken(&self) -> u32 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Pops a number that was pushed, or else takes one below `bound` that was never popped.
    pub(super) fn pop<'a>(&self, bound: u32, link: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        self.reused(link).or_else(|| self.fresh(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn numbers_are_popped_once() {
        const BOUND: u32 = 40;
        let links: Vec<_> = (0..BOUND).map(|_| AtomicU32::new(0)).collect();
        let held: Vec<_> = (0..BOUND).map(|_| AtomicU32::new(0)).collect();
        let stack = Numbers::new();
        let rounds = if cfg!(miri) { 30 } else { 30_000 };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let link = |number: u32| &links[number as usize];
                    for round in 0..rounds {
                        let count = 1 + round % 13;
                        let popped: Vec<_> =
                            (0..count).map(|_| stack.pop(BOUND, link).unwrap()).collect();
                        for number in popped {
                            let by = &held[number as usize];
                            assert_eq!(by.fetch_add(1, Ordering::Relaxed), 0, "{number} twice");
                            by.fetch_sub(1, Ordering::Relaxed);
                            stack.push(number, link);
                        }
                    }
                });
            }
        });
        let all = (0..BOUND).map(|_| stack.pop(BOUND, |number| &links[number as usize]));
        assert_eq!(all.collect::<Option<Vec<_>>>().unwrap().len(), BOUND as usize);
        assert_eq!(stack.pop(BOUND, |number| &links[number as usize]), None);
    }
}
