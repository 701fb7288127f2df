//! Counts the slabs and free objects of classes, for statistics, and finds the objects in use.

use core::ptr::NonNull;

use super::node_class::{is_used, node_class, node_classes};
use crate::page;
use crate::percpu;
use crate::size_class::Class;
use crate::slab::{Counts, Slab};

/// The slabs and free objects of a class. An estimate while other threads allocate and free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Census {
    /// Slabs of all nodes, and the free objects in them.
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
