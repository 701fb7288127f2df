//! Fault points: labelled places in the slow paths at which a test can interfere, such as by a
//! signal.
//!
//! With the feature `fault-points`, the function passed to `set_hook` is called at every fault
//! point that is reached. Without the feature, fault points compile to nothing. A test can compare
//! the places it reached with [`Place::ALL`].

use crate::variants::enumerated;

enumerated! {
    /// A place in a slow path where an operation is half done: a lock is held, or objects are held
    /// by this thread alone.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub enum Place {
        /// The backend is being selected.
        BackendDeciding,
        /// Hayloft is about to register this thread for restartable sequences.
        ThreadRegistering,
        /// Hayloft has just registered this thread for restartable sequences.
        ThreadRegistered,
        /// The nodes are read, and their number is not published yet.
        NodesReading,
        /// An arena is being created.
        ArenaMaking,
        /// A run is being cut from an arena.
        ArenaAllocating,
        /// An arena commits more of its units.
        ArenaCommitting,
        /// A run is being freed to its arena.
        ArenaFreeing,
        /// A free run is being decommitted.
        ArenaPurging,
        /// A run is being extended.
        ArenaGrowing,
        /// A run is being shortened.
        ArenaShrinking,
        /// Objects are being cut from slabs.
        SlabsCutting,
        /// Objects are being freed to their slabs.
        SlabsPutting,
        /// A new slab has handed out objects and is on no list yet.
        SlabArriving,
        /// Holes of a slab that is on no list are being decommitted.
        SlabPunching,
        /// A batch is being taken from a barn.
        BarnTaking,
        /// A batch is being put into a barn.
        BarnPutting,
        /// A batch is about to fill a sheaf.
        SheafFilling,
        /// A batch has just left a sheaf.
        SheafDrained,
        /// The sheaves of some CPU are being closed, and only a part of their headers is stored.
        SheavesClosing,
        /// The sheaves of some CPU are closed, and this thread holds a batch of their objects.
        SheavesClosed,
        /// The sheaves of a CPU are locked, on the fallback backend.
        SheavesLocked,
        /// This thread is pinned to a CPU whose sections it restarts, and its own affinity is not
        /// restored yet.
        CpuVisiting,
        /// A block is on a deferred list, and the irq work of its CPU is not queued yet.
        BlockDeferred,
        /// Deferred frees have left their list.
        DeferredTaken,
        /// An irq work is claimed and on no list yet.
        WorkClaimed,
        /// An irq work is on a list, and the CPU thread is not notified yet.
        WorkQueued,
        /// A reader is counted on its own thread, and not in the shared count yet.
        ReaderEntering,
        /// A reader is no longer in the shared count, and still counted on its own thread.
        ReaderLeaving,
    }
}

#[cfg(feature = "fault-points")]
mod hook {
    use super::Place;
    use crate::atomic_fn::AtomicFn;

    static HOOK: AtomicFn<fn(Place)> = AtomicFn::new();

    /// Makes every fault point call `hook`, on whatever thread reaches it.
    pub fn set_hook(hook: fn(Place)) {
        HOOK.set(hook);
    }

    pub(crate) fn point(place: Place) {
        if let Some(hook) = HOOK.get() {
            hook(place);
        }
    }
}

#[cfg(feature = "fault-points")]
pub use hook::set_hook;

#[cfg(feature = "fault-points")]
pub(crate) use hook::point;

/// Does nothing: the feature `fault-points` is off.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_place: Place) {}
