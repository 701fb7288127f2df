//! Grace periods: memory that a reader may look at is not freed.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::loom_finds;
use crate::sync::{Grace, spin_or_yield};

const NOTHING: usize = 0;
const SOMETHING: usize = 1;

/// A structure of one element, and the element's memory.
struct Shared {
    grace: Grace<1>,
    element: AtomicUsize,
    memory: UnsafeCell<usize>,
}

/// Reads the element. Loom's own cell detects a read while the memory is written.
fn read(shared: &Shared) {
    let ticket = shared.grace.ticket(0);
    shared.grace.enter(ticket);
    // Acquire: pairs with the writer's Release.
    if shared.element.load(Ordering::Acquire) == SOMETHING {
        shared.memory.with(|memory| {
            // SAFETY: a reader that found the element may read its memory.
            unsafe { assert_eq!(*memory, SOMETHING) }
        });
    }
    shared.grace.leave(ticket);
}

/// Takes the element out, waits for `epochs` of the three of a grace period, and reuses its memory.
fn replace(shared: &Shared, epochs: usize) {
    shared.element.store(NOTHING, Ordering::Release);
    let end = shared.grace.begin().wrapping_sub(3 - epochs);
    while !shared.grace.is_over(end) {
        spin_or_yield();
    }
    shared.memory.with_mut(|memory| {
        // SAFETY: no reader can find the element any longer.
        unsafe { *memory = NOTHING }
    });
}

fn model(readers: usize, epochs: usize, helped: bool) -> impl Fn() + Sync + Send + 'static {
    move || {
        let shared = Arc::new(Shared {
            grace: Grace::new(),
            element: AtomicUsize::new(SOMETHING),
            memory: UnsafeCell::new(SOMETHING),
        });
        let threads: std::vec::Vec<_> = (0..readers)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || read(&shared))
            })
            .collect();
        let helper = helped.then(|| {
            let shared = shared.clone();
            // Another thread polls at the same time, and has begun to before the writer begins its
            // grace period.
            thread::spawn(move || shared.grace.is_over(2))
        });
        replace(&shared, epochs);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        helper.into_iter().for_each(|thread| {
            thread.join().unwrap();
        });
    }
}

/// A reader that comes at any time reads only memory that is still the element's.
#[test]
fn grace_period_waits_for_a_reader() {
    loom::model(model(1, 3, false));
}

/// As [`grace_period_waits_for_a_reader`], with another thread that advances epochs.
#[test]
fn grace_period_waits_despite_another_poller() {
    // Three threads that spin: an exhaustive search would take days.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(3);
    bounded.check(model(1, 3, true));
}

/// One epoch is no grace period: a reader is on the side that was not checked.
#[test]
fn one_epoch_is_too_short() {
    loom_finds("Causality violation", "models::grace::one_epoch_is_too_short", model(1, 1, false));
}

/// Two epochs are too few if the first one began before the grace period.
#[test]
fn two_epochs_are_too_short() {
    loom_finds("Causality violation", "models::grace::two_epochs_are_too_short", model(1, 2, true));
}
