//! Locks around a fork: they are held from before it until after it, so that their data is
//! consistent in the child. A lock whose holder does not exist in the child is abandoned there, or
//! freed. Not in the models, which do not fork.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::compiler_fence;

use super::super::primitive::Ordering;
use super::super::{Backoff, Context};
use super::{ABANDONED, FREE, RawLock};
use crate::arch;

/// A fork in progress on this thread, which holds locks until the fork is over. A signal handler
/// may interrupt it and fork as well, so the number is the depth of this fork, at least 1. The
/// depth is added to the thread's token; the tokens of other threads are further away than that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fork(pub(super) usize);

impl Fork {
    /// Maximum depth that is distinguished.
    const MOST: usize = 63;

    /// Returns the fork that this thread is in. Call between `pin` and `unpin` of its context.
    pub(crate) fn current() -> Fork {
        Fork(Context::depth().clamp(1, Fork::MOST))
    }

    /// Returns the owner token of a lock that is held for this fork.
    fn token(self) -> usize {
        Context::thread() + self.0
    }
}

/// Marks that this thread may hold a lock without being its recorded owner: it is acquiring or
/// releasing the lock. The mark ends when this is dropped.
///
/// That takes a few instructions, but a signal handler is likely to interrupt just there: after a
/// fork, the first store to a page faults.
pub(super) struct Changing {
    /// The mark of the code that this one interrupted.
    outer: usize,
}

impl Changing {
    #[inline]
    pub(super) fn begin(lock: &RawLock) -> Changing {
        let changing = &arch::locals().changing;
        let outer = changing.load(Ordering::Relaxed);
        changing.store(ptr::from_ref(lock).addr(), Ordering::Relaxed);
        // Orders against handlers on this thread: the mark precedes any change.
        compiler_fence(Ordering::SeqCst);
        Changing { outer }
    }

    /// Returns whether the holder is not recorded, and may be the interrupted code on this thread.
    /// Another thread may hold the lock instead.
    fn is_on(lock: &RawLock) -> bool {
        lock.owner.load(Ordering::Relaxed) == 0
            && arch::locals().changing.load(Ordering::Relaxed) == ptr::from_ref(lock).addr()
    }
}

impl Drop for Changing {
    #[inline]
    fn drop(&mut self) {
        // Orders against handlers on this thread: by now the owner is recorded, or there is none.
        compiler_fence(Ordering::SeqCst);
        arch::locals().changing.store(self.outer, Ordering::Relaxed);
    }
}

impl RawLock {
    /// Holds the lock until the fork is over, unless this thread holds it already: in code that it
    /// interrupted, or for an outer fork. A context that must not wait makes a few attempts, which
    /// are counted down in `attempts`.
    pub(crate) fn hold_for_fork(&self, fork: Fork, context: Context, attempts: &Cell<u32>) {
        if self.is_recorded() || Changing::is_on(self) {
            return;
        }
        let mut held = self.acquire(context);
        let mut backoff = Backoff::new();
        while !held && !self.is_abandoned() && attempts.get() > 0 {
            attempts.set(attempts.get() - 1);
            backoff.pause();
            held = self.try_acquire(fork.token());
        }
        if held {
            self.owner.store(fork.token(), Ordering::Relaxed);
        }
    }

    /// Releases the lock in the parent, if it is held for this fork.
    pub(crate) fn release_in_parent(&self, fork: Fork) {
        if self.owner.load(Ordering::Relaxed) == fork.token() {
            self.release();
        }
    }

    /// As [`RawLock::release_in_parent`], in the child. Abandons a lock that another thread held,
    /// since that thread does not exist here to release it.
    ///
    /// If this handler interrupted a change of the lock, its holder may be unknown. An abandoned
    /// lock is right in either case: if the interrupted code holds the lock, it will free it; if it
    /// is about to try, it finds the lock abandoned.
    pub(crate) fn release_in_child(&self, fork: Fork) {
        self.release_in_parent(fork);
        if self.is_held() && !self.is_recorded() {
            self.word.store(ABANDONED, Ordering::Relaxed);
        }
    }

    /// As [`RawLock::release_in_child`], for a lock whose data is consistent after each store: the
    /// child frees the lock instead of abandoning it, unless its holder is unknown.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread. The data of the lock is consistent
    /// after each store of its holders.
    pub(crate) unsafe fn free_in_child(&self, fork: Fork) {
        self.release_in_child(fork);
        // SAFETY: the caller guarantees consistent data in the child of a fork.
        unsafe { self.reclaim_in_child() };
    }

    /// Frees an abandoned lock, unless the interrupted code on this thread holds it, or may hold
    /// it.
    ///
    /// # Safety
    /// As [`RawLock::free_in_child`].
    pub(crate) unsafe fn reclaim_in_child(&self) {
        if self.is_abandoned() && !self.is_recorded() && !Changing::is_on(self) {
            self.owner.store(0, Ordering::Relaxed);
            self.word.store(FREE, Ordering::Relaxed);
        }
    }

    /// Returns whether this thread is recorded as the holder, for code that it interrupted or for a
    /// fork.
    fn is_recorded(&self) -> bool {
        let above = self.owner.load(Ordering::Relaxed).wrapping_sub(Context::thread());
        above <= Fork::MOST
    }
}
