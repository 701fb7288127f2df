//! Slow paths of all classes, which move objects between sheaves, barns, slabs and pages.
//!
//! A slow path takes a step only when the one before it fails:
//!
//! ```text
//! alloc: sheaf of this CPU -> barn of this node -> partial slabs of this node -> a new slab
//! free:  sheaf of this CPU -> barn of this node -> slabs of the objects' nodes -> pages, if empty
//! ```
//!
//! A context that must not wait skips a step whose lock is busy and tries the next one. Its last
//! resort is the reserve of `page` for an allocation, and `deferred` for a free. Slow paths that
//! may wait first free what was deferred.
//!
//! The classes of `kmalloc` and those of object caches share these paths. Callers inline the first
//! step. The cold functions that they call are `extern "C"`, so they cannot unwind: callers need no
//! landing pads, and a panic in here aborts the process.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

extern crate std;

use core::cell::UnsafeCell;
use core::fmt;
use core::iter;
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::barn::{self, Barn};
use crate::batch::{Batch, MAX_BATCH};
use crate::deferred::Deferred;
use crate::fault::{self, Place};
use crate::irq_work::IrqWork;
use crate::node::{self, MAX_NODES};
use crate::os;
use crate::page::{self, Allocation, Unit};
use crate::percpu::{self, Backend, Event};
use crate::reclaim::{self, Occasion};
use crate::size_class::{CLASSES, Class, MAX_CLASSES, MIDDLE_CLASSES, UNIT};
use crate::slab::{self, Counts, Emptied, Entry, Misuse, Shape, Slab, Slabs};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Lock, LockClass, RawLock, do_what_was_left};
use crate::thread::{self, MAX_CPUS};
use crate::watch::{self, WATCHED};

// The metadata of a slab's first unit is its descriptor. The metadata of its other units follows
// directly.
const _: () = assert!(size_of::<Slab>() == page::META_SIZE);
const _: () = assert!(size_of::<Entry>() == page::ENTRY_SIZE);

/// The state of a class on a node. (`kmem_cache_node` of `mm/slub.c`.)
#[repr(align(64))]
struct NodeClass {
    slabs: Slabs,
    barn: Barn,
    /// Whether objects were taken or put here in the current decay window.
    touched: AtomicBool,
}

impl NodeClass {
    const fn new() -> NodeClass {
        NodeClass { slabs: Slabs::new(), barn: Barn::new(), touched: AtomicBool::new(false) }
    }

    /// Fills an empty batch from the barn, or else from partial slabs, with up to `len` objects.
    /// Leaves it empty if both have none, or their locks are busy and the context must not wait.
    fn take(&self, context: Context, class: Class, batch: &mut Batch, len: usize) {
        self.barn.take(context, batch, len);
        if batch.len() > 0 {
            return;
        }
        percpu::count(class, Event::BarnEmpty, 1);
        if let Some(mut partial) = self.slabs.lock(context) {
            fault::point(Place::SlabsCutting);
            partial.cut(batch, len);
        }
    }
}

/// The layout of the barns' slots on a node: for each size class the index of its first slot, and
/// the number of slots of all size classes.
const BARN_SLOTS: ([usize; CLASSES], usize) = {
    let (mut starts, mut words, mut index) = ([0; CLASSES], 0, 0);
    while let Some(class) = Class::from_index(index) {
        starts[index] = words;
        words += barn::room_for(percpu::batch_len_for(class.size()), class.size());
        index += 1;
    }
    (starts, words)
};

/// Returns the most objects that the barn of a class holds.
fn room_of_barn(class: Class) -> usize {
    barn::room_for(percpu::batch_len(class), slab::shape(class).stride())
}

/// The slots of the barns of all size classes on all nodes.
struct BarnSlots(UnsafeCell<[*mut u8; BARN_SLOTS.1 * MAX_NODES]>);

// SAFETY: each barn uses a range of its own, under its lock.
unsafe impl Sync for BarnSlots {}

static OBJECTS: BarnSlots = BarnSlots(UnsafeCell::new([ptr::null_mut(); BARN_SLOTS.1 * MAX_NODES]));

/// The node classes of all size classes. Those of one node are adjacent, so that only that node
/// touches most of their pages.
static NODE_CLASSES: [NodeClass; CLASSES * MAX_NODES] =
    [const { NodeClass::new() }; CLASSES * MAX_NODES];

/// Whether each of [`NODE_CLASSES`] was ever used. A fork acquires the locks of the used ones only,
/// so the memory of the others stays untouched.
static USED: [AtomicBool; CLASSES * MAX_NODES] =
    [const { AtomicBool::new(false) }; CLASSES * MAX_NODES];

/// The node classes of one object cache's class, with the slots of their barns.
struct CacheNodeClasses {
    node_classes: [NodeClass; MAX_NODES],
    slots: [[*mut u8; barn::room_for(percpu::MAX_CACHE_BATCH, 0)]; MAX_NODES],
}

/// The memory of each cache class. A class keeps it when its cache is destroyed.
static CACHE_NODE_CLASSES: [AtomicPtr<CacheNodeClasses>; MAX_CLASSES - CLASSES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES - CLASSES];

/// Returns the state of a class on a node. Attaches the slots of its barn on the first use of a
/// size class there.
fn node_class(node: usize, class: Class) -> &'static NodeClass {
    // SAFETY: `node` is below `node::count` and the class below `MAX_CLASSES`; the class of a live
    // cache has its `CacheNodeClasses`. Raw pointers, since Miri visits everything that a reference
    // covers.
    unsafe {
        if let Some(number) = class.cache_index() {
            // Acquire: pairs with the Release in `define`.
            let node_classes = CACHE_NODE_CLASSES.get_unchecked(number).load(Ordering::Acquire);
            return &*(&raw const (*node_classes).node_classes).cast::<NodeClass>().add(node);
        }
        let index = node * CLASSES + class.index();
        let node_class = &*(&raw const NODE_CLASSES).cast::<NodeClass>().add(index);
        // Relaxed: a fork by another thread may miss a node class that this thread is about to lock
        // for the first time. If this thread holds the lock at the fork, the child abandons it.
        let used = &*(&raw const USED).cast::<AtomicBool>().add(index);
        if !used.load(Ordering::Relaxed) {
            let start = BARN_SLOTS.1 * node + *BARN_SLOTS.0.get_unchecked(class.index());
            let slots = OBJECTS.0.get().cast::<*mut u8>().add(start);
            let room = room_of_barn(class);
            node_class.barn.attach_slots(slots, room);
            watch::hide(slots.cast(), room * size_of::<*mut u8>());
            counters::wrote(Line::NodeClass, 1);
            used.store(true, Ordering::Relaxed);
        }
        node_class
    }
}

/// Returns the state of a class on a node like [`node_class`], and marks it as touched in this
/// decay window. For refills and flushes.
fn node_class_in_use(node: usize, class: Class) -> &'static NodeClass {
    let node_class = node_class(node, class);
    // Relaxed: a hint, which may miss the end of a window.
    if !node_class.touched.load(Ordering::Relaxed) {
        counters::wrote(Line::NodeClass, 1);
        node_class.touched.store(true, Ordering::Relaxed);
    }
    node_class
}

/// Returns the node classes of a class that are in use.
fn node_classes(class: Class) -> impl Iterator<Item = &'static NodeClass> {
    (0..node::count())
        .filter(move |node| is_used(*node, class))
        .map(move |node| node_class(node, class))
}

/// Returns whether `node` has state of `class`: for a size class since its first use there, for the
/// class of a cache since it was first defined.
fn is_used(node: usize, class: Class) -> bool {
    match class.cache_index() {
        // Acquire: pairs with the Release in `define`, as in `node_class`.
        Some(number) => CACHE_NODE_CLASSES
            .get(number)
            .is_some_and(|node_classes| !node_classes.load(Ordering::Acquire).is_null()),
        None => USED[node * CLASSES + class.index()].load(Ordering::Relaxed),
    }
}

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

/// Allocates an object after this CPU's sheaf had none.
///
/// # Errors
/// Fails if there is no memory, or none without waiting in a context that must not wait, or if the
/// constructor panics.
pub(crate) fn alloc_object(context: Context, class: Class) -> Result<NonNull<u8>, AllocError> {
    free_deferred(context);
    let backend = percpu::backend(context);
    let (object, class) = match pop(backend, class) {
        Some((object, class)) => (Ok(object), class),
        None => (refill(context, backend, class), class),
    };
    let object = object.and_then(|object| NonNull::new(object).ok_or(AllocError::OutOfMemory));
    note_nolock(context, object.is_ok());
    have_threads(context);
    Ok(checked_out(object?, class))
}

/// Pops an object of `class` from this CPU's sheaf, or of a larger class that may serve it. Returns
/// the object and its class.
fn pop(backend: Backend, class: Class) -> Option<(*mut u8, Class)> {
    let found = iter::once(class).chain(class.larger_middle()).find_map(|class| {
        let object = backend.pop(class);
        (!object.is_null()).then_some((object, class))
    });
    if let Some((_, class)) = found.filter(|(_, class)| class.is_middle()) {
        percpu::refund(class.size());
    }
    found
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
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
    if class.is_middle() {
        bound_middle(context, backend, Some(class));
    }
    Ok(object)
}

/// Bytes of middle sizes that the sheaves of a CPU may always hold. Memory that serves one size
/// only is cold: with 4 MiB, a program that has one block of 32 KiB to 4 MiB at a time takes 1.2
/// times as long.
const LEAST_MIDDLE: usize = 1 << 20;
/// The divisor of the heap in programs of one thread: the sheaves of all CPUs together may hold a
/// quarter of the heap in middle sizes. If each page of a block is touched, a miss costs little
/// beside that, and memory that serves one size only is cold.
const MIDDLE_PART: usize = 4;
/// The divisor in programs of several threads, where a miss takes a lock. Two threads that replace
/// blocks of 33 to 512 KiB at random and touch one page of each do 16 million operations a second
/// with half of the heap, 4 million with a quarter, and 27 million with all of it.
const MIDDLE_PART_OF_THREADS: usize = 2;

/// Runs [`bound_middle`] after a fast path has pushed an object of a middle size and used up the
/// allowance of its CPU.
#[cold]
#[inline(never)]
pub(crate) extern "C" fn allowance_is_used_up() {
    Context::enter(|context| {
        bound_middle(context, percpu::backend(context), None);
        may_reclaim(context);
    });
}

/// Bounds the bytes of middle sizes in this CPU's sheaves. If they hold more, flushes a little more
/// than the excess, so that the next call is some way off. Flushes the class that holds the most
/// bytes first, since memory is used least often there, and never the class `spared`.
///
/// Also sets the allowance, the number of bytes that the sheaves may grow by before the next call.
fn bound_middle(context: Context, backend: Backend, spared: Option<Class>) {
    let cpu = percpu::cpu();
    let part = if reclaim::has_several_threads() { MIDDLE_PART_OF_THREADS } else { MIDDLE_PART };
    let most = LEAST_MIDDLE.max(page::charged() / (part * percpu::regions().max(1)));
    let mut held = [0; MIDDLE_CLASSES];
    for (bytes, class) in held.iter_mut().zip(Class::middle()) {
        *bytes = percpu::held(cpu, class) * class.size();
    }
    let mut all: usize = held.iter().sum();
    if all > most {
        let few = most - most / 16;
        // At most one flush per class: another thread may push on this CPU meanwhile, or this
        // thread may migrate. The next call continues then.
        for _ in 0..MIDDLE_CLASSES {
            let Some(excess) = all.checked_sub(few + 1) else { break };
            let others = held.iter_mut().zip(Class::middle());
            let others = others.filter(|(_, class)| Some(*class) != spared);
            let Some((bytes, largest)) = others.max_by_key(|(bytes, _)| **bytes) else { break };
            let mut batch = Batch::new();
            backend.drain(largest, &mut batch, (1 + excess / largest.size()).min(MAX_BATCH));
            let drained = batch.len() * largest.size();
            if drained == 0 {
                break;
            }
            *bytes = bytes.saturating_sub(drained);
            all = all.saturating_sub(drained);
            flush_to_slabs(context, backend, largest, &mut batch);
        }
    }
    percpu::set_allowance(cpu, most.saturating_sub(all).max(most / 16));
}

/// Returns the arguments of a probe that reports objects of a class entering or leaving the sheaf
/// of `cpu`.
fn move_event(class: Class, objects: usize, cpu: usize) -> watch::Move {
    watch::Move { size: size(class), objects, cpu }
}

/// Fills an empty batch with up to `len` objects from the node's barn, or else from its partial
/// slabs, or else from a new slab. Without memory for a slab, it takes them from any node; if no
/// node has any, the batch stays empty. Fails only if a constructor panics.
fn take_batch(
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
            free_run(context, run.address.as_ptr());
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

/// Frees `object` after this CPU's sheaf had no room for it.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_slow(class: Class, object: *mut u8) {
    Context::enter(|context| {
        free_deferred(context);
        // SAFETY: the caller guarantees that `object` is of `class` and not in use.
        unsafe { free_object(context, class, object) };
        may_reclaim(context);
    });
}

/// Frees an object that `push_once` or `push_by_address` refused. The sheaf may be full, or may
/// hold the object already; in the second case, this aborts the process.
///
/// # Safety
/// As [`free_slow`].
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_refused(class: Class, object: *mut u8) {
    Context::enter(|context| {
        free_deferred(context);
        let backend = percpu::backend(context);
        if is_on_top(context, backend, class, object) {
            misused(object, class, Misuse::DoubleFree);
        }
        // SAFETY: the caller guarantees that `object` is of `class` and not in use.
        unsafe { free_object(context, class, object) };
        may_reclaim(context);
    });
}

/// Returns whether `object` is one of the two topmost of this CPU's sheaf.
#[inline(never)]
fn is_on_top(context: Context, backend: Backend, class: Class, object: *mut u8) -> bool {
    if backend == Backend::Locked {
        return percpu::is_on_top(class, object);
    }
    // With rseq, plain loads may see what the sheaf held before: only a section on this CPU reads
    // it reliably. So take the two topmost off for a moment.
    let mut batch = Batch::new();
    backend.drain(class, &mut batch, 2);
    let found = batch.objects().contains(&object);
    // SAFETY: the batch has just left a sheaf, so this thread alone holds its objects.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node::current(), &mut batch);
    found
}

/// Frees an object after this CPU's sheaf had no room for it. Retries, then widens the sheaf, then
/// drains a part of it into the barn or the slabs.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
pub(crate) unsafe fn free_object(context: Context, class: Class, object: *mut u8) {
    let backend = percpu::backend(context);
    // SAFETY: the caller guarantees that `object` is of `class` and not in use.
    if unsafe { backend.push(class, object) } {
        if class.is_middle() && percpu::spend(class.size()) {
            bound_middle(context, backend, None);
        }
        return;
    }
    check(object, class);
    let len = backend.widen(class);
    if class.is_middle() {
        bound_middle(context, backend, Some(class));
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
    put_away(context, backend, class, node, &mut batch);
    batch.push_first(object);
    // SAFETY: the batch holds the caller's object and objects that have just left a sheaf.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
}

/// Allocates up to `len` objects into `to`, after this CPU's sheaf had fewer. Returns the number of
/// objects allocated.
///
/// # Safety
/// `to` is writable for `len` pointers.
pub(crate) unsafe fn alloc_bulk(
    context: Context,
    class: Class,
    to: *mut *mut u8,
    len: usize,
) -> usize {
    free_deferred(context);
    let backend = percpu::backend(context);
    let node = node::current();
    let mut batch = Batch::new();
    let mut count = 0;
    while count < len {
        backend.drain(class, &mut batch, len - count);
        percpu::count_hits(class, batch.len());
        if batch.len() == 0
            && (take_batch(context, class, node, &mut batch, percpu::batch_len(class)).is_err()
                || batch.len() == 0)
        {
            break;
        }
        watch::refill(|| move_event(class, batch.len(), percpu::cpu()));
        while let Some(object) = (count < len).then(|| batch.pop_last()).flatten() {
            // SAFETY: `count` is below `len`, for which `to` is writable.
            unsafe { to.add(count).write(object) };
            count += 1;
        }
        // SAFETY: the batch has just left a sheaf, the barn or a slab, so this thread alone holds
        // its objects.
        unsafe { backend.fill(class, &mut batch) };
        put_away(context, backend, class, node, &mut batch);
    }
    have_threads(context);
    count
}

/// Frees objects for which this CPU's sheaf had no room.
///
/// # Safety
/// The objects are of `class`, and nobody uses them.
pub(crate) unsafe fn free_bulk(context: Context, class: Class, objects: &[*mut u8]) {
    free_deferred(context);
    let backend = percpu::backend(context);
    let node = node::current();
    let mut batch = Batch::new();
    for objects in objects.chunks(percpu::batch_len(class).max(1)) {
        batch.fill(objects);
        watch::flush(|| move_event(class, batch.len(), percpu::cpu()));
        put_away(context, backend, class, node, &mut batch);
    }
    may_reclaim(context);
}

/// Empties the batch into the barn, or else into the slabs. If the context must not wait and the
/// locks are busy, pushes the objects to the sheaf, and defers those that do not fit.
fn put_away(context: Context, backend: Backend, class: Class, node: usize, batch: &mut Batch) {
    if batch.len() > 0 && !node_class_in_use(node, class).barn.put(context, batch) {
        percpu::count(class, Event::BarnFull, 1);
        flush_to_slabs(context, backend, class, batch);
    }
}

/// Empties the batch into the slabs that its objects were cut from. If the lock of a node's slabs
/// is busy and the context must not wait, pushes the remaining objects to the sheaf, and defers
/// those that do not fit.
fn flush_to_slabs(context: Context, backend: Backend, class: Class, batch: &mut Batch) {
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
                // SAFETY: an object of `class` from the batch, which nobody uses.
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

/// Blocks freed in contexts that could not wait for a lock.
static DEFERRED: Deferred<MAX_CPUS> = Deferred::new();

/// The irq work of each CPU, which empties the deferred list of that CPU.
static FLUSH: [IrqWork; MAX_CPUS] = [const { IrqWork::new(flush_by_irq_work) }; MAX_CPUS];

fn flush_by_irq_work(work: &IrqWork) {
    let cpu = (ptr::from_ref(work).addr() - FLUSH.as_ptr().addr()) / size_of::<IrqWork>();
    Context::enter(|context| DEFERRED.flush(context, Some(cpu), free_block(context)));
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
        // SAFETY: the caller guarantees that `object` is of `class`, so its unit has an entry. The
        // link is about to be written into the object.
        unsafe { (*unit.entry().cast::<Entry>()).middle_written(object) };
    }
    // SAFETY: the link lies within the object, which nobody uses.
    unsafe { defer(context, object.add(slab::shape(class).link as usize)) };
}

/// Returns a function that frees a deferred block by the address of its link. The link of a run is
/// its first word; that of an object may lie anywhere in the object.
pub(crate) fn free_block(context: Context) -> impl Fn(*mut u8) {
    move |block| {
        // SAFETY: blocks on deferred lists are objects or runs that nobody uses, and have their
        // metadata.
        unsafe {
            match class_of_object(block) {
                Some(class) => {
                    let shape = slab::shape(class);
                    let object = block.sub(shape.link as usize);
                    if !shape.keeps_contents() {
                        watch::make_noaccess(object, shape.stride());
                    }
                    free_object(context, class, object);
                }
                None => free_run(context, block),
            }
        }
    }
}

/// Returns the class of the object that contains `address`, or `None` if `address` lies in a run
/// that is no slab.
///
/// # Safety
/// `address` lies in a run, or in an object that is not yet free in its slab.
pub(crate) unsafe fn class_of_object(address: *mut u8) -> Option<Class> {
    // SAFETY: the caller guarantees that the unit is in use, so it has metadata.
    Unit::of(address).and_then(|unit| unsafe { Slab::class_of_unit(unit.meta().cast()) })
}

/// Returns the usable bytes of an object of a class.
pub(crate) fn size(class: Class) -> usize {
    let shape = slab::shape(class);
    match class.cache_index() {
        Some(_) => shape.link as usize,
        None => shape.stride(),
    }
}

/// Opens the sheaves and the deferred list of a CPU that comes online.
pub(crate) fn online(cpu: usize) {
    Context::enter(|context| {
        percpu::open(context, cpu);
        DEFERRED.online(context, cpu, free_block(context));
    });
}

/// Closes the deferred lists of all CPUs and frees their blocks. From now on blocks are deferred to
/// the list that serves a process without CPUs.
pub(crate) fn end_cpus() {
    Context::enter(|context| DEFERRED.end(context, free_block(context)));
}

/// Empties a CPU that goes offline: frees its deferred blocks, closes its sheaves and moves their
/// objects to the barn of its node, or else to the slabs. Objects that wait for readers go to
/// `waiting`. Returns false if the kernel does not support closing sheaves of other threads; then
/// the sheaves keep their objects.
pub(crate) fn offline(cpu: usize, mut waiting: impl FnMut(&mut Batch)) -> bool {
    Context::enter(|context| {
        DEFERRED.offline(context, cpu, free_block(context));
        let backend = percpu::backend(context);
        let node = node::of(cpu);
        percpu::close(context, cpu, |class, batch| match class {
            Class::RCU => waiting(batch),
            _ => {
                watch::flush(|| move_event(class, batch.len(), cpu));
                put_away(context, backend, class, node, batch);
            }
        })
    })
}

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
        // Release: pairs with the Acquire in `node_class`.
        node_classes.store(memory, Ordering::Release);
    }
    Context::enter(|context| {
        let _flushing = FLUSHING.acquire(context);
        percpu::define(class, shape.stride());
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
                flush_to_slabs(context, backend, class, batch);
            });
        }
        for node_class in node_classes(class) {
            empty_barn(context, backend, class, &node_class.barn);
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

/// Flushes the sheaves and barns of all classes, frees empty slabs, purges dirty runs and punches
/// holes. Returns the bytes returned to the system. Objects that wait for readers go to `waiting`.
/// No cache may be created or destroyed meanwhile.
pub(crate) fn trim(mut waiting: impl FnMut(&mut Batch)) -> usize {
    Context::enter(|context| {
        let backend = percpu::backend(context);
        for cpu in (0..percpu::regions()).filter(|cpu| percpu::has_any(*cpu)) {
            percpu::flush_all(context, cpu, |class, batch| match class {
                Class::RCU => waiting(batch),
                _ => {
                    watch::flush(|| move_event(class, batch.len(), cpu));
                    flush_to_slabs(context, backend, class, batch);
                }
            });
        }
    });
    for class in (0..MAX_CLASSES).filter_map(Class::any_from_index) {
        Context::enter(|context| {
            // A fork waits for this lock, so that no slab is between its lists and the pages then.
            let _flushing = FLUSHING.acquire(context);
            let backend = percpu::backend(context);
            for node_class in node_classes(class) {
                empty_node_class(context, backend, class, node_class);
            }
        });
    }
    Context::enter(|context| {
        page::trim(context) + punch_holes(context, &Punch { even_busy: true, ..Punch::ALL }).bytes
    })
}

/// Flushes a barn to slabs.
fn empty_barn(context: Context, backend: Backend, class: Class, barn: &Barn) {
    let mut batch = Batch::new();
    loop {
        barn.take(context, &mut batch, percpu::batch_len(class));
        if batch.len() == 0 {
            break;
        }
        flush_to_slabs(context, backend, class, &mut batch);
    }
}

/// Flushes the barn of a node class, and frees the slabs that are empty then, unless readers may
/// look at them.
fn empty_node_class(context: Context, backend: Backend, class: Class, node_class: &NodeClass) {
    empty_barn(context, backend, class, &node_class.barn);
    if slab::shape(class).is_kept() {
        return;
    }
    let mut emptied = Emptied::new();
    if let Some(mut partial) = node_class.slabs.lock(context) {
        partial.shed(class, &mut emptied);
    }
    free_emptied(context, emptied);
}

/// Frees the runs of slabs that left their lists. Returns the number of slabs.
fn free_emptied(context: Context, mut emptied: Emptied) -> usize {
    let mut slabs = 0;
    while let Some(base) = emptied.pop() {
        watch::slab(base, false, || {
            Unit::of(base).and_then(Unit::run_len).map_or(0, |units| units * UNIT)
        });
        // SAFETY: `base` is the run of a slab that left its lists with all objects free.
        unsafe { free_run(context, base) };
        slabs += 1;
    }
    slabs
}

/// The slabs and free objects of a class. An estimate while other threads allocate and free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Census {
    /// Those of all nodes.
    pub(crate) counts: Counts,
    /// Free objects in sheaves.
    pub(crate) in_sheaves: usize,
    /// Free objects in barns.
    pub(crate) in_barns: usize,
}

impl Census {
    /// Returns the number of objects in use. `objects` is the number of objects of a slab.
    pub(crate) fn in_use(&self, objects: usize) -> usize {
        let free = self.counts.free + self.in_sheaves + self.in_barns;
        (self.counts.slabs * objects).saturating_sub(free)
    }
}

/// Returns whether objects of a class may exist. Whatever sheaves and barns hold came through a
/// node class.
pub(crate) fn has_node_classes(class: Class) -> bool {
    node_classes(class).next().is_some()
}

/// Counts the slabs and free objects of a class. Any context.
pub(crate) fn census(class: Class) -> Census {
    let mut census = Census::default();
    for node_class in node_classes(class) {
        let Counts { slabs, partial, free } = node_class.slabs.counts();
        census.counts.slabs += slabs;
        census.counts.partial += partial;
        census.counts.free += free;
        census.in_barns += node_class.barn.len();
    }
    census.in_sheaves = (0..percpu::regions()).map(|cpu| percpu::held(cpu, class)).sum();
    census
}

/// Returns the counts of a class on a node, and the number of objects in its barn. Returns `None`
/// if the node has no state of the class. Any context.
pub(crate) fn counts_of_node(node: usize, class: Class) -> Option<(Counts, usize)> {
    is_used(node, class).then(|| {
        let node_class = node_class(node, class);
        (node_class.slabs.counts(), node_class.barn.len())
    })
}

/// Calls `visit` with each object of a class that is not free in its slab. Those are the objects in
/// use, if sheaves and barns are empty. Nobody may allocate or free objects of the class meanwhile.
pub(crate) fn for_each_out(class: Class, visit: &mut dyn FnMut(NonNull<u8>)) {
    page::for_each_unit(&mut |unit| {
        // SAFETY: the metadata is committed, and slabs of the class neither come nor go meanwhile.
        unsafe { Slab::for_each_out(unit.meta().cast(), unit.address(), class, visit) };
    });
}

/// Ensures that every block deferred on `cpu` before this call is free, and waits for any other
/// thread that is freeing some of them. `None` stands for the list that serves a process without
/// CPUs.
pub(crate) fn deferred_barrier(cpu: Option<usize>) {
    Context::enter(|context| DEFERRED.barrier(context, cpu, free_block(context)));
    if let Some(cpu) = cpu {
        FLUSH[cpu % MAX_CPUS].sync();
    }
}

/// Returns whether blocks wait on the deferred list of a CPU, or with `None`, on the list that
/// serves a process without CPUs.
pub(crate) fn is_deferred_on(cpu: Option<usize>) -> bool {
    !DEFERRED.is_empty(cpu)
}

/// Counts of frees that could not be done where they were requested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeferredFrees {
    /// Frees deferred so far.
    pub deferred: u64,
    /// Deferred frees done so far. Equal to `deferred` after [`barrier`](fn@crate::cache::barrier),
    /// unless more frees were deferred since.
    pub flushed: u64,
}

/// Counts the frees that could not be done where they were requested. Any context.
#[must_use]
pub fn deferred_frees() -> DeferredFrees {
    let (deferred, flushed) = DEFERRED.counts();
    DeferredFrees { deferred, flushed }
}

/// Calls `visit` with every lock of the slow paths, in the order in which they may be acquired.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    DEFERRED.for_each_lock(visit);
    visit(LockClass::Flushing, FLUSHING.raw());
    visit(LockClass::Purging, page::purging_lock());
    percpu::for_each_lock(visit);
    let node_classes = NODE_CLASSES.iter().zip(&USED);
    let node_classes = node_classes
        .filter(|(_, used)| used.load(Ordering::Relaxed))
        .map(|(node_class, _)| node_class);
    let of_caches = CACHE_NODE_CLASSES.iter().flat_map(|node_classes| {
        let node_classes = node_classes.load(Ordering::Acquire);
        let count = if node_classes.is_null() { 0 } else { node::count() };
        // SAFETY: `define` made as many node classes as there are nodes.
        (0..count).map(move |node| unsafe {
            &*(&raw const (*node_classes).node_classes).cast::<NodeClass>().add(node)
        })
    });
    for node_class in node_classes.chain(of_caches) {
        visit(LockClass::Barn, node_class.barn.raw());
        visit(LockClass::Slabs, node_class.slabs.raw());
    }
    page::for_each_lock(visit);
}

/// Moves the blocks deferred on CPUs to the list that serves a process without CPUs. Called in a
/// fork child, which has none.
pub(crate) fn without_cpus() {
    DEFERRED.without_cpus();
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

/// Frees a run, or defers the free.
///
/// # Safety
/// `base` is the address of a run that nobody uses.
pub(crate) unsafe fn free_run(context: Context, base: *mut u8) {
    let Some(unit) = Unit::of(base) else { return };
    // SAFETY: the caller guarantees that nobody uses the run.
    unsafe {
        if !page::free(context, unit) {
            defer(context, base);
        }
    }
}

/// Lets `reclaim` act on what was freed. Call last in every freeing slow path, holding no lock.
pub(crate) fn may_reclaim(context: Context) {
    reclaim::freed(context, reclaim_on);
}

/// Starts the threads of this allocator that a fork child has yet to start. Call last in every slow
/// path that allocates beyond sheaves, holding no lock.
pub(crate) fn have_threads(context: Context) {
    do_what_was_left(context);
}

/// Held by a thread that flushes objects of any class to slabs. Meanwhile these are in no sheaf,
/// barn or slab, and their class must not change its shape.
static FLUSHING: Lock<()> = Lock::new(LockClass::Flushing, ());

/// Ends a decay window and decommits what is due at once, whatever thread usually does so and
/// however long windows are. Returns whether there is more to move. For tests, which must not
/// depend on time.
#[cfg(feature = "fault-points")]
pub(crate) fn end_window_now() -> bool {
    Context::enter(|context| {
        let moved = age(context, Occasion::Window);
        let punched = punch_holes(context, &Punch { is_end: true, ..Punch::ALL });
        page::purge_due(context, usize::MAX);
        moved || punched.has_more || page::is_dirty(context)
    })
}

/// Ends a decay window and decommits what is due in `slices` parts, as the thread does. Calls
/// `between` after each. For tests.
#[cfg(feature = "fault-points")]
pub(crate) fn end_window_in_slices(slices: u32, mut between: impl FnMut()) {
    Context::enter(|context| reclaim_on(context, Occasion::Window));
    for left in (1..=slices).rev() {
        Context::enter(|context| reclaim_on(context, Occasion::Slice { left }));
        between();
    }
}

/// Does the work of a decay window, or a part of it: moves memory that was idle throughout a window
/// one step towards the system, from sheaves and barns to slabs, from slabs to pages, from pages to
/// the system. If memory is short, moves all memory all the way. Returns whether there is more to
/// move on the next occasion of this kind; a free, whether there is more to do now.
fn reclaim_on(context: Context, occasion: Occasion) -> bool {
    match occasion {
        Occasion::Free => {
            age(context, occasion);
            let punched = punch_holes(context, &Punch { is_end: true, ..Punch::OF_A_FREE });
            page::purge_due(context, BYTES_OF_A_FREE);
            punched.is_cut_short
        }
        Occasion::Piece => punch_holes(context, &Punch::OF_A_FREE).is_cut_short,
        Occasion::Window => {
            let moved = age(context, occasion);
            let punched = punch_holes(context, &Punch { slabs: 0, ..Punch::ALL });
            moved || punched.has_more || page::is_dirty(context)
        }
        Occasion::Slice { left } => {
            let punched = punch_holes(context, &Punch::OF_A_SLICE);
            let due = page::due(context);
            if due > 0 {
                page::purge_due(context, (due / left as usize).max(LEAST_OF_A_SLICE));
            }
            punched.is_cut_short || page::due(context) > 0
        }
        Occasion::Shortage => {
            let moved = age(context, occasion);
            let punched = punch_holes(context, &Punch { even_busy: true, ..Punch::ALL });
            page::trim(context);
            moved || punched.has_more || page::is_dirty(context)
        }
    }
}

/// Ends a decay window for sheaves, barns and pages: flushes sheaves and barns that were idle
/// throughout it, or if memory is short, all; makes pages due. Returns whether there may be more to
/// flush at the end of the next window.
///
/// A free leaves sheaves alone: those of other CPUs can only be emptied by a system call that a
/// sandbox may forbid, and that interrupts the CPU.
fn age(context: Context, occasion: Occasion) -> bool {
    let is_short = occasion == Occasion::Shortage;
    // All lists, not only this CPU's: a signal handler may have deferred blocks in a program that
    // has been idle since, and has started no CPU threads.
    let mut freed = DEFERRED.flush_all(free_block(context));
    if occasion != Occasion::Free {
        freed |= free_for_readers(context);
    }
    let mut moved = true;
    // Only tries, since another thread that flushes or defines a class is soon done.
    if let Some(flushing) = FLUSHING.acquire(Context::TRYING) {
        moved = occasion != Occasion::Free && empty_sheaves(context, &flushing, is_short);
        moved |= empty_node_classes(context, &flushing, is_short);
    }
    page::end_window(context);
    freed || moved
}

/// The routine that frees objects that waited for readers: a `fn(Context) -> bool`, or null.
static FOR_READERS: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Registers `routine` to be called at the end of each decay window. It frees objects that waited
/// for readers, and returns whether any are still waiting.
pub(crate) fn at_end_of_window(routine: fn(Context) -> bool) {
    // Relaxed: the function depends on no other data.
    FOR_READERS.store(routine as *mut (), Ordering::Relaxed);
}

fn free_for_readers(context: Context) -> bool {
    let routine = FOR_READERS.load(Ordering::Relaxed);
    // SAFETY: not null, so it is a function that `at_end_of_window` stored.
    !routine.is_null()
        && unsafe { mem::transmute::<*mut (), fn(Context) -> bool>(routine)(context) }
}

/// Most bytes of free runs that a free purges at the end of a decay window.
const BYTES_OF_A_FREE: usize = 32 << 20;
/// Bytes of free runs up to which a slice purges all that is due, as slices of less are not worth a
/// wake-up: a piece.
const LEAST_OF_A_SLICE: usize = 8 << 20;

/// Flushes the sheaves of all CPUs to slabs: those that were idle for long enough, or with
/// `even_busy`, all. Returns whether it flushed any, or left some that may be idle next time.
fn empty_sheaves(context: Context, _flushing: &Guard<'_, ()>, even_busy: bool) -> bool {
    let backend = percpu::backend(context);
    let mut moved = false;
    for cpu in 0..percpu::regions() {
        moved |= percpu::flush_unused(context, cpu, even_busy, |class, batch| {
            watch::flush(|| move_event(class, batch.len(), cpu));
            flush_to_slabs(context, backend, class, batch);
        });
    }
    moved
}

/// Flushes the barns of all node classes that were idle in this decay window, or with `even_busy`,
/// of all. Frees their empty slabs. Returns whether it moved objects, or left a busy node class
/// alone.
fn empty_node_classes(context: Context, _flushing: &Guard<'_, ()>, even_busy: bool) -> bool {
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
            empty_node_class(context, backend, class, node_class);
        }
    }
    moved
}

/// Which slabs [`punch_holes`] punches.
struct Punch {
    /// Includes slabs that were not idle for a whole window.
    even_busy: bool,
    /// Most slabs to punch.
    slabs: usize,
    /// A decay window ends, so each slab ages by one window.
    is_end: bool,
}

impl Punch {
    const ALL: Punch = Punch { even_busy: false, slabs: usize::MAX, is_end: true };
    /// The work of a free. Punching a slab takes some ten microseconds.
    const OF_A_FREE: Punch = Punch { slabs: 16, is_end: false, ..Punch::ALL };
    /// The work of a slice: a quarter to a half of its time.
    const OF_A_SLICE: Punch = Punch { slabs: 256, is_end: false, ..Punch::ALL };
}

/// The result of [`punch_holes`].
#[derive(Default)]
struct Punched {
    /// Bytes decommitted.
    bytes: usize,
    /// Slabs remain whose holes may be punched at the end of a later window.
    has_more: bool,
    /// The limit of slabs was reached, so others may be due already.
    is_cut_short: bool,
}

/// Decommits pages of partial slabs that hold no live object. Does nothing in a context that must
/// not wait.
fn punch_holes(context: Context, punch: &Punch) -> Punched {
    /// The class to begin with, so that each class gets its turn.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (mut punched, mut left) = (Punched::default(), punch.slabs);
    if !context.may_wait() {
        return punched;
    }
    // Relaxed: any class will do.
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let classes = (0..CLASSES).map(|index| (first.wrapping_add(index)) % CLASSES);
    // Size classes only: free objects of caches may have contents.
    for node_class in classes.filter_map(Class::from_index).flat_map(node_classes) {
        let slabs = node_class.slabs.lock(context).map_or(0, |mut partial| {
            if punch.is_end {
                partial.end_window();
            }
            partial.counts().slabs
        });
        for _ in 0..slabs.min(left) {
            let Some(bytes) = punch_slab(context, node_class, punch.even_busy) else { break };
            punched.bytes += bytes;
            left -= 1;
        }
        if left == 0 && !punch.is_end {
            break;
        }
        punched.has_more |=
            node_class.slabs.lock(context).is_some_and(|partial| partial.has_unpunched());
    }
    punched.is_cut_short = left == 0;
    punched
}

/// Punches the holes of one slab that is due, and returns the bytes decommitted. Returns `None` if
/// no slab is due, or if the context must not wait.
fn punch_slab(context: Context, node_class: &NodeClass, even_busy: bool) -> Option<usize> {
    // A fork waits for this guard, so that no slab is lent then.
    let _purging = page::Purging::begin(context)?;
    let lent = node_class.slabs.lock(context)?.lend(even_busy)?;
    fault::point(Place::SlabPunching);
    let mut bytes = 0;
    lent.for_each_hole(os::page_size(), |address, len| {
        // SAFETY: a hole has only free objects, which leave no slab while it is lent, and free
        // objects of size classes have no contents.
        if unsafe { page::decommit(address, len) } {
            bytes += len;
        }
    });
    // Fails only in a fork child, if a thread that does not exist there held the lock. The slab is
    // lost then, like all slabs of its class on this node.
    let mut emptied = Emptied::new();
    let mut partial = node_class.slabs.lock(context)?;
    // SAFETY: these lists lent the slab.
    unsafe { partial.relist_lent(lent, &mut emptied) };
    drop(partial);
    free_emptied(context, emptied);
    Some(bytes)
}

/// Frees the blocks deferred on this CPU, if the context may wait and no other thread is freeing
/// them.
#[inline]
pub(crate) fn free_deferred(context: Context) {
    if context.may_wait() {
        let cpu = thread::is_started().then(percpu::cpu);
        DEFERRED.flush(Context::TRYING, cpu, free_block(context));
    }
}

/// Returns the descriptor of the slab of `class` that contains a unit. If the unit is in no such
/// slab, returns its own metadata.
///
/// # Safety
/// The unit is committed.
unsafe fn slab_at(unit: Unit, class: Class) -> *mut Slab {
    // SAFETY: the caller guarantees that the unit is committed.
    let base = unsafe { Slab::base_of(unit.meta().cast(), class) };
    base.map_or(unit, |base| unit.at(base)).meta().cast()
}

/// Records in debug builds that the program receives an object, and returns that object.
#[inline(always)]
pub(crate) fn checked_out(object: NonNull<u8>, class: Class) -> NonNull<u8> {
    #[cfg(debug_assertions)]
    note(object.as_ptr(), class, true);
    #[cfg(not(debug_assertions))]
    let _ = class;
    object
}

/// Reports a free to watchers. In debug builds, ends the process unless the program holds `object`
/// and it is of `class`. Call for every object that the program frees.
#[inline(always)]
pub(crate) fn checked_in(object: *mut u8, class: Class) {
    watch::freed(object);
    if WATCHED && slab::shape(class).keeps_contents() {
        watch::make_accessible(object, size(class), true);
    }
    #[cfg(debug_assertions)]
    note(object, class, false);
    #[cfg(not(debug_assertions))]
    let _ = (object, class);
}

#[cfg(debug_assertions)]
fn note(object: *mut u8, class: Class, held: bool) {
    let unit = Unit::of(object).filter(|unit| unit.is_committed());
    let noted = unit.ok_or(Misuse::Foreign).and_then(|unit| {
        // SAFETY: committed metadata of the first unit of the object's slab, if it is in a slab of
        // this class.
        unsafe { Slab::note(slab_at(unit, class), object, class, held) }
    });
    if let Err(misuse) = noted {
        misused(object, class, misuse);
    }
}

/// Records that the program receives an object of a middle size. Returns whether the object reads
/// as zero.
#[inline(always)]
pub(crate) fn middle_out(object: *mut u8) -> bool {
    entry_at(object).is_some_and(|entry| entry.middle_out(object))
}

/// Records that the program frees the block at `address`, and returns its class, if it is an object
/// of a middle size. Ends the process if `address` lies in a slab of such objects but is not the
/// start of one that the program holds.
#[inline(always)]
pub(crate) fn middle_in(address: *mut u8) -> Option<Class> {
    entry_at(address)?.middle_in(address).or_else(|| no_middle(address))
}

/// Returns the entry of the unit that holds `address`, or `None` if the address is foreign or its
/// unit is not committed.
#[inline(always)]
fn entry_at(address: *mut u8) -> Option<&'static Entry> {
    // SAFETY: `page::entry_at` returns committed memory that is zero or an entry, and zero is one.
    page::entry_at(address).map(|entry| unsafe { &*entry.cast() })
}

/// Ends the process if `address` lies in a slab of objects of a middle size.
#[cold]
#[inline(never)]
fn no_middle(address: *mut u8) -> Option<Class> {
    match find(address) {
        Some((class, true)) if class.is_middle() => misused(address, class, Misuse::DoubleFree),
        Some((class, false)) if class.is_middle() => misused(address, class, Misuse::Foreign),
        _ => None,
    }
}

/// Returns the class of the slab that contains `address`, and whether an object starts there.
/// Returns `None` if no slab does.
pub(crate) fn find(address: *mut u8) -> Option<(Class, bool)> {
    let unit = Unit::of(address).filter(|unit| unit.is_committed())?;
    // SAFETY: the metadata of a committed unit, which contains `address`.
    unsafe { Slab::find(unit.meta().cast(), address) }
}

/// Ends the process unless an object of `class` starts at `object`.
fn check(object: *mut u8, class: Class) {
    if find(object) != Some((class, true)) {
        misused(object, class, Misuse::Foreign);
    }
}

/// A class, displayed as messages name it.
pub(crate) struct Kind(pub(crate) Class);

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.cache_index().is_some() { "a cache of objects of" } else { "class" };
        write!(formatter, "{kind} {}", slab::shape(self.0).stride())
    }
}

/// Ends the process with a message about a free of `object` as one of `class`.
#[cold]
#[inline(never)]
pub(crate) fn misused(object: *mut u8, class: Class, misuse: Misuse) -> ! {
    let kind = Kind(class);
    match (misuse, find(object)) {
        (Misuse::DoubleFree, _) => os::abort(format_args!("double free of {object:p} ({kind})")),
        (Misuse::Foreign, None) => {
            os::abort(format_args!("free of foreign address {object:p} ({kind})"))
        }
        (Misuse::Foreign, Some((found, _))) if found != class => os::abort(format_args!(
            "free of {object:p} as one of {kind}; it is one of {}",
            Kind(found)
        )),
        (Misuse::Foreign, Some(_)) => {
            os::abort(format_args!("free of {object:p}, where no object starts ({kind})"))
        }
    }
}
