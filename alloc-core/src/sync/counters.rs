//! Counters of what CPUs have to agree on: locks, and writes to cache lines that other CPUs write, too.
//!
//! What an allocator does on many CPUs is decided by how rarely it does this. With the feature `counters` each such step is
//! counted, and [`snapshot`] adds up; without it nothing of this is there. A program counts one of its phases by taking a
//! snapshot before it and one after.
//!
//! Each thread counts on lines of its own, unless there are more threads than [`CELLS`], by relaxed additions: so counting does
//! not make the contention it is to find, may be done in any context, and needs no memory.

#[cfg(feature = "counters")]
pub use cells::{LockCount, Snapshot, WriteCount, snapshot};
#[cfg(feature = "counters")]
pub(crate) use cells::{acquired, contended, wrote};

#[cfg(not(feature = "counters"))]
pub(crate) use nothing::{acquired, contended, wrote};

/// A kind of cache line that several CPUs write. A lock's own line is not among them: acquisitions count for that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "counters"), allow(dead_code, reason = "named, and not counted"))]
pub(crate) enum Line {
    /// How many objects a barn holds.
    BarnLen,
    /// Pointers in a barn.
    BarnObjects,
    /// The lists of partial slabs.
    Partial,
    /// The descriptor of a slab.
    Slab,
    /// A word of a slab's bitmap.
    SlabBitmap,
    /// Slabs that arrive.
    Arrivals,
    /// Whether a node_class was asked for, when that changes.
    NodeClass,
    /// The free runs of an arena.
    Arena,
    /// The reserve of an arena.
    Reserve,
    /// Lists of frees that are put off, and their counters.
    Deferred,
    /// An irq work, or a CPU's queue of them.
    IrqWork,
    /// The sheaves of another CPU.
    Sheaves,
    /// The bell of the thread that gives memory back.
    WakeFlag,
    /// The epoch of those who wait for readers.
    Epoch,
}

#[cfg(not(feature = "counters"))]
mod nothing {
    use super::super::LockClass;
    use super::Line;

    #[inline(always)]
    pub(crate) fn acquired(_: LockClass) {}

    #[inline(always)]
    pub(crate) fn contended(_: LockClass) {}

    #[inline(always)]
    pub(crate) fn wrote(_: Line, _: usize) {}
}

#[cfg(feature = "counters")]
mod cells {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::super::{Context, LockClass};
    use super::Line;

    /// Cells among which threads are spread.
    const CELLS: usize = 256;

    /// Classes of locks, with their names, and whether threads on different CPUs take them in the course of allocating.
    const LOCKS: [(LockClass, &str, bool); 14] = [
        (LockClass::Sheaves, "sheaves", false),
        (LockClass::Hotplug, "hotplug", true),
        (LockClass::SlabMutex, "caches", true),
        (LockClass::RcuBarrier, "rcu barrier", true),
        (LockClass::Waiting, "rcu waiting", true),
        (LockClass::Emptying, "emptying", true),
        (LockClass::Flushing, "flushing", true),
        (LockClass::Purging, "purging", true),
        (LockClass::Closing, "closing", true),
        (LockClass::Barn, "barn", true),
        (LockClass::Slabs, "slabs", true),
        (LockClass::ArenaMaking, "arena making", true),
        (LockClass::Committing, "committing", true),
        (LockClass::Arena, "arena", true),
    ];

    const LINES: [(Line, &str); 14] = [
        (Line::BarnLen, "barn length"),
        (Line::BarnObjects, "barn objects"),
        (Line::Partial, "partial lists"),
        (Line::Slab, "slab"),
        (Line::SlabBitmap, "slab bitmap"),
        (Line::Arrivals, "arrivals"),
        (Line::NodeClass, "node_class flags"),
        (Line::Arena, "arena"),
        (Line::Reserve, "reserve"),
        (Line::Deferred, "deferred"),
        (Line::IrqWork, "irq work"),
        (Line::Sheaves, "sheaves of others"),
        (Line::WakeFlag, "wake flag"),
        (Line::Epoch, "epoch"),
    ];

    /// What is counted, in this order: acquisitions by class, contended ones by class, writes by kind of line.
    const CONTENDED: usize = LOCKS.len();
    const WRITES: usize = 2 * LOCKS.len();
    const COUNTERS: usize = WRITES + LINES.len();

    /// Two lines, since some CPUs fetch them in pairs.
    #[repr(align(128))]
    struct Cell([AtomicU64; COUNTERS]);

    static CELL: [Cell; CELLS] = [const { Cell([const { AtomicU64::new(0) }; COUNTERS]) }; CELLS];

    fn count(counter: usize, more: u64) {
        // Fibonacci hashing: tokens of threads are a constant distance apart.
        let hash = (Context::thread() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let cell = (hash >> 32) as usize % CELLS;
        // Relaxed: numbers that are added up, and guard nothing. Atomic, since threads may share a cell, and for handlers.
        CELL[cell].0[counter].fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn acquired(class: LockClass) {
        count(class as usize, 1);
    }

    /// Somebody else had the lock: it was waited for, or gone round.
    pub(crate) fn contended(class: LockClass) {
        count(CONTENDED + class as usize, 1);
    }

    pub(crate) fn wrote(line: Line, lines: usize) {
        count(WRITES + line as usize, lines as u64);
    }

    /// How often locks of a class were taken.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub struct LockCount {
        /// What they protect.
        pub name: &'static str,
        /// Whether threads on different CPUs take the same one.
        pub is_shared: bool,
        /// How often one was acquired.
        pub acquired: u64,
        /// How often somebody else had it: it was waited for then, or gone round.
        pub contended: u64,
    }

    /// How often lines of a kind were written.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub struct WriteCount {
        /// What is in such a line.
        pub name: &'static str,
        /// How often one was written. Stores that surely hit the same line in a row count once.
        pub writes: u64,
    }

    /// All counters at some time, or the difference between two of these.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Snapshot([u64; COUNTERS]);

    /// Reads all counters. While others count, what they did last may be missing.
    #[must_use]
    pub fn snapshot() -> Snapshot {
        let sum = |counter: usize| {
            CELL.iter().map(|cell| cell.0[counter].load(Ordering::Relaxed)).sum::<u64>()
        };
        Snapshot(core::array::from_fn(sum))
    }

    impl Snapshot {
        /// What was counted since `earlier`.
        #[must_use]
        pub fn since(&self, earlier: &Snapshot) -> Snapshot {
            Snapshot(core::array::from_fn(|counter| {
                self.0[counter].wrapping_sub(earlier.0[counter])
            }))
        }

        /// Every class of locks.
        pub fn locks(&self) -> impl Iterator<Item = LockCount> {
            LOCKS.iter().enumerate().map(|(index, (_, name, is_shared))| LockCount {
                name,
                is_shared: *is_shared,
                acquired: self.0[index],
                contended: self.0[CONTENDED + index],
            })
        }

        /// Every kind of line.
        pub fn writes(&self) -> impl Iterator<Item = WriteCount> {
            LINES
                .iter()
                .enumerate()
                .map(|(index, (_, name))| WriteCount { name, writes: self.0[WRITES + index] })
        }

        /// Acquisitions of all locks that CPUs share.
        #[must_use]
        pub fn shared_acquisitions(&self) -> u64 {
            self.locks().filter(|lock| lock.is_shared).map(|lock| lock.acquired).sum()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::super::Lock;
        use super::*;

        #[test]
        fn names_are_in_the_order_of_the_numbers() {
            for (index, (class, ..)) in LOCKS.iter().enumerate() {
                assert_eq!(*class as usize, index);
            }
            for (index, (line, _)) in LINES.iter().enumerate() {
                assert_eq!(*line as usize, index);
            }
        }

        #[test]
        fn a_lock_counts_what_it_gave_and_what_it_refused() {
            // A class that no other test of this crate takes.
            let lock = Lock::new(LockClass::RcuBarrier, ());
            let count = || {
                let locks = |lock: &LockCount| lock.name == "rcu barrier";
                snapshot().locks().find(locks).map(|lock| (lock.acquired, lock.contended))
            };
            let guard = lock.acquire(Context::TRYING);
            assert_eq!(count(), Some((1, 0)));
            assert!(lock.acquire(Context::TRYING).is_none());
            assert_eq!(count(), Some((1, 1)));
            drop(guard);
            drop(lock.acquire(Context::TRYING));
            assert_eq!(count(), Some((2, 1)));
        }
    }
}
