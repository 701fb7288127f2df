//! The one lock of the slow paths.

use core::ops::{Deref, DerefMut};

use super::primitive::{Ordering, UnsafeCell, spin_loop};
use super::{Context, Futex};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may sleep in the futex: the release has to wake one.
const CONTENDED: u32 = 2;

/// Attempts before sleeping. A critical section here is some hundred nanoseconds; a sleep costs microseconds.
const SPINS: u32 = if cfg!(any(loom, miri)) { 1 } else { 100 };

/// A mutual-exclusion word lock around a `T` (Drepper, *Futexes Are Tricky*, mutex 2).
///
/// The lock is not recursive and takes no part in unwinding: nothing that runs under it may panic.
pub(crate) struct Lock<T> {
    word: Futex,
    data: UnsafeCell<T>,
}

// SAFETY: the lock hands out one guard at a time, so sharing it shares only the right to take turns with the `T`.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: a lock owns its `T` and nothing tied to a thread.
unsafe impl<T: Send> Send for Lock<T> {}

#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
impl<T> Lock<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(data: T) -> Lock<T> {
        Lock { word: Futex::new(FREE), data: UnsafeCell::new(data) }
    }

    #[cfg(loom)]
    pub(crate) fn new(data: T) -> Lock<T> {
        Lock { word: Futex::new(FREE), data: UnsafeCell::new(data) }
    }

    #[inline]
    fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Acquire: pairs with the Release of `Guard::drop`, so that the last holder's writes are seen.
        self.word
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| Guard::new(self))
    }

    /// Takes the lock, waiting for it where the context may wait.
    #[inline]
    pub(crate) fn acquire(&self, context: Context) -> Option<Guard<'_, T>> {
        match self.try_lock() {
            None if context.may_wait() => Some(self.lock_slow()),
            tried => tried,
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self) -> Guard<'_, T> {
        for _ in 0..SPINS {
            if self.word.load(Ordering::Relaxed) == FREE
                && let Some(guard) = self.try_lock()
            {
                return guard;
            }
            spin_loop();
        }
        // Whoever slept takes the lock as contended: it cannot know whether others sleep still.
        // Acquire: as in `try_lock`.
        while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
            self.word.wait(CONTENDED);
        }
        Guard::new(self)
    }
}

/// The right to use what a [`Lock`] holds; dropping it gives the lock back.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    #[cfg(loom)]
    data: Option<loom::cell::MutPtr<T>>,
}

impl<'a, T> Guard<'a, T> {
    #[inline]
    fn new(lock: &'a Lock<T>) -> Guard<'a, T> {
        Guard {
            lock,
            #[cfg(loom)]
            data: Some(lock.data.get_mut()),
        }
    }

    #[inline]
    fn data(&self) -> *mut T {
        #[cfg(not(loom))]
        return self.lock.data.get();
        #[cfg(loom)]
        return self.data.as_ref().map_or(core::ptr::null_mut(), |data| data.with(|data| data));
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so the lock is held by it alone, and the borrow of the guard bounds this one.
        unsafe { &*self.data() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the exclusive borrow of the guard makes this borrow exclusive.
        unsafe { &mut *self.data() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(loom)]
        drop(self.data.take());
        // Release: pairs with the Acquire of the next holder.
        if self.lock.word.swap(FREE, Ordering::Release) == CONTENDED {
            self.lock.word.wake_one();
        }
    }
}
