//! The general-purpose allocator: joins sheaves, barns, slabs and pages, and serves what is too large for them.
//!
//! The road of an object, each step taken only when the one before fails:
//!
//! ```text
//! alloc: sheaf of this CPU -> barn of this node -> partial slabs of this node -> a new slab
//! free:  sheaf of this CPU -> barn of this node -> slabs of the objects' nodes -> an empty slab back to pages
//! ```
//!
//! What cannot take a lock without waiting, in a context that may not wait, makes do with the next step; at the end of the
//! road are the reserve of `page` for memory that is wanted, and `deferred` for memory that comes back. Slow paths that may
//! wait free what was deferred first.
//!
//! Only the first step is inlined. The cold functions it calls are `extern "C"`: they cannot unwind, so callers need no
//! landing pads, and a panic in here ends the process. A layout that no class serves is a run of pages of its own, whose
//! length is known by its descriptor.
//!
//! This file may touch everything in the crate.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::barn::Barn;
use crate::batch::Batch;
use crate::deferred::Deferred;
use crate::fault::{self, Place};
use crate::irq_work::IrqWork;
use crate::page::{self, Unit};
use crate::percpu::{self, Backend};
use crate::size_class::{CLASSES, Class, MAX_SMALL_ALIGN, UNIT, UNIT_SHIFT, class_of};
use crate::slab::{Emptied, Misuse, SHAPES, Slab, Slabs};
use crate::sync::{Context, RawLock};
use crate::thread::{self, MAX_CPUS};
use crate::{node, os};

/// From this many bytes on, a run is moved by remapping its pages instead of copying them. Below, copying into warm pages
/// is faster than faulting in cold ones: with 512 KiB here, four buffers that grew in turn to 8 MB took 3.2 times as long.
const REMAP_BYTES: usize = 8 << 20;

/// A run that is copied in order to grow becomes this many times as long as it has to be, so that its next growth needs no
/// copy. Room that nobody touches takes no memory. Four buffers that grow in turn to 8 MB take 0.8 of the time.
const ROOM: usize = 4;
/// The longest run that is made for the sake of [`ROOM`], in units.
const MAX_ROOM: usize = ROOM * (2 * REMAP_BYTES / UNIT);

// A slab's descriptor is the metadata of its first unit; those of the others follow.
const _: () = assert!(size_of::<Slab>() == page::META_SIZE);

/// What a node keeps for a class.
#[repr(align(64))]
struct Depot {
    slabs: Slabs,
    barn: Barn,
}

static DEPOTS: [[Depot; CLASSES]; node::MAX_NODES] =
    [const { [const { Depot { slabs: Slabs::new(), barn: Barn::new() } }; CLASSES] };
        node::MAX_NODES];

/// Whether a depot was ever asked for. Who forks takes the locks of these, and leaves the memory of others untouched.
static USED: [[AtomicBool; CLASSES]; node::MAX_NODES] =
    [const { [const { AtomicBool::new(false) }; CLASSES] }; node::MAX_NODES];

fn depot(node: usize, class: Class) -> &'static Depot {
    // SAFETY: both indices are below the lengths by construction.
    unsafe {
        // Relaxed: who is between this and its lock when another thread forks has its lock abandoned in the child.
        let used = USED.get_unchecked(node).get_unchecked(class.index());
        if !used.load(Ordering::Relaxed) {
            used.store(true, Ordering::Relaxed);
        }
        DEPOTS.get_unchecked(node).get_unchecked(class.index())
    }
}

/// Allocates memory for `layout`; null when there is none. A size of 0 is served like a size of 1.
#[inline(always)]
pub fn alloc(layout: Layout) -> *mut u8 {
    let Some(class) = class_of(layout) else { return alloc_large(layout, false) };
    let object = percpu::pop(class);
    if object.is_null() { alloc_slow(class) } else { checked_out(object, class) }
}

/// As [`alloc`], and the memory reads as zero.
#[inline(always)]
pub fn alloc_zeroed(layout: Layout) -> *mut u8 {
    if class_of(layout).is_none() {
        return alloc_large(layout, true);
    }
    let object = alloc(layout);
    if !object.is_null() {
        // SAFETY: the object has room for the layout.
        unsafe { object.write_bytes(0, layout.size()) };
    }
    object
}

/// Frees what [`alloc`], [`alloc_zeroed`] or [`realloc`] returned.
///
/// # Safety
/// `object` was allocated with this layout, by this allocator, and is not used any more. Where debug assertions are on,
/// an address that is not ours and one that is free already end the process with a message.
#[inline(always)]
pub unsafe fn free(object: *mut u8, layout: Layout) {
    let Some(class) = class_of(layout) else {
        // SAFETY: the caller's promise.
        return unsafe { free_large(object, layout) };
    };
    checked_in(object, class);
    // SAFETY: the caller's promise.
    unsafe {
        if !percpu::push(class, object) {
            free_slow(class, object);
        }
    }
}

/// Changes the size of an allocation to `new_size` bytes, keeping its contents up to the lesser size; it may move. Null
/// when there is no memory; then the old one stays as it was.
///
/// # Safety
/// `object` was allocated with `layout`, by this allocator; `new_size`, rounded up to the alignment, is at most
/// `isize::MAX`.
#[inline]
pub unsafe fn realloc(object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
    match (class_of(layout), class_of(new_layout)) {
        (Some(old), Some(new)) if old == new => object,
        // SAFETY: the caller's promise.
        (None, None) => unsafe { realloc_large(object, layout, new_layout) },
        // SAFETY: the caller's promise.
        _ => unsafe { realloc_by_copy(object, layout, new_layout) },
    }
}

unsafe fn realloc_by_copy(object: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
    let new = alloc(new_layout);
    if !new.is_null() {
        // SAFETY: two allocations, at least as long as the lesser size; the old one is done with after the copy.
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
    Context::enter(|context| alloc_object(context, class))
}

/// Allocates an object where the sheaf of this CPU had none.
fn alloc_object(context: Context, class: Class) -> *mut u8 {
    free_deferred(context);
    let backend = percpu::backend(context);
    let object = backend.pop(class);
    if !object.is_null() {
        return checked_out(object, class);
    }
    let mut batch = Batch::new();
    let node = node::current();
    let len = percpu::batch_len(class);
    depot(node, class).barn.take(context, &mut batch, len);
    if batch.len() == 0 {
        cut(context, class, node, &mut batch, len);
    }
    let Some(object) = batch.pop_last() else { return ptr::null_mut() };
    // SAFETY: objects that have just left the barn or a slab, and nobody else's.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
    checked_out(object, class)
}

/// Fills the batch from the node's slabs, or from a new one.
fn cut(context: Context, class: Class, node: usize, batch: &mut Batch, len: usize) {
    let slabs = &depot(node, class).slabs;
    if let Some(mut partial) = slabs.lock(context) {
        fault::point(Place::SlabsCutting);
        partial.cut(batch, len);
    }
    if batch.len() > 0 {
        return;
    }
    let units = SHAPES[class.index()].units as usize;
    let Some(run) = page::alloc(context, units, units) else { return };
    let Some(unit) = Unit::of(run.address.as_ptr()) else { return };
    let slab: *mut Slab = unit.meta().cast();
    // SAFETY: the run and the metadata of its units are ours alone until the slab arrives.
    unsafe {
        Slab::init(slab, run.address.as_ptr(), class, node as u8);
        Slab::cut_new(slab, batch, len);
        fault::point(Place::SlabArriving);
        slabs.arrive(context, slab);
    }
}

/// Frees `object` where the sheaf of this CPU had no room for it.
///
/// # Safety
/// As [`free`], for an object of `class`.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_slow(class: Class, object: *mut u8) {
    Context::enter(|context| {
        free_deferred(context);
        // SAFETY: the caller's promise.
        unsafe { free_object(context, class, object) };
    });
}

/// Frees an object where the sheaf of this CPU had no room for it.
///
/// # Safety
/// As [`free`], for an object of `class`.
unsafe fn free_object(context: Context, class: Class, object: *mut u8) {
    let backend = percpu::backend(context);
    // SAFETY: the caller's promise.
    if unsafe { backend.push(class, object) } {
        return;
    }
    let mut batch = Batch::new();
    let node = node::current();
    backend.drain(class, &mut batch, percpu::batch_len(class));
    put_away(context, backend, class, node, &mut batch);
    batch.push_first(object);
    // SAFETY: the caller's promise.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
}

/// Empties the batch into the barn, or else into the slabs; where neither can be had without waiting, into the sheaf, or
/// else by deferring it.
fn put_away(context: Context, backend: Backend, class: Class, node: usize, batch: &mut Batch) {
    let len = percpu::batch_len(class);
    if batch.len() == 0 || depot(node, class).barn.put(context, batch, len) {
        return;
    }
    let slab_of = |object| Some(slab_at(Unit::of(object)?, class));
    let mut emptied = Emptied::new();
    let mut objects = batch.objects();
    while let Some(&first) = objects.first() {
        let Some(slab) = slab_of(first) else { misused(first, class, Misuse::Foreign) };
        // SAFETY: metadata of the unit where the slab of an object of this class starts.
        let node = unsafe { Slab::node(slab) };
        let Some(mut partial) = depot(node, class).slabs.lock(context) else {
            for &object in objects {
                // SAFETY: an object of this class that nobody uses.
                unsafe {
                    if !backend.push(class, object) {
                        defer(object);
                    }
                }
            }
            break;
        };
        fault::point(Place::SlabsPutting);
        // SAFETY: as above.
        let done = unsafe { partial.put(objects, class, node, slab_of, &mut emptied) };
        drop(partial);
        objects = done.unwrap_or_else(|(object, misuse)| misused(object, class, misuse));
    }
    batch.clear();
    while let Some(base) = emptied.pop() {
        // SAFETY: the run of a slab that left its lists with all objects free.
        unsafe { free_run(context, base) };
    }
}

/// Blocks that were freed where nothing could be waited for.
static DEFERRED: Deferred<MAX_CPUS> = Deferred::new();

/// Empties the deferred list of each CPU.
static FLUSH: [IrqWork; MAX_CPUS] = [const { IrqWork::new(flush_by_irq_work) }; MAX_CPUS];

fn flush_by_irq_work(work: &IrqWork) {
    let cpu = (ptr::from_ref(work).addr() - FLUSH.as_ptr().addr()) / size_of::<IrqWork>();
    Context::enter(|context| DEFERRED.flush(context, Some(cpu), free_block(context)));
}

/// Puts a free off.
///
/// # Safety
/// The block is an object of a slab or a run, and nobody uses it.
unsafe fn defer(block: *mut u8) {
    // SAFETY: the caller's promise; every block has room for a word.
    if let Some(cpu) = unsafe { DEFERRED.add(percpu::cpu(), block) } {
        FLUSH[cpu].queue_on(cpu);
    }
}

/// What frees a block that was put off.
fn free_block(context: Context) -> impl Fn(*mut u8) {
    move |block| {
        // SAFETY: blocks on deferred lists are objects or runs that nobody uses, and have their metadata.
        unsafe {
            match Unit::of(block).and_then(|unit| Slab::class_of_unit(unit.meta().cast())) {
                Some(class) => free_object(context, class, block),
                None => free_run(context, block),
            }
        }
    }
}

/// What a CPU that comes online needs of the allocator.
pub(crate) fn online(cpu: usize) {
    percpu::open(cpu);
    Context::enter(|context| DEFERRED.online(context, cpu, free_block(context)));
}

/// Leaves nothing behind on a CPU that goes: no deferred free, no object in a sheaf. False where the kernel cannot help with
/// the latter.
pub(crate) fn offline(cpu: usize) -> bool {
    Context::enter(|context| {
        DEFERRED.offline(context, cpu, free_block(context));
        let backend = percpu::backend(context);
        let node = node::current();
        percpu::close(context, cpu, |class, batch| {
            put_away(context, backend, class, node, batch);
        })
    })
}

/// Frees all that was deferred on `cpu` before this call, even if somebody else is at it.
pub(crate) fn deferred_barrier(cpu: usize) {
    Context::enter(|context| DEFERRED.barrier(context, cpu, free_block(context)));
    FLUSH[cpu % MAX_CPUS].sync();
}

/// Every lock of the slow paths, in the order in which they may be taken.
pub(crate) fn for_each_lock(visit: &dyn Fn(&RawLock)) {
    DEFERRED.for_each_lock(visit);
    if percpu::is_locked() {
        percpu::for_each_lock(visit);
    }
    let depots = DEPOTS.iter().flatten().zip(USED.iter().flatten());
    for (depot, _) in depots.filter(|(_, used)| used.load(Ordering::Relaxed)) {
        visit(depot.barn.raw());
        visit(depot.slabs.raw());
    }
    page::for_each_lock(visit);
}

/// In the child of a fork, which has no CPUs: what they were to free is freed as before there were any.
pub(crate) fn forget_cpus() {
    DEFERRED.forget_cpus();
}

/// Gives a run back, or puts that off.
///
/// # Safety
/// `base` is the address of a run that nobody uses.
unsafe fn free_run(context: Context, base: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        if Unit::of(base).is_some_and(|unit| !page::free(context, unit)) {
            defer(base);
        }
    }
}

/// Frees what was put off on this CPU, where that can be waited for and nobody else is at it.
#[inline]
fn free_deferred(context: Context) {
    if context.may_wait() {
        let cpu = thread::is_started().then(percpu::cpu);
        DEFERRED.flush(Context::TRYING, cpu, free_block(context));
    }
}

/// Where the descriptor of a slab of `class` that holds `unit` would be.
fn slab_at(unit: Unit, class: Class) -> *mut Slab {
    unit.align_down(SHAPES[class.index()].units).meta().cast()
}

/// Units of a run for this many bytes.
fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

#[cold]
#[inline(never)]
extern "C" fn alloc_large(layout: Layout, zeroed: bool) -> *mut u8 {
    if layout.size() == 0 && layout.align() <= MAX_SMALL_ALIGN {
        return alloc(one_byte(layout));
    }
    Context::enter(|context| {
        free_deferred(context);
        alloc_run(context, layout, zeroed)
    })
}

/// Allocates a run for `layout`.
fn alloc_run(context: Context, layout: Layout, zeroed: bool) -> *mut u8 {
    let units = units(layout.size()).max(1);
    let align = layout.align().div_ceil(UNIT);
    let Some(run) = page::alloc(context, units, align) else { return ptr::null_mut() };
    if zeroed && !run.zeroed {
        // SAFETY: the run has room for the layout.
        unsafe { run.address.write_bytes(0, layout.size()) };
    }
    run.address.as_ptr()
}

/// What a layout of size 0 is served as.
fn one_byte(layout: Layout) -> Layout {
    Layout::from_size_align(1, layout.align()).unwrap_or(layout)
}

/// # Safety
/// As [`free`], for a layout that no class serves.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_large(object: *mut u8, layout: Layout) {
    if layout.size() == 0 && layout.align() <= MAX_SMALL_ALIGN {
        // SAFETY: the caller's promise.
        return unsafe { free(object, one_byte(layout)) };
    }
    let run = run_of(object, layout);
    // SAFETY: the first unit of a run, by the caller's promise; checked where that is asked for.
    Context::enter(|context| unsafe { free_run(context, run.address()) });
}

/// The run that `object` is.
fn run_of(object: *mut u8, layout: Layout) -> Unit {
    let run = Unit::of(object).filter(|unit| {
        !cfg!(debug_assertions)
            || (unit.address() == object
                && unit.run_len().is_some_and(|len| len >= units(layout.size())))
    });
    run.unwrap_or_else(|| {
        os::abort(format_args!(
            "free of foreign or already free address {object:p} ({} bytes)",
            layout.size()
        ))
    })
}

/// # Safety
/// As [`realloc`], for layouts that no class serves.
#[cold]
#[inline(never)]
unsafe extern "C" fn realloc_large(object: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
    if layout.size() == 0 || new_layout.size() == 0 {
        // SAFETY: the caller's promise.
        return unsafe { realloc_by_copy(object, layout, new_layout) };
    }
    // SAFETY: the caller's promise.
    let resized = Context::enter(|context| unsafe {
        free_deferred(context);
        realloc_run(context, object, layout, new_layout)
    });
    // SAFETY: the caller's promise.
    resized.unwrap_or_else(|| unsafe { realloc_by_copy(object, layout, new_layout) })
}

/// Resizes a run in place, or moves it; `None` where alignment asks for more than that.
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
    if new_units <= old_units {
        if new_units < old_units {
            // SAFETY: the caller's promise: the run is in use, and what is cut off is not.
            unsafe { page::shrink(context, run, new_units) };
        }
        return Some(object);
    }
    // SAFETY: the caller's promise.
    if unsafe { page::grow(context, run, new_units) } {
        return Some(object);
    }
    if layout.align() > UNIT {
        return None;
    }
    let remap = layout.size() >= REMAP_BYTES;
    let room = if remap { 0 } else { new_units.saturating_mul(ROOM).min(MAX_ROOM) };
    let found = (room > new_units).then(|| page::alloc(context, room, 1)).flatten();
    let Some(new) = found.or_else(|| page::alloc(context, new_units, 1)) else {
        return Some(ptr::null_mut());
    };
    // SAFETY: two runs, both longer than what is moved; the old one is done with after that.
    unsafe {
        if remap && os::remap(NonNull::new_unchecked(object), new.address, old_units << UNIT_SHIFT)
        {
            if !page::free_clean(context, run) {
                defer(object);
            }
        } else {
            ptr::copy_nonoverlapping(object, new.address.as_ptr(), layout.size());
            free_run(context, object);
        }
    }
    Some(new.address.as_ptr())
}

/// Notes in debug builds that the program gets an object.
#[inline(always)]
pub(crate) fn checked_out(object: *mut u8, class: Class) -> *mut u8 {
    #[cfg(debug_assertions)]
    note(object, class, true);
    #[cfg(not(debug_assertions))]
    let _ = class;
    object
}

/// Ends the process, in debug builds, if `object` is not an object of `class` that the program holds.
#[inline(always)]
pub(crate) fn checked_in(object: *mut u8, class: Class) {
    #[cfg(debug_assertions)]
    note(object, class, false);
    #[cfg(not(debug_assertions))]
    let _ = (object, class);
}

#[cfg(debug_assertions)]
fn note(object: *mut u8, class: Class, held: bool) {
    let unit = Unit::of(object).filter(|unit| unit.is_committed());
    let noted = unit.ok_or(Misuse::Foreign).and_then(|unit| {
        // SAFETY: committed metadata of the unit where a slab of this class would start.
        unsafe { Slab::note(slab_at(unit, class), object, class, held) }
    });
    if let Err(misuse) = noted {
        misused(object, class, misuse);
    }
}

#[cold]
#[inline(never)]
fn misused(object: *mut u8, class: Class, misuse: Misuse) -> ! {
    let what = match misuse {
        Misuse::Foreign => "free of foreign address",
        Misuse::DoubleFree => "double free of",
    };
    os::abort(format_args!("{what} {object:p} (class {})", class.size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicPtr;
    use std::vec::Vec;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Allocates, fills, and checks that it is all there and where it should be.
    fn filled(layout: Layout, value: u8) -> *mut u8 {
        let block = alloc(layout);
        assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
        // SAFETY: a fresh block of this layout.
        unsafe { block.write_bytes(value, layout.size()) };
        block
    }

    fn check(block: *mut u8, len: usize, value: u8) {
        // Miri takes its time for each byte.
        let step = if cfg!(miri) { 509 } else { 1 };
        for offset in (0..len).step_by(step).chain(len.checked_sub(1)) {
            // SAFETY: callers pass a block of at least `len` bytes.
            assert_eq!(unsafe { *block.add(offset) }, value);
        }
    }

    #[test]
    fn blocks_of_a_class_are_disjoint_and_come_back() {
        for layout in [layout(24, 8), layout(1000, 8), layout(20_000, 16)] {
            let count = percpu::batch_len(class_of(layout).unwrap()) * 5 / 2;
            for _ in 0..2 {
                let blocks: Vec<_> =
                    (0..count).map(|number| filled(layout, number as u8)).collect();
                for (number, &block) in blocks.iter().enumerate() {
                    check(block, layout.size(), number as u8);
                    // SAFETY: allocated above.
                    unsafe { free(block, layout) };
                }
            }
        }
    }

    #[test]
    fn zeroed_is_zero_after_dirt() {
        for layout in [layout(100, 4), layout(3 * UNIT, 8)] {
            // SAFETY: allocated with the same layout.
            unsafe { free(filled(layout, 0xff), layout) };
            let block = alloc_zeroed(layout);
            check(block, layout.size(), 0);
            // SAFETY: as above.
            unsafe { free(block, layout) };
        }
    }

    #[test]
    fn realloc_keeps_contents() {
        let sizes = [1, 8, 100, 104, 5000, 40_000, 70_000, 700_000, 900_000, 300_000, 33_000, 10];
        let mut size = sizes[0];
        let mut block = filled(layout(size, 8), 7);
        for new_size in sizes {
            // SAFETY: a block of that size; the new one is filled to its end.
            unsafe {
                block = realloc(block, layout(size, 8), new_size);
                check(block, size.min(new_size), 7);
                block.write_bytes(7, new_size);
            }
            size = new_size;
        }
        // SAFETY: a block of that size.
        unsafe { free(block, layout(size, 8)) };
    }

    #[test]
    fn odd_layouts() {
        for layout in [layout(0, 1), layout(0, 4096), layout(0, 1 << 17), layout(1, 1 << 20)] {
            let block = filled(layout, 1);
            // SAFETY: allocated above.
            unsafe { free(block, layout) };
        }
        for size in [isize::MAX as usize, 1 << 46] {
            assert!(alloc(layout(size, 1)).is_null());
        }
    }

    #[test]
    fn threads_pass_blocks_on() {
        let layout = layout(64, 8);
        let rounds = if cfg!(miri) { 3 } else { 100 };
        let (send, receive) = std::sync::mpsc::sync_channel::<AtomicPtr<u8>>(16);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..rounds * 64 {
                    send.send(filled(layout, number as u8).into()).unwrap();
                }
            });
            scope.spawn(move || {
                for (number, block) in receive.iter().enumerate() {
                    let block = block.into_inner();
                    check(block, layout.size(), number as u8);
                    // SAFETY: allocated by the other thread, which is done with it.
                    unsafe { free(block, layout) };
                }
            });
        });
    }
}
