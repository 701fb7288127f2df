//! Counters of coordination between CPUs: lock acquisitions, and writes to cache lines that other
//! CPUs write too.
//!
//! The speed of an allocator on many CPUs depends on how rarely this happens. With the feature
//! `counters`, each such step is counted, and [`snapshot`] returns the sums. Without the feature,
//! nothing of this is compiled in. A program measures one of its phases by a snapshot before it and
//! one after.
//!
//! Counting is a relaxed addition on lines of the thread's own, except if there are more threads
//! than `CELLS`. So it does not cause the contention it measures, is possible in any context, and
//! needs no memory.

#[cfg(feature = "counters")]
pub use cells::{LockCount, Snapshot, WriteCount, snapshot};
#[cfg(feature = "counters")]
pub(crate) use cells::{acquired, contended, wrote};

#[cfg(not(feature = "counters"))]
pub(crate) use nothing::{acquired, contended, wrote};

use crate::variants::enumerated;

enumerated! {
    /// A kind of cache line that several CPUs write. The line of a lock is not among them: its
    /// acquisitions are counted instead.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Line {
        /// The number of objects in a barn.
        BarnLen => "barn length",
        /// Pointers in a barn.
        BarnObjects => "barn objects",
        /// The lists of partial slabs.
        Partial => "partial lists",
        /// The descriptor of a slab.
        Slab => "slab",
        /// A word of a slab's bitmap.
        SlabBitmap => "slab bitmap",
        /// The list of arriving slabs.
        Arrivals => "arrivals",
        /// The flags of a node class, when they change.
        NodeClass => "node_class flags",
        /// The free runs of an arena.
        Arena => "arena",
        /// The reserve of an arena.
        Reserve => "reserve",
        /// Lists of deferred frees, and their counters.
        Deferred => "deferred",
        /// An irq work, or a CPU's queue of them.
        IrqWork => "irq work",
        /// The sheaves of another CPU.
        Sheaves => "sheaves of others",
        /// The wake flag of a service thread.
        WakeFlag => "wake flag",
        /// The epoch of grace periods.
        Epoch => "epoch",
    }
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

    /// Cells over which threads are spread.
    const CELLS: usize = 256;

    /// Order of the counters: acquisitions by class, contended acquisitions by class, writes by
    /// kind of line.
    const CONTENDED: usize = LockClass::ALL.len();
    const WRITES: usize = 2 * LockClass::ALL.len();
    const COUNTERS: usize = WRITES + Line::ALL.len();

    /// Aligned to two lines, since some CPUs fetch lines in pairs.
    #[repr(align(128))]
    struct Cell([AtomicU64; COUNTERS]);

    static CELL: [Cell; CELLS] = [const { Cell([const { AtomicU64::new(0) }; COUNTERS]) }; CELLS];

    fn count(counter: usize, more: u64) {
        // Fibonacci hashing, since tokens of threads are a constant distance apart.
        let hash = (Context::thread() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let cell = (hash >> 32) as usize % CELLS;
        // Relaxed: the numbers are only summed and guard no other memory. Atomic, since threads may
        // share a cell, and handlers interrupt.
        CELL[cell].0[counter].fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn acquired(class: LockClass) {
        count(class as usize, 1);
    }

    /// Counts a lock that another thread held: the caller then waited for it, or avoided it.
    pub(crate) fn contended(class: LockClass) {
        count(CONTENDED + class as usize, 1);
    }

    pub(crate) fn wrote(line: Line, lines: usize) {
        count(WRITES + line as usize, lines as u64);
    }

    /// Acquisitions of the locks of a class.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub struct LockCount {
        /// Name of the protected data.
        pub name: &'static str,
        /// Whether threads on different CPUs acquire the same lock.
        pub is_shared: bool,
        /// Number of acquisitions.
        pub acquired: u64,
        /// Number of attempts that found the lock held. The caller then waited for it, or avoided
        /// it.
        pub contended: u64,
    }

    /// Writes to the lines of a kind.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub struct WriteCount {
        /// Name of the contents of such a line.
        pub name: &'static str,
        /// Number of writes. Consecutive stores that certainly hit the same line count once.
        pub writes: u64,
    }

    /// The values of all counters at some time, or the difference of two such snapshots.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Snapshot([u64; COUNTERS]);

    /// Reads all counters. The latest events of threads that count meanwhile may be missing.
    #[must_use]
    pub fn snapshot() -> Snapshot {
        let sum = |counter: usize| {
            CELL.iter().map(|cell| cell.0[counter].load(Ordering::Relaxed)).sum::<u64>()
        };
        Snapshot(core::array::from_fn(sum))
    }

    impl Snapshot {
        /// Returns the counts since `earlier`.
        #[must_use]
        pub fn since(&self, earlier: &Snapshot) -> Snapshot {
            Snapshot(core::array::from_fn(|counter| {
                self.0[counter].wrapping_sub(earlier.0[counter])
            }))
        }

        /// Returns the counts of every lock class.
        pub fn locks(&self) -> impl Iterator<Item = LockCount> {
            LockClass::ALL.into_iter().map(|class| LockCount {
                name: class.name(),
                // Each CPU has a lock of this class of its own.
                is_shared: class != LockClass::Sheaves,
                acquired: self.0[class as usize],
                contended: self.0[CONTENDED + class as usize],
            })
        }

        /// Returns the counts of every kind of line.
        pub fn writes(&self) -> impl Iterator<Item = WriteCount> {
            Line::ALL.into_iter().map(|line| WriteCount {
                name: line.name(),
                writes: self.0[WRITES + line as usize],
            })
        }

        /// Returns the acquisitions of all locks that CPUs share.
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
        fn lock_counts_acquisitions_and_refusals() {
            // No other test of this crate acquires locks of this class.
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
