//! The fork generation of this process: the number of forks between the first process and this one.
//!
//! State stamped with an older generation belonged to a thread that does not exist in this process.

use core::sync::atomic::{AtomicU32, Ordering};

use super::Context;
use crate::atomic_fn::AtomicFn;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Returns the fork generation of this process.
#[inline]
pub(crate) fn forks() -> u32 {
    // Relaxed: it changes only while there is no other thread. The models do not fork, so loom need
    // not know it.
    FORKS.load(Ordering::Relaxed)
}

/// Counts a fork, in the child.
pub(crate) fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Pending work of a fork child.
static LEFT: AtomicFn<fn() -> bool> = AtomicFn::new();

/// Makes allocations beyond sheaves call `routine`, without holding a lock, until it returns true.
/// For work that is too much for the fork itself, and not worth doing in a child that soon ends or
/// becomes another program.
pub(crate) fn leave_for_later(routine: fn() -> bool) {
    // The process has one thread, and later threads find the function set.
    LEFT.set(routine);
}

/// Runs the pending work of a fork child, if there is any and the context may wait.
#[inline]
pub(crate) fn do_what_was_left(context: Context) {
    if LEFT.get().is_some() && context.may_wait() {
        run_pending();
    }
}

#[cold]
fn run_pending() {
    // Taking the routine keeps other threads, and allocations of the routine itself, from running
    // it meanwhile.
    if let Some(routine) = LEFT.take()
        && !routine()
    {
        LEFT.set(routine);
    }
}
