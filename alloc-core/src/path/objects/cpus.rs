//! Opens the sheaves and the deferred list of a CPU that comes online, and empties those of a CPU
//! that goes offline.

use super::lookup::move_event;
use super::put::{DEFERRED, free_block, put_away};
use crate::batch::Batch;
use crate::node;
use crate::percpu;
use crate::size_class::Class;
use crate::sync::Context;
use crate::watch;

/// Opens the sheaves and the deferred list of a CPU that comes online.
pub(crate) fn online(cpu: usize) {
    Context::enter(|context| {
        percpu::open(context, cpu);
        // SAFETY: the lists hold deferred blocks.
        DEFERRED.online(context, cpu, unsafe { free_block(context) });
    });
}

/// Empties a CPU that goes offline: frees its deferred blocks, closes its sheaves and moves their
/// objects to the barn of its node, or else to the slabs. Objects that wait for readers go to
/// `waiting`. Returns false if the kernel does not support closing sheaves of other threads; then
/// the sheaves keep their objects.
pub(crate) fn offline(cpu: usize, mut waiting: impl FnMut(&mut Batch)) -> bool {
    Context::enter(|context| {
        // SAFETY: the list holds deferred blocks.
        DEFERRED.offline(context, cpu, unsafe { free_block(context) });
        let backend = percpu::backend(context);
        let node = node::of(cpu);
        percpu::close(context, cpu, |class, batch| match class {
            Class::RCU => waiting(batch),
            _ => {
                watch::flush(|| move_event(class, batch.len(), cpu));
                // SAFETY: the objects have just left a sheaf of `class`, so this thread alone holds
                // them.
                unsafe { put_away(context, backend, class, node, batch) };
            }
        })
    })
}

/// Closes the deferred lists of all CPUs and frees their blocks. From now on blocks are deferred to
/// the list that serves a process without CPUs.
pub(crate) fn end_cpus() {
    // SAFETY: the lists hold deferred blocks.
    Context::enter(|context| unsafe { DEFERRED.end(context, free_block(context)) });
}

/// Moves the blocks deferred on CPUs to the list that serves a process without CPUs. Called in a
/// fork child, which has none.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(crate) unsafe fn without_cpus() {
    // SAFETY: the caller guarantees that this is the child of a fork, with one thread.
    unsafe { DEFERRED.without_cpus() };
}
