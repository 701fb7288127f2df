//! The locks, the wake flag, the slot for one waiter, and the bounded counter.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;

use super::{loom_finds, race, race_of};
use crate::sync::{Context, ControlRwLock, Lock, LockClass, Rcuwait, WakeFlag, add_up_to};

#[test]
fn lock_excludes_and_orders() {
    loom::model(|| {
        let lock = Arc::new(Lock::new(LockClass::Barn, 0));
        let shared = lock.clone();
        race(move |_| *shared.acquire(Context::WAITING).unwrap() += 1);
        assert_eq!(*lock.acquire(Context::WAITING).unwrap(), 2);
    });
}

#[test]
fn tried_lock_excludes_or_is_refused() {
    loom::model(|| {
        let lock = Arc::new(Lock::new(LockClass::Barn, 0));
        let shared = lock.clone();
        race(move |_| {
            if let Some(mut guard) = shared.acquire(Context::TRYING) {
                *guard += 1;
            }
        });
        let taken = *lock.acquire(Context::TRYING).expect("no thread holds the lock");
        assert!((1..=2).contains(&taken));
    });
}

/// A lock, and the data that it guards.
struct Guarded {
    lock: ControlRwLock,
    pair: UnsafeCell<(usize, usize)>,
}

// SAFETY: only holders of the lock use the pair.
unsafe impl Sync for Guarded {}
// SAFETY: nothing is tied to a thread.
unsafe impl Send for Guarded {}

/// Two threads write and one reads, nested twice: no thread sleeps forever, and none reads a
/// half-written pair.
#[test]
fn control_lock_excludes_and_wakes() {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.check(|| {
        let guarded =
            Arc::new(Guarded { lock: ControlRwLock::new(), pair: UnsafeCell::new((0, 0)) });
        race_of(3, move |number| {
            let Guarded { lock, pair } = &*guarded;
            if number == 3 {
                lock.read(false);
                lock.read(true);
                // SAFETY: the lock is held to read.
                pair.with(|pair| unsafe { assert_eq!((*pair).0, (*pair).1) });
                lock.unlock_read();
                lock.unlock_read();
            } else {
                lock.write();
                // SAFETY: the lock is held to write.
                pair.with_mut(|pair| unsafe { *pair = (number, number) });
                lock.unlock_write();
            }
        });
    });
}

/// Two threads leave work and set the flag. The third, which clears it, finds both pieces of work,
/// and does not sleep while one is left.
fn work_by_flag(clear: fn(&WakeFlag)) {
    let flag = Arc::new(WakeFlag::new());
    let work = Arc::new([0; 2].map(|_| AtomicBool::new(false)));
    let (shared, left) = (flag.clone(), work.clone());
    race_of(3, move |number| {
        if let Some(mine) = left.get(number - 1) {
            mine.swap(true, Relaxed);
            if shared.set() {
                shared.wake();
            }
            return;
        }
        let mut done = 0;
        loop {
            clear(&shared);
            done += left.iter().filter(|work| work.swap(false, Relaxed)).count();
            if done == left.len() {
                break;
            }
            shared.sleep();
        }
    });
}

#[test]
fn clearing_the_flag_misses_no_work() {
    loom::model(|| work_by_flag(WakeFlag::clear));
}

/// Clears by a store instead of an exchange, in the strongest order: work done before a set that
/// the store overwrites is not seen, and the thread sleeps beside it.
#[test]
fn clearing_the_flag_blindly_misses_work() {
    loom_finds("deadlock", "models::sync::clearing_the_flag_blindly_misses_work", || {
        work_by_flag(WakeFlag::clear_blindly);
    });
}

/// The last steps of a runner for its waiters, and the state that they wait for.
struct Done {
    busy: AtomicBool,
    waiter: Rcuwait,
}

impl Done {
    fn new() -> Arc<Done> {
        Arc::new(Done { busy: AtomicBool::new(true), waiter: Rcuwait::new() })
    }

    fn run(&self) {
        self.busy.store(false, Relaxed);
        self.waiter.wake();
    }

    fn sync(&self) {
        self.waiter.wait_until(|| !self.busy.load(Relaxed));
    }
}

/// One waiter is woken, whenever it comes.
#[test]
fn rcuwait_wakes_its_waiter() {
    loom::model(|| {
        let done = Done::new();
        let shared = done.clone();
        let runner = thread::spawn(move || shared.run());
        done.sync();
        runner.join().unwrap();
    });
}

/// Two waiters at once break the contract, and one of them may sleep forever: loom must find that.
#[test]
fn rcuwait_loses_one_of_two_waiters() {
    loom_finds("deadlock", "models::sync::rcuwait_loses_one_of_two_waiters", || {
        let done = Done::new();
        race_of(3, move |number| if number == 1 { done.run() } else { done.sync() });
    });
}

/// Two waiters that take turns are both woken.
#[test]
fn rcuwait_wakes_waiters_that_take_turns() {
    loom::model(|| {
        let done = Done::new();
        let mutex = loom::sync::Mutex::new(());
        race_of(3, move |number| {
            if number == 1 {
                done.run();
            } else {
                let _turn = mutex.lock().unwrap();
                done.sync();
            }
        });
    });
}

/// A smaller addition that fits succeeds at any time during one that is refused.
#[test]
fn refused_addition_takes_up_no_room() {
    loom::model(|| {
        let counter = Arc::new(AtomicUsize::new(0));
        let shared = counter.clone();
        race(move |number| {
            let (count, fits) = [(10, false), (1, true)][number - 1];
            assert_eq!(add_up_to(&shared, count, 5), fits, "{count} of 5");
        });
        assert_eq!(counter.load(Relaxed), 1);
    });
}
