//! The numbers of the tuning between CPUs, for who models it.
//!
//! No part of the interface: they change with what is measured.
//!
//! This file may touch what it reads.

use crate::size_class::Class;
use crate::{barn, node, percpu, slab, sync};

/// Attempts at a lock before its thread sleeps.
pub const SPINS: u32 = sync::SPINS;

/// Nodes that are told apart.
pub const NODES: usize = node::MAX_NODES;

/// Lists of partial slabs.
pub const LISTS: usize = slab::LISTS;

/// Empty slabs that a class keeps on a node.
pub const MIN_EMPTY: u32 = slab::MIN_EMPTY;

/// The numbers of a size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// Most objects of a sheaf.
    pub sheaf: usize,
    /// Objects that move at once between a sheaf and what is behind it.
    pub batch: usize,
    /// Most objects of a barn.
    pub barn: usize,
    /// Objects of a slab.
    pub slab: usize,
}

/// The numbers of a size class.
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
