//! NUMA nodes: which one this thread runs on.
//!
//! This file may touch `os`.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::os;

/// Nodes that are told apart; those beyond share with the first ones.
pub(crate) const MAX_NODES: usize = 4;

/// How many nodes the machine may have; 0 before that was asked.
static NODES: AtomicUsize = AtomicUsize::new(0);

/// The node of the CPU that this thread runs on, below [`MAX_NODES`].
#[inline]
pub(crate) fn current() -> usize {
    // Relaxed: a number that never changes once it is not 0, and guards nothing.
    match NODES.load(Ordering::Relaxed) {
        1 => 0,
        _ => current_of_many(),
    }
}

#[cold]
fn current_of_many() -> usize {
    if NODES.load(Ordering::Relaxed) == 0 {
        let nodes = os::possible(c"/sys/devices/system/node/possible").unwrap_or(1);
        NODES.store(nodes, Ordering::Relaxed);
        return current();
    }
    let (_, node) = os::current_cpu();
    node % MAX_NODES
}
