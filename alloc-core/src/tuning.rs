//! Tuning constants of the paths between CPUs, for simulations of the allocator.
//!
//! They are not a part of the interface, and change with what is measured.

use crate::size_class::Class;
use crate::{barn, node, percpu, slab, sync};

/// Attempts at a lock before its thread sleeps.
pub const SPINS: u32 = sync::SPINS;

/// Nodes with state of their own.
pub const NODES: usize = node::MAX_NODES;

/// Lists of partial slabs.
pub const LISTS: usize = slab::LISTS;

/// Empty slabs of a class that a node keeps, except for middle sizes.
pub const MIN_EMPTY: u32 = slab::MIN_EMPTY;

/// The constants of a size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// Most objects of a sheaf.
    pub sheaf: usize,
    /// Most objects that move at once between a sheaf and the barn or slabs.
    pub batch: usize,
    /// Most objects of a barn.
    pub barn: usize,
    /// Objects of a slab.
    pub slab: usize,
}

/// Returns the constants of a size class.
#[must_use]
pub fn of_class(class: Class) -> Numbers {
    let batch = percpu::batch_len(class);
    Numbers {
        sheaf: percpu::capacity(class),
        batch,
        barn: barn::room_for(batch, class.size()),
        slab: slab::shape(class).objects(),
    }
}
