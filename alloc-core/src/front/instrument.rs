//! Instrumentation of the entry points: each block that they hand out or take back passes through
//! here. Observers see it ([`watch`]), debug builds record and check whether the program holds it.
//! In release builds without observers all of this compiles to nothing.

use crate::page::{self, Unit};
use crate::path::objects;
use crate::sampling;
use crate::size_class::Class;
use crate::slab;
use crate::watch::{self, WATCHED};

/// What needs no record: whether blocks are [`EXACT`], runs that the program frees, resized blocks.
pub(crate) use crate::watch::{EXACT, freed as run_taken_back, resized};

/// Reports a block of `size` bytes that the program receives, whose contents are meaningful if they
/// are `defined`. Ignores a null pointer. Returns the block. For a layout of size 0 the size is 0,
/// although the block is larger.
#[inline(always)]
pub(crate) fn handed_out(block: *mut u8, size: usize, defined: bool) -> *mut u8 {
    if EXACT && !block.is_null() {
        // SAFETY: the block was just allocated, and nobody uses it yet.
        unsafe { watch::write_size(block, extent(block), size) };
    }
    object_handed_out(block, size, defined)
}

/// As [`handed_out`], for an object of a cache, whose size needs no record.
#[inline(always)]
pub(crate) fn object_handed_out(object: *mut u8, size: usize, defined: bool) -> *mut u8 {
    #[cfg(debug_assertions)]
    if let Some((class, _)) = objects::find(object) {
        objects::note(object, class, true);
    }
    watch::allocated(object, size, defined)
}

/// Reports an object that the program frees. In debug builds, ends the process unless the program
/// holds it and it is of `class`.
#[inline(always)]
pub(crate) fn object_taken_back(object: *mut u8, class: Class) {
    watch::freed(object);
    if WATCHED && slab::shape(class).keeps_contents() {
        watch::make_accessible(object, objects::size(class), true);
    }
    #[cfg(debug_assertions)]
    objects::note(object, class, false);
}

/// As [`object_taken_back`], for a block freed by its address. Runs are ignored: see
/// [`run_taken_back`].
#[inline(always)]
pub(crate) fn taken_back(block: *mut u8) {
    if (WATCHED || cfg!(debug_assertions))
        && let Some((class, true)) = objects::find(block)
    {
        object_taken_back(block, class);
    }
}

/// Returns the bytes that the program may use of a block, which it requested if blocks are
/// [`EXACT`], and which its place has otherwise.
///
/// # Safety
/// `block` was allocated by this allocator and not freed.
pub(crate) unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: the caller guarantees that `block` is live.
    unsafe {
        let extent = extent(block);
        let is_of_cache =
            || objects::class_of_object(block).is_some_and(|class| class.cache_index().is_some());
        if EXACT && !is_of_cache() { watch::read_size(block, extent) } else { extent }
    }
}

/// Returns the bytes of a block's place, however many were requested.
///
/// # Safety
/// As [`usable_size`].
unsafe fn extent(block: *mut u8) -> usize {
    let Some(unit) = Unit::of(block) else {
        return sampling::size_of_block(block).unwrap_or(0);
    };
    // SAFETY: the caller guarantees that `block` is live, so it is an object or a run in use.
    match unsafe { objects::class_of_unit(unit) } {
        Some(class) => objects::size(class),
        // SAFETY: a live block that is no object is a run in use, and the caller owns it.
        None => unsafe { page::used_bytes(unit) },
    }
}
