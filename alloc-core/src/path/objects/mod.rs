//! Slow paths of all classes, which move objects between sheaves, barns, slabs and pages.
//!
//! A slow path takes a step only when the one before it fails:
//!
//! ```text
//! alloc: sheaf of this CPU -> barn of this node -> partial slabs of this node -> a new slab
//! free:  sheaf of this CPU -> barn of this node -> slabs of the objects' nodes -> pages, if empty
//! ```
//!
//! A context that must not wait skips a step whose lock is busy and tries the next one. Its last
//! resort is the reserve of `page` for an allocation, and `deferred` for a free. Slow paths that
//! may wait first free what was deferred: `slow_path` holds the steps that all have in common.
//!
//! The classes of `kmalloc` and those of object caches share these paths. Callers inline the first
//! step. The cold functions that they call are `extern "C"`, so they cannot unwind: callers need no
//! landing pads, and a panic in here aborts the process.
//!
//! The modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `free` `bulk` | entry points of frees that a sheaf refused; many objects at once |
//! | `cache_class` `cpus` `census` | caches' classes; CPUs that come and go; statistics |
//! | `alloc` | the path of an allocation; runs for slabs and large blocks |
//! | `slow_path` | the first and the last step of every slow path |
//! | `reclaim` | idle memory on its way to the system; trimming |
//! | `punch` | holes of partial slabs, decommitted |
//! | `flush` | sheaves and barns, emptied into slabs |
//! | `deferral` | deferred blocks, freed |
//! | `put` | the path of a freed object, and the deferral of a free |
//! | `middle` | middle sizes: their bound in sheaves, their entries |
//! | `check` | checks of what the program frees |
//! | `lookup` | the class, slab and size of an object |
//! | `node_class` | the barn and the partial slabs of a class on a node |

mod alloc;
mod bulk;
mod cache_class;
mod census;
mod check;
mod cpus;
mod deferral;
mod flush;
mod free;
mod lookup;
mod middle;
mod node_class;
mod punch;
mod put;
mod reclaim;
pub(crate) mod slow_path;

use crate::page;
use crate::percpu;
use crate::sync::{LockClass, RawLock};
pub use alloc::AllocError;
pub(crate) use alloc::{alloc_object, alloc_run, nolock_counts, note_nolock};
pub(crate) use bulk::{alloc_bulk, free_bulk};
pub(crate) use cache_class::{define, flush, shed};
pub(crate) use census::{Census, census, counts_of_node, for_each_out};
#[cfg(debug_assertions)]
pub(crate) use check::note;
pub(crate) use check::{Kind, misused};
pub(crate) use cpus::{end_cpus, offline, online, without_cpus};
pub use deferral::{DeferredFrees, deferred_frees};
pub(crate) use deferral::{deferred_barrier, is_deferred_on};
pub(crate) use free::{allowance_is_used_up, free_refused, free_slow};
pub(crate) use lookup::{class_of_object, find, size};
pub(crate) use middle::{check_middle, middle_in, middle_out};
pub(crate) use node_class::has_node_classes;
pub(crate) use put::{defer, free_block, free_run};
pub(crate) use reclaim::{at_end_of_window, trim};
#[cfg(feature = "fault-points")]
pub(crate) use reclaim::{end_window_in_slices, end_window_now};

/// Calls `visit` with every lock of the slow paths, in the order in which they may be acquired.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    put::DEFERRED.for_each_lock(visit);
    visit(LockClass::Flushing, flush::FLUSHING.raw());
    visit(LockClass::Purging, page::purging_lock());
    percpu::for_each_lock(visit);
    node_class::for_each_lock(visit);
    page::for_each_lock(visit);
}
