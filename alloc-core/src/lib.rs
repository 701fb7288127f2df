//! The engine of the Hayloft allocator.
//!
//! Objects up to 1 MiB are cut from *slabs* and pass through *sheaves*, per-CPU stacks of pointers that are operated by
//! restartable sequences, and a *barn* of batches per node; everything else is a run of *pages*. The names and the
//! division of labour are those of `mm/slub.c` in Linux. `docs/design.md` tells the whole story; each module says in
//! its first lines what it is for and what it may touch. In order, a module knows only of those in lower rows (the test
//! `layers` holds this table against the imports):
//!
//! | module | holds |
//! |---|---|
//! | `fork` [`dump`] `tuning` | what is done around a fork; the state of the machine, for a report; numbers, for a model |
//! | [`report`] | statistics for who runs the program |
//! | `allocator` | caches as allocators of collections |
//! | [`cache`] | what is done to all caches at once |
//! | [`by_address`] | blocks whose layout nobody tells, as C's |
//! | [`stats`] | what there is, and what happened |
//! | [`nolock`] [`cpu`] | allocating and freeing without ever waiting; CPUs that come and go |
//! | [`kmalloc`] [`rcu`] | the general-purpose allocator: size classes, large objects, realloc; readers without locks |
//! | `objects` | the road of an object of a class: joins all that is below |
//! | `deferred` | blocks freed where nothing could be waited for |
//! | [`irq_work`] | work for a CPU, queued from any context |
//! | `percpu` `barn` `slab` | sheaves; batches between CPUs; objects cut from runs |
//! | `thread` `reclaim` | the threads that act as CPUs; the one that gives memory back |
//! | `page` `pressure` | arenas, runs, descriptors, giving memory back; whether memory is short |
//! | `node` | NUMA nodes |
//! | `batch` `idle` `watch` | object pointers on the move; how long sheaves are idle; probes for tracers, requests to Valgrind |
//! | [`size_class`] | which class serves a layout |
//! | `sync` | atomics and locks |
//! | `os` | system calls |
//! | `arch` | restartable sequences |
//! | [`fault`] | places at which tests interfere |
//!
//! # Features
//! None is on unless it is asked for.
//!
//! | feature | adds |
//! |---|---|
//! | `allocator-api2` | `Allocator` of that crate for [`cache::Cache`] |
//! | `counters` | `counters`: how often locks are taken and shared cache lines written; hits in [`stats`]. It costs time |
//! | `fault-points` | [`fault`]: labelled places in the slow paths call a hook. For tests |
//! | `serde` | [`stats`] can be serialised, and reports be JSON |
//! | `usdt` | probes for tracers (`bpftrace`, `perf`, `gdb`): a `nop` each until one is used. `docs/tracing.md` |
//! | `valgrind` | memcheck is told of blocks, which are 16 bytes longer then. `docs/valgrind.md` |

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(test)]
extern crate std;

// Its example is one of the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(not(target_os = "linux"))]
compile_error!("Hayloft is built on Linux's restartable sequences and memory calls");

#[cfg(all(target_os = "linux", not(target_pointer_width = "64")))]
compile_error!("Hayloft reserves hundreds of gigabytes of address space: it needs 64 bits of it");

#[cfg(all(target_os = "linux", feature = "allocator-api2", not(loom)))]
mod allocator;
#[cfg(all(target_os = "linux", not(loom)))]
mod arch;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod barn;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod batch;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod by_address;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod cache;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod cpu;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod deferred;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod dump;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
pub mod fault;
#[cfg(all(target_os = "linux", not(loom)))]
mod fork;
#[cfg(all(target_os = "linux", not(loom)))]
mod idle;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
pub mod irq_work;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod kmalloc;
#[cfg(all(target_os = "linux", test, loom))]
mod models;
#[cfg(all(target_os = "linux", not(loom)))]
mod node;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod nolock;
#[cfg(all(target_os = "linux", not(loom)))]
mod objects;
#[cfg(all(target_os = "linux", not(loom)))]
mod os;
#[cfg(all(target_os = "linux", not(loom)))]
mod page;
#[cfg(all(target_os = "linux", not(loom)))]
mod percpu;
#[cfg(all(target_os = "linux", not(loom)))]
mod pressure;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod rcu;
#[cfg(all(target_os = "linux", not(loom)))]
mod reclaim;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod report;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
pub mod size_class;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, reason = "the models use a part of it"))]
mod slab;
#[cfg(all(target_os = "linux", not(loom)))]
pub mod stats;
#[cfg(target_os = "linux")]
#[cfg_attr(loom, allow(dead_code, unused_imports, reason = "the models use a part of it"))]
mod sync;
#[cfg(all(target_os = "linux", not(loom)))]
mod thread;
#[cfg(all(target_os = "linux", not(loom)))]
#[doc(hidden)]
pub mod tuning;
#[cfg(all(target_os = "linux", not(loom)))]
mod watch;

/// Counters of what CPUs have to agree on, with the feature `counters`.
///
/// ```
/// let before = alloc_core::counters::snapshot();
/// // ...
/// let during = alloc_core::counters::snapshot().since(&before);
/// for lock in during.locks().filter(|lock| lock.acquired > 0) {
///     println!("{}: {} times, {} of them contended", lock.name, lock.acquired, lock.contended);
/// }
/// ```
#[cfg(all(target_os = "linux", feature = "counters"))]
pub mod counters {
    pub use crate::sync::counters::{LockCount, Snapshot, WriteCount, snapshot};
}
