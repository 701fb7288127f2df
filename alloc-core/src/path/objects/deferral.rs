//! Frees the blocks on deferred lists, and counts them. `put` adds blocks to these lists.

use super::put::{DEFERRED, FLUSH, free_block};
use crate::irq::thread::{self, MAX_CPUS};
use crate::percpu;
use crate::sync::Context;

/// Frees the blocks deferred on this CPU, if the context may wait and no other thread is freeing
/// them.
#[inline]
pub(crate) fn free_deferred(context: Context) {
    if context.may_wait() {
        let cpu = thread::is_started().then(percpu::cpu);
        // SAFETY: the list holds deferred blocks.
        DEFERRED.flush(Context::TRYING, cpu, unsafe { free_block(context) });
    }
}

/// Ensures that every block deferred on `cpu` before this call is free, and waits for any other
/// thread that is freeing some of them. `None` stands for the list that serves a process without
/// CPUs.
pub(crate) fn deferred_barrier(cpu: Option<usize>) {
    // SAFETY: the list holds deferred blocks.
    Context::enter(|context| unsafe { DEFERRED.barrier(context, cpu, free_block(context)) });
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
    /// Deferred frees done so far. Equal to `deferred` after [`barrier`](fn@crate::heap::barrier),
    /// unless more frees were deferred since.
    pub flushed: u64,
}

/// Counts the frees that could not be done where they were requested. Any context.
#[must_use]
pub fn deferred_frees() -> DeferredFrees {
    let (deferred, flushed) = DEFERRED.counts();
    DeferredFrees { deferred, flushed }
}
