//! The lock of the slow paths.

#[cfg(not(loom))]
mod fork;

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicUsize;

use super::primitive::{Ordering, UnsafeCell, spin_loop};
use super::{Context, Futex, LockClass, const_unless_loom, counters, witness};
#[cfg(not(loom))]
use fork::Changing;
#[cfg(not(loom))]
pub(crate) use fork::Fork;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and a thread may sleep in the futex: the release must wake one.
const CONTENDED: u32 = 2;
/// The holder did not survive a fork. The protected data stays as the holder left it, and the lock
/// can never be acquired again.
const ABANDONED: u32 = 3;

/// Attempts before sleeping. A critical section here takes some hundred nanoseconds; a sleep costs
/// microseconds.
pub(crate) const SPINS: u32 = if cfg!(any(loom, miri)) { 1 } else { 100 };

/// A word lock (Drepper, *Futexes Are Tricky*, mutex 2) that records its holder.
///
/// The lock is not recursive and takes no part in unwinding: code that holds it must not panic.
pub(crate) struct RawLock {
    word: Futex,
    /// The token of the holding thread, or 0. Stored after acquiring and cleared before releasing,
    /// so it lags `word`: only the question whether this very thread holds the lock has an exact
    /// answer.
    owner: AtomicUsize,
    /// The class for the witness and the counters. Without it a free lock is all zeros, and memory
    /// full of free locks takes no space in executables.
    #[cfg(any(debug_assertions, feature = "counters"))]
    class: LockClass,
}

impl RawLock {
    const_unless_loom! {
        const fn new(class: LockClass) -> RawLock {
            let _ = class;
            RawLock {
                word: Futex::new(FREE),
                owner: AtomicUsize::new(0),
                #[cfg(any(debug_assertions, feature = "counters"))]
                class,
            }
        }
    }

    /// Changes the word from `from` to `to`. Records `owner` if the lock was free. Returns the
    /// previous word.
    #[inline]
    fn change(&self, from: u32, to: u32, owner: usize) -> u32 {
        #[cfg(not(loom))]
        let _changing = Changing::begin(self);
        // Acquire: pairs with the Release in `release`, so that the previous holder's writes are
        // seen.
        let changed = self.word.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed);
        if changed == Ok(FREE) {
            self.owner.store(owner, Ordering::Relaxed);
        }
        changed.unwrap_or_else(|word| word)
    }

    #[inline]
    fn try_acquire(&self, owner: usize) -> bool {
        self.change(FREE, HELD, owner) == FREE
    }

    /// Acquires the lock, waiting for it if the context may wait. Returns whether the lock was
    /// acquired.
    #[inline]
    fn acquire(&self, context: Context) -> bool {
        let found_free = self.try_acquire(Context::thread());
        if !found_free {
            counters::contended(self.class());
        }
        let acquired = found_free || (context.may_wait() && self.acquire_slow());
        if acquired {
            counters::acquired(self.class());
        }
        acquired
    }

    /// Waits for the lock. Returns false if the lock is abandoned.
    #[cold]
    #[inline(never)]
    fn acquire_slow(&self) -> bool {
        for _ in 0..SPINS {
            if self.word.load(Ordering::Relaxed) == FREE && self.try_acquire(Context::thread()) {
                return true;
            }
            spin_loop();
        }
        loop {
            let word = self.word.load(Ordering::Relaxed);
            match word {
                ABANDONED => return false,
                CONTENDED => self.word.wait(CONTENDED),
                _ => {
                    // A thread that slept acquires the lock as contended, since others may still
                    // sleep.
                    if self.change(word, CONTENDED, Context::thread()) == FREE && word == FREE {
                        return true;
                    }
                }
            }
        }
    }

    #[inline]
    fn release(&self) {
        #[cfg(not(loom))]
        let _changing = Changing::begin(self);
        self.owner.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire of the next holder, whose store to `owner` then comes
        // later than the one above.
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            self.word.wake_one();
        }
    }

    pub(crate) fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == FREE
    }

    fn is_held(&self) -> bool {
        matches!(self.word.load(Ordering::Relaxed), HELD | CONTENDED)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.word.load(Ordering::Relaxed) == ABANDONED
    }

    /// Returns the class for the witness and the counters.
    #[inline(always)]
    fn class(&self) -> LockClass {
        #[cfg(any(debug_assertions, feature = "counters"))]
        return self.class;
        #[cfg(not(any(debug_assertions, feature = "counters")))]
        LockClass::Sheaves
    }

    /// Does nothing: the models do not fork.
    ///
    /// # Safety
    /// No requirements.
    #[cfg(loom)]
    pub(crate) unsafe fn reclaim_in_child(&self) {}

    /// Returns whether this thread holds the lock in code that it interrupted, other than a fork.
    pub(crate) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == Context::thread()
    }
}

/// Formats the address of the lock, its state, and the token of its holder, for a report.
impl fmt::Debug for RawLock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.word.load(Ordering::Relaxed) {
            FREE => "free",
            HELD => "held",
            CONTENDED => "held and waited for",
            _ => "abandoned",
        };
        let owner = self.owner.load(Ordering::Relaxed);
        write!(formatter, "lock at {self:p}: {state}, by {owner:#x}")
    }
}

/// A `T` for one thread at a time.
pub(crate) struct Lock<T> {
    raw: RawLock,
    data: UnsafeCell<T>,
}

// SAFETY: the lock hands out one guard at a time, so sharing it shares only the right to take turns
// with the `T`.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: a lock owns its `T` and nothing tied to a thread.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    const_unless_loom! {
        pub(crate) const fn new(class: LockClass, data: T) -> Lock<T> {
            Lock { raw: RawLock::new(class), data: UnsafeCell::new(data) }
        }
    }

    /// Acquires the lock. Waits for it if the context may wait, and otherwise returns `None` if it
    /// is held. Returns `None` for an abandoned lock in any context.
    #[inline]
    #[track_caller]
    pub(crate) fn acquire(&self, context: Context) -> Option<Guard<'_, T>> {
        if context.may_wait() {
            witness::waits(self.raw.class());
        }
        if !self.raw.acquire(context) {
            return None;
        }
        witness::acquired(self.raw.class());
        Some(Guard::new(self))
    }

    /// Returns the lock without its data, for code that acquires all locks.
    pub(crate) fn raw(&self) -> &RawLock {
        &self.raw
    }
}

/// The right to use the data of a [`Lock`]. Dropping it releases the lock.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// Neither `Send` nor unconditionally `Sync`: the thread that holds the lock drops the guard,
    /// and a shared guard gives `&T`.
    of_thread: PhantomData<*mut T>,
    #[cfg(loom)]
    data: Option<loom::cell::MutPtr<T>>,
}

// SAFETY: a shared guard gives only `&T`, as a shared `T` does.
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<'a, T> Guard<'a, T> {
    #[inline]
    fn new(lock: &'a Lock<T>) -> Guard<'a, T> {
        Guard {
            lock,
            of_thread: PhantomData,
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
        // SAFETY: the lock is held by this guard alone, and the borrow of the guard bounds this
        // one.
        unsafe { &*self.data() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held by this guard alone, and its exclusive borrow makes this borrow
        // exclusive.
        unsafe { &mut *self.data() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(loom)]
        drop(self.data.take());
        witness::released(self.lock.raw.class());
        self.lock.raw.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// Compiles for types that are not `Send`: for a `Send` type two impls match.
    trait Stays<Marker> {
        const YES: () = ();
    }
    impl<T: ?Sized> Stays<()> for T {}
    impl<T: ?Sized + Send> Stays<u8> for T {}
    const _: () = <Guard<'_, u8> as Stays<_>>::YES;

    /// As [`Stays`], for `Sync`.
    trait IsNotShared<Marker> {
        const YES: () = ();
    }
    impl<T: ?Sized> IsNotShared<()> for T {}
    impl<T: ?Sized + Sync> IsNotShared<u8> for T {}
    const _: () = <Guard<'_, Cell<u8>> as IsNotShared<_>>::YES;

    /// This thread held the lock before. Another has just acquired it, but has not recorded itself
    /// as owner yet.
    #[test]
    fn fork_abandons_a_lock_that_another_thread_just_acquired() {
        let lock = Lock::new(LockClass::Barn, ());
        drop(lock.acquire(Context::TRYING));
        assert!(lock.raw.try_acquire(0));
        lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
        lock.raw.release_in_child(Fork(1));
        Context::enter(|waiting| assert!(lock.acquire(waiting).is_none()));
    }

    /// The ways in which a fork child treats a lock that it did not get: it abandons the lock, or
    /// frees it if the data is consistent.
    const ENDS: [fn(&RawLock); 2] = [
        |lock| lock.release_in_child(Fork(1)),
        // SAFETY: nobody else uses the locks of these tests, and their data is nothing.
        |lock| unsafe {
            lock.free_in_child(Fork(1));
            lock.reclaim_in_child();
        },
    ];

    /// A handler forks while this thread is about to try the lock. Another thread has just acquired
    /// it, but has not recorded itself as owner yet.
    #[test]
    fn fork_in_a_handler_abandons_a_lock_that_another_thread_just_acquired() {
        for end in ENDS {
            let lock = Lock::new(LockClass::Barn, ());
            assert!(lock.raw.try_acquire(0));
            let changing = Changing::begin(&lock.raw);
            lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
            end(&lock.raw);
            drop(changing);
            assert!(lock.raw.is_abandoned(), "the child would wait forever");
            Context::enter(|waiting| assert!(lock.acquire(waiting).is_none()));
        }
    }

    /// As above, but it is this thread that has just acquired the lock, or is about to release it.
    #[test]
    fn fork_in_a_handler_keeps_a_lock_that_changes_hands() {
        for end in ENDS {
            let lock = Lock::new(LockClass::Barn, ());
            let guard = lock.acquire(Context::TRYING);
            lock.raw.owner.store(0, Ordering::Relaxed);
            let changing = Changing::begin(&lock.raw);
            lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
            end(&lock.raw);
            assert!(lock.acquire(Context::TRYING).is_none());
            drop(changing);
            drop(guard);
            assert!(lock.acquire(Context::TRYING).is_some());
        }
    }

    #[test]
    fn fork_keeps_locks_of_the_forking_thread() {
        let lock = Lock::new(LockClass::Barn, ());
        let guard = lock.acquire(Context::TRYING);
        lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
        lock.raw.release_in_child(Fork(1));
        assert!(lock.acquire(Context::TRYING).is_none());
        drop(guard);
        assert!(lock.acquire(Context::TRYING).is_some());
    }

    /// A handler forks while this thread forks. In the parent and in the child, the inner fork
    /// neither waits for nor releases the locks that the outer fork holds.
    #[test]
    fn nested_fork_leaves_locks_to_the_outer_fork() {
        let [held, free] = [(); 2].map(|()| Lock::new(LockClass::Barn, ()));
        let attempts = Cell::new(3);
        held.raw.hold_for_fork(Fork(1), Context::TRYING, &attempts);
        for end in [RawLock::release_in_parent, RawLock::release_in_child] {
            for lock in [&held, &free] {
                lock.raw.hold_for_fork(Fork(2), Context::TRYING, &attempts);
                assert!(lock.raw.is_held());
            }
            for lock in [&held, &free] {
                end(&lock.raw, Fork(2));
            }
            assert!(held.raw.is_held() && free.raw.is_free());
        }
        assert_eq!(attempts.get(), 3, "the inner fork waited for a lock");
        held.raw.release_in_parent(Fork(1));
        assert!(held.raw.is_free());
    }
}
