//! Objects of middle sizes: which of them the program holds, and which read as zero.
//!
//! The descriptor of each unit has the states of the objects that start there. They are written
//! with every allocation and free, so they do not lie in the entries: entries of neighbouring
//! units, whose objects threads on several CPUs may have, share a cache line.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::size_class::UNIT;

/// States of the objects that start in the first and in the second half of a unit. No two objects
/// of a middle size start in the same half. Relaxed: a thread that passes an object on orders that
/// itself.
pub(super) struct States([AtomicU8; 2]);

/// State of an object of a middle size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// Free, and may hold anything.
    Dirty,
    /// Free, and reads as zero.
    Clean,
    /// Held by the program. The bits above say where it starts: see [`State::held_at`].
    Held,
}

impl State {
    /// Objects of middle sizes start at multiples of this many bytes.
    const ALIGN: usize = 4096;

    /// Bit of the state of a held object that is a sample.
    const SAMPLED: u8 = 1 << 7;

    /// Returns the state of a held object that starts at `address`, a multiple of
    /// [`State::ALIGN`].
    #[inline(always)]
    fn held_at(address: *mut u8) -> u8 {
        const { assert!(UNIT / State::ALIGN <= 1 << 5) };
        ((address.addr() % UNIT / State::ALIGN) as u8) << 2 | State::Held as u8
    }
}

impl States {
    /// Returns the states in a unit of a new slab, whose objects read as zero if `zeroed`.
    pub(super) fn new(zeroed: bool) -> States {
        let state = if zeroed { State::Clean } else { State::Dirty } as u8;
        States([AtomicU8::new(state), AtomicU8::new(state)])
    }

    /// Records that the program receives the object that starts at `object`, in this unit. Returns
    /// whether the object reads as zero.
    #[inline(always)]
    pub(super) fn hold(&self, object: *mut u8) -> bool {
        let state = self.at(object);
        let is_clean = state.load(Ordering::Relaxed) == State::Clean as u8;
        state.store(State::held_at(object), Ordering::Relaxed);
        is_clean
    }

    /// Returns whether the program holds an object that starts at `address`, in this unit.
    #[inline(always)]
    pub(super) fn holds(&self, address: *mut u8) -> bool {
        self.at(address).load(Ordering::Relaxed) == State::held_at(address)
            && address.addr().is_multiple_of(State::ALIGN)
    }

    /// Marks the object that starts at `object`, in this unit, which the program is about to
    /// receive, as a sample. From then on [`States::holds`] does not report it.
    pub(super) fn sample(&self, object: *mut u8) {
        self.at(object).store(State::held_at(object) | State::SAMPLED, Ordering::Relaxed);
    }

    /// Returns whether the program holds a sample that starts at `address`, in this unit.
    pub(super) fn holds_sample(&self, address: *mut u8) -> bool {
        self.at(address).load(Ordering::Relaxed) == State::held_at(address) | State::SAMPLED
            && address.addr().is_multiple_of(State::ALIGN)
    }

    /// Records that the object that starts at `object`, in this unit, is free and may hold
    /// anything.
    #[inline(always)]
    pub(super) fn release(&self, object: *mut u8) {
        self.at(object).store(State::Dirty as u8, Ordering::Relaxed);
    }

    /// Returns the state of the object that starts in the same half of the unit as `address`.
    #[inline(always)]
    fn at(&self, address: *mut u8) -> &AtomicU8 {
        let [first, second] = &self.0;
        if address.addr() & (UNIT / 2) == 0 { first } else { second }
    }
}
