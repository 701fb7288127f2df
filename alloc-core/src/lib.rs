//! The engine of the Hayloft allocator.
//!
//! Objects up to 1 MiB are cut from *slabs*. They pass through *sheaves*, per-CPU stacks of
//! pointers operated by restartable sequences, and through a *barn* of batches per node. Every
//! other block is a run of *pages*. Names and division of labour are those of `mm/slub.c` in Linux.
//! `docs/design.md` describes the whole; each module's first lines say what the module is for. The
//! table lists the modules from top to bottom. A module imports only from lower rows (the test
//! `layers` checks the imports against this table):
//!
//! | module | holds |
//! |---|---|
//! | `fork` [`dump`] `tuning` | work around a fork; a dump of the state; numbers for a model |
//! | [`report`] | statistics for the program's operator |
//! | [`profile`] | heap profiles |
//! | [`heap`] | operations on all size classes and caches at once |
//! | [`tag`] [`thread`] | which part of the program allocates; bytes of each thread |
//! | [`cache`] | object caches, also as allocators of collections |
//! | [`stats`] | current state and event counts |
//! | [`cpu`] | CPU hotplug |
//! | [`rcu`] | readers without locks |
//! | `front` | entry points: [`by_address`], [`nolock`], [`kmalloc`], and their instrumentation |
//! | `path` | slow paths of large blocks and of objects; deferred frees |
//! | `irq` | [`irq_work`], queued for a CPU from any context; the CPU threads that run it |
//! | `percpu` `barn` `slab` | sheaves; batches between CPUs; objects cut from runs |
//! | `reclaim` | the thread that returns memory to the system; memory pressure |
//! | `page` | arenas, runs, descriptors, decommitting |
//! | `sampling` | sampled allocations: which, from where, for how many others |
//! | `node` | NUMA nodes |
//! | `batch` `watch` | object pointers in transit; tracer probes, Valgrind |
//! | [`size_class`] | the class that serves a layout |
//! | `stack` | the return addresses of a thread's callers |
//! | `sync` | atomics and locks |
//! | `os` | system calls |
//! | `settings` | settings in the environment and in the program, in a table |
//! | `text` | messages and text without a heap |
//! | `arch` | restartable sequences |
//! | [`fault`] | fault points for tests |
//! | `atomic_fn` `variants` | function pointers that change at run time; enums with a list |
//!
//! # A class, and where its parts are
//! A class is a number: first those of the size classes, then those of object caches.
//!
//! | part | static or place | module |
//! |---|---|---|
//! | size of a size class; the class of a size | `LOOKUP`, `LOOKUP_MALLOC` | `size_class` |
//! | stride, objects and units of a slab, link, constructor | `SHAPES` | `slab::shape` |
//! | width of a new sheaf | `EMPTY_HEADERS` | `percpu::layout` |
//! | sheaf and events on each CPU | the CPU's region | `percpu::layout`, `percpu::events` |
//! | barn and partial slabs on a node | `NODE_CLASSES` and others | `path::objects::node_class` |
//! | of a cache: its name for statistics | `LABELS` | `stats::label` |
//! | of a cache: its sharers, and whether others may share it | `ENTRIES` | `cache::registry` |
//!
//! # Features
//! None is on by default.
//!
//! | feature | adds |
//! |---|---|
//! | `allocator-api2` | `Allocator` of that crate for [`cache::Cache`] |
//! | `counters` | `counters`: lock acquisitions and shared-line writes. Slower |
//! | `fault-points` | [`fault`]: labelled places in the slow paths call a hook. For tests |
//! | `serde` | serialisation of [`stats`], and reports as JSON |
//! | `thread-totals` | [`thread`] is exact |
//! | `usdt` | probes for `bpftrace`, `perf`, `gdb`: a `nop` each until used. `docs/tracing.md` |
//! | `valgrind` | requests to memcheck; blocks are 16 bytes longer. `docs/valgrind.md` |

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(test)]
extern crate std;

// Runs the example in the README as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(not(target_os = "linux"))]
compile_error!("Hayloft is built on Linux's restartable sequences and memory calls");

#[cfg(all(target_os = "linux", not(target_pointer_width = "64")))]
compile_error!("Hayloft reserves hundreds of gigabytes of address space: it needs 64 bits of it");

#[cfg(all(target_os = "linux", not(loom)))]
mod arch;
#[cfg(target_os = "linux")]
mod atomic_fn;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod barn;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod batch;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod cache;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod cpu;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod dump;
#[cfg(target_os = "linux")]
pub mod fault;
#[cfg(all(target_os = "linux", not(loom)))]
mod fork;
#[cfg(all(target_os = "linux", not(loom)))]
mod front;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod heap;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod irq;
#[cfg(all(target_os = "linux", test, loom))]
mod models;
#[cfg(all(target_os = "linux", not(loom)))]
mod node;
#[cfg(all(target_os = "linux", not(loom)))]
mod os;
#[cfg(all(target_os = "linux", not(loom)))]
mod page;
#[cfg(all(target_os = "linux", loom))]
#[allow(dead_code, reason = "the models use a part of it")]
mod page {
    pub(crate) mod reserve;
}
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod path;
#[cfg(all(target_os = "linux", not(loom)))]
mod percpu;
#[cfg(all(target_os = "linux", not(loom)))]
#[doc(hidden)]
pub mod profile;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod rcu;
#[cfg(all(target_os = "linux", not(loom)))]
mod reclaim;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod report;
#[cfg(all(target_os = "linux", not(loom)))]
mod sampling;
#[cfg(all(target_os = "linux", not(loom)))]
#[cfg_attr(miri, allow(dead_code, unused_imports, reason = "tests under Miri have no settings"))]
#[doc(hidden)]
pub mod settings;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
pub mod size_class;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, unused_imports, reason = "the models use a part of it"))]
mod slab;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(any(miri, loom))
))]
#[doc(hidden)]
pub mod stack;
#[cfg(all(
    target_os = "linux",
    any(miri, loom, not(any(target_arch = "x86_64", target_arch = "aarch64")))
))]
#[doc(hidden)]
#[path = "stack/none.rs"]
pub mod stack;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod stats;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, unused_imports, reason = "the models use a part of it"))]
mod sync;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod tag;
#[cfg(all(target_os = "linux", not(loom)))]
mod text;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod thread;
#[cfg(all(target_os = "linux", not(loom)))]
#[doc(hidden)]
pub mod tuning;
#[cfg(target_os = "linux")]
mod variants;
#[cfg(all(target_os = "linux", not(loom)))]
mod watch;

#[cfg(all(target_os = "linux", not(loom)))]
pub use front::{by_address, kmalloc, nolock};
#[cfg(target_os = "linux")]
pub use irq::work as irq_work;

/// Counts of lock acquisitions and of writes to cache lines that CPUs share. Needs the feature
/// `counters`.
///
/// ```
/// let before = hayloft_core::counters::snapshot();
/// // ...
/// let during = hayloft_core::counters::snapshot().since(&before);
/// for lock in during.locks().filter(|lock| lock.acquired > 0) {
///     println!("{}: {} times, {} of them contended", lock.name, lock.acquired, lock.contended);
/// }
/// ```
#[cfg(all(target_os = "linux", feature = "counters"))]
pub mod counters {
    pub use crate::sync::counters::{LockCount, Snapshot, WriteCount, snapshot};
}
