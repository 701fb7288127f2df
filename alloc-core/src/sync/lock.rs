//! The one lock of the slow paths.

#[cfg(not(loom))]
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicUsize;
#[cfg(not(loom))]
use core::sync::atomic::compiler_fence;

use super::primitive::{Ordering, UnsafeCell, spin_loop};
use super::{Context, Futex, LockClass, counters, witness};
#[cfg(not(loom))]
use crate::arch;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may sleep in the futex: the release has to wake one.
const CONTENDED: u32 = 2;
/// Its holder did not survive a fork: what it protects is as it was left, and nobody gets at it any more.
const ABANDONED: u32 = 3;

/// Attempts before sleeping. A critical section here is some hundred nanoseconds; a sleep costs microseconds.
pub(crate) const SPINS: u32 = if cfg!(any(loom, miri)) { 1 } else { 100 };

/// A fork in progress on this thread that holds locks until it is over. A handler may interrupt it and
/// fork as well: then this is how deep the later one is, at least 1. It is added to the thread's token,
/// which the words of other threads are further away from than that.
#[cfg(not(loom))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fork(usize);

#[cfg(not(loom))]
impl Fork {
    /// Most forks on a thread that are told apart.
    const MOST: usize = 63;

    /// Returns the fork that this thread is in, between `pin` and `unpin` of its context.
    pub(crate) fn current() -> Fork {
        Fork(Context::depth().clamp(1, Fork::MOST))
    }

    /// The token of a lock that is held for it.
    fn token(self) -> usize {
        Context::thread() + self.0
    }
}

/// Says that this thread may have a lock of which it is not known to be the owner: it takes the lock,
/// or releases it. Over when dropped.
///
/// That takes a few instructions, but it is there that a handler comes in: after a fork the first
/// store to a page faults.
#[cfg(not(loom))]
struct Changing {
    /// Of the code that this one interrupted.
    outer: usize,
}

#[cfg(not(loom))]
impl Changing {
    #[inline]
    fn begin(lock: &RawLock) -> Changing {
        let changing = &arch::locals().changing;
        let outer = changing.load(Ordering::Relaxed);
        changing.store(core::ptr::from_ref(lock).addr(), Ordering::Relaxed);
        // Towards handlers on this thread: it is said before anything changes.
        compiler_fence(Ordering::SeqCst);
        Changing { outer }
    }

    /// Whether the code that this one interrupted may have the lock, though another may as well.
    fn is_on(lock: &RawLock) -> bool {
        lock.owner.load(Ordering::Relaxed) == 0
            && arch::locals().changing.load(Ordering::Relaxed) == core::ptr::from_ref(lock).addr()
    }
}

#[cfg(not(loom))]
impl Drop for Changing {
    #[inline]
    fn drop(&mut self) {
        // Towards handlers on this thread: the owner is known, or there is none.
        compiler_fence(Ordering::SeqCst);
        arch::locals().changing.store(self.outer, Ordering::Relaxed);
    }
}

/// A word lock (Drepper, *Futexes Are Tricky*, mutex 2) that knows its holder.
///
/// The lock is not recursive and takes no part in unwinding: nothing that runs under it may panic.
pub(crate) struct RawLock {
    word: Futex,
    /// The token of the thread that holds it, or 0. Whoever takes the lock says so only then, and no longer before letting go
    /// of it: so only a thread that asks whether it holds the lock itself gets a sure answer.
    owner: AtomicUsize,
    /// For the witness and the counters: without them a free lock is all zeros, and memory full of them takes no room in
    /// executables.
    #[cfg(any(debug_assertions, feature = "counters"))]
    class: LockClass,
}

impl RawLock {
    #[cfg(not(loom))]
    const fn new(class: LockClass) -> RawLock {
        let _ = class;
        RawLock {
            word: Futex::new(FREE),
            owner: AtomicUsize::new(0),
            #[cfg(any(debug_assertions, feature = "counters"))]
            class,
        }
    }

    #[cfg(loom)]
    fn new(class: LockClass) -> RawLock {
        let _ = class;
        RawLock {
            word: Futex::new(FREE),
            owner: AtomicUsize::new(0),
            #[cfg(any(debug_assertions, feature = "counters"))]
            class,
        }
    }

    /// Changes the word from `from` to `to`, and says who has the lock then, if it was free. Returns what the word was.
    #[inline]
    fn change(&self, from: u32, to: u32, owner: usize) -> u32 {
        #[cfg(not(loom))]
        let _changing = Changing::begin(self);
        // Acquire: pairs with the Release in `release`, so that the last holder's writes are seen.
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

    /// Takes the lock, unless that has to be waited for and the context may not.
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

    /// Waits for the lock; false if nobody will ever let go of it.
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
                    // Whoever slept takes the lock as contended: it cannot know whether others sleep still.
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
        // Release: pairs with the Acquire of the next holder, so that the owner it stores is the later one.
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            self.word.wake_one();
        }
    }

    #[cfg(not(loom))]
    pub(crate) fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == FREE
    }

    #[cfg(not(loom))]
    fn is_held(&self) -> bool {
        matches!(self.word.load(Ordering::Relaxed), HELD | CONTENDED)
    }

    #[cfg(not(loom))]
    pub(crate) fn is_abandoned(&self) -> bool {
        self.word.load(Ordering::Relaxed) == ABANDONED
    }

    /// Takes the lock for as long as a fork takes, unless this very thread was interrupted while it had it, or by a fork that
    /// holds it. A context that may not wait makes a few attempts, which are counted down.
    #[cfg(not(loom))]
    pub(crate) fn hold_for_fork(&self, fork: Fork, context: Context, attempts: &Cell<u32>) {
        if self.is_this_threads() {
            return;
        }
        let mut held = self.acquire(context);
        while !held && !self.is_abandoned() && attempts.get() > 0 {
            attempts.set(attempts.get() - 1);
            super::spin_or_yield();
            held = self.try_acquire(fork.token());
        }
        if held {
            self.owner.store(fork.token(), Ordering::Relaxed);
        }
    }

    /// Releases the lock in the parent, if it is held for this fork.
    #[cfg(not(loom))]
    pub(crate) fn release_in_parent(&self, fork: Fork) {
        if self.owner.load(Ordering::Relaxed) == fork.token() {
            self.release();
        }
    }

    /// As [`RawLock::release_in_parent`], in the child, where no other thread is that could release it.
    #[cfg(not(loom))]
    pub(crate) fn release_in_child(&self, fork: Fork) {
        self.release_in_parent(fork);
        if self.is_held() && !self.is_this_threads() {
            self.word.store(ABANDONED, Ordering::Relaxed);
        }
    }

    /// As [`RawLock::release_in_child`], for a lock that protects what is whole after each store: the child may have it.
    #[cfg(not(loom))]
    pub(crate) fn free_in_child(&self, fork: Fork) {
        self.release_in_parent(fork);
        if self.is_held() && !self.is_this_threads() {
            self.owner.store(0, Ordering::Relaxed);
            self.word.store(FREE, Ordering::Relaxed);
        }
    }

    /// What the witness and the counters are told.
    #[inline(always)]
    fn class(&self) -> LockClass {
        #[cfg(any(debug_assertions, feature = "counters"))]
        return self.class;
        #[cfg(not(any(debug_assertions, feature = "counters")))]
        LockClass::Sheaves
    }

    /// Makes an abandoned lock a free one, where what it protects is whole anyway.
    #[cfg(not(loom))]
    pub(crate) fn reclaim_in_child(&self) {
        if self.is_abandoned() {
            self.word.store(FREE, Ordering::Relaxed);
        }
    }

    /// Whether this thread has the lock, in the code that it interrupted, be that a fork.
    #[cfg(not(loom))]
    fn is_this_threads(&self) -> bool {
        let above = self.owner.load(Ordering::Relaxed).wrapping_sub(Context::thread());
        above <= Fork::MOST || Changing::is_on(self)
    }

    /// Whether this thread has the lock, in the code that it interrupted.
    #[cfg(not(loom))]
    pub(crate) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == Context::thread()
    }
}

/// For a report of what is held: where the lock is and who has it, by the token of a thread.
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

// SAFETY: the lock hands out one guard at a time, so sharing it shares only the right to take turns with the `T`.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: a lock owns its `T` and nothing tied to a thread.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(class: LockClass, data: T) -> Lock<T> {
        Lock { raw: RawLock::new(class), data: UnsafeCell::new(data) }
    }

    #[cfg(loom)]
    pub(crate) fn new(class: LockClass, data: T) -> Lock<T> {
        Lock { raw: RawLock::new(class), data: UnsafeCell::new(data) }
    }

    /// Takes the lock, waiting for it where the context may wait.
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

    /// The lock itself, for who has to take all there are.
    #[cfg(not(loom))]
    pub(crate) fn raw(&self) -> &RawLock {
        &self.raw
    }
}

/// The right to use what a [`Lock`] holds; dropping it gives the lock back.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// A guard gives `&T`, and is dropped by the thread that has the lock: it is not sent to another, and shared as a `T` is.
    of_thread: PhantomData<*mut T>,
    #[cfg(loom)]
    data: Option<loom::cell::MutPtr<T>>,
}

// SAFETY: a shared guard gives what a shared `T` does.
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
        witness::released(self.lock.raw.class());
        self.lock.raw.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Compiles for what is not `Send`: for what is, there are two.
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

    /// This thread had the lock before, and another has just taken it, but not said so yet.
    #[test]
    fn a_fork_abandons_a_lock_that_another_has_just_taken() {
        let waiting = Context::enter(|context| context);
        let lock = Lock::new(LockClass::Barn, ());
        drop(lock.acquire(waiting));
        assert!(lock.raw.try_acquire(0));
        lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
        lock.raw.release_in_child(Fork(1));
        assert!(lock.acquire(waiting).is_none());
    }

    #[test]
    fn a_fork_leaves_alone_what_this_thread_has() {
        let waiting = Context::enter(|context| context);
        let lock = Lock::new(LockClass::Barn, ());
        let guard = lock.acquire(waiting);
        lock.raw.hold_for_fork(Fork(1), Context::TRYING, &Cell::new(3));
        lock.raw.release_in_child(Fork(1));
        assert!(lock.acquire(Context::TRYING).is_none());
        drop(guard);
        assert!(lock.acquire(Context::TRYING).is_some());
    }

    /// A handler forks while this thread forks: what the outer fork holds it neither waits for nor
    /// releases, in the parent and in the child.
    #[test]
    fn a_fork_in_a_fork_leaves_locks_to_the_outer_one() {
        let waiting = Context::enter(|context| context);
        let [held, free] = [(); 2].map(|()| Lock::new(LockClass::Barn, ()));
        let attempts = Cell::new(3);
        held.raw.hold_for_fork(Fork(1), waiting, &attempts);
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
        assert_eq!(attempts.get(), 3, "nothing was waited for");
        held.raw.release_in_parent(Fork(1));
        assert!(held.raw.is_free());
    }
}
