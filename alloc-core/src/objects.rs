//! The road of an object of a class: joins sheaves, barns, slabs and pages.
//!
//! Each step is taken only when the one before fails:
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
//! All classes take this road, those of `kmalloc` and those of object caches. The first step is its callers' to inline; the
//! cold functions they call are `extern "C"`: they cannot unwind, so callers need no landing pads, and a panic in here ends
//! the process.
//!
//! This file may touch all that is below it.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

extern crate std;

use core::cell::UnsafeCell;
use core::fmt;
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
use crate::slab::{self, Counts, Emptied, Misuse, Shape, Slab, Slabs};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Lock, LockClass, RawLock, do_what_was_left};
use crate::thread::{self, MAX_CPUS};
use crate::watch::{self, WATCHED};

// A slab's descriptor is the metadata of its first unit; those of the others follow.
const _: () = assert!(size_of::<Slab>() == page::META_SIZE);

/// What a node keeps for a class.
#[repr(align(64))]
struct NodeClass {
    slabs: Slabs,
    barn: Barn,
    /// Somebody asked for it in this window.
    touched: AtomicBool,
}

impl NodeClass {
    const fn new() -> NodeClass {
        NodeClass { slabs: Slabs::new(), barn: Barn::new(), touched: AtomicBool::new(false) }
    }

    /// Fills an empty batch from the barn, or else from partial slabs.
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

/// How many words the slots of the barns of all size classes take on a node, and before that of each class.
const BARN_SLOTS: ([usize; CLASSES], usize) = {
    let (mut starts, mut words, mut index) = ([0; CLASSES], 0, 0);
    while let Some(class) = Class::from_index(index) {
        starts[index] = words;
        words += barn::room_for(percpu::batch_len_for(class.size()), class.size());
        index += 1;
    }
    (starts, words)
};

/// Returns the most objects that a barn holds of a class.
fn room_of_barn(class: Class) -> usize {
    barn::room_for(percpu::batch_len(class), slab::shape(class).stride())
}

/// Pointers that belong to barns.
struct Shelves(UnsafeCell<[*mut u8; BARN_SLOTS.1 * MAX_NODES]>);

// SAFETY: each barn has a part of its own.
unsafe impl Sync for Shelves {}

static OBJECTS: Shelves = Shelves(UnsafeCell::new([ptr::null_mut(); BARN_SLOTS.1 * MAX_NODES]));

/// The node_classes of a node lie side by side, so that most pages are touched by that node only.
static NODE_CLASSES: [NodeClass; CLASSES * MAX_NODES] =
    [const { NodeClass::new() }; CLASSES * MAX_NODES];

/// Whether a node_class was ever asked for. Who forks takes the locks of these, and leaves the memory of others untouched.
static USED: [AtomicBool; CLASSES * MAX_NODES] =
    [const { AtomicBool::new(false) }; CLASSES * MAX_NODES];

/// What all nodes keep for a class of an object cache.
struct CacheDepots {
    node_classes: [NodeClass; MAX_NODES],
    slots: [[*mut u8; barn::room_for(percpu::MAX_CACHE_BATCH, 0)]; MAX_NODES],
}

/// The node_classes of each class of an object cache, in memory that a class keeps when its cache is destroyed.
static CACHE_DEPOTS: [AtomicPtr<CacheDepots>; MAX_CLASSES - CLASSES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES - CLASSES];

fn node_class(node: usize, class: Class) -> &'static NodeClass {
    // SAFETY: a node is below `node::count` and a class below `MAX_CLASSES`; the class of a cache in use has its node_classes. By
    // pointers, for Miri looks at all of what a reference is made to.
    unsafe {
        if let Some(number) = class.cache_index() {
            // Acquire: pairs with the Release in `define`.
            let node_classes = CACHE_DEPOTS.get_unchecked(number).load(Ordering::Acquire);
            return &*(&raw const (*node_classes).node_classes).cast::<NodeClass>().add(node);
        }
        let index = node * CLASSES + class.index();
        let node_class = &*(&raw const NODE_CLASSES).cast::<NodeClass>().add(index);
        // Relaxed: who is between this and its lock when another thread forks has its lock abandoned in the child.
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

/// As [`node_class`], for an object that comes or goes.
fn depot_in_use(node: usize, class: Class) -> &'static NodeClass {
    let node_class = node_class(node, class);
    // Relaxed: whether it was asked for, roughly.
    if !node_class.touched.load(Ordering::Relaxed) {
        counters::wrote(Line::NodeClass, 1);
        node_class.touched.store(true, Ordering::Relaxed);
    }
    node_class
}

/// The node_classes of a class that were ever asked for.
fn node_classes(class: Class) -> impl Iterator<Item = &'static NodeClass> {
    (0..node::count())
        .filter(move |node| is_used(*node, class))
        .map(move |node| node_class(node, class))
}

/// Whether a node_class was ever asked for.
fn is_used(node: usize, class: Class) -> bool {
    match class.cache_index() {
        // Acquire: as in `node_class`.
        Some(number) => CACHE_DEPOTS
            .get(number)
            .is_some_and(|node_classes| !node_classes.load(Ordering::Acquire).is_null()),
        None => USED[node * CLASSES + class.index()].load(Ordering::Relaxed),
    }
}

/// Why an object of a cache was not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// There is no memory, or none without waiting.
    OutOfMemory,
    /// The constructor of the cache panicked. The slab it was to make objects of is given back.
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

/// Allocates an object where the sheaf of this CPU had none.
///
/// # Errors
/// If there is no memory, or none without waiting where that is not allowed, or the constructor panics.
pub(crate) fn alloc_object(context: Context, class: Class) -> Result<NonNull<u8>, AllocError> {
    free_deferred(context);
    let backend = percpu::backend(context);
    let object = backend.pop(class);
    let object = if object.is_null() { refill(context, backend, class) } else { Ok(object) };
    let object = object.and_then(|object| NonNull::new(object).ok_or(AllocError::OutOfMemory));
    note_nolock(context, object.is_ok());
    have_threads(context);
    Ok(checked_out(object?, class))
}

/// Allocations beyond sheaves in contexts that may not wait, and those of them that were in vain.
static NOLOCK: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Counts an allocation, if the context may not wait.
pub(crate) fn note_nolock(context: Context, succeeded: bool) {
    if !context.may_wait() {
        let [tries, failures] = &NOLOCK;
        // Relaxed: numbers that are looked at, and guard nothing.
        tries.fetch_add(1, Ordering::Relaxed);
        failures.fetch_add(u64::from(!succeeded), Ordering::Relaxed);
    }
}

/// What [`note_nolock`] counted: tries and failures. In any context.
pub(crate) fn nolock_counts() -> (u64, u64) {
    let [tries, failures] = &NOLOCK;
    (tries.load(Ordering::Relaxed), failures.load(Ordering::Relaxed))
}

/// Takes a batch of objects from what is behind the sheaf of this CPU, which is empty: one for the caller, the others for the
/// sheaf. Null where there are none.
fn refill(context: Context, backend: Backend, class: Class) -> Result<*mut u8, AllocError> {
    let mut batch = Batch::new();
    let node = node::current();
    percpu::count(class, Event::Refill, 1);
    take_batch(context, class, node, &mut batch, backend.widen(class))?;
    watch::refill(|| move_event(class, batch.len(), percpu::cpu()));
    let Some(object) = batch.pop_last() else { return Ok(ptr::null_mut()) };
    // SAFETY: objects that have just left the barn or a slab, and nobody else's.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
    if class.is_middle() {
        bound_middle(context, backend, Some(class));
    }
    Ok(object)
}

/// Bytes of middle sizes that the sheaves of a CPU may hold in any case.
const LEAST_MIDDLE: usize = 4 << 20;
/// The sheaves of all CPUs may hold this part of the heap in middle sizes, in programs of one thread. Where each page of a block is
/// touched, a miss costs little beside that, and memory that serves one size only is cold.
const MIDDLE_PART: usize = 4;
/// As [`MIDDLE_PART`], in programs of several threads, for whom a miss is a lock. Two threads that replace blocks of 33 to 512 KiB at
/// random, of which they touch a page, do 16 million operations a second with half of the heap, 4 with a quarter, 27 with all of it.
const MIDDLE_PART_OF_THREADS: usize = 2;

/// As [`bound_middle`], where an object came to its sheaf without a slow path, and the allowance was used up.
#[cold]
#[inline(never)]
pub(crate) extern "C" fn allowance_is_used_up() {
    Context::enter(|context| {
        bound_middle(context, percpu::backend(context), None);
        may_reclaim(context);
    });
}

/// Takes objects of middle sizes off sheaves of this CPU where these hold too many bytes: first of the class that holds most, since
/// memory is used least often there, but not of `spared`. They are looked at again when as many bytes came to them as there is room
/// for, or a quarter of what they may hold.
fn bound_middle(context: Context, backend: Backend, spared: Option<Class>) {
    let cpu = percpu::cpu();
    let part = if reclaim::has_several_threads() { MIDDLE_PART_OF_THREADS } else { MIDDLE_PART };
    let most = LEAST_MIDDLE.max(page::charged() / (part * percpu::regions().max(1)));
    let bytes_of = |class: &Class| percpu::held(cpu, *class) * class.size();
    let held = || Class::middle().map(|class| bytes_of(&class)).sum::<usize>();
    // Another thread may run here meanwhile, or this one elsewhere: then the next one goes on.
    for _ in 0..MIDDLE_CLASSES {
        let Some(excess) = held().checked_sub(most + 1) else { break };
        let others = Class::middle().filter(|class| Some(*class) != spared);
        let Some(largest) = others.max_by_key(bytes_of) else { break };
        let mut batch = Batch::new();
        backend.drain(largest, &mut batch, (1 + excess / largest.size()).min(MAX_BATCH));
        if batch.len() == 0 {
            break;
        }
        flush_to_slabs(context, backend, largest, &mut batch);
    }
    percpu::set_allowance(cpu, most.saturating_sub(held()).max(most / 4));
}

/// What is told of objects of a class that come to a CPU, or leave it.
fn move_event(class: Class, objects: usize, cpu: usize) -> watch::Move {
    watch::Move { size: size(class), objects, cpu }
}

/// Takes up to `len` objects from the barn, or the node's slabs, or a new one, into an empty batch.
fn take_batch(
    context: Context,
    class: Class,
    node: usize,
    batch: &mut Batch,
    len: usize,
) -> Result<(), AllocError> {
    let node_class = depot_in_use(node, class);
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
    // SAFETY: the run and the metadata of its units are ours alone until the slab arrives.
    unsafe {
        // The slab is of the node that asked for it, though its run may be of another one that had memory left: there it would
        // be partial where nobody looks, and this node would make another one for each batch.
        Slab::init(slab, run.address.as_ptr(), class, node as u8, run.zeroed);
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

/// Fills an empty batch from what any node has, where there is no memory for a new slab.
#[cold]
fn take_from_any(context: Context, class: Class, batch: &mut Batch, len: usize) {
    for node_class in node_classes(class) {
        node_class.take(context, class, batch, len);
        if batch.len() > 0 {
            break;
        }
    }
}

/// Frees `object` where the sheaf of this CPU had no room for it.
///
/// # Safety
/// `object` is of that class, and nobody uses it.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_slow(class: Class, object: *mut u8) {
    Context::enter(|context| {
        free_deferred(context);
        // SAFETY: the caller's promise.
        unsafe { free_object(context, class, object) };
        may_reclaim(context);
    });
}

/// As [`free_slow`], for an object that the sheaf may also have refused because it is in there. Ends the process then.
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
        // SAFETY: the caller's promise.
        unsafe { free_object(context, class, object) };
        may_reclaim(context);
    });
}

/// Whether an object is one of the two topmost of the sheaf of this CPU.
#[inline(never)]
fn is_on_top(context: Context, backend: Backend, class: Class, object: *mut u8) -> bool {
    if backend == Backend::Locked {
        return percpu::is_on_top(class, object);
    }
    // Nobody but this CPU can look into its sheaf without being told of what was there before: so they are taken off for a moment.
    let mut batch = Batch::new();
    backend.drain(class, &mut batch, 2);
    let found = batch.objects().contains(&object);
    // SAFETY: objects that have just left a sheaf, and nobody else's.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node::current(), &mut batch);
    found
}

/// Frees an object where the sheaf of this CPU had no room for it.
///
/// # Safety
/// `object` is of that class, and nobody uses it.
pub(crate) unsafe fn free_object(context: Context, class: Class, object: *mut u8) {
    let backend = percpu::backend(context);
    // SAFETY: the caller's promise.
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
    // SAFETY: the caller's promise.
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
    // SAFETY: the caller's promise.
    unsafe { backend.fill(class, &mut batch) };
    put_away(context, backend, class, node, &mut batch);
}

/// Allocates up to `len` objects into `to`, where the sheaf of this CPU had not as many; how many.
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
            // SAFETY: `count` is below `len`.
            unsafe { to.add(count).write(object) };
            count += 1;
        }
        // SAFETY: objects that have just left a sheaf, the barn or a slab, and nobody else's.
        unsafe { backend.fill(class, &mut batch) };
        put_away(context, backend, class, node, &mut batch);
    }
    have_threads(context);
    count
}

/// Frees objects for which the sheaf of this CPU had no room.
///
/// # Safety
/// The objects are of that class, and nobody uses them.
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

/// Empties the batch into the barn, or else into the slabs; where neither can be had without waiting, into the sheaf, or
/// else by deferring it.
fn put_away(context: Context, backend: Backend, class: Class, node: usize, batch: &mut Batch) {
    if batch.len() > 0 && !depot_in_use(node, class).barn.put(context, batch) {
        percpu::count(class, Event::BarnFull, 1);
        flush_to_slabs(context, backend, class, batch);
    }
}

/// Empties the batch into the slabs that its objects were cut from; where these cannot be had without waiting, into the sheaf,
/// or else by deferring it.
fn flush_to_slabs(context: Context, backend: Backend, class: Class, batch: &mut Batch) {
    let slab_of = |object| {
        let unit = Unit::of(object).filter(|unit| unit.is_committed())?;
        // SAFETY: it is committed.
        Some(unsafe { slab_at(unit, class) })
    };
    let mut emptied = Emptied::new();
    let mut objects = batch.objects();
    while let Some(&first) = objects.first() {
        let Some(slab) = slab_of(first) else { misused(first, class, Misuse::Foreign) };
        // SAFETY: metadata of the unit where the slab of an object of this class starts.
        let node = unsafe { Slab::node(slab) };
        let Some(mut partial) = node_class(node, class).slabs.lock(context) else {
            for &object in objects {
                // SAFETY: an object of this class that nobody uses.
                unsafe {
                    if !backend.push(class, object) {
                        defer_object(context, class, object);
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
    free_emptied(context, emptied);
}

/// Blocks that were freed where nothing could be waited for.
static DEFERRED: Deferred<MAX_CPUS> = Deferred::new();

/// Empties the deferred list of each CPU.
static FLUSH: [IrqWork; MAX_CPUS] = [const { IrqWork::new(flush_by_irq_work) }; MAX_CPUS];

fn flush_by_irq_work(work: &IrqWork) {
    let cpu = (ptr::from_ref(work).addr() - FLUSH.as_ptr().addr()) / size_of::<IrqWork>();
    Context::enter(|context| DEFERRED.flush(context, Some(cpu), free_block(context)));
}

/// Puts a free off for which a lock could not be had. Where that would have been waited for, the lock was abandoned by a fork:
/// then the block is given up, since nobody will ever get at what it belongs to.
///
/// # Safety
/// The block is an object of a slab or a run, and nobody uses it.
pub(crate) unsafe fn defer(context: Context, block: *mut u8) {
    if context.may_wait() {
        return;
    }
    watch::make_accessible(block, size_of::<*mut u8>(), false);
    // SAFETY: the caller's promise; every block has room for a word.
    let cpu = unsafe { DEFERRED.add(percpu::cpu(), block) };
    fault::point(Place::BlockDeferred);
    if let Some(cpu) = cpu {
        FLUSH[cpu].queue_on(cpu);
    }
}

/// As [`defer`], an object.
///
/// # Safety
/// The object is of that class, and nobody uses it.
unsafe fn defer_object(context: Context, class: Class, object: *mut u8) {
    if let (true, Some(unit)) = (class.is_middle(), Unit::of(object)) {
        // SAFETY: the caller's promise. The link is written into it.
        unsafe { Slab::middle_written(unit.meta().cast(), object) };
    }
    // SAFETY: the link lies in the object.
    unsafe { defer(context, object.add(slab::shape(class).link as usize)) };
}

/// What frees a block that was put off: given by its link, which is where a run starts, and somewhere in an object.
pub(crate) fn free_block(context: Context) -> impl Fn(*mut u8) {
    move |block| {
        // SAFETY: blocks on deferred lists are objects or runs that nobody uses, and have their metadata.
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

/// The class of the object that an address lies in; `None` for one in a run that is no slab.
///
/// # Safety
/// A run or an object that is not given back yet is at that address.
pub(crate) unsafe fn class_of_object(address: *mut u8) -> Option<Class> {
    // SAFETY: the caller's promise: the unit is in use, and has its metadata.
    Unit::of(address).and_then(|unit| unsafe { Slab::class_of_unit(unit.meta().cast()) })
}

/// Bytes of an object of a class that the program may use.
pub(crate) fn size(class: Class) -> usize {
    let shape = slab::shape(class);
    match class.cache_index() {
        Some(_) => shape.link as usize,
        None => shape.stride(),
    }
}

/// What a CPU that comes online needs of the allocator.
pub(crate) fn online(cpu: usize) {
    Context::enter(|context| {
        percpu::open(context, cpu);
        DEFERRED.online(context, cpu, free_block(context));
    });
}

/// Has frees be put off as before there were CPUs, and does those that were.
pub(crate) fn end_cpus() {
    Context::enter(|context| DEFERRED.end(context, free_block(context)));
}

/// Leaves nothing behind on a CPU that goes: no deferred free, no object in a sheaf; those that wait for readers go to
/// `waiting`. False where the kernel cannot help with sheaves.
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

/// Settles how objects of the class of a cache are cut, of `shape`; false where there is no memory for that.
///
/// # Safety
/// Nobody uses the class.
pub(crate) unsafe fn define(class: Class, shape: Shape) -> bool {
    let Some(node_classes) = class.cache_index().and_then(|number| CACHE_DEPOTS.get(number)) else {
        return false;
    };
    if node_classes.load(Ordering::Relaxed).is_null() {
        let units = size_of::<CacheDepots>().div_ceil(UNIT);
        let Some(run) = Context::enter(|context| alloc_run(context, node::current(), units, 1))
        else {
            return false;
        };
        let memory: *mut CacheDepots = run.address.as_ptr().cast();
        // SAFETY: the run is that long, and ours.
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
            // SAFETY: each barn, empty as long as nobody uses the class, has one of the slots, which is long enough.
            unsafe {
                let slots: *mut *mut u8 = (&raw mut (*memory).slots[node]).cast();
                let room = barn::room_for(percpu::batch_len(class), shape.stride());
                node_class(node, class).barn.attach_slots(slots, room);
                watch::hide(slots.cast(), room * size_of::<*mut u8>());
            }
        }
        // SAFETY: the caller's promise.
        unsafe { slab::define(class, shape) };
    });
    true
}

/// Takes what sheaves and barns hold of a class to its slabs. False where the kernel cannot help with that; then objects stay
/// in sheaves.
pub(crate) fn flush(class: Class) -> bool {
    Context::enter(|context| {
        // What others took from a sheaf or a barn is home then.
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

/// Gives the empty slabs of a class back, when `wait` has returned; how many bytes they had.
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

/// Takes what sheaves and barns hold of all classes home, and gives back what is empty then, down to pages; how many bytes the
/// system got. Objects that wait for readers go to `waiting`. Nobody makes or destroys caches meanwhile.
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
            // A fork waits for this, so that no slab is in hand then.
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

/// Takes what a barn holds to its slabs.
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

/// Takes what a node_class's barn holds to its slabs, and gives back those that are empty then, unless readers may look at them.
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

/// Gives back the runs of slabs that left their lists; how many.
fn free_emptied(context: Context, mut emptied: Emptied) -> usize {
    let mut slabs = 0;
    while let Some(base) = emptied.pop() {
        watch::slab(base, false, || {
            Unit::of(base).and_then(Unit::run_len).map_or(0, |units| units * UNIT)
        });
        // SAFETY: the run of a slab that left its lists with all objects free.
        unsafe { free_run(context, base) };
        slabs += 1;
    }
    slabs
}

/// What there is of a class; a guess while others allocate and free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Census {
    /// Of all nodes.
    pub(crate) counts: Counts,
    /// Free objects that CPUs keep.
    pub(crate) in_sheaves: usize,
    /// Free objects that nodes keep.
    pub(crate) in_barns: usize,
}

impl Census {
    /// Objects in use, where slabs of the class have so many.
    pub(crate) fn in_use(&self, objects: usize) -> usize {
        let free = self.counts.free + self.in_sheaves + self.in_barns;
        (self.counts.slabs * objects).saturating_sub(free)
    }
}

/// Whether there may be anything of a class: what CPUs and nodes keep came through a node_class.
pub(crate) fn has_depots(class: Class) -> bool {
    node_classes(class).next().is_some()
}

/// Counts what there is of a class. In any context.
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

/// What a node has of a class, and the objects in its barn. In any context.
pub(crate) fn counts_of_node(node: usize, class: Class) -> Option<(Counts, usize)> {
    is_used(node, class).then(|| {
        let node_class = node_class(node, class);
        (node_class.slabs.counts(), node_class.barn.len())
    })
}

/// Calls `visit` with each object of a class that is not in its slab: all that are in use, if nothing is in sheaves and barns.
/// Nobody allocates or frees any meanwhile.
pub(crate) fn for_each_out(class: Class, visit: &mut dyn FnMut(NonNull<u8>)) {
    page::for_each_unit(&mut |unit| {
        // SAFETY: committed metadata. Slabs of the class do not come or go meanwhile.
        unsafe { Slab::for_each_out(unit.meta().cast(), unit.address(), class, visit) };
    });
}

/// Frees all that was deferred on `cpu`, or before there was any, before this call, even if somebody else is at it.
pub(crate) fn deferred_barrier(cpu: Option<usize>) {
    Context::enter(|context| DEFERRED.barrier(context, cpu, free_block(context)));
    if let Some(cpu) = cpu {
        FLUSH[cpu % MAX_CPUS].sync();
    }
}

/// Whether something waits on the deferred list of a CPU, or on that for the time before the machine was started.
pub(crate) fn is_deferred_on(cpu: Option<usize>) -> bool {
    !DEFERRED.is_empty(cpu)
}

/// Frees that could not be done where they were asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeferredFrees {
    /// How many were put off so far.
    pub deferred: u64,
    /// How many of these are done. Equal to the others after [`barrier`](fn@crate::cache::barrier), unless there are new ones.
    pub flushed: u64,
}

/// Counts the frees that could not be done where they were asked for. May be called in any context.
#[must_use]
pub fn deferred_frees() -> DeferredFrees {
    let (deferred, flushed) = DEFERRED.counts();
    DeferredFrees { deferred, flushed }
}

/// Every lock of the slow paths, in the order in which they may be taken.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    DEFERRED.for_each_lock(visit);
    visit(LockClass::Flushing, FLUSHING.raw());
    visit(LockClass::Purging, page::purging_lock());
    percpu::for_each_lock(visit);
    let node_classes = NODE_CLASSES.iter().zip(&USED);
    let node_classes = node_classes
        .filter(|(_, used)| used.load(Ordering::Relaxed))
        .map(|(node_class, _)| node_class);
    let of_caches = CACHE_DEPOTS.iter().flat_map(|node_classes| {
        let node_classes = node_classes.load(Ordering::Acquire);
        let count = if node_classes.is_null() { 0 } else { node::count() };
        // SAFETY: what `define` made has as many.
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

/// In the child of a fork, which has no CPUs: what they were to free is freed as before there were any.
pub(crate) fn without_cpus() {
    DEFERRED.without_cpus();
}

/// Allocates a run, as [`page::alloc`]. Where there is no memory for it, what CPUs and nodes keep is taken home first.
pub(crate) fn alloc_run(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    page::alloc(context, node, units, align)
        .or_else(|| alloc_after_all(context, node, units, align))
}

/// Gives back all that nobody needs, and tries once more; `None` if that is in vain, or may have to be waited for.
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
    // What another thread takes home at this moment is wanted, too.
    if let Some(flushing) = FLUSHING.acquire(context) {
        empty_sheaves(context, &flushing, true);
        empty_node_classes(context, &flushing, true);
    }
    page::alloc_after_trim(context, node, units, align)
}

/// Gives a run back, or puts that off.
///
/// # Safety
/// `base` is the address of a run that nobody uses.
pub(crate) unsafe fn free_run(context: Context, base: *mut u8) {
    let Some(unit) = Unit::of(base) else { return };
    // SAFETY: the caller's promise.
    unsafe {
        if !page::free(context, unit) {
            defer(context, base);
        }
    }
}

/// To be called at the end of what frees something, without any lock.
pub(crate) fn may_reclaim(context: Context) {
    reclaim::freed(context, end_window);
}

/// To be called at the end of what allocates beyond sheaves, without any lock: makes threads of ours that are due.
pub(crate) fn have_threads(context: Context) {
    do_what_was_left(context);
}

/// Held by who takes objects of any class home, which for a moment are nowhere else, and relies on what the class is.
static FLUSHING: Lock<()> = Lock::new(LockClass::Flushing, ());

/// Ends a window at once, whoever else ends them and however long they are: for tests, which must not depend on time.
#[cfg(feature = "fault-points")]
pub(crate) fn end_window_now() -> bool {
    Context::enter(|context| end_window(context, Occasion::Window))
}

/// Moves what was not asked for in this window a step towards the system: from sheaves and barns to
/// slabs, from these to pages, from there away; all of it, and all the way, if memory is short.
/// Returns whether there is more to be moved.
///
/// A free does a part of it. It leaves the sheaves alone: those of other CPUs can only be emptied by
/// a system call that a sandbox may forbid, and interrupts the CPU.
fn end_window(context: Context, occasion: Occasion) -> bool {
    if occasion == Occasion::Piece {
        return punch_holes(context, &Punch { is_end: false, ..Punch::OF_A_FREE }).is_cut_short;
    }
    let is_short = occasion == Occasion::Shortage;
    // A handler may have freed it in a program that is idle since, and has started no CPUs.
    let mut freed = DEFERRED.flush_all(free_block(context));
    if occasion != Occasion::Free {
        freed |= free_for_readers(context);
    }
    let mut moved = true;
    // Whoever flushes a class or defines one is soon done.
    if let Some(flushing) = FLUSHING.acquire(Context::TRYING) {
        moved = occasion != Occasion::Free && empty_sheaves(context, &flushing, is_short);
        moved |= empty_node_classes(context, &flushing, is_short);
    }
    if occasion == Occasion::Free {
        let punched = punch_holes(context, &Punch::OF_A_FREE);
        page::decay(context, BYTES_OF_A_FREE);
        return punched.is_cut_short;
    }
    let punched = punch_holes(context, &Punch { even_busy: is_short, ..Punch::ALL });
    if is_short {
        page::trim(context);
    } else {
        page::decay(context, usize::MAX);
    }
    freed || moved || punched.has_more || page::is_dirty(context)
}

/// What frees objects that waited for readers: a `fn(Context) -> bool`, or null.
static FOR_READERS: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has the end of each window call `routine`, which frees what waited for readers, and returns
/// whether anything waits still.
pub(crate) fn at_end_of_window(routine: fn(Context) -> bool) {
    // Relaxed: a function needs nothing else to be seen.
    FOR_READERS.store(routine as *mut (), Ordering::Relaxed);
}

fn free_for_readers(context: Context) -> bool {
    let routine = FOR_READERS.load(Ordering::Relaxed);
    // SAFETY: where it is not null, it is what `at_end_of_window` stored.
    !routine.is_null()
        && unsafe { mem::transmute::<*mut (), fn(Context) -> bool>(routine)(context) }
}

/// Most bytes of free runs that a free gives back, at the end of a window.
const BYTES_OF_A_FREE: usize = 32 << 20;

/// Moves what the sheaves of all CPUs hold to its slabs, if it was not asked for in this window or
/// that does not matter. Returns whether there is more to be moved.
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

/// As [`empty_sheaves`], what barns hold; and gives slabs that are empty then back to pages.
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

/// Of which slabs holes are given back.
struct Punch {
    /// Of all, instead of those that nothing was cut from in this window.
    even_busy: bool,
    /// At most of so many.
    slabs: usize,
    /// A window ends, so what was cut from before is a window older.
    is_end: bool,
}

impl Punch {
    const ALL: Punch = Punch { even_busy: false, slabs: usize::MAX, is_end: true };
    /// A slab takes some ten microseconds.
    const OF_A_FREE: Punch = Punch { slabs: 16, ..Punch::ALL };
}

/// What came of [`punch_holes`].
#[derive(Default)]
struct Punched {
    /// Bytes that were given back.
    bytes: usize,
    /// There are slabs whose holes may be given back at the end of a later window.
    has_more: bool,
    /// There may be some whose holes may be given back now.
    is_cut_short: bool,
}

/// Gives back pages of partial slabs on which no object is in use.
fn punch_holes(context: Context, punch: &Punch) -> Punched {
    /// The class to begin with, for each to have its turn.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (mut punched, mut left) = (Punched::default(), punch.slabs);
    if !context.may_wait() {
        return punched;
    }
    // Relaxed: any class will do.
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let classes = (0..CLASSES).map(|index| (first.wrapping_add(index)) % CLASSES);
    // Free objects of caches hold something.
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

/// Gives back the holes of one slab, if there is one whose turn it is: how many bytes. Never in a context that may not wait.
fn punch_slab(context: Context, node_class: &NodeClass, even_busy: bool) -> Option<usize> {
    // A fork waits for this, so that no slab is in hand then.
    let _purging = page::Purging::begin(context)?;
    let lent = node_class.slabs.lock(context)?.lend(even_busy)?;
    fault::point(Place::SlabPunching);
    let mut bytes = 0;
    lent.for_each_hole(os::page_size(), |address, len| {
        // SAFETY: free objects of a slab from which none leave while it is lent; nothing is kept in them.
        if unsafe { os::decommit(address, len) } {
            bytes += len;
        }
    });
    page::note_decommitted(bytes);
    // It fails only in the child of a fork, where a thread that is not there had the lock: the slab is lost, like all of its class
    // on this node.
    let mut emptied = Emptied::new();
    let mut partial = node_class.slabs.lock(context)?;
    // SAFETY: it is of these lists.
    unsafe { partial.relist_lent(lent, &mut emptied) };
    drop(partial);
    free_emptied(context, emptied);
    Some(bytes)
}

/// Frees what was put off on this CPU, where that can be waited for and nobody else is at it.
#[inline]
pub(crate) fn free_deferred(context: Context) {
    if context.may_wait() {
        let cpu = thread::is_started().then(percpu::cpu);
        DEFERRED.flush(Context::TRYING, cpu, free_block(context));
    }
}

/// Returns the descriptor of the slab of `class` that holds a unit, or that of the unit, where it belongs to none.
///
/// # Safety
/// The unit is committed.
unsafe fn slab_at(unit: Unit, class: Class) -> *mut Slab {
    // SAFETY: the caller's promise.
    let base = unsafe { Slab::base_of(unit.meta().cast(), class) };
    base.map_or(unit, |base| unit.at(base)).meta().cast()
}

/// Notes in debug builds that the program gets an object.
#[inline(always)]
pub(crate) fn checked_out(object: NonNull<u8>, class: Class) -> NonNull<u8> {
    #[cfg(debug_assertions)]
    note(object.as_ptr(), class, true);
    #[cfg(not(debug_assertions))]
    let _ = class;
    object
}

/// To be called when the program gives an object back. Ends the process, in debug builds, if that is not an object of `class` that
/// the program holds.
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
        // SAFETY: committed metadata of the unit where a slab of this class would start.
        unsafe { Slab::note(slab_at(unit, class), object, class, held) }
    });
    if let Err(misuse) = noted {
        misused(object, class, misuse);
    }
}

/// Notes that the program gets an object of a middle size. Returns whether it reads as zero.
#[inline(always)]
pub(crate) fn middle_out(object: *mut u8) -> bool {
    // SAFETY: the unit of an object that was allocated.
    page::meta_at(object).is_some_and(|meta| unsafe { Slab::middle_out(meta.cast(), object) })
}

/// Notes that the program gives back what lies at an address, and returns its class, if that is an object of a middle size. Ends
/// the process if the address lies in a slab of such, and is not the start of an object that the program has.
#[inline(always)]
pub(crate) fn middle_in(address: *mut u8) -> Option<Class> {
    let meta = page::meta_at(address)?;
    // SAFETY: committed metadata of its unit.
    unsafe { Slab::middle_in(meta.cast(), address) }.or_else(|| no_middle(address))
}

/// Ends the process if an address lies in a slab of objects of a middle size.
#[cold]
#[inline(never)]
fn no_middle(address: *mut u8) -> Option<Class> {
    match find(address) {
        Some((class, true)) if class.is_middle() => misused(address, class, Misuse::DoubleFree),
        Some((class, false)) if class.is_middle() => misused(address, class, Misuse::Foreign),
        _ => None,
    }
}

/// The class of the slab that an address lies in, and whether an object starts there.
pub(crate) fn find(address: *mut u8) -> Option<(Class, bool)> {
    let unit = Unit::of(address).filter(|unit| unit.is_committed())?;
    // SAFETY: committed metadata of that unit.
    unsafe { Slab::find(unit.meta().cast(), address) }
}

/// Ends the process if no object of `class` starts at `object`.
fn check(object: *mut u8, class: Class) {
    if find(object) != Some((class, true)) {
        misused(object, class, Misuse::Foreign);
    }
}

/// What a class is called in messages.
pub(crate) struct Kind(pub(crate) Class);

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.cache_index().is_some() { "a cache of objects of" } else { "class" };
        write!(formatter, "{kind} {}", slab::shape(self.0).stride())
    }
}

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
