//! Object caches: objects of one kind that are cut, cached and freed together. (`mm/slab_common.c`
//! of Linux.)
//!
//! A [`Cache`] has a class of its own, whose objects take the same path as those of `kmalloc`: a
//! sheaf per CPU, a barn, slabs. The state that a constructor gives an object is kept while the
//! object is free, as is memory that readers of [`rcu`] may still look at. So the word that links a
//! free object into a list lies behind the object. It costs each object of a cache 8 bytes.
//!
//! Caches of like objects share a class, unless one of them has a special property; the class
//! counts such *aliases*.
//!
//! # The order of destruction
//!
//! 1. wait for frees that wait for readers;
//! 2. prevent CPU hotplug;
//! 3. take the cache mutex;
//! 4. wait for deferred frees, which needs both: the wait has room for one waiter, and visits the
//!    CPUs online;
//! 5. if other caches share the class, skip the next two steps;
//! 6. flush sheaves and barns to the slabs, and return empty slabs to pages;
//! 7. refuse, with the cache usable as before, if the program still has objects;
//! 8. drop the reference to the class.
//!
//! The kernel once waited for deferred frees (4) first, and two threads that destroyed caches at
//! once could lose a wake-up: `models/irq_work.rs` shows it.
//!
//! The module is part of the control plane: it allocates and sleeps, except to allocate and free
//! objects.
//!
//! [`rcu`]: crate::rcu

// A module imports only from modules after it in this list: `typed`, `builder`, `untyped`,
// `registry`, `flags`.
#[cfg(feature = "allocator-api2")]
mod allocator;
mod builder;
mod flags;
mod registry;
mod typed;
mod untyped;

pub use crate::path::objects::AllocError;
pub use crate::stats::CacheStats;
pub use builder::{Builder, CacheError};
pub use flags::CacheFlags;
pub(crate) use registry::{
    defer_free_barrier, in_child, mutex_is_held, slab_mutex, slab_mutex_alone,
};
pub use typed::{CacheBox, TypedCache};
pub use untyped::{Cache, DestroyError};
