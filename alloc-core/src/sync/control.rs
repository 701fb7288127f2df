//! Locks of the control plane, which allocate and sleep, and how they get across a fork: the child gets new ones, which this
//! thread has if it had the old ones.

use core::cell::UnsafeCell;
use core::fmt;
use core::mem;
use core::ops::Deref;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{Context, LockClass, witness};

/// A lock that the child of a fork replaces by a new one.
pub(crate) struct Renewable<L>(UnsafeCell<L>);

// SAFETY: the cell is written only where there is no other thread, and shared as the lock in it is otherwise.
unsafe impl<L: Sync> Sync for Renewable<L> {}

impl<L> Renewable<L> {
    pub(crate) const fn new(lock: L) -> Renewable<L> {
        Renewable(UnsafeCell::new(lock))
    }

    /// Replaces the lock; the old one is forgotten, and what it held with it.
    ///
    /// # Safety
    /// There is no other thread.
    pub(crate) unsafe fn renew(&self, lock: L) {
        // SAFETY: the caller's promise.
        unsafe { self.0.get().write(lock) };
    }
}

impl<L> Deref for Renewable<L> {
    type Target = L;

    fn deref(&self) -> &L {
        // SAFETY: as for `Sync`.
        unsafe { &*self.0.get() }
    }
}

/// A mutex of the control plane: it guards what its users say.
pub(crate) struct ControlMutex {
    mutex: Renewable<parking_lot::Mutex<()>>,
    /// The thread that has it.
    owner: AtomicUsize,
    class: LockClass,
}

impl ControlMutex {
    pub(crate) const fn new(class: LockClass) -> ControlMutex {
        let mutex = Renewable::new(parking_lot::Mutex::new(()));
        ControlMutex { mutex, owner: AtomicUsize::new(0), class }
    }

    /// Waits for the mutex. Not for handlers and slow paths.
    #[track_caller]
    pub(crate) fn lock(&'static self) -> ControlGuard {
        witness::waits(self.class);
        let guard = self.mutex.lock();
        witness::acquired(self.class);
        self.owner.store(Context::thread(), Ordering::Relaxed);
        ControlGuard { mutex: self, _guard: guard }
    }

    /// Whether somebody has it, at the time of asking.
    pub(crate) fn is_held(&self) -> bool {
        self.mutex.is_locked()
    }

    /// In the child of a fork: nobody has it but this thread, if it had it before.
    ///
    /// # Safety
    /// There is no other thread.
    pub(crate) unsafe fn renew(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.mutex.renew(parking_lot::Mutex::new(())) };
        if self.owner.load(Ordering::Relaxed) == Context::thread() {
            mem::forget(self.mutex.lock());
        }
    }
}

/// A [`ControlMutex`], held.
pub(crate) struct ControlGuard {
    mutex: &'static ControlMutex,
    _guard: parking_lot::MutexGuard<'static, ()>,
}

impl fmt::Debug for ControlGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ControlGuard").field("class", &self.mutex.class).finish()
    }
}

impl Drop for ControlGuard {
    fn drop(&mut self) {
        self.mutex.owner.store(0, Ordering::Relaxed);
        witness::released(self.mutex.class);
    }
}
