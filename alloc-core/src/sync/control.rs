//! Locks of the control plane, which is entered in no handler, may sleep for long, and may fork
//! with a lock in hand: the child holds what its thread held.
//!
//! A lock is words that threads sleep on, and no list of sleepers anywhere else. So nothing of the
//! parent's threads is left in the child: one store to each word frees it there.

#[cfg(not(loom))]
use core::fmt;
#[cfg(not(loom))]
use core::marker::PhantomData;

use super::Futex;
#[cfg(not(loom))]
use super::primitive::AtomicUsize;
use super::primitive::Ordering;
#[cfg(not(loom))]
use super::{Context, LockClass, witness};

const FREE: u32 = 0;
/// A thread writes.
const WRITER: u32 = 1 << 31;
/// A thread that wants to write may be asleep: readers let it go first, unless they read already.
const WANTED: u32 = 1 << 30;
/// Threads may be asleep.
const SLEEPERS: u32 = 1 << 29;
/// What is left is the number of readers.
const READERS: u32 = SLEEPERS - 1;

/// A lock of one writer or of many readers.
pub(crate) struct ControlRwLock {
    state: Futex,
}

impl ControlRwLock {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> ControlRwLock {
        ControlRwLock { state: Futex::new(FREE) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> ControlRwLock {
        ControlRwLock { state: Futex::new(FREE) }
    }

    /// Waits to read. Who reads already does not wait for those who want to write.
    pub(crate) fn read(&self, reads_already: bool) {
        let waits_for = if reads_already { WRITER } else { WRITER | WANTED };
        self.wait(|state| if state & waits_for == 0 { Ok(state + 1) } else { Err(SLEEPERS) });
    }

    /// Undoes [`ControlRwLock::read`].
    pub(crate) fn unlock_read(&self) {
        // Release: pairs with the Acquire in `exchange`.
        let left = self.state.fetch_sub(1, Ordering::Release) - 1;
        // It fails where somebody came meanwhile, who wakes the sleepers in the end.
        if left & READERS == 0 && left & SLEEPERS != 0 && self.exchange(left, FREE) {
            self.state.wake_all();
        }
    }

    /// Waits to write.
    pub(crate) fn write(&self) {
        self.wait(|state| {
            let is_free = state & (WRITER | READERS) == 0;
            if is_free { Ok(state | WRITER) } else { Err(SLEEPERS | WANTED) }
        });
    }

    /// Undoes [`ControlRwLock::write`].
    pub(crate) fn unlock_write(&self) {
        // Release: pairs with the Acquire in `exchange`.
        if self.state.swap(FREE, Ordering::Release) & SLEEPERS != 0 {
            self.state.wake_all();
        }
    }

    /// Changes the state as `next` says, or adds what that says and sleeps until somebody unlocks,
    /// and looks again.
    fn wait(&self, next: impl Fn(u32) -> Result<u32, u32>) {
        loop {
            // Relaxed: the exchange looks again.
            let state = self.state.load(Ordering::Relaxed);
            match next(state) {
                Ok(next) => {
                    if self.exchange(state, next) {
                        return;
                    }
                }
                Err(more) => {
                    let asleep = state | more;
                    if state == asleep || self.exchange(state, asleep) {
                        self.state.wait(asleep);
                    }
                }
            }
        }
    }

    fn exchange(&self, state: u32, next: u32) -> bool {
        // Acquire: pairs with the Release of who unlocks.
        self.state.compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// How the lock is held, at the time of asking.
    #[cfg(not(loom))]
    pub(crate) fn holders(&self) -> Holders {
        match self.state.load(Ordering::Relaxed) & (WRITER | READERS) {
            FREE => Holders::Nobody,
            WRITER => Holders::Writer,
            _ => Holders::Readers,
        }
    }

    /// In the child of a fork: it has so many readers, all of this thread.
    #[cfg(not(loom))]
    pub(crate) fn reset_in_child(&self, readers: u32) {
        self.state.store(readers, Ordering::Relaxed);
    }
}

/// Who holds a [`ControlRwLock`].
#[cfg(not(loom))]
pub(crate) enum Holders {
    Nobody,
    Readers,
    Writer,
}

/// A mutex of the control plane: it guards what its users say.
#[cfg(not(loom))]
pub(crate) struct ControlMutex {
    lock: ControlRwLock,
    /// The thread that has it.
    owner: AtomicUsize,
    class: LockClass,
}

#[cfg(not(loom))]
impl ControlMutex {
    pub(crate) const fn new(class: LockClass) -> ControlMutex {
        ControlMutex { lock: ControlRwLock::new(), owner: AtomicUsize::new(0), class }
    }

    /// Waits for the mutex. Not for handlers and slow paths.
    #[track_caller]
    pub(crate) fn lock(&'static self) -> ControlGuard {
        witness::waits(self.class);
        self.lock.write();
        witness::acquired(self.class);
        self.owner.store(Context::thread(), Ordering::Relaxed);
        ControlGuard { mutex: self, _not_send: PhantomData }
    }

    /// Whether somebody has it, at the time of asking.
    pub(crate) fn is_held(&self) -> bool {
        !matches!(self.lock.holders(), Holders::Nobody)
    }

    /// In the child of a fork: nobody has it but this thread, if it had it before.
    pub(crate) fn reset_in_child(&self) {
        let is_mine = self.owner.load(Ordering::Relaxed) == Context::thread();
        self.lock.reset_in_child(0);
        if is_mine {
            self.lock.write();
        } else {
            self.owner.store(0, Ordering::Relaxed);
        }
    }
}

/// A [`ControlMutex`], held.
#[cfg(not(loom))]
pub(crate) struct ControlGuard {
    mutex: &'static ControlMutex,
    /// Who locks it unlocks it.
    _not_send: PhantomData<*mut ()>,
}

#[cfg(not(loom))]
impl fmt::Debug for ControlGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ControlGuard").field("class", &self.mutex.class).finish()
    }
}

#[cfg(not(loom))]
impl Drop for ControlGuard {
    fn drop(&mut self) {
        self.mutex.owner.store(0, Ordering::Relaxed);
        witness::released(self.mutex.class);
        self.mutex.lock.unlock_write();
    }
}
