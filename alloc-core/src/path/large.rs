//! Large blocks: runs of pages of their own, resized in place, moved by remapping, or copied. The
//! descriptor of a run holds its length.

use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::node;
use crate::os::{self, Remapped};
use crate::page::{self, Allocation, Misplaced, Unit};
use crate::path::objects::{self, defer, free_run, slow_path};
use crate::percpu;
use crate::sampling;
use crate::size_class::{REDZONE, UNIT, UNIT_SHIFT};
use crate::sync::Context;

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
/// The time from which on pages may be moved again after a run was lost, in milliseconds.
static RESUMES_AT: AtomicU64 = AtomicU64::new(0);
/// Milliseconds without moves after a run was lost.
const PAUSE: u64 = 60_000;

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

/// Allocates a run for `layout`. With `zeroed`, the part that the layout covers reads as zero.
/// Returns null when there is no memory.
pub(crate) fn alloc(layout: Layout, zeroed: bool) -> *mut u8 {
    let block = slow_path::alloc(|context| alloc_run(context, layout, zeroed));
    if sampling::tracer_changed() {
        objects::heed_tracer();
    }
    if sampling::is_hit(layout.size(), percpu::random) && !block.is_null() {
        sampling::record(block, layout.size());
    }
    block
}

/// Frees the run that starts at `block`. Ends the process if no run in use starts there, or if it
/// is too short for the layout.
///
/// # Safety
/// Nobody uses the block.
pub(crate) unsafe fn free(block: *mut u8, layout: Layout) {
    // SAFETY: `run_of` finds a run in use, and the caller guarantees that nobody uses it.
    unsafe { free_found(run_of(block, layout)) };
}

/// Frees the run that starts at `unit`.
///
/// # Safety
/// A run in use starts at `unit`, as [`find`] reports it, and nobody uses it.
pub(crate) unsafe fn free_found(unit: Unit) {
    if sampling::was_on() {
        sampling::forget(unit.address());
    }
    // SAFETY: the caller guarantees that a run in use starts at `unit` and that nobody uses it.
    slow_path::free(|context| unsafe { free_run(context, unit) });
}

/// Changes the length of the run at `block` to serve `new_layout`: in place, or by moving it.
/// Returns null when there is no memory, and `None` if only a copy can give the block its
/// alignment; in both cases the run is unchanged. Ends the process if no run of `layout` starts at
/// `block`.
///
/// # Safety
/// The program owns the block. Neither layout is empty.
pub(crate) unsafe fn realloc(
    block: *mut u8,
    layout: Layout,
    new_layout: Layout,
) -> Option<*mut u8> {
    let sample = sampling::was_on().then(|| sampling::resize(block)).flatten();
    // SAFETY: the caller guarantees that the program owns the block.
    let new =
        slow_path::realloc(|context| unsafe { realloc_run(context, block, layout, new_layout) });
    if let Some(sample) = sample {
        match new.filter(|new| !new.is_null()) {
            Some(new) => sampling::resized(sample, new, new_layout.size()),
            None => sampling::resized(sample, block, layout.size()),
        }
    }
    new
}

/// Lengthens the run at `block` to at least `new_size` bytes without moving it. Returns whether
/// that was possible. Ends the process if no run of `layout` starts at `block`.
///
/// # Safety
/// The program owns the block.
pub(crate) unsafe fn grow_in_place(block: *mut u8, layout: Layout, new_size: usize) -> bool {
    let run = run_of(block, layout);
    // SAFETY: `run_of` found a run in use, which the caller guarantees that the program owns.
    let grown = Context::enter(|context| unsafe { page::grow(context, run, units(new_size)) });
    if grown
        && sampling::was_on()
        && let Some(sample) = sampling::resize(block)
    {
        sampling::resized(sample, block, new_size);
    }
    grown
}

/// Returns the bytes of a run for `size` bytes, or 0 for a size that cannot be allocated.
pub(crate) fn good_size(size: usize) -> usize {
    size.checked_next_multiple_of(UNIT).unwrap_or(0)
}

/// Returns the used bytes of the run that starts at `address`, in `unit`, which is in no slab.
///
/// # Errors
/// If no run in use starts there: the reason.
///
/// # Safety
/// If a block of this allocator starts at `address`, it was not freed.
pub(crate) unsafe fn find(unit: Unit, address: *mut u8) -> Result<usize, Misplaced> {
    if unit.run_len().is_some() && unit.address() == address {
        // SAFETY: a run in use starts at `address`, and the caller guarantees that the program owns
        // it.
        Ok(unsafe { page::used_bytes(unit) })
    } else {
        Err(unit.misplaced())
    }
}

/// Returns the units of a run for `bytes` bytes.
fn units(bytes: usize) -> usize {
    (bytes + REDZONE).div_ceil(UNIT)
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

/// Returns the run that starts at `block`. Ends the process if no run in use starts there, or if
/// it is too short for the layout.
fn run_of(block: *mut u8, layout: Layout) -> Unit {
    let is_run = |unit: &Unit| {
        unit.address() == block
            && unit.run_len().is_some_and(|len| len >= units(layout.size()))
            // SAFETY: a run in use starts at `block`, so its unit has metadata.
            && unsafe { objects::class_of_unit(*unit) }.is_none()
    };
    match Unit::of(block) {
        Some(unit) if is_run(&unit) => unit,
        unit => no_run(block, layout, unit),
    }
}

#[cold]
#[inline(never)]
fn no_run(block: *mut u8, layout: Layout, unit: Option<Unit>) -> ! {
    let size = layout.size();
    match unit.map(Unit::misplaced) {
        None if sampling::owns(block) => os::abort(format_args!(
            "free of {block:p} as one of {size} bytes: it is a small block, which was sampled"
        )),
        None => os::abort(format_args!("free of foreign address {block:p} ({size} bytes)")),
        Some(Misplaced::Within(start, bytes)) if start == block => os::abort(format_args!(
            "free of {block:p} as one of {size} bytes: it is another block, in a run of {bytes}"
        )),
        Some(misplaced) => os::abort(format_args!("free of {block:p} ({size} bytes): {misplaced}")),
    }
}

/// Resizes a run in place, or moves it. Returns null when there is no memory, and `None` if only a
/// copy can give the block its alignment.
///
/// # Safety
/// As [`realloc`].
unsafe fn realloc_run(
    context: Context,
    block: *mut u8,
    layout: Layout,
    new_layout: Layout,
) -> Option<*mut u8> {
    let run = run_of(block, layout);
    let (old_units, new_units) = (units(layout.size()), units(new_layout.size()));
    // A block that shrinks also frees its room to grow.
    if new_layout.size() <= layout.size() {
        // SAFETY: the caller guarantees that the run is in use, and that the units cut off are not.
        unsafe { page::shrink(context, run, new_units) };
        return Some(block);
    }
    // SAFETY: the caller guarantees that the run is in use.
    if unsafe { page::grow(context, run, new_units) } {
        return Some(block);
    }
    if layout.align() > UNIT {
        return None;
    }
    // Relaxed: a few moves beyond the limit do no harm.
    let remap = layout.size() >= REMAP_BYTES
        && page::moves() < MAX_MOVES
        && os::milliseconds() >= RESUMES_AT.load(Ordering::Relaxed);
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
            Some(_) => os::remap(NonNull::new_unchecked(block), new.address, len),
            None => Remapped::Refused,
        };
        match moved {
            Remapped::Moved => {
                to.into_iter().for_each(|unit| page::note_move(unit));
                // The run may be longer than the moved part, and the rest may hold anything.
                page::shrink(context, run, old_units);
                if run.run_len() != Some(old_units) {
                    free_run(context, run);
                } else if !page::free_clean(context, run) {
                    defer(context, block);
                }
            }
            Remapped::Refused => {
                ptr::copy_nonoverlapping(block, new.address.as_ptr(), layout.size());
                free_run(context, run);
            }
            // Each loss costs address space, so the system is not asked again for a while.
            Remapped::Lost => {
                to.into_iter().for_each(|unit| page::lose(context, unit, old_units));
                RESUMES_AT.store(os::milliseconds() + PAUSE, Ordering::Relaxed);
                return realloc_run(context, block, layout, new_layout);
            }
        }
    }
    Some(new.address.as_ptr())
}
