//! What is done to all object caches at once, under the cache mutex. (`slab_mutex` of `mm/slab_common.c`.)
//!
//! This file may touch everything in the crate. It is of the control plane: it allocates and sleeps.

use core::fmt;

use parking_lot::{Mutex, MutexGuard};

use crate::cpu::{self, CpusReadGuard};
use crate::kmalloc;
use crate::sync::{LockClass, witness};

/// Serialises what changes the set of caches, and those who wait for deferred frees.
static SLAB_MUTEX: Mutex<()> = Mutex::new(());

/// The cache mutex, held.
struct SlabMutexGuard {
    _mutex: MutexGuard<'static, ()>,
}

impl fmt::Debug for SlabMutexGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SlabMutexGuard").finish_non_exhaustive()
    }
}

impl Drop for SlabMutexGuard {
    fn drop(&mut self) {
        witness::released(LockClass::SlabMutex);
    }
}

/// Takes the cache mutex. In this order, after the hotplug lock: the other way round, who changes CPUs and who changes
/// caches could wait for each other.
fn slab_mutex(_cpus: &CpusReadGuard) -> SlabMutexGuard {
    witness::waits(LockClass::SlabMutex);
    let _mutex = SLAB_MUTEX.lock();
    witness::acquired(LockClass::SlabMutex);
    SlabMutexGuard { _mutex }
}

/// Waits until all that was deferred before this call is freed.
///
/// It empties the list of each CPU by itself, because whoever added the first block to a list may be stopped before it
/// queued the CPU's irq work, for as long as a thread can be stopped. Then it waits for the irq work, in a place for one
/// waiter: two callers at once would lose a wake-up, and one of them sleep for ever. So it asks for the mutex, and because a
/// CPU that comes or goes moves its list, for the hotplug lock, by type. (`defer_free_barrier` of `mm/slub.c`, which took
/// neither.)
fn defer_free_barrier(_caches: &SlabMutexGuard, cpus: &CpusReadGuard) {
    for cpu in cpus.online() {
        kmalloc::deferred_barrier(cpu);
    }
}

/// Waits until all that was freed before this call, in whatever context, is free in earnest: nothing is put off any more.
/// Starts the machine (see [`cpu`]). Not for handlers.
pub fn barrier() {
    let cpus = cpu::read_lock();
    let caches = slab_mutex(&cpus);
    defer_free_barrier(&caches, &cpus);
}
