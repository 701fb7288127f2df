//! Counts how often CPUs synchronise with each other while a workload is timed. Counts nothing
//! unless the feature `counters` is on.

use crate::measurement::Sharing;

#[cfg(feature = "counters")]
mod imp {
    use parking_lot::Mutex;

    use hayloft_core::counters::{Snapshot, snapshot};

    use super::Sharing;

    /// The counters at the end of the warm-up, and later their increase.
    #[derive(Default)]
    pub(in crate::run) struct Counting(Mutex<State>);

    #[derive(Default)]
    struct State {
        before: Option<Snapshot>,
        result: Option<Sharing>,
    }

    impl Counting {
        pub(in crate::run) fn new() -> Self {
            Self::default()
        }

        /// Starts counting. Called at the end of the warm-up.
        pub(in crate::run) fn begin(&self) {
            self.0.lock().before = Some(snapshot());
        }

        /// Ends counting. `operations` were done since [`begin`](Self::begin).
        pub(in crate::run) fn end(&self, operations: u64) {
            let after = snapshot();
            let mut state = self.0.lock();
            let Some(before) = state.before.take() else { return };
            let counted = after.since(&before);
            state.result = Some(Sharing {
                operations,
                locks: counted
                    .locks()
                    .filter(|lock| lock.is_shared)
                    .map(|lock| (lock.name.to_owned(), lock.acquired, lock.contended))
                    .collect(),
                writes: counted
                    .writes()
                    .map(|write| (write.name.to_owned(), write.writes))
                    .collect(),
            });
        }

        pub(in crate::run) fn result(self) -> Option<Sharing> {
            self.0.into_inner().result
        }
    }
}

#[cfg(not(feature = "counters"))]
mod imp {
    use super::Sharing;

    /// Counts nothing.
    pub(in crate::run) struct Counting;

    impl Counting {
        pub(in crate::run) fn new() -> Self {
            Self
        }

        pub(in crate::run) fn begin(&self) {}

        pub(in crate::run) fn end(&self, _operations: u64) {}

        pub(in crate::run) fn result(self) -> Option<Sharing> {
            None
        }
    }
}

pub(super) use imp::Counting;
