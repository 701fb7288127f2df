//! Allocates an object that the sheaf of this CPU did not have: refills the sheaf from the barn,
//! the slabs or a new slab.

extern crate std;

use core::alloc::Layout;
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::flush::{FLUSHING, empty_node_classes, empty_sheaves, heed_tracer};
use super::lookup::move_event;
use super::node_class::{node_class_in_use, node_classes};
use super::put::{bound_middle, free_object, free_run, put_away};
use super::slow_path;
use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::node;
use crate::page::{self, Allocation, Unit};
use crate::percpu::{self, Backend, Due, Event};
use crate::sampling;
use crate::size_class::{Class, UNIT};
use crate::slab::{self, Slab};
use crate::sync::Context;
use crate::watch;

/// The reason why a cache could not allocate an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// There is no memory, or none without waiting.
    OutOfMemory,
    /// The constructor of the cache panicked. The slab whose objects it was constructing was freed.
    Constructor,
}

impl fmt::Display for AllocError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            AllocError::OutOfMemory => "out of memory",
            AllocError::Constructor => "the constructor of the cache panicked",
        })
    }
}

impl core::error::Error for AllocError {}

/// Allocates an object after this CPU's sheaf had none, or its count was used up. With the layout
/// that it serves, it may be a guarded block.
///
/// # Errors
/// Fails if there is no memory, or none without waiting in a context that must not wait, or if the
/// constructor panics.
pub(crate) fn alloc_object(
    class: Class,
    layout: Option<Layout>,
) -> Result<NonNull<u8>, AllocError> {
    // On the fallback backend this is the fast path.
    let mut has_missed = false;
    let (object, due) = Context::enter(|context| {
        let backend = percpu::backend(context);
        if let Some(object) = pop(backend, class) {
            return (NonNull::new(object), Due::Nothing);
        }
        has_missed = true;
        if sampling::has_apart()
            && !class.is_middle()
            && let Some(object) = uncover(backend, class)
        {
            return (Some(object), if is_hit(class) { Due::Sample } else { Due::Nothing });
        }
        // The count is of objects that a sheaf serves. Where it has none, what is due is left for
        // the next allocation that it could serve: else this one would have two chances to be a
        // sample, and allocations that find an object had fewer.
        if percpu::held(percpu::cpu(), class) > 0 {
            match backend.count_anew(class, 1) {
                Due::Sample => return (None, Due::Sample),
                Due::Guarded if layout.is_some() && sampling::may_guard() => {
                    return (None, Due::Guarded);
                }
                Due::Guarded | Due::Count | Due::Nothing => {
                    if let Some(object) = pop(backend, class) {
                        return (NonNull::new(object), Due::Nothing);
                    }
                }
            }
        }
        if is_hit(class) {
            return (None, Due::Sample);
        }
        if layout.is_some() && sampling::is_to_be_guarded(class) {
            return (None, Due::Guarded);
        }
        let object = if class.is_middle() { take_larger(backend, class) } else { None };
        (object, Due::Nothing)
    });
    if has_missed && sampling::tracer_changed() {
        heed_tracer();
    }
    let guarded = match due {
        Due::Guarded => layout.and_then(|layout| alloc_guarded(class, layout)),
        _ => None,
    };
    match object.or(guarded) {
        Some(object) if due == Due::Sample => {
            // SAFETY: the object was allocated above, and nobody else knows it.
            slow_path::free(|context| unsafe { free_object(context, class, object.as_ptr()) });
            alloc_sample(class)
        }
        Some(object) => Ok(object),
        None if due == Due::Sample => alloc_sample(class),
        None => alloc_beyond(class),
    }
}

/// Frees sampled blocks at the top of this CPU's sheaf, which hide other objects from a pop.
/// Returns an object that no longer fits into the sheaf, if others were freed meanwhile. Not
/// inlined, for its batch, which deeper calls need not have below them.
#[cold]
#[inline(never)]
fn uncover(backend: Backend, class: Class) -> Option<NonNull<u8>> {
    let mut rest = Batch::new();
    backend.free_sampled(class, &mut rest);
    let object = NonNull::new(rest.pop_last()?)?;
    percpu::count_beyond(class, 1);
    Some(object)
}

/// Takes an object of a larger class that may serve a middle size from this CPU's sheaves. It does
/// not use up the count of that sheaf, whose samples are of its own class. Not inlined, as
/// [`uncover`].
#[cold]
#[inline(never)]
fn take_larger(backend: Backend, class: Class) -> Option<NonNull<u8>> {
    let mut batch = Batch::new();
    class.larger_middle().find_map(|larger| {
        if percpu::held(percpu::cpu(), larger) == 0 {
            return None;
        }
        backend.drain(larger, &mut batch, 1);
        let object = NonNull::new(batch.pop_last()?)?;
        percpu::count_beyond(larger, 1);
        percpu::refund(larger.size());
        Some(object)
    })
}

/// Allocates a guarded block. `None` if that is impossible.
#[cold]
#[inline(never)]
fn alloc_guarded(class: Class, layout: Layout) -> Option<NonNull<u8>> {
    let arena = page::any_arena()?.addr();
    let block = sampling::alloc_guarded(class, layout, percpu::random, arena)?;
    percpu::count_beyond(class, 1);
    // A free that knows the class does not look at the address.
    percpu::observe(class);
    Some(block)
}

/// Returns at random whether an allocation that no sheaf counts is a sample.
fn is_hit(class: Class) -> bool {
    class.cache_index().is_none() && sampling::is_hit(class.size(), percpu::random)
}

/// Allocates an object of a size class that is a sample: a block apart from all slabs, or an object
/// of a middle size.
#[cold]
#[inline(never)]
fn alloc_sample(class: Class) -> Result<NonNull<u8>, AllocError> {
    if class.is_middle() {
        let object = alloc_beyond(class)?;
        sampling::record(object.as_ptr(), class.size());
        return Ok(object);
    }
    match sampling::alloc(class) {
        Some(block) => {
            percpu::count_beyond(class, 1);
            Ok(block)
        }
        None => alloc_beyond(class),
    }
}

/// Allocates an object that no sheaf serves.
fn alloc_beyond(class: Class) -> Result<NonNull<u8>, AllocError> {
    slow_path::alloc(|context| {
        let object = refill(context, percpu::backend(context), class);
        let object = object.and_then(|object| NonNull::new(object).ok_or(AllocError::OutOfMemory));
        percpu::count_beyond(class, usize::from(object.is_ok()));
        note_nolock(context, object.is_ok());
        object
    })
}

/// Pops an object of `class` from this CPU's sheaf.
fn pop(backend: Backend, class: Class) -> Option<*mut u8> {
    let object = backend.pop(class);
    if object.is_null() {
        return None;
    }
    if class.is_middle() {
        percpu::refund(class.size());
    }
    Some(object)
}

/// Refills this CPU's empty sheaf with a batch from the barn or the slabs, and returns one object
/// of that batch. Returns null if there are no objects.
fn refill(context: Context, backend: Backend, class: Class) -> Result<*mut u8, AllocError> {
    let mut batch = Batch::new();
    let node = node::current();
    percpu::count(class, Event::Refill, 1);
    take_batch(context, class, node, &mut batch, backend.widen(class))?;
    watch::refill(|| move_event(class, batch.len(), percpu::cpu()));
    let Some(object) = batch.pop_last() else { return Ok(ptr::null_mut()) };
    // SAFETY: the batch has just left the barn or a slab, so this thread alone holds its objects.
    unsafe {
        backend.fill(class, &mut batch);
        put_away(context, backend, class, node, &mut batch);
    }
    if class.is_middle() {
        bound_middle(context, backend, class);
    }
    Ok(object)
}

/// Fills an empty batch with up to `len` objects from the node's barn, or else from its partial
/// slabs, or else from a new slab. Without memory for a slab, it takes them from any node; if no
/// node has any, the batch stays empty. Fails only if a constructor panics.
pub(super) fn take_batch(
    context: Context,
    class: Class,
    node: usize,
    batch: &mut Batch,
    len: usize,
) -> Result<(), AllocError> {
    let node_class = node_class_in_use(node, class);
    node_class.take(context, class, batch, len);
    if batch.len() > 0 {
        return Ok(());
    }
    let units = slab::shape(class).units as usize;
    let Some(run) = alloc_run(context, node, units, 1) else {
        take_from_any(context, class, batch, len);
        return Ok(());
    };
    let Some(unit) = Unit::of(run.address.as_ptr()) else { return Ok(()) };
    let slab: *mut Slab = unit.meta().cast();
    // SAFETY: this thread alone holds the run and the metadata of its units until the slab arrives.
    unsafe {
        // The slab belongs to the node that asked for it, although its run may come from another
        // node that had memory left. On the lists of that other node nobody would look for it, and
        // this node would make a new slab for each batch.
        let entries = unit.entry().cast();
        Slab::init(slab, entries, run.address.as_ptr(), class, node as u8, run.zeroed);
        watch::slab(run.address.as_ptr(), true, || units * UNIT);
        if class.cache_index().is_some()
            && catch_unwind(AssertUnwindSafe(|| Slab::construct(slab))).is_err()
        {
            Slab::abandon(slab);
            watch::slab(run.address.as_ptr(), false, || units * UNIT);
            free_run(context, unit);
            return Err(AllocError::Constructor);
        }
        if !slab::shape(class).keeps_contents() {
            watch::make_noaccess(run.address.as_ptr(), units * UNIT);
        }
        Slab::cut_new(slab, batch, len);
        percpu::count(class, Event::NewSlab, 1);
        fault::point(Place::SlabArriving);
        node_class.slabs.arrive(context, slab);
    }
    Ok(())
}

/// Fills an empty batch from any node. The last resort when there is no memory for a new slab.
#[cold]
fn take_from_any(context: Context, class: Class, batch: &mut Batch, len: usize) {
    for node_class in node_classes(class) {
        node_class.take(context, class, batch, len);
        if batch.len() > 0 {
            break;
        }
    }
}

/// Allocates a run like [`page::alloc`]. Without memory for it, flushes what CPUs and nodes hold
/// and tries again.
pub(crate) fn alloc_run(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    page::alloc(context, node, units, align)
        .or_else(|| alloc_after_all(context, node, units, align))
}

/// Frees and purges all idle memory, and retries the allocation. Returns `None` if the context must
/// not wait, or if memory is still short.
#[cold]
fn alloc_after_all(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    if !context.may_wait() || !page::may_have(units) {
        return None;
    }
    // Wait for another thread's flush: the objects that it is moving are needed, too.
    if let Some(flushing) = FLUSHING.acquire(context) {
        empty_sheaves(context, &flushing, true);
        empty_node_classes(context, &flushing, true);
    }
    page::alloc_after_trim(context, node, units, align)
}

/// Allocations beyond sheaves in contexts that must not wait, and those of them that failed.
static NOLOCK: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Counts an allocation beyond sheaves, and its failure, if the context must not wait.
pub(crate) fn note_nolock(context: Context, succeeded: bool) {
    if !context.may_wait() {
        let [tries, failures] = &NOLOCK;
        // Relaxed: statistics, which order nothing.
        tries.fetch_add(1, Ordering::Relaxed);
        failures.fetch_add(u64::from(!succeeded), Ordering::Relaxed);
    }
}

/// Returns the attempts and the failures that [`note_nolock`] counted. Any context.
pub(crate) fn nolock_counts() -> (u64, u64) {
    let [tries, failures] = &NOLOCK;
    (tries.load(Ordering::Relaxed), failures.load(Ordering::Relaxed))
}
