//! The general-purpose allocator: memory for any layout. An object of a size class serves most
//! layouts. A layout that no class serves gets a run of pages of its own, whose descriptor holds
//! its length.
//!
//! Only the first step of an object's path, the sheaf, is inlined; `objects` has the other steps.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::node;
use crate::objects::{
    self, checked_in, checked_out, defer, free_deferred, free_run, have_threads, may_reclaim,
    middle_in, middle_out, misused,
};
use crate::os::{self, Remapped};
use crate::page::{self, Allocation, Misplaced, Unit};
use crate::percpu;
use crate::size_class::{
    Class, MAX_SMALL_ALIGN, REDZONE, UNIT, UNIT_SHIFT, class_of, middle_class_of, small_class_of,
};
use crate::slab::Misuse;
use crate::sync::Context;
use crate::watch;

/// Size in bytes from which zeroed memory is decommitted instead of cleared, so that parts that are
/// never written take no memory: large zeroed tables are often sparse.
const CLEARED_BY_SYSTEM: usize = 4 << 20;

/// Size in bytes from which a run is moved by remapping its pages instead of copying them. Below,
/// copying into warm pages is faster than faulting in cold ones: with 512 KiB here, four buffers
/// that grew in turn to 8 MB took 3.2 times as long.
const REMAP_BYTES: usize = 8 << 20;

/// Most runs in use whose pages were moved by remapping; beyond that, runs are copied. Such a run
/// is a mapping of its own until it is freed. The kernel grants a process some 65 000 mappings
/// (`vm.max_map_count`), and these are for the program to use.
const MAX_MOVES: u32 = 4096;
/// Whether the kernel once had no mapping left. It is not asked to move pages again then.
static IS_OUT_OF_MAPPINGS: AtomicBool = AtomicBool::new(false);

/// A run that is copied in order to grow becomes this many times as long as it has to be, so that
/// its next growth needs no copy. Room that nobody touches takes no memory. With it, four buffers
/// that grow in turn to 8 MB take 0.8 of the time.
const ROOM: usize = 4;
/// As [`ROOM`], for memory that was used before, which stays resident.
const DIRTY_ROOM: usize = 2;
/// A run whose pages are moved gets its length divided by this as room: moving a page costs a
/// fiftieth of copying it.
const MOVED_ROOM: usize = 4;
/// The longest run that is allocated for the sake of [`ROOM`], in units.
const MAX_ROOM: usize = ROOM * (2 * REMAP_BYTES / UNIT);

/// Allocates memory for `layout`. Returns null when there is none. A size of 0 is served like a
/// size of 1.
#[inline(always)]
pub fn alloc(layout: Layout) -> *mut u8 {
    handed_out(alloc_block(layout), layout.size(), false)
}

/// Reports a block to observers, and records its size in builds where blocks are
/// [exact](watch::EXACT). Call on every block handed out for a layout. For a layout of size 0 the
/// size is 0, although the block is larger.
#[inline(always)]
pub(crate) fn handed_out(block: *mut u8, size: usize, defined: bool) -> *mut u8 {
    if watch::EXACT && !block.is_null() {
        // SAFETY: nobody uses the block yet.
        unsafe { watch::write_size(block, extent(block), size) };
    }
    watch::allocated(block, size, defined)
}

#[inline(always)]
fn alloc_block(layout: Layout) -> *mut u8 {
    let Some(class) = small_class_of(layout) else { return alloc_large(layout, false) };
    match NonNull::new(percpu::pop(class)) {
        Some(object) => checked_out(object, class).as_ptr(),
        None => alloc_slow(class),
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
/// `object` was allocated by this allocator with this layout, and is no longer used. With debug
/// assertions, a foreign address and an object that is free already end the process with a message.
#[inline(always)]
pub unsafe fn free(object: *mut u8, layout: Layout) {
    let Some(class) = small_class_of(layout) else {
        // SAFETY: the caller guarantees that `object` was allocated with `layout` and is not used.
        return unsafe { free_large(object, layout) };
    };
    checked_in(object, class);
    // SAFETY: the caller guarantees that `object` is of `class` and is not used.
    unsafe {
        if !percpu::push(class, object) {
            objects::free_slow(class, object);
        }
    }
}

/// Changes the size of an allocation to `new_size` bytes and keeps its contents up to the lesser
/// size. The block may move. Returns null when there is no memory; the old block is unchanged then.
///
/// # Safety
/// `object` was allocated by this allocator with `layout`. `new_size`, rounded up to the alignment,
/// is at most `isize::MAX`.
#[inline]
pub unsafe fn realloc(object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    // SAFETY: the caller guarantees that `new_size` is small enough, and the alignment is a
    // layout's.
    let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
    match (small_class_of(layout), small_class_of(new_layout)) {
        // SAFETY: the caller guarantees that `object` was allocated with `layout`.
        _ if watch::EXACT => unsafe { realloc_by_copy(object, layout, new_layout) },
        (Some(old), Some(new)) if old == new => watch::resized(object, object, new_size),
        // SAFETY: the caller guarantees that `object` was allocated with `layout`.
        (None, None) => unsafe { realloc_large(object, layout, new_layout) },
        // SAFETY: the caller guarantees that `object` was allocated with `layout`.
        _ => unsafe { realloc_by_copy(object, layout, new_layout) },
    }
}

/// Returns the bytes that a block for `layout` has at least. The bytes beyond the layout's size may
/// be used, too, and the block may be freed or resized with a layout of any size in between.
/// Returns 0 for a size that cannot be allocated.
#[inline]
#[must_use]
pub fn good_size(layout: Layout) -> usize {
    match class_of(layout) {
        _ if watch::EXACT => layout.size(),
        Some(class) => class.size(),
        None if layout.size() == 0 => good_size(one_byte(layout)),
        None => layout.size().checked_next_multiple_of(UNIT).unwrap_or(0),
    }
}

/// Gives up address space that is reserved for future use, if the process has more than `most`
/// bytes of address space. Call when the program has limited its address space (`RLIMIT_AS`), as
/// the reservation would leave it none otherwise. Needs `/proc`.
pub fn limit_address_space(most: usize) {
    Context::enter(|context| page::limit_address_space(context, most));
}

/// Returns the bytes that a block may use, without knowing its layout. (`malloc_usable_size`.)
///
/// # Safety
/// `block` was allocated by this allocator and not freed.
#[must_use]
pub unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: the caller guarantees that `block` is live, so it is an object or a run in use.
    unsafe {
        let extent = extent(block);
        let is_object =
            || objects::class_of_object(block).is_some_and(|class| class.cache_index().is_some());
        if watch::EXACT && !is_object() { watch::read_size(block, extent) } else { extent }
    }
}

/// Returns the bytes of a block, however many were requested.
///
/// # Safety
/// As [`usable_size`].
unsafe fn extent(block: *mut u8) -> usize {
    // SAFETY: the caller guarantees that `block` is live, so it is an object or a run in use.
    match unsafe { objects::class_of_object(block) } {
        Some(class) => objects::size(class),
        // SAFETY: a live block that is no object is a run in use, and the caller owns it.
        None => Unit::of(block).map_or(0, |unit| unsafe { page::used_bytes(unit) }),
    }
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
        && !watch::EXACT;
    let grown = new_size <= good_size(layout)
        || is_run && {
            let run = run_of(block, layout);
            // SAFETY: `run_of` found a run in use, which the caller owns.
            Context::enter(|context| unsafe { page::grow(context, run, units(new_size)) })
        };
    if grown && !watch::EXACT {
        watch::resized(block, block, new_size);
    }
    grown
}

unsafe fn realloc_by_copy(object: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
    let new = alloc(new_layout);
    if !new.is_null() {
        // SAFETY: both blocks are at least as long as the lesser size. The caller guarantees that
        // `object` was allocated with `layout`, and nobody uses it after the copy.
        unsafe {
            ptr::copy_nonoverlapping(object, new, layout.size().min(new_layout.size()));
            free(object, layout);
        }
    }
    new
}

#[cold]
#[inline(never)]
extern "C" fn alloc_slow(class: Class) -> *mut u8 {
    match Context::enter(|context| objects::alloc_object(context, class)) {
        Ok(object) => object.as_ptr(),
        Err(_) => ptr::null_mut(),
    }
}

/// Returns the units of a run for `bytes` bytes.
fn units(bytes: usize) -> usize {
    (bytes + REDZONE).div_ceil(UNIT)
}

#[cold]
#[inline(never)]
extern "C" fn alloc_large(layout: Layout, zeroed: bool) -> *mut u8 {
    // The fast path of middle sizes is apart from the slow path, which needs more registers.
    if let Some(class) = middle_class_of(layout)
        && let Some(object) = NonNull::new(percpu::pop(class))
    {
        percpu::refund(class.size());
        let object = checked_out(object, class).as_ptr();
        return if !middle_out(object) && zeroed { clear(object, layout.size()) } else { object };
    }
    alloc_large_slow(layout, zeroed)
}

/// Zeroes an object.
#[inline(never)]
extern "C" fn clear(object: *mut u8, size: usize) -> *mut u8 {
    watch::make_accessible(object, size, false);
    // SAFETY: callers pass objects of that size.
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
        let object = alloc_slow(class);
        let is_zero = object.is_null() || middle_out(object);
        return if !is_zero && zeroed { clear(object, layout.size()) } else { object };
    }
    Context::enter(|context| {
        free_deferred(context);
        let block = alloc_run(context, layout, zeroed);
        have_threads(context);
        block
    })
}

/// Allocates a run for `layout`.
fn alloc_run(context: Context, layout: Layout, zeroed: bool) -> *mut u8 {
    let units = units(layout.size()).max(1);
    let align = layout.align().div_ceil(UNIT);
    let run = objects::alloc_run(context, node::current(), units, align);
    objects::note_nolock(context, run.is_some());
    let Some(run) = run else { return ptr::null_mut() };
    if zeroed && !is_cleared(&run, layout) {
        // SAFETY: the run has room for the layout.
        unsafe { run.address.write_bytes(0, layout.size()) };
    }
    run.address.as_ptr()
}

/// Returns whether a run reads as zero, either by itself or because this function decommitted it.
fn is_cleared(run: &Allocation, layout: Layout) -> bool {
    match Unit::of(run.address.as_ptr()) {
        // SAFETY: nobody uses the run yet, so its contents are dead.
        Some(unit) if layout.size() >= CLEARED_BY_SYSTEM => unsafe {
            page::clear(unit, run.zeroed)
        },
        _ => run.zeroed,
    }
}

/// Returns the layout that serves a layout of size 0.
fn one_byte(layout: Layout) -> Layout {
    Layout::from_size_align(1, layout.align()).unwrap_or(layout)
}

/// # Safety
/// As [`free`], for a layout that is not of a small size.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_large(object: *mut u8, layout: Layout) {
    if layout.size() == 0 && layout.align() <= MAX_SMALL_ALIGN {
        // SAFETY: the caller guarantees that `object` was allocated with `layout`, which was served
        // as one byte.
        return unsafe { free(object, one_byte(layout)) };
    }
    if let Some(class) = middle_class_of(layout)
        && let Some(found) = middle_in(object)
    {
        if !class.may_be_served_by(found) {
            misused(object, class, Misuse::Foreign);
        }
        checked_in(object, found);
        // SAFETY: the caller guarantees that `object` is not used, and `middle_in` found its class.
        return unsafe { free_middle(object, found) };
    }
    let run = run_of(object, layout);
    watch::freed(object);
    // SAFETY: `run_of` found a run in use that starts at `object`, and the caller guarantees that
    // nobody uses it.
    Context::enter(|context| unsafe {
        free_run(context, run.address());
        may_reclaim(context);
    });
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
            objects::allowance_is_used_up();
        }
    }
}

/// Returns the run that starts at `object`. Ends the process if no run in use starts there, or if
/// it is too short for the layout.
fn run_of(object: *mut u8, layout: Layout) -> Unit {
    let is_run = |unit: &Unit| {
        unit.address() == object
            && unit.run_len().is_some_and(|len| len >= units(layout.size()))
            // SAFETY: a run in use starts at `object`, so its unit has metadata.
            && unsafe { objects::class_of_object(object) }.is_none()
    };
    match Unit::of(object) {
        Some(unit) if is_run(&unit) => unit,
        unit => no_run(object, layout, unit),
    }
}

#[cold]
#[inline(never)]
fn no_run(object: *mut u8, layout: Layout, unit: Option<Unit>) -> ! {
    let size = layout.size();
    match unit.map(Unit::misplaced) {
        None => os::abort(format_args!("free of foreign address {object:p} ({size} bytes)")),
        Some(Misplaced::Within(start, bytes)) if start == object => os::abort(format_args!(
            "free of {object:p} as one of {size} bytes: it is another block, in a run of {bytes}"
        )),
        Some(misplaced) => {
            os::abort(format_args!("free of {object:p} ({size} bytes): {misplaced}"))
        }
    }
}

/// # Safety
/// As [`realloc`], for layouts that are not of small sizes.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn realloc_large(
    object: *mut u8,
    layout: Layout,
    new_layout: Layout,
) -> *mut u8 {
    let found = objects::find(object);
    let is_served = |layout: Layout, by: Class| {
        middle_class_of(layout).is_some_and(|class| class.may_be_served_by(by))
    };
    if let Some((class, true)) = found
        && [layout, new_layout].into_iter().all(|layout| is_served(layout, class))
    {
        objects::check_middle(object, class);
        return watch::resized(object, object, new_layout.size());
    }
    let is_run = |layout: Layout| layout.size() > 0 && small_class_of(layout).is_none();
    if found.is_some() || !is_run(layout) || !is_run(new_layout) {
        // SAFETY: the caller guarantees that `object` was allocated with `layout`.
        return unsafe { realloc_by_copy(object, layout, new_layout) };
    }
    // SAFETY: the caller guarantees that `object` was allocated with `layout`; neither layout is
    // empty.
    let resized = Context::enter(|context| unsafe {
        free_deferred(context);
        let resized = realloc_run(context, object, layout, new_layout);
        may_reclaim(context);
        have_threads(context);
        resized
    });
    match resized {
        Some(block) => watch::resized(object, block, new_layout.size()),
        // SAFETY: the caller guarantees that `object` was allocated with `layout`.
        None => unsafe { realloc_by_copy(object, layout, new_layout) },
    }
}

/// Resizes a run in place, or moves it. Returns null when there is no memory, and `None` if only a
/// copy can give the block its alignment.
///
/// # Safety
/// As [`realloc_large`], for layouts that are not empty.
unsafe fn realloc_run(
    context: Context,
    object: *mut u8,
    layout: Layout,
    new_layout: Layout,
) -> Option<*mut u8> {
    let run = run_of(object, layout);
    let (old_units, new_units) = (units(layout.size()), units(new_layout.size()));
    // A block that shrinks also frees its room to grow.
    if new_layout.size() <= layout.size() {
        // SAFETY: the caller guarantees that the run is in use, and that the units cut off are not.
        unsafe { page::shrink(context, run, new_units) };
        return Some(object);
    }
    // SAFETY: the caller guarantees that the run is in use.
    if unsafe { page::grow(context, run, new_units) } {
        return Some(object);
    }
    if layout.align() > UNIT {
        return None;
    }
    // Relaxed: a few moves beyond the limit do no harm.
    let remap = layout.size() >= REMAP_BYTES
        && page::moves() < MAX_MOVES
        && !IS_OUT_OF_MAPPINGS.load(Ordering::Relaxed);
    let room = if remap {
        new_units.saturating_add(new_units / MOVED_ROOM)
    } else {
        new_units.saturating_mul(ROOM).min(MAX_ROOM)
    };
    // Moved pages stay on their node, so their new address is taken from an arena of that node.
    let node = if remap { run.node() } else { node::current() };
    let found = (room > new_units).then(|| page::alloc_room(context, node, room)).flatten();
    // Only room that was never used takes no memory, so room is shorter where its memory is dirty.
    // Without any dirty room, four buffers that grow in turn to 8 MB take 1.5 times as long.
    let most = new_units.saturating_mul(DIRTY_ROOM);
    if let Some(found) = found.as_ref().filter(|found| found.dirty > most)
        && let Some(unit) = Unit::of(found.address.as_ptr())
    {
        // SAFETY: nobody uses the run yet.
        unsafe { page::shrink(context, unit, most) };
    }
    let Some(new) = found.or_else(|| objects::alloc_run(context, node, new_units, 1)) else {
        return Some(ptr::null_mut());
    };
    // Moved pages keep their memory policy, which must not come to an arena of another node.
    let to = Unit::of(new.address.as_ptr()).filter(|unit| remap && unit.node() == node);
    // SAFETY: both runs are at least as long as the moved part, and the old one is not used
    // afterwards.
    unsafe {
        let len = old_units << UNIT_SHIFT;
        let moved = match to {
            Some(_) => os::remap(NonNull::new_unchecked(object), new.address, len),
            None => Remapped::Refused,
        };
        match moved {
            Remapped::Moved => {
                to.into_iter().for_each(|unit| page::note_move(unit));
                // The run may be longer than the moved part, and the rest may hold anything.
                page::shrink(context, run, old_units);
                if run.run_len() != Some(old_units) {
                    free_run(context, object);
                } else if !page::free_clean(context, run) {
                    defer(context, object);
                }
            }
            Remapped::Refused => {
                ptr::copy_nonoverlapping(object, new.address.as_ptr(), layout.size());
                free_run(context, object);
            }
            // The new run stays in use permanently, so that nobody is given its addresses. A system
            // so short of mappings is not asked again.
            Remapped::Lost => {
                IS_OUT_OF_MAPPINGS.store(true, Ordering::Relaxed);
                return realloc_run(context, object, layout, new_layout);
            }
        }
    }
    Some(new.address.as_ptr())
}

#[cfg(test)]
mod tests;
