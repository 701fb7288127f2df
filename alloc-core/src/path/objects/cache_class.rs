//! The class of an object cache: its definition, and what the cache does with all objects of it.

use core::sync::atomic::Ordering;

use super::alloc::alloc_run;
use super::flush::{FLUSHING, empty_barn};
use super::lookup::move_event;
use super::node_class::{
    CACHE_NODE_CLASSES, CacheNodeClasses, NodeClass, node_class, node_classes,
};
use super::put::{flush_to_slabs, free_emptied};
use crate::barn;
use crate::node;
use crate::percpu;
use crate::size_class::{Class, UNIT};
use crate::slab::{self, Emptied, Shape};
use crate::sync::Context;
use crate::watch;

/// Configures the class of a cache for objects of `shape`. Returns false if there is no memory for
/// its node classes.
///
/// # Safety
/// Nobody uses the class.
pub(crate) unsafe fn define(class: Class, shape: Shape) -> bool {
    let Some(node_classes) = class.cache_index().and_then(|number| CACHE_NODE_CLASSES.get(number))
    else {
        return false;
    };
    if node_classes.load(Ordering::Relaxed).is_null() {
        let units = size_of::<CacheNodeClasses>().div_ceil(UNIT);
        let Some(run) = Context::enter(|context| alloc_run(context, node::current(), units, 1))
        else {
            return false;
        };
        let memory: *mut CacheNodeClasses = run.address.as_ptr().cast();
        // SAFETY: the run is as long as `CacheNodeClasses`, and this thread alone holds it.
        unsafe {
            if !run.zeroed {
                run.address.write_bytes(0, units * UNIT);
            }
            for node in 0..node::count() {
                (&raw mut (*memory).node_classes)
                    .cast::<NodeClass>()
                    .add(node)
                    .write(NodeClass::new());
            }
        }
        // Release: pairs with the Acquire in `node_class::node_class`.
        node_classes.store(memory, Ordering::Release);
    }
    Context::enter(|context| {
        let _flushing = FLUSHING.acquire(context);
        // SAFETY: the caller guarantees that nobody uses the class, so its sheaves are empty.
        unsafe { percpu::define(class, shape.stride()) };
        let memory = node_classes.load(Ordering::Relaxed);
        for node in 0..node::count() {
            // SAFETY: each barn gets slots of its own, which are long enough, and is empty as long
            // as nobody uses the class.
            unsafe {
                let slots: *mut *mut u8 = (&raw mut (*memory).slots[node]).cast();
                let room = barn::room_for(percpu::batch_len(class), shape.stride());
                node_class(node, class).barn.attach_slots(slots, room);
                watch::hide(slots.cast(), room * size_of::<*mut u8>());
            }
        }
        // SAFETY: the caller guarantees that nobody uses the class; it is one of a cache.
        unsafe { slab::define(class, shape) };
    });
    true
}

/// Flushes the sheaves and barns of a class to its slabs. Returns false if the kernel does not
/// support closing sheaves of other CPUs; then their objects stay there.
pub(crate) fn flush(class: Class) -> bool {
    Context::enter(|context| {
        // Waits for other flushes: the objects that these took from a sheaf or a barn are in their
        // slabs then.
        let _flushing = FLUSHING.acquire(context);
        let backend = percpu::backend(context);
        let mut done = true;
        for cpu in (0..percpu::regions()).filter(|cpu| percpu::held(*cpu, class) > 0) {
            done &= percpu::flush(context, cpu, class, |batch| {
                watch::flush(|| move_event(class, batch.len(), cpu));
                // SAFETY: the objects have just left a sheaf of `class`, so this thread alone holds
                // them.
                unsafe { flush_to_slabs(context, backend, class, batch) };
            });
        }
        for node_class in node_classes(class) {
            // SAFETY: `node_classes` returns node classes of `class`.
            unsafe { empty_barn(context, backend, class, &node_class.barn) };
        }
        done
    })
}

/// Unlinks the empty slabs of a class, calls `wait`, and frees their runs. Returns the bytes of
/// these slabs.
pub(crate) fn shed(class: Class, wait: impl FnOnce()) -> usize {
    let mut emptied = Emptied::new();
    Context::enter(|context| {
        for mut partial in
            node_classes(class).filter_map(|node_class| node_class.slabs.lock(context))
        {
            partial.shed(class, &mut emptied);
        }
    });
    wait();
    let slabs = Context::enter(|context| free_emptied(context, emptied));
    slabs * slab::shape(class).units as usize * UNIT
}
