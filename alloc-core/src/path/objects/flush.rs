//! Flushes sheaves and barns to slabs, all of them or the idle ones, and frees slabs that are then
//! empty.

use core::sync::atomic::Ordering;

use super::lookup::move_event;
use super::node_class::{NodeClass, node_classes};
use super::put::{flush_to_slabs, free_emptied};
use crate::barn::Barn;
use crate::batch::Batch;
use crate::page;
use crate::percpu::{self, Backend};
use crate::sampling;
use crate::size_class::{Class, MAX_CLASSES};
use crate::slab::{self, Emptied};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Lock, LockClass};
use crate::watch;

/// Held by a thread that flushes objects of any class to slabs. Meanwhile these are in no sheaf,
/// barn or slab, and their class must not change its shape.
pub(super) static FLUSHING: Lock<()> = Lock::new(LockClass::Flushing, ());

/// Flushes the sheaves of all CPUs to slabs: those that were idle for long enough, or with
/// `even_busy`, all. Returns whether it flushed any, or left some that may be idle next time.
pub(super) fn empty_sheaves(context: Context, _flushing: &Guard<'_, ()>, even_busy: bool) -> bool {
    let backend = percpu::backend(context);
    let mut moved = false;
    for cpu in 0..percpu::regions() {
        moved |= percpu::flush_unused(context, cpu, even_busy, |class, batch| {
            watch::flush(|| move_event(class, batch.len(), cpu));
            // SAFETY: the objects have just left a sheaf of `class`, so this thread alone holds
            // them.
            unsafe { flush_to_slabs(context, backend, class, batch) };
        });
    }
    moved
}

/// Flushes the sheaves of all CPUs to slabs, so that each is granted a new count when it is used
/// next. Leaves those that cannot be closed.
pub(crate) fn renew_counts() {
    Context::enter(|context| {
        if let Some(flushing) = FLUSHING.acquire(context) {
            empty_sheaves(context, &flushing, true);
        }
    });
}

/// Starts or stops sampling for tracers, after one attached to the probes of samples, or left.
#[cold]
#[inline(never)]
pub(crate) fn heed_tracer() {
    // Without an arena there is nothing to sample yet.
    if let Some(arena) = page::any_arena()
        && sampling::heed_tracer(arena.addr())
    {
        renew_counts();
    }
}

/// Flushes the barns of all node classes that were idle in this decay window, or with `even_busy`,
/// of all. Frees their empty slabs. Returns whether it moved objects, or left a busy node class
/// alone.
pub(super) fn empty_node_classes(
    context: Context,
    _flushing: &Guard<'_, ()>,
    even_busy: bool,
) -> bool {
    let backend = percpu::backend(context);
    let mut moved = false;
    for class in (0..MAX_CLASSES).filter_map(Class::any_from_index) {
        for node_class in node_classes(class) {
            let is_busy = node_class.touched.swap(false, Ordering::Relaxed);
            if is_busy {
                counters::wrote(Line::NodeClass, 1);
            }
            if is_busy && !even_busy {
                moved = true;
                continue;
            }
            moved |= node_class.barn.len() > 0;
            // SAFETY: `node_classes` returns node classes of `class`.
            unsafe { empty_node_class(context, backend, class, node_class) };
        }
    }
    moved
}

/// Flushes the barn of a node class, and frees the slabs that are empty then, unless readers may
/// look at them.
///
/// # Safety
/// The node class is of `class`.
pub(super) unsafe fn empty_node_class(
    context: Context,
    backend: Backend,
    class: Class,
    node_class: &NodeClass,
) {
    // SAFETY: the caller guarantees that the node class, and so its barn, is of `class`.
    unsafe { empty_barn(context, backend, class, &node_class.barn) };
    if slab::shape(class).is_kept() {
        return;
    }
    let mut emptied = Emptied::new();
    if let Some(mut partial) = node_class.slabs.lock(context) {
        partial.shed(class, &mut emptied);
    }
    free_emptied(context, emptied);
}

/// Flushes a barn to slabs.
///
/// # Safety
/// The barn is of `class`.
pub(super) unsafe fn empty_barn(context: Context, backend: Backend, class: Class, barn: &Barn) {
    let mut batch = Batch::new();
    loop {
        barn.take(context, &mut batch, percpu::batch_len(class));
        if batch.len() == 0 {
            break;
        }
        // SAFETY: the objects have just left a barn of `class`, so this thread alone holds them.
        unsafe { flush_to_slabs(context, backend, class, &mut batch) };
    }
}
