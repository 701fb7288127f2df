//! Entries: what C's `free` reads of a unit.
//!
//! An entry has eight bytes, and those of an arena lie side by side, apart from the descriptors of
//! slabs. So the entries of a heap of some hundred MiB stay in the nearest caches, where a
//! descriptor would cost a cache line and a page for each unit. They change only when a unit comes
//! to a slab or leaves it.
//!
//! The entry of a unit that belongs to no slab is zero.

use core::mem;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::size_class::{Class, UNIT};

/// The entry of a unit. The fields are atomic, since a program may free any address at any time;
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
}

/// Byte offset in an entry of the word that decides where objects start: at every address whose low
/// 16 bits times that word, modulo 2^32, are less than the word.
pub(crate) const IN_UNIT: usize = mem::offset_of!(Entry, in_unit);
/// Byte offset in an entry of the index of the class, of 16 bits.
pub(crate) const CLASS: usize = mem::offset_of!(Entry, class);
const _: () = assert!(UNIT == 1 << 16);

impl Entry {
    /// Returns the entry of a unit that belongs to no slab.
    #[cfg(all(test, not(miri)))]
    pub(crate) const fn none() -> Entry {
        Entry { in_unit: AtomicU32::new(0), class: AtomicU16::new(0) }
    }

    /// Describes a unit of a slab of `class`.
    pub(super) fn set(&self, class: Class, in_unit: u32) {
        self.class.store(class.index() as u16, Ordering::Relaxed);
        self.in_unit.store(in_unit, Ordering::Relaxed);
    }

    /// Describes a unit that belongs to no slab.
    pub(super) fn clear(&self) {
        self.in_unit.store(0, Ordering::Relaxed);
        self.class.store(0, Ordering::Relaxed);
    }
}
