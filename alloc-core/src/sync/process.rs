//! Which process this is: how many forks lie behind it.
//!
//! What a thread had in hand that the child of a fork does not have, is told from what is of this process by that number.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
#[cfg(not(loom))]
use core::{mem, ptr};

#[cfg(not(loom))]
use super::Context;

#[cfg(not(loom))]
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie behind this process.
#[inline]
pub(crate) fn forks() -> u32 {
    // Relaxed: it changes only where there is no other thread. The models do not fork.
    #[cfg(not(loom))]
    return FORKS.load(Ordering::Relaxed);
    #[cfg(loom)]
    0
}

/// Counts a fork, in the child.
#[cfg(not(loom))]
pub(crate) fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// What the child of a fork has yet to do: a `fn() -> bool`, or null.
#[cfg(not(loom))]
static LEFT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has allocations beyond sheaves call `routine`, without any lock, until it says that all is done. For what takes more than may be
/// done in the fork itself, and is not worth doing in a child that soon ends or becomes another program.
#[cfg(not(loom))]
pub(crate) fn leave_for_later(routine: fn() -> bool) {
    // Relaxed, here and below: in a process with one thread; those that come after find it stored.
    LEFT.store(routine as *mut (), Ordering::Relaxed);
}

/// Does what was left for later, if anything was.
#[cfg(not(loom))]
#[inline]
pub(crate) fn do_what_was_left(context: Context) {
    if !LEFT.load(Ordering::Relaxed).is_null() && context.may_wait() {
        run_pending();
    }
}

#[cfg(not(loom))]
#[cold]
fn run_pending() {
    // Nobody else does it meanwhile, nor what it allocates.
    let routine = LEFT.swap(ptr::null_mut(), Ordering::Relaxed);
    if routine.is_null() {
        return;
    }
    // SAFETY: what `leave_for_later` stored.
    let is_done = unsafe { mem::transmute::<*mut (), fn() -> bool>(routine)() };
    if !is_done {
        LEFT.store(routine, Ordering::Relaxed);
    }
}
