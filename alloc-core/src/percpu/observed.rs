//! Observed classes: for a while, no sheaf takes objects of such a class, so that a slow path sees
//! each free. Pops go on.
//!
//! To refuse pushes, an open sheaf is given a width of zero. Only a slow path widens it again, and
//! does so once the class is no longer observed. Sections that run meanwhile may still push an
//! object or restore the width: then some frees are not seen.

use core::sync::atomic::{AtomicU32, Ordering};

use super::layout::{floor, header_halves};
use super::region::{region_of, regions};
use crate::size_class::{CLASSES, Class};

/// Visits of slow paths for which a class is observed. Each costs some 200 ns more than a push.
const VISITS: u32 = 256;

/// Visits that are left for each class.
static LEFT: [AtomicU32; CLASSES] = [const { AtomicU32::new(0) }; CLASSES];

/// Observes a class for the next visits of slow paths. Any context.
pub(crate) fn observe(class: Class) {
    let Some(left) = LEFT.get(class.index()) else { return };
    left.store(VISITS, Ordering::Relaxed);
    let floor = floor(class);
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: `base` is the region of a CPU.
        let [_, last] = unsafe { header_halves(base, class) };
        let before = last.load(Ordering::Relaxed);
        if before > floor {
            // An exchange: a closer may have stored zero, which must not be undone.
            let _ = last.compare_exchange(before, floor, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Returns whether a class is observed, at a visit of a slow path that would widen the sheaf.
pub(super) fn is_observed(class: Class) -> bool {
    LEFT.get(class.index()).is_some_and(|left| {
        let visit = |left: u32| left.checked_sub(1);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, visit).is_ok()
    })
}
