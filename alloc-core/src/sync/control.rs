//! Locks of the control plane. No signal handler enters it. It may sleep for long, and may fork
//! while it holds a lock; the child then holds the locks of the forking thread.
//!
//! A lock consists of words that threads sleep on, and has no list of sleepers elsewhere. So
//! nothing of the parent's threads is left in the child: one store to each word frees the lock
//! there.

use core::fmt;
use core::marker::PhantomData;

use super::primitive::{AtomicUsize, Ordering};
use super::{Context, Futex, LockClass, const_unless_loom, witness};

const FREE: u32 = 0;
/// A thread writes.
const WRITER: u32 = 1 << 31;
/// A thread that wants to write may be asleep. Readers let it go first, unless they hold a read
/// lock already.
const WANTED: u32 = 1 << 30;
/// Threads may be asleep.
const SLEEPERS: u32 = 1 << 29;
/// The remaining bits: the number of readers.
const READERS: u32 = SLEEPERS - 1;

/// A lock for one writer or many readers.
pub(crate) struct ControlRwLock {
    state: Futex,
}

impl ControlRwLock {
    const_unless_loom! {
        pub(crate) const fn new() -> ControlRwLock {
            ControlRwLock { state: Futex::new(FREE) }
        }
    }

    /// Acquires the lock for reading. A thread that `reads_already` does not wait for threads that
    /// want to write.
    pub(crate) fn read(&self, reads_already: bool) {
        let waits_for = if reads_already { WRITER } else { WRITER | WANTED };
        self.wait(|state| if state & waits_for == 0 { Ok(state + 1) } else { Err(SLEEPERS) });
    }

    /// Releases a read lock.
    pub(crate) fn unlock_read(&self) {
        // Release: pairs with the Acquire in `exchange`.
        let left = self.state.fetch_sub(1, Ordering::Release) - 1;
        // The exchange fails if another thread has come in the meantime; that thread then wakes the
        // sleepers.
        if left & READERS == 0 && left & SLEEPERS != 0 && self.exchange(left, FREE) {
            self.state.wake_all();
        }
    }

    /// Acquires the lock for writing.
    pub(crate) fn write(&self) {
        self.wait(|state| {
            let is_free = state & (WRITER | READERS) == 0;
            if is_free { Ok(state | WRITER) } else { Err(SLEEPERS | WANTED) }
        });
    }

    /// Releases the write lock.
    pub(crate) fn unlock_write(&self) {
        // Release: pairs with the Acquire in `exchange`.
        if self.state.swap(FREE, Ordering::Release) & SLEEPERS != 0 {
            self.state.wake_all();
        }
    }

    /// Changes the state to the result of `next`. If `next` returns an error, adds its bits, sleeps
    /// until another thread unlocks, and tries again.
    fn wait(&self, next: impl Fn(u32) -> Result<u32, u32>) {
        loop {
            // Relaxed: the exchange verifies the state.
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
        // Acquire: pairs with the Release in `unlock_read` and `unlock_write`.
        self.state.compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Returns how the lock is held at the moment of the call.
    pub(crate) fn holders(&self) -> Holders {
        match self.state.load(Ordering::Relaxed) & (WRITER | READERS) {
            FREE => Holders::Nobody,
            WRITER => Holders::Writer,
            _ => Holders::Readers,
        }
    }

    /// Resets the lock in a fork child, where it has `readers` readers, all on this thread.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread. That thread holds the lock `readers`
    /// times to read, and otherwise not at all.
    pub(crate) unsafe fn reset_in_child(&self, readers: u32) {
        self.state.store(readers, Ordering::Relaxed);
    }
}

/// The holders of a [`ControlRwLock`].
pub(crate) enum Holders {
    Nobody,
    Readers,
    Writer,
}

/// A mutex of the control plane. Its users define what it guards.
pub(crate) struct ControlMutex {
    lock: ControlRwLock,
    /// The token of the owning thread, or 0.
    owner: AtomicUsize,
    class: LockClass,
}

impl ControlMutex {
    const_unless_loom! {
        pub(crate) const fn new(class: LockClass) -> ControlMutex {
            ControlMutex { lock: ControlRwLock::new(), owner: AtomicUsize::new(0), class }
        }
    }

    /// Acquires the mutex. Not for signal handlers and slow paths.
    #[track_caller]
    pub(crate) fn lock(&'static self) -> ControlGuard {
        witness::waits(self.class);
        self.lock.write();
        witness::acquired(self.class);
        self.owner.store(Context::thread(), Ordering::Relaxed);
        ControlGuard { mutex: self, _not_send: PhantomData }
    }

    /// Returns whether the mutex is held at the moment of the call.
    pub(crate) fn is_held(&self) -> bool {
        !matches!(self.lock.holders(), Holders::Nobody)
    }

    /// Resets the mutex in a fork child: this thread keeps it if it held it, and otherwise nobody
    /// holds it.
    ///
    /// # Safety
    /// The process is the child of a fork, and has one thread.
    pub(crate) unsafe fn reset_in_child(&self) {
        let is_mine = self.owner.load(Ordering::Relaxed) == Context::thread();
        // SAFETY: the caller guarantees that nobody else holds the lock. If this thread does, it
        // gets the lock again.
        unsafe { self.lock.reset_in_child(0) };
        if is_mine {
            self.lock.write();
        } else {
            self.owner.store(0, Ordering::Relaxed);
        }
    }
}

/// A guard of a held [`ControlMutex`].
pub(crate) struct ControlGuard {
    mutex: &'static ControlMutex,
    /// The thread that locks also unlocks.
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
        self.mutex.lock.unlock_write();
    }
}
