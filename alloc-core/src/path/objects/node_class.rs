//! Node classes: what a node holds of a class, its barn and its partial slabs.
//!
//! Node classes of size classes are static. The slots of a barn are attached to it when its class
//! is first used on its node, so that memory of idle classes and absent nodes stays untouched. Node
//! classes of caches are in runs, which `cache_class` allocates when a class is first defined.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::barn::{self, Barn};
use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::node::{self, MAX_NODES};
use crate::percpu::{self, Event};
use crate::size_class::{CLASSES, Class, MAX_CLASSES};
use crate::slab::{self, Slabs};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, LockClass, RawLock};
use crate::watch;

/// The state of a class on a node. (`kmem_cache_node` of `mm/slub.c`.)
#[repr(align(64))]
pub(super) struct NodeClass {
    pub(super) slabs: Slabs,
    pub(super) barn: Barn,
    /// Whether objects were taken or put here in the current decay window.
    pub(super) touched: AtomicBool,
}

impl NodeClass {
    pub(super) const fn new() -> NodeClass {
        NodeClass { slabs: Slabs::new(), barn: Barn::new(), touched: AtomicBool::new(false) }
    }

    /// Fills an empty batch from the barn, or else from partial slabs, with up to `len` objects.
    /// Leaves it empty if both have none, or their locks are busy and the context must not wait.
    pub(super) fn take(&self, context: Context, class: Class, batch: &mut Batch, len: usize) {
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
pub(super) struct CacheNodeClasses {
    pub(super) node_classes: [NodeClass; MAX_NODES],
    pub(super) slots: [[*mut u8; barn::room_for(percpu::MAX_CACHE_BATCH, 0)]; MAX_NODES],
}

/// The memory of each cache class. A class keeps it when its cache is destroyed.
pub(super) static CACHE_NODE_CLASSES: [AtomicPtr<CacheNodeClasses>; MAX_CLASSES - CLASSES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES - CLASSES];

/// Returns the state of a class on a node. Attaches the slots of its barn on the first use of a
/// size class there.
pub(super) fn node_class(node: usize, class: Class) -> &'static NodeClass {
    // SAFETY: `node` is below `node::count` and the class below `MAX_CLASSES`; the class of a live
    // cache has its `CacheNodeClasses`. Raw pointers, since Miri visits everything that a reference
    // covers.
    unsafe {
        if let Some(number) = class.cache_index() {
            // Acquire: pairs with the Release in `cache_class::define`.
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
#[inline]
pub(super) fn node_class_in_use(node: usize, class: Class) -> &'static NodeClass {
    let node_class = node_class(node, class);
    // Relaxed: a hint, which may miss the end of a window.
    if !node_class.touched.load(Ordering::Relaxed) {
        counters::wrote(Line::NodeClass, 1);
        node_class.touched.store(true, Ordering::Relaxed);
    }
    node_class
}

/// Returns the node classes of a class that are in use.
#[inline]
pub(super) fn node_classes(class: Class) -> impl Iterator<Item = &'static NodeClass> {
    (0..node::count())
        .filter(move |node| is_used(*node, class))
        .map(move |node| node_class(node, class))
}

/// Returns whether `node` has state of `class`: for a size class since its first use there, for the
/// class of a cache since it was first defined.
#[inline]
pub(super) fn is_used(node: usize, class: Class) -> bool {
    match class.cache_index() {
        // Acquire: pairs with the Release in `cache_class::define`, as in `node_class`.
        Some(number) => CACHE_NODE_CLASSES
            .get(number)
            .is_some_and(|node_classes| !node_classes.load(Ordering::Acquire).is_null()),
        None => USED[node * CLASSES + class.index()].load(Ordering::Relaxed),
    }
}

/// Returns whether objects of a class may exist. Whatever sheaves and barns hold came through a
/// node class.
pub(crate) fn has_node_classes(class: Class) -> bool {
    node_classes(class).next().is_some()
}

/// Calls `visit` with the locks of every node class in use.
pub(super) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    let node_classes = NODE_CLASSES.iter().zip(&USED);
    let node_classes = node_classes
        .filter(|(_, used)| used.load(Ordering::Relaxed))
        .map(|(node_class, _)| node_class);
    let of_caches = CACHE_NODE_CLASSES.iter().flat_map(|node_classes| {
        let node_classes = node_classes.load(Ordering::Acquire);
        let count = if node_classes.is_null() { 0 } else { node::count() };
        // SAFETY: `cache_class::define` made as many node classes as there are nodes.
        (0..count).map(move |node| unsafe {
            &*(&raw const (*node_classes).node_classes).cast::<NodeClass>().add(node)
        })
    });
    for node_class in node_classes.chain(of_caches) {
        visit(LockClass::Barn, node_class.barn.raw());
        visit(LockClass::Slabs, node_class.slabs.raw());
    }
}
