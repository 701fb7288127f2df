//! The descriptor of a unit: a boundary tag, the links of a bin, and marks.
//!
//! The descriptors of a run's first and last unit both hold its length and state, so that a run
//! finds its free neighbours. The arena's lock covers the tags and links of all runs except those
//! of the reserve. The owner of a run in use changes its marks, and the used length in `next`,
//! without the lock.

/// Stands for "no run". Unit 0 of an arena is never part of a run, so that zeroed memory is an
/// empty set of bins.
pub(super) const NONE: u32 = 0;

/// State of the run that starts or ends at a unit, as its descriptor holds it. The descriptor of an
/// inner unit of a run may hold any state except `Used`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum RunState {
    /// No run starts here: in zeroed memory, and on the last unit of a run that is not free.
    Silent,
    /// Start of a run in use.
    Used,
    /// Start of a run that is about to be decommitted: neither free nor in use.
    Leaving,
    Dirty,
    Clean,
}

/// Descriptor of a unit. It is meaningful on the first unit of any run and on the last unit of a
/// free run.
#[repr(C)]
pub(super) struct Run {
    /// Length of the run, in units.
    pub(super) len: u32,
    pub(super) state: RunState,
    /// The neighbours in the bin, by their first units. Valid on the first unit of a free run only.
    /// On the first unit of a run in use, `next` holds the used length in [`PIECES`], or [`NONE`]
    /// if all of the run is used.
    pub(super) next: u32,
    pub(super) previous: u32,
    /// [`SPARSE`] and [`MOVED`], on the first unit of a run in use.
    pub(super) marks: u32,
}

/// Granularity in bytes of the used length of a run.
pub(super) const PIECES: usize = 4096;

/// Mark of a run that gets no huge pages.
pub(super) const SPARSE: u32 = 1;
/// Mark of a run whose pages were moved into it (`mremap`), so that it is a mapping of its own.
pub(super) const MOVED: u32 = 2;
