//! Locks of the control plane, which allocate and sleep, and how they get across a fork: the child gets new ones, which this
//! thread has if it had the old ones.
//!
//! The new ones lie elsewhere. `parking_lot` knows those who sleep by the address of their lock, and in the child it still knows
//! threads of the parent: these would be woken in place of the child's. (It may come upon them on its way to others, too. So
//! where threads of the parent slept in any of its locks, those of the child had better not contend for many.)

extern crate std;

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::ops::Deref;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::OnceLock;

use super::{Context, LockClass, witness};

/// A lock that is made when it is first asked for, and another in the child of a fork.
///
/// Who keeps it locked after dropping the guard of `parking_lot`, by forgetting that, unlocks what is the lock by then.
pub(crate) struct Renewable<L> {
    lock: UnsafeCell<OnceLock<Box<L>>>,
    make: fn() -> L,
}

// SAFETY: the cell is written only where there is no other thread, and shared as the lock in it is otherwise.
unsafe impl<L: Send + Sync> Sync for Renewable<L> {}

impl<L> Renewable<L> {
    pub(crate) const fn new(make: fn() -> L) -> Renewable<L> {
        Renewable { lock: UnsafeCell::new(OnceLock::new()), make }
    }

    /// Has another lock made when it is asked for next. The old one stays as it is, with what it holds.
    ///
    /// # Safety
    /// There is no other thread.
    pub(crate) unsafe fn renew(&self) {
        // SAFETY: the caller's promise. Nothing is dropped, so references to the old lock stay valid.
        unsafe { self.lock.get().write(OnceLock::new()) };
    }
}

impl<L> Deref for Renewable<L> {
    type Target = L;

    fn deref(&self) -> &L {
        // SAFETY: as for `Sync`.
        let lock = unsafe { &*self.lock.get() };
        lock.get_or_init(|| Box::new((self.make)()))
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
        let mutex = Renewable::new(|| parking_lot::Mutex::new(()));
        ControlMutex { mutex, owner: AtomicUsize::new(0), class }
    }

    /// Waits for the mutex. Not for handlers and slow paths.
    #[track_caller]
    pub(crate) fn lock(&'static self) -> ControlGuard {
        witness::waits(self.class);
        mem::forget(self.mutex.lock());
        witness::acquired(self.class);
        self.owner.store(Context::thread(), Ordering::Relaxed);
        ControlGuard { mutex: self, _not_send: PhantomData }
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
        unsafe { self.mutex.renew() };
        if self.owner.load(Ordering::Relaxed) == Context::thread() {
            mem::forget(self.mutex.lock());
        }
    }
}

/// A [`ControlMutex`], held.
pub(crate) struct ControlGuard {
    mutex: &'static ControlMutex,
    /// Who locks it unlocks it.
    _not_send: PhantomData<*mut ()>,
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
        // SAFETY: `lock` took it and kept it; or `renew` did, in the child of a fork.
        unsafe { self.mutex.mutex.force_unlock() };
    }
}
