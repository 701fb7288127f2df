//! Fault points: labelled places in the slow paths at which a test makes something happen, such as a signal.
//!
//! With the feature `fault-points` the function given to `set_hook` is called at every place on the way; without it
//! nothing of this is there. A test that lists [`Place::ALL`] knows which places it has not been to.
//!
//! This file may touch nothing.

/// A place in a slow path where something is half done: a lock is held, or objects are in nobody's hands but ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Place {
    /// The backend is being decided.
    BackendDeciding,
    /// This thread has just been registered for restartable sequences, by us.
    ThreadRegistered,
    /// The nodes are read, and nobody told how many there are.
    NodesReading,
    /// An arena is being made.
    ArenaMaking,
    /// A run is being cut from an arena.
    ArenaAllocating,
    /// An arena commits more of its units.
    ArenaCommitting,
    /// A run is being given back to an arena.
    ArenaFreeing,
    /// A run that was given back leaves for the system.
    ArenaPurging,
    /// A run is being made longer.
    ArenaGrowing,
    /// A run is being made shorter.
    ArenaShrinking,
    /// Objects are being cut from slabs.
    SlabsCutting,
    /// Objects are being given back to slabs.
    SlabsPutting,
    /// A new slab has given objects and is in no list yet.
    SlabArriving,
    /// Holes of a slab that is in no list leave for the system.
    SlabPunching,
    /// A batch is being taken from a barn.
    BarnTaking,
    /// A batch is being put into a barn.
    BarnPutting,
    /// A batch is about to fill a sheaf.
    SheafFilling,
    /// A batch has just left a sheaf.
    SheafDrained,
    /// Sheaves of some CPU are closed, and a batch of what they held is in hand.
    SheavesClosed,
    /// The sheaves of a CPU are locked, on the fallback backend.
    SheavesLocked,
    /// A block is on a deferred list, and the CPU's work not queued yet.
    BlockDeferred,
    /// Deferred frees have left their list.
    DeferredTaken,
    /// An irq work is claimed, and on no list yet.
    WorkClaimed,
    /// An irq work is on a list, and the CPU's thread not told yet.
    WorkQueued,
    /// A reader is counted on its thread, and not for others yet.
    ReaderEntering,
    /// A reader is not counted for others any more, and on its thread still.
    ReaderLeaving,
}

impl Place {
    /// All places.
    pub const ALL: [Place; 26] = [
        Place::BackendDeciding,
        Place::ThreadRegistered,
        Place::NodesReading,
        Place::ArenaMaking,
        Place::ArenaAllocating,
        Place::ArenaCommitting,
        Place::ArenaFreeing,
        Place::ArenaPurging,
        Place::ArenaGrowing,
        Place::ArenaShrinking,
        Place::SlabsCutting,
        Place::SlabsPutting,
        Place::SlabArriving,
        Place::SlabPunching,
        Place::BarnTaking,
        Place::BarnPutting,
        Place::SheafFilling,
        Place::SheafDrained,
        Place::SheavesClosed,
        Place::SheavesLocked,
        Place::BlockDeferred,
        Place::DeferredTaken,
        Place::WorkClaimed,
        Place::WorkQueued,
        Place::ReaderEntering,
        Place::ReaderLeaving,
    ];
}

#[cfg(feature = "fault-points")]
mod hook {
    use super::Place;
    use core::mem;
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, Ordering};

    static HOOK: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

    /// Has `hook` called at every place, on every thread.
    pub fn set_hook(hook: fn(Place)) {
        // Relaxed: a function needs nothing else to be seen.
        HOOK.store(hook as *mut (), Ordering::Relaxed);
    }

    pub(crate) fn point(place: Place) {
        let hook = HOOK.load(Ordering::Relaxed);
        if !hook.is_null() {
            // SAFETY: not null, so it is what `set_hook` stored.
            let hook: fn(Place) = unsafe { mem::transmute(hook) };
            hook(place);
        }
    }
}

#[cfg(feature = "fault-points")]
pub use hook::set_hook;

#[cfg(feature = "fault-points")]
pub(crate) use hook::point;

/// A fault point.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_place: Place) {}
