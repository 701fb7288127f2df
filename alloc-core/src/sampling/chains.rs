//! Hash chains without a lock, of entries that are kept for the life of the process.
//!
//! An entry has a number other than 0, and a link: the number of the next entry of its chain, or 0.
//! It is linked by one exchange once it is complete, so all operations work in any context.

use core::iter;
use core::sync::atomic::{AtomicU32, Ordering};

/// The first entry of each chain.
pub(super) struct Chains<const COUNT: usize>([AtomicU32; COUNT]);

/// An entry that [`Chains::find`] found or linked.
pub(super) struct Found {
    pub(super) number: u32,
    /// An entry that was made but not linked, as another thread linked an equal one first.
    pub(super) spare: Option<u32>,
}

impl<const COUNT: usize> Chains<COUNT> {
    pub(super) const fn new() -> Chains<COUNT> {
        Chains([const { AtomicU32::new(0) }; COUNT])
    }

    /// Returns the entry for which `is_same` holds, of those with this hash. Links the one that
    /// `make` returns if there is none; `None` if it returns none. `link` returns an entry's link.
    pub(super) fn find(
        &self,
        hash: u64,
        link: impl Fn(u32) -> &'static AtomicU32,
        is_same: impl Fn(u32) -> bool,
        make: impl Fn() -> Option<u32>,
    ) -> Option<Found> {
        let head = self.0.get((hash >> 40) as usize % COUNT)?;
        let mut made = None;
        // Acquire, here and below: pairs with the Release that links an entry.
        let mut first = head.load(Ordering::Acquire);
        let mut checked = 0;
        loop {
            let mut number = first;
            while number != checked && number != 0 {
                if is_same(number) {
                    return Some(Found { number, spare: made });
                }
                number = link(number).load(Ordering::Relaxed);
            }
            checked = first;
            if made.is_none() {
                made = make();
            }
            let made = made?;
            link(made).store(first, Ordering::Relaxed);
            match head.compare_exchange(first, made, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return Some(Found { number: made, spare: None }),
                // Other entries were linked meanwhile, perhaps the one that is looked for.
                Err(now) => first = now,
            }
        }
    }

    /// Returns all linked entries.
    pub(super) fn all(
        &self,
        link: impl Fn(u32) -> &'static AtomicU32 + Copy,
    ) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(move |head| {
            let exists = |number: u32| (number != 0).then_some(number);
            // Acquire: pairs with the Release that links an entry.
            iter::successors(exists(head.load(Ordering::Acquire)), move |number| {
                exists(link(*number).load(Ordering::Relaxed))
            })
        })
    }
}

/// Returns the hash of a sequence of numbers, which depends on `start`.
pub(super) fn hash(start: u64, numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(start, |hash, number| {
        (hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}
