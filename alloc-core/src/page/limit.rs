//! The limit on the memory of runs: `HAYLOFT_LIMIT=[SOFT:]HARD`.
//!
//! All units that are not clean count, in whole units: those of runs in use, touched or not, and
//! those of dirty free runs. Beyond the soft limit, free runs are decommitted at once. The soft
//! limit is 7/8 of the hard one unless it is set. At the hard limit, no clean run is allocated.

use crate::os;
use crate::settings;
use crate::size_class::UNIT_SHIFT;
use crate::sync::{AtomicUsize, Ordering, add_up_to};

/// Number of units that are not clean.
static CHARGED: AtomicUsize = AtomicUsize::new(0);
/// The limits, in units.
static SOFT: AtomicUsize = AtomicUsize::new(usize::MAX);
static HARD: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Most units that may be charged when room to grow is allocated. Room cannot be taken back before
/// an allocation is refused, so only programs far from their limit get it.
static WITH_ROOM: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The divisor of a limit that yields [`WITH_ROOM`].
const ROOM_PART: usize = 4;

/// Reads the setting. Call before any memory is allocated; a second call changes nothing.
pub(super) fn read() {
    // Committed memory counts as data, touched or not.
    if let Some(bytes) = os::data_limit() {
        WITH_ROOM.fetch_min((bytes >> UNIT_SHIFT) / ROOM_PART, Ordering::Relaxed);
    }
    let Some(limit) = settings::limit() else { return };
    let units = |bytes: u64| (bytes >> UNIT_SHIFT) as usize;
    let hard = units(limit.hard);
    let soft = limit.soft.map_or(hard / 8 * 7, units);
    // Relaxed, here and below: numbers that guard nothing.
    SOFT.store(soft, Ordering::Relaxed);
    HARD.store(hard, Ordering::Relaxed);
    WITH_ROOM.fetch_min(soft / ROOM_PART, Ordering::Relaxed);
}

/// Counts `units` units that are no longer clean. Returns false, and counts nothing, if that would
/// exceed the hard limit.
#[must_use]
pub(super) fn charge(units: u32) -> bool {
    add_up_to(&CHARGED, units as usize, HARD.load(Ordering::Relaxed))
}

/// Counts `units` units as clean again.
pub(super) fn uncharge(units: u32) {
    CHARGED.fetch_sub(units as usize, Ordering::Relaxed);
}

/// Returns the hard limit, in units.
pub(super) fn hard() -> usize {
    HARD.load(Ordering::Relaxed)
}

/// Returns the number of units that are not clean.
pub(super) fn charged() -> usize {
    CHARGED.load(Ordering::Relaxed)
}

/// Returns whether allocating `units` clean units would exceed the hard limit.
pub(super) fn forbids(units: u32) -> bool {
    charged().saturating_add(units as usize) > HARD.load(Ordering::Relaxed)
}

/// Returns whether `units` clean units may be allocated as room for a block to grow.
pub(super) fn allows_room(units: u32) -> bool {
    charged().saturating_add(units as usize) <= WITH_ROOM.load(Ordering::Relaxed)
}

/// Returns whether the soft limit is exceeded.
pub(super) fn is_soft_exceeded() -> bool {
    charged() > SOFT.load(Ordering::Relaxed)
}
