//! Entries: the part of a unit's metadata that the fast paths read.
//!
//! An entry has eight bytes, and those of an arena lie side by side, apart from the descriptors of
//! slabs. So the entries of a heap of some hundred MiB stay in the nearest caches, where a
//! descriptor would cost a cache line and a page for each unit.
//!
//! The entry of a unit that belongs to no slab is zero.

use core::mem;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use crate::size_class::{Class, UNIT};

/// The entry of a unit. All fields are atomic, since a program may free any address at any time;
/// they are relaxed, since a thread that passes an object on orders that itself.
#[repr(C, align(8))]
pub(crate) struct Entry {
    /// Decides at which addresses of the unit objects start, as [`Shape::in_unit`] defines. 0 where
    /// that takes a closer look: without a slab, and in slabs of middle sizes.
    ///
    /// [`Shape::in_unit`]: super::Shape::in_unit
    in_unit: AtomicU32,
    /// Index of the class of the unit's objects.
    class: AtomicU16,
    /// States of the objects of a middle size that start in the first and in the second half of
    /// the unit. No two of them start in the same half.
    middle: [AtomicU8; 2],
}

/// Byte offset in an entry of the word that decides where objects start: at every address whose low
/// 16 bits times that word, modulo 2^32, are less than the word.
pub(crate) const IN_UNIT: usize = mem::offset_of!(Entry, in_unit);
/// Byte offset in an entry of the index of the class, of 16 bits.
pub(crate) const CLASS: usize = mem::offset_of!(Entry, class);
const _: () = assert!(UNIT == 1 << 16);

/// State of an object of a middle size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Middle {
    /// Free, and may hold anything.
    Dirty,
    /// Free, and reads as zero.
    Clean,
    /// Held by the program. The bits above say where it starts: see [`Middle::held_at`].
    Held,
}

impl Middle {
    /// Objects of middle sizes start at multiples of this many bytes.
    const ALIGN: usize = 4096;

    /// Returns the state of a held object that starts at `address`, a multiple of
    /// [`Middle::ALIGN`].
    #[inline(always)]
    fn held_at(address: *mut u8) -> u8 {
        const { assert!(UNIT / Middle::ALIGN <= 1 << 6) };
        ((address.addr() % UNIT / Middle::ALIGN) as u8) << 2 | Middle::Held as u8
    }
}

impl Entry {
    /// Returns the entry of a unit that belongs to no slab.
    #[cfg(test)]
    pub(crate) const fn none() -> Entry {
        Entry {
            in_unit: AtomicU32::new(0),
            class: AtomicU16::new(0),
            middle: [const { AtomicU8::new(0) }; 2],
        }
    }

    /// Describes a unit of a slab of `class`, whose free objects read as zero if `zeroed`.
    pub(super) fn set(&self, class: Class, in_unit: u32, zeroed: bool) {
        let state = if class.is_middle() && zeroed { Middle::Clean } else { Middle::Dirty };
        for middle in &self.middle {
            middle.store(state as u8, Ordering::Relaxed);
        }
        self.class.store(class.index() as u16, Ordering::Relaxed);
        self.in_unit.store(in_unit, Ordering::Relaxed);
    }

    /// Describes a unit that belongs to no slab.
    pub(super) fn clear(&self) {
        self.in_unit.store(0, Ordering::Relaxed);
        self.class.store(0, Ordering::Relaxed);
        for middle in &self.middle {
            middle.store(Middle::Dirty as u8, Ordering::Relaxed);
        }
    }

    /// Records that the program receives the object of a middle size that starts at `object`, in
    /// this unit. Returns whether the object reads as zero.
    #[inline(always)]
    pub(crate) fn middle_out(&self, object: *mut u8) -> bool {
        let state = self.middle_at(object);
        let is_clean = state.load(Ordering::Relaxed) == Middle::Clean as u8;
        state.store(Middle::held_at(object), Ordering::Relaxed);
        is_clean
    }

    /// Records that the program frees the object at `address`, in this unit, and returns its class,
    /// if it is an object of a middle size that the program holds. If two threads free an object at
    /// the same moment, which is an error, both may succeed.
    #[inline(always)]
    pub(crate) fn middle_in(&self, address: *mut u8) -> Option<Class> {
        let state = self.middle_at(address);
        let is_held = state.load(Ordering::Relaxed) == Middle::held_at(address)
            && address.addr().is_multiple_of(Middle::ALIGN);
        if !is_held {
            return None;
        }
        state.store(Middle::Dirty as u8, Ordering::Relaxed);
        Class::any_from_index(self.class.load(Ordering::Relaxed).into())
    }

    /// Returns whether the program holds an object of a middle size that starts at `address`, in
    /// this unit.
    pub(crate) fn holds(&self, address: *mut u8) -> bool {
        self.middle_at(address).load(Ordering::Relaxed) == Middle::held_at(address)
    }

    /// Returns the state of the object of a middle size that starts in the same half of the unit as
    /// `address`.
    #[inline(always)]
    fn middle_at(&self, address: *mut u8) -> &AtomicU8 {
        let [first, second] = &self.middle;
        if address.addr() & (UNIT / 2) == 0 { first } else { second }
    }

    /// Records that a free object of a middle size no longer reads as zero.
    pub(crate) fn middle_written(&self, object: *mut u8) {
        self.middle_at(object).store(Middle::Dirty as u8, Ordering::Relaxed);
    }
}
