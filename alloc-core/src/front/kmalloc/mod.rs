//! The general-purpose allocator: memory for any layout. An object of a size class serves most
//! layouts. A layout that no class serves gets a run of pages of its own: see `large`.
//!
//! Only the first step of an object's path, the sheaf, is inlined; `objects` has the other steps.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

use core::alloc::Layout;
use core::ptr::{self, NonNull};

use crate::front::instrument::{
    self, EXACT, handed_out, object_taken_back, resized, run_taken_back,
};
use crate::page::Unit;
use crate::path::large;
use crate::path::objects::{self, middle_in, middle_in_unit, middle_out, middle_sampled, misused};
use crate::percpu;
use crate::sampling;
use crate::size_class::{Class, MAX_SMALL_ALIGN, class_of, middle_class_of, small_class_of};
use crate::slab::Misuse;
use crate::watch;

/// Allocates memory for `layout`. Returns null when there is none. A size of 0 is served like a
/// size of 1.
#[inline(always)]
pub fn alloc(layout: Layout) -> *mut u8 {
    handed_out(alloc_block(layout), layout.size(), false)
}

#[inline(always)]
fn alloc_block(layout: Layout) -> *mut u8 {
    let Some(class) = small_class_of(layout) else { return alloc_large(layout, false) };
    match NonNull::new(percpu::pop(class)) {
        Some(object) => object.as_ptr(),
        None => alloc_small_slow(layout),
    }
}

/// As [`alloc`], and the memory reads as zero.
#[inline(always)]
pub fn alloc_zeroed(layout: Layout) -> *mut u8 {
    if small_class_of(layout).is_none() {
        return handed_out(alloc_large(layout, true), layout.size(), true);
    }
    let object = alloc(layout);
    if !object.is_null() {
        // SAFETY: the object has room for the layout.
        unsafe { object.write_bytes(0, layout.size()) };
    }
    object
}

/// Frees a block from [`alloc`], [`alloc_zeroed`] or [`realloc`].
///
/// # Safety
/// `block` was allocated by this allocator with this layout, and is no longer used. With debug
/// assertions, a foreign address and a block that is free already end the process with a message.
#[inline(always)]
pub unsafe fn free(block: *mut u8, layout: Layout) {
    let Some(class) = small_class_of(layout) else {
        // SAFETY: the caller guarantees that `block` was allocated with `layout` and is not used.
        return unsafe { free_large(block, layout) };
    };
    object_taken_back(block, class);
    // SAFETY: the caller guarantees that `block` is of `class` and is not used.
    unsafe {
        if !percpu::push(class, block) {
            objects::free_slow(class, block);
        }
    }
}

/// Changes the size of an allocation to `new_size` bytes and keeps its contents up to the lesser
/// size. The block may move. Returns null when there is no memory; the old block is unchanged then.
///
/// # Safety
/// `block` was allocated by this allocator with `layout`. `new_size`, rounded up to the alignment,
/// is at most `isize::MAX`.
#[inline]
pub unsafe fn realloc(block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    // SAFETY: the caller guarantees that `new_size` is small enough, and the alignment is a
    // layout's.
    let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
    match (small_class_of(layout), small_class_of(new_layout)) {
        // SAFETY: the caller guarantees that `block` was allocated with `layout`.
        _ if EXACT => unsafe { realloc_by_copy(block, layout, new_layout) },
        (Some(old), Some(new)) if old == new && sampling::guarded_size(block).is_none() => {
            resized(block, block, new_size)
        }
        // SAFETY: the caller guarantees that `block` was allocated with `layout`.
        (None, None) => unsafe { realloc_large(block, layout, new_layout) },
        // SAFETY: the caller guarantees that `block` was allocated with `layout`.
        _ => unsafe { realloc_by_copy(block, layout, new_layout) },
    }
}

/// Returns the bytes of memory that a block for `layout` takes. An allocation of that many bytes,
/// as by the [`whole`] layout, takes no more. The program may use only the bytes that it requested,
/// since a guarded block has no others. It may free or resize the block with a layout of any size
/// in between. Returns 0 for a size that cannot be allocated.
#[inline]
#[must_use]
pub fn good_size(layout: Layout) -> usize {
    match class_of(layout) {
        _ if EXACT => layout.size(),
        Some(class) => class.size(),
        None if layout.size() == 0 => good_size(one_byte(layout)),
        None => large::good_size(layout.size()),
    }
}

/// Returns `layout` with its size raised to [`good_size`]: an allocation with the result takes no
/// more memory, and the program may use all of its bytes.
#[inline]
#[must_use]
pub fn whole(layout: Layout) -> Layout {
    match Layout::from_size_align(good_size(layout), layout.align()) {
        Ok(whole) if whole.size() > 0 => whole,
        _ => layout,
    }
}

/// Returns the bytes that a block may use, without knowing its layout. (`malloc_usable_size`.)
///
/// # Safety
/// `block` was allocated by this allocator and not freed.
#[must_use]
pub unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: the caller guarantees that `block` is live.
    unsafe { instrument::usable_size(block) }
}

/// Makes a block at least `new_size` bytes large without moving it. From then on the size of its
/// layout is `new_size`. Returns false, and changes nothing, if that is impossible.
///
/// # Safety
/// As [`realloc`].
pub unsafe fn grow_in_place(block: *mut u8, layout: Layout, new_size: usize) -> bool {
    // An object has the size of its class and cannot grow. A layout of size 0 may have a class,
    // too.
    let is_run = small_class_of(layout).is_none()
        && layout.size() > 0
        && objects::find(block).is_none()
        && !EXACT;
    let size = sampling::guarded_size(block).unwrap_or_else(|| good_size(layout));
    let grown = new_size <= size
        // SAFETY: the caller guarantees that the program owns the block.
        || is_run && unsafe { large::grow_in_place(block, layout, new_size) };
    if grown && !EXACT {
        resized(block, block, new_size);
    }
    grown
}

unsafe fn realloc_by_copy(block: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
    let new = alloc(new_layout);
    if !new.is_null() {
        // SAFETY: both blocks are at least as long as the lesser size. The caller guarantees that
        // `block` was allocated with `layout`, and nobody uses it after the copy.
        unsafe {
            ptr::copy_nonoverlapping(block, new, layout.size().min(new_layout.size()));
            free(block, layout);
        }
    }
    new
}

/// Allocates for a layout of a small size, which is in the registers of callers anyway.
#[cold]
#[inline(never)]
extern "C" fn alloc_small_slow(layout: Layout) -> *mut u8 {
    let Some(class) = small_class_of(layout) else { return ptr::null_mut() };
    or_null(objects::alloc_object(class, Some(layout)))
}

fn or_null(object: Result<NonNull<u8>, objects::AllocError>) -> *mut u8 {
    object.map_or(ptr::null_mut(), NonNull::as_ptr)
}

#[cold]
#[inline(never)]
extern "C" fn alloc_large(layout: Layout, zeroed: bool) -> *mut u8 {
    // The fast path of middle sizes is apart from the slow path, which needs more registers.
    if let Some(class) = middle_class_of(layout)
        && let Some(object) = NonNull::new(percpu::pop(class))
    {
        percpu::refund(class.size());
        let object = object.as_ptr();
        if !middle_out(object) && zeroed {
            // SAFETY: the object was just allocated, and its class serves the layout.
            return unsafe { clear(object, layout.size()) };
        }
        return object;
    }
    alloc_large_slow(layout, zeroed)
}

/// Zeroes an object and returns it.
///
/// # Safety
/// The object has `size` bytes, and nobody else uses it.
#[inline(never)]
unsafe extern "C" fn clear(object: *mut u8, size: usize) -> *mut u8 {
    watch::make_accessible(object, size, false);
    // SAFETY: the caller guarantees an object of that size.
    unsafe { object.write_bytes(0, size) };
    object
}

#[cold]
#[inline(never)]
extern "C" fn alloc_large_slow(layout: Layout, zeroed: bool) -> *mut u8 {
    if layout.size() == 0 && layout.align() <= MAX_SMALL_ALIGN {
        return alloc_block(one_byte(layout));
    }
    if let Some(class) = middle_class_of(layout) {
        let object = or_null(objects::alloc_object(class, None));
        let is_zero = object.is_null() || middle_out(object);
        if sampling::was_on() {
            middle_sampled(object);
        }
        if !is_zero && zeroed {
            // SAFETY: the object was just allocated, and its class serves the layout.
            return unsafe { clear(object, layout.size()) };
        }
        return object;
    }
    large::alloc(layout, zeroed)
}

/// Returns the layout that serves a layout of size 0.
fn one_byte(layout: Layout) -> Layout {
    Layout::from_size_align(1, layout.align()).unwrap_or(layout)
}

/// # Safety
/// As [`free`], for a layout that is not of a small size.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_large(block: *mut u8, layout: Layout) {
    if layout.size() == 0 && layout.align() <= MAX_SMALL_ALIGN {
        // SAFETY: the caller guarantees that `block` was allocated with `layout`, which was served
        // as one byte.
        return unsafe { free(block, one_byte(layout)) };
    }
    if let Some(class) = middle_class_of(layout)
        && let Some(found) = middle_in(block)
    {
        // SAFETY: the caller guarantees that `block` is not used, and `middle_in` found its class.
        return unsafe { free_middle_as(block, class, found) };
    }
    // SAFETY: the caller guarantees that `block` was allocated with `layout` and is not used.
    unsafe { free_large_elsewhere(block, layout) };
}

/// As [`free_large`], for a block that is not of a middle size in the first arena.
///
/// # Safety
/// As [`free_large`].
#[cold]
#[inline(never)]
unsafe extern "C" fn free_large_elsewhere(block: *mut u8, layout: Layout) {
    if let Some(class) = middle_class_of(layout)
        && let Some(unit) = Unit::of(block)
        && let Some(found) = middle_in_unit(unit, block)
    {
        // SAFETY: the caller guarantees that `block` is not used, and `middle_in_unit` found its
        // class.
        return unsafe { free_middle_as(block, class, found) };
    }
    run_taken_back(block);
    // SAFETY: the caller guarantees that nobody uses the block.
    unsafe { large::free(block, layout) };
}

/// Frees an object of class `found` whose layout is of `class`, as [`free_middle`] does.
///
/// # Safety
/// As [`free_middle`].
#[inline(always)]
unsafe fn free_middle_as(object: *mut u8, class: Class, found: Class) {
    if !class.may_be_served_by(found) {
        misused(object, class, Misuse::Foreign);
    }
    object_taken_back(object, found);
    // SAFETY: the caller guarantees that `object` is of class `found` and is not used.
    unsafe { free_middle(object, found) };
}

/// Frees an object of a middle size after [`middle_in`] was called for it.
///
/// # Safety
/// `object` is of that class, and nobody uses it.
#[inline(always)]
pub(crate) unsafe fn free_middle(object: *mut u8, class: Class) {
    // SAFETY: the caller guarantees that `object` is of `class` and is not used.
    unsafe {
        if !percpu::push(class, object) {
            objects::free_slow(class, object);
        } else if percpu::spend(class.size()) {
            objects::allowance_is_used_up(class);
        }
    }
}

/// # Safety
/// As [`realloc`], for layouts that are not of small sizes.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn realloc_large(
    block: *mut u8,
    layout: Layout,
    new_layout: Layout,
) -> *mut u8 {
    let found = objects::find(block);
    let is_served = |layout: Layout, by: Class| {
        middle_class_of(layout).is_some_and(|class| class.may_be_served_by(by))
    };
    if let Some((class, true)) = found
        && [layout, new_layout].into_iter().all(|layout| is_served(layout, class))
    {
        objects::check_middle(block, class);
        return resized(block, block, new_layout.size());
    }
    let is_run = |layout: Layout| layout.size() > 0 && small_class_of(layout).is_none();
    if found.is_some() || !is_run(layout) || !is_run(new_layout) {
        // SAFETY: the caller guarantees that `block` was allocated with `layout`.
        return unsafe { realloc_by_copy(block, layout, new_layout) };
    }
    // SAFETY: the caller guarantees that the program owns the block; neither layout is empty.
    match unsafe { large::realloc(block, layout, new_layout) } {
        Some(new) => resized(block, new, new_layout.size()),
        // SAFETY: the caller guarantees that `block` was allocated with `layout`.
        None => unsafe { realloc_by_copy(block, layout, new_layout) },
    }
}

#[cfg(test)]
mod tests;
