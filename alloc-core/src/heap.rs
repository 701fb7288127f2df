//! Operations on the whole heap: all size classes and caches at once.

use crate::cache::{self, defer_free_barrier};
use crate::cpu;
use crate::page;
use crate::path::objects;
use crate::rcu;
use crate::sampling;
use crate::sync::Context;

pub use crate::path::objects::{DeferredFrees, deferred_frees};

/// Waits until every block freed before this call, in whatever context, is actually free: no free
/// remains deferred. Starts the CPU threads (see [`cpu`]). Not for signal handlers.
pub fn barrier() {
    let cpus = cpu::read_lock();
    let caches = cache::slab_mutex(&cpus);
    defer_free_barrier(&caches, &cpus);
}

/// Returns all memory to the system that no live object needs: flushes sheaves and barns to slabs,
/// and decommits empty slabs and free pages. Returns the number of bytes decommitted, some of which
/// may never have been touched. Empty slabs of a cache with [`CacheFlags::TYPESAFE_BY_RCU`] stay:
/// see [`Cache::shrink`]. Not for signal handlers. (`malloc_trim`.)
///
/// [`CacheFlags::TYPESAFE_BY_RCU`]: crate::cache::CacheFlags::TYPESAFE_BY_RCU
/// [`Cache::shrink`]: crate::cache::Cache::shrink
pub fn trim() -> usize {
    let _caches = cache::slab_mutex_alone();
    rcu::setting_aside(|| {
        // SAFETY: the objects have just left an rcu sheaf, so this thread alone holds them.
        objects::trim(|batch| unsafe { rcu::set_aside(batch) })
    })
}

/// Gives up address space that is reserved for future use, if the process has more than `most`
/// bytes of address space. Call when the program has limited its address space (`RLIMIT_AS`), as
/// the reservation would leave it none otherwise. Needs `/proc`.
pub fn limit_address_space(most: usize) {
    sampling::limit_address_space(most);
    Context::enter(|context| page::limit_address_space(context, most));
}

/// Ends a decay window: memory that was idle throughout the window moves a step further towards the
/// system, as it does after a third of `HAYLOFT_DECAY_MS`. Returns whether more memory can be
/// returned. For tests, which must not depend on time.
#[cfg(feature = "fault-points")]
pub fn end_window() -> bool {
    objects::end_window_now()
}

/// As [`end_window`], but decommits the memory that is due in `slices` parts, one after the other,
/// as the reclaiming thread does during a window. Calls `between` after each part. For tests.
#[cfg(feature = "fault-points")]
pub fn end_window_in_slices(slices: u32, between: impl FnMut()) {
    objects::end_window_in_slices(slices, between);
}
