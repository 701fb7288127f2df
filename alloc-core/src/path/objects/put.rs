//! Puts freed objects away: into a sheaf, the barn, the slabs and the pages, or on a deferred list.
//!
//! A context that must not wait may find a lock busy. It then pushes the object to a sheaf, or
//! defers the free: it adds the block to the deferred list of its CPU and queues the irq work of
//! that CPU, which frees the block on this same path. So the path and the deferral are one module;
//! `deferral` has the other reasons to free deferred blocks.
//!
//! A function that takes a batch empties it. Its objects are then in barns, slabs, sheaves or
//! deferred lists, or are leaked as [`defer`] says.

use core::ptr;

use super::check::{check, misused};
use super::lookup::{class_of_unit, move_event, slab_at};
use super::middle;
use super::node_class::{node_class, node_class_in_use};
use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::irq::thread::MAX_CPUS;
use crate::irq::work::IrqWork;
use crate::node;
use crate::page::{self, Unit};
use crate::path::deferred::Deferred;
use crate::percpu::{self, Backend, Event};
use crate::size_class::{Class, UNIT};
use crate::slab::{self, Emptied, Misuse, Slab};
use crate::sync::Context;
use crate::watch;

/// Frees an object after this CPU's sheaf had no room for it. Retries, then widens the sheaf, then
/// drains a part of it into the barn or the slabs.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
pub(super) unsafe fn free_object(context: Context, class: Class, object: *mut u8) {
    let backend = percpu::backend(context);
    // SAFETY: the caller guarantees that `object` is of `class` and not in use.
    if unsafe { backend.push(class, object) } {
        if class.is_middle() && percpu::spend(class.size()) {
            bound_middle(context, backend, class);
        }
        return;
    }
    check(object, class);
    let len = backend.widen(class);
    if class.is_middle() {
        bound_middle(context, backend, class);
    }
    // SAFETY: the caller guarantees that `object` is of `class` and not in use; the first push
    // refused it.
    if unsafe { backend.push(class, object) } {
        return;
    }
    percpu::count(class, Event::Flush, 1);
    let mut batch = Batch::new();
    let node = node::current();
    backend.drain(class, &mut batch, len);
    watch::flush(|| move_event(class, batch.len(), percpu::cpu()));
    // SAFETY: the objects have just left the sheaf of `class`, so this thread alone holds them.
    unsafe { put_away(context, backend, class, node, &mut batch) };
    batch.push_first(object);
    // SAFETY: `put_away` emptied the batch, so it holds the caller's object alone.
    unsafe {
        backend.fill(class, &mut batch);
        put_away(context, backend, class, node, &mut batch);
    }
}

/// Bounds the bytes of middle sizes in this CPU's sheaves and flushes the excess to slabs, as
/// [`middle::bound`] says. The program uses `class` now.
pub(super) fn bound_middle(context: Context, backend: Backend, class: Class) {
    middle::bound(backend, class, |class, batch| {
        // SAFETY: the objects have just left the sheaf of `class`, so this thread alone holds them.
        unsafe { flush_to_slabs(context, backend, class, batch) };
    });
}

/// Empties the batch into the barn, or else into the slabs. If the context must not wait and the
/// locks are busy, pushes the objects to the sheaf, and defers those that do not fit.
///
/// # Safety
/// The objects are of `class`, in no sheaf, barn or slab, and nobody uses them.
#[inline]
pub(super) unsafe fn put_away(
    context: Context,
    backend: Backend,
    class: Class,
    node: usize,
    batch: &mut Batch,
) {
    // SAFETY: the barn is of `class`, and the caller guarantees that the objects are, and that
    // nobody uses them. The batch is unchanged where the barn took none.
    unsafe {
        if batch.len() > 0 && !node_class_in_use(node, class).barn.put(context, batch) {
            percpu::count(class, Event::BarnFull, 1);
            flush_to_slabs(context, backend, class, batch);
        }
    }
}

/// Empties the batch into the slabs that its objects were cut from. If the lock of a node's slabs
/// is busy and the context must not wait, pushes the remaining objects to the sheaf, and defers
/// those that do not fit.
///
/// # Safety
/// As [`put_away`].
pub(super) unsafe fn flush_to_slabs(
    context: Context,
    backend: Backend,
    class: Class,
    batch: &mut Batch,
) {
    let slab_of = |object| {
        let unit = Unit::of(object).filter(|unit| unit.is_committed())?;
        // SAFETY: the unit is committed.
        Some(unsafe { slab_at(unit, class) })
    };
    let mut emptied = Emptied::new();
    let mut objects = batch.objects();
    while let Some(&first) = objects.first() {
        let Some(slab) = slab_of(first) else { misused(first, class, Misuse::Foreign) };
        // SAFETY: `slab_of` returns committed metadata, and for an object of `class` the descriptor
        // of its slab.
        let node = unsafe { Slab::node(slab) };
        let Some(mut partial) = node_class(node, class).slabs.lock(context) else {
            for &object in objects {
                // SAFETY: the caller guarantees objects of `class` that nobody uses.
                unsafe {
                    if !backend.push(class, object) {
                        defer_object(context, class, object);
                    }
                }
            }
            break;
        };
        fault::point(Place::SlabsPutting);
        // SAFETY: for an object of `class`, `slab_of` returns the descriptor of its slab, and
        // otherwise committed metadata.
        let done = unsafe { partial.put(objects, class, node, slab_of, &mut emptied) };
        drop(partial);
        objects = done.unwrap_or_else(|(object, misuse)| misused(object, class, misuse));
    }
    batch.clear();
    free_emptied(context, emptied);
}

/// Frees the runs of slabs that left their lists. Returns the number of slabs.
pub(super) fn free_emptied(context: Context, mut emptied: Emptied) -> usize {
    let mut slabs = 0;
    while let Some(base) = emptied.pop() {
        let Some(unit) = Unit::of(base) else { continue };
        watch::slab(base, false, || unit.run_len().map_or(0, |units| units * UNIT));
        // SAFETY: `base` is the run of a slab that left its lists with all objects free.
        unsafe { free_run(context, unit) };
        slabs += 1;
    }
    slabs
}

/// Frees a run, or defers the free.
///
/// # Safety
/// `unit` is the first of a run that nobody uses.
pub(crate) unsafe fn free_run(context: Context, unit: Unit) {
    // SAFETY: the caller guarantees that nobody uses the run.
    unsafe {
        if !page::free(context, unit) {
            defer(context, unit.address());
        }
    }
}

/// Blocks freed in contexts that could not wait for a lock.
pub(super) static DEFERRED: Deferred<MAX_CPUS> = Deferred::new();

/// The irq work of each CPU, which empties the deferred list of that CPU.
pub(super) static FLUSH: [IrqWork; MAX_CPUS] =
    [const { IrqWork::new(flush_by_irq_work) }; MAX_CPUS];

fn flush_by_irq_work(work: &IrqWork) {
    let cpu = (ptr::from_ref(work).addr() - FLUSH.as_ptr().addr()) / size_of::<IrqWork>();
    // SAFETY: the list holds deferred blocks.
    Context::enter(|context| unsafe { DEFERRED.flush(context, Some(cpu), free_block(context)) });
}

/// Defers a free whose lock is busy. If the context could have waited, the lock was abandoned by a
/// fork. Then the block is leaked: its owner can never be locked again.
///
/// # Safety
/// `block` is a run, or lies where an object of a slab has its link. Nobody uses the run or object.
pub(crate) unsafe fn defer(context: Context, block: *mut u8) {
    if context.may_wait() {
        return;
    }
    watch::make_accessible(block, size_of::<*mut u8>(), false);
    // SAFETY: the caller guarantees that nobody uses the block; every block has room for a word.
    let cpu = unsafe { DEFERRED.add(percpu::cpu(), block) };
    fault::point(Place::BlockDeferred);
    if let Some(cpu) = cpu {
        FLUSH[cpu].queue_on(cpu);
    }
}

/// Defers the free of an object, like [`defer`].
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
unsafe fn defer_object(context: Context, class: Class, object: *mut u8) {
    if let (true, Some(unit)) = (class.is_middle(), Unit::of(object)) {
        // SAFETY: the caller guarantees that `object` is of `class`, so its unit has metadata. The
        // link is about to be written into the object.
        unsafe { Slab::release_middle(unit.meta().cast(), object) };
    }
    // SAFETY: the link lies within the object, which nobody uses.
    unsafe { defer(context, object.add(slab::shape(class).link as usize)) };
}

/// Returns a function that frees a deferred block by the address of its link. The link of a run is
/// its first word; that of an object may lie anywhere in the object.
///
/// # Safety
/// The function is called once for each block, with the address of the link of a run or object that
/// nobody uses.
pub(crate) unsafe fn free_block(context: Context) -> impl Fn(*mut u8) {
    move |block| {
        let Some(unit) = Unit::of(block) else { return };
        // SAFETY: the caller guarantees links of objects or runs that nobody uses; these have their
        // metadata.
        unsafe {
            match class_of_unit(unit) {
                Some(class) => {
                    let shape = slab::shape(class);
                    let object = block.sub(shape.link as usize);
                    if !shape.keeps_contents() {
                        watch::make_noaccess(object, shape.stride());
                    }
                    free_object(context, class, object);
                }
                None => free_run(context, unit),
            }
        }
    }
}
