//! Punches holes: decommits the pages of partial slabs that hold no live object.
//!
//! A slab is *lent* while its holes are decommitted, so that decommitting needs no lock of its
//! lists. No object is cut from a lent slab. A fork waits until no slab is lent.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::node_class::{NodeClass, node_classes};
use super::put::free_emptied;
use crate::fault::{self, Place};
use crate::os;
use crate::page;
use crate::size_class::{CLASSES, Class};
use crate::slab::Emptied;
use crate::sync::Context;

/// Which slabs [`punch_holes`] punches.
pub(super) struct Punch {
    /// Includes slabs that were not idle for a whole window.
    pub(super) even_busy: bool,
    /// Most slabs to punch.
    pub(super) slabs: usize,
    /// A decay window ends, so each slab ages by one window.
    pub(super) is_end: bool,
}

impl Punch {
    pub(super) const ALL: Punch = Punch { even_busy: false, slabs: usize::MAX, is_end: true };
    /// The work of a free. Punching a slab takes some ten microseconds.
    pub(super) const OF_A_FREE: Punch = Punch { slabs: 16, is_end: false, ..Punch::ALL };
    /// The work of a slice: a quarter to a half of its time.
    pub(super) const OF_A_SLICE: Punch = Punch { slabs: 256, is_end: false, ..Punch::ALL };
}

/// The result of [`punch_holes`].
#[derive(Default)]
pub(super) struct Punched {
    /// Bytes decommitted.
    pub(super) bytes: usize,
    /// Slabs remain whose holes may be punched at the end of a later window.
    pub(super) has_more: bool,
    /// The limit of slabs was reached, so others may be due already.
    pub(super) is_cut_short: bool,
}

/// Decommits pages of partial slabs that hold no live object. Does nothing in a context that must
/// not wait.
pub(super) fn punch_holes(context: Context, punch: &Punch) -> Punched {
    /// The class to begin with, so that each class gets its turn.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (mut punched, mut left) = (Punched::default(), punch.slabs);
    if !context.may_wait() {
        return punched;
    }
    // Relaxed: any class will do.
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let classes = (0..CLASSES).map(|index| (first.wrapping_add(index)) % CLASSES);
    // Size classes only: free objects of caches may have contents.
    for node_class in classes.filter_map(Class::from_index).flat_map(node_classes) {
        let slabs = node_class.slabs.lock(context).map_or(0, |mut partial| {
            if punch.is_end {
                partial.end_window();
            }
            partial.counts().slabs
        });
        for _ in 0..slabs.min(left) {
            // SAFETY: the loop visits node classes of size classes only.
            let bytes = unsafe { punch_slab(context, node_class, punch.even_busy) };
            let Some(bytes) = bytes else { break };
            punched.bytes += bytes;
            left -= 1;
        }
        if left == 0 && !punch.is_end {
            break;
        }
        punched.has_more |=
            node_class.slabs.lock(context).is_some_and(|partial| partial.has_unpunched());
    }
    punched.is_cut_short = left == 0;
    punched
}

/// Punches the holes of one slab that is due, and returns the bytes decommitted. Returns `None` if
/// no slab is due, or if the context must not wait.
///
/// # Safety
/// The node class is of a size class, whose free objects have no contents.
unsafe fn punch_slab(context: Context, node_class: &NodeClass, even_busy: bool) -> Option<usize> {
    // A fork waits for this guard, so that no slab is lent then.
    let _purging = page::Purging::begin(context)?;
    let mut lent = node_class.slabs.lock(context)?.lend(even_busy)?;
    fault::point(Place::SlabPunching);
    // Holes only grow until the slab is cut from, so those of the last time are among these.
    let (mut bytes, mut punched, mut gone) = (0, 0, lent.punched);
    lent.for_each_hole(os::page_size(), |address, len| {
        let known = gone.min(len);
        gone -= known;
        // SAFETY: a hole has only free objects, which leave no slab while it is lent. The caller
        // guarantees that they have no contents.
        if unsafe { page::punch(address, len, known) } {
            bytes += len - known;
            punched += len;
        }
    });
    lent.punched = punched;
    // Fails only in a fork child, if a thread that does not exist there held the lock. The slab is
    // lost then, like all slabs of its class on this node.
    let mut emptied = Emptied::new();
    let mut partial = node_class.slabs.lock(context)?;
    // SAFETY: these lists lent the slab.
    unsafe { partial.relist_lent(lent, &mut emptied) };
    drop(partial);
    free_emptied(context, emptied);
    Some(bytes)
}
