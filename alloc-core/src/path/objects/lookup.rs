//! Lookup: the class, the slab and the size of an object.
//!
//! The metadata of each unit of a slab holds the class and the address of the slab. The metadata of
//! the first unit is the slab's descriptor. Metadata of a committed unit is readable at any time;
//! while the unit is in no slab, it names no class.

use crate::page::{self, Unit};
use crate::sampling;
use crate::size_class::Class;
use crate::slab::{self, Entry, Slab};
use crate::watch;

// The metadata of a slab's first unit is its descriptor. The metadata of its other units follows
// directly.
const _: () = assert!(size_of::<Slab>() == page::META_SIZE);
const _: () = assert!(size_of::<Entry>() == page::ENTRY_SIZE);

/// Returns the class of the object that contains `address`, or `None` if `address` lies in a run
/// that is no slab.
///
/// # Safety
/// `address` lies in a run, or in an object that is not yet free in its slab.
pub(crate) unsafe fn class_of_object(address: *mut u8) -> Option<Class> {
    match Unit::of(address) {
        // SAFETY: the caller guarantees that the unit is in use.
        Some(unit) => unsafe { class_of_unit(unit) },
        None => sampling::class_of(address),
    }
}

/// As [`class_of_object`], for an address in `unit`.
///
/// # Safety
/// As [`class_of_object`].
pub(crate) unsafe fn class_of_unit(unit: Unit) -> Option<Class> {
    // SAFETY: the caller guarantees that the unit is in use, so it has metadata.
    unsafe { Slab::class_of_unit(unit.meta().cast()) }
}

/// Returns the descriptor of the slab of `class` that contains a unit. If the unit is in no such
/// slab, returns its own metadata.
///
/// # Safety
/// The unit is committed.
#[inline]
pub(super) unsafe fn slab_at(unit: Unit, class: Class) -> *mut Slab {
    // SAFETY: the caller guarantees that the unit is committed.
    let base = unsafe { Slab::base_of(unit.meta().cast(), class) };
    // SAFETY: the slab of a unit starts at a unit of the same run, at this one or below it.
    base.map_or(unit, |base| unsafe { unit.at(base) }).meta().cast()
}

/// Returns the class of the slab that contains `address`, and whether an object starts there.
/// Returns `None` if no slab does. A sampled block apart from slabs counts as an object.
pub(crate) fn find(address: *mut u8) -> Option<(Class, bool)> {
    match Unit::of(address) {
        Some(unit) => find_in(unit, address),
        None => sampling::class_of(address).map(|class| (class, true)),
    }
}

/// As [`find`], for an address in `unit`.
pub(crate) fn find_in(unit: Unit, address: *mut u8) -> Option<(Class, bool)> {
    // SAFETY: the metadata of a committed unit, which contains `address`.
    unit.is_committed().then(|| unsafe { Slab::find(unit.meta().cast(), address) })?
}

/// Returns the usable bytes of an object of a class.
pub(crate) fn size(class: Class) -> usize {
    let shape = slab::shape(class);
    match class.cache_index() {
        Some(_) => shape.link as usize,
        None => shape.stride(),
    }
}

/// Returns the arguments of a probe that reports objects of a class entering or leaving the sheaf
/// of `cpu`.
#[inline]
pub(super) fn move_event(class: Class, objects: usize, cpu: usize) -> watch::Move {
    watch::Move { size: size(class), objects, cpu }
}
