//! Special properties of caches.

use core::ops::BitOr;

/// Special properties of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFlags(u32);

impl CacheFlags {
    /// Shares its class with no other cache. (`SLAB_NO_MERGE`.)
    pub const NO_MERGE: CacheFlags = CacheFlags(1);
    /// Memory of an object remains memory of such an object, free or not, while a reader of [`rcu`]
    /// may look at it. The object itself may be reallocated at once. Not merged.
    /// (`SLAB_TYPESAFE_BY_RCU`.)
    ///
    /// [`rcu`]: crate::rcu
    pub const TYPESAFE_BY_RCU: CacheFlags = CacheFlags(2);
    /// Objects read as zero when they are allocated. (`__GFP_ZERO`.)
    pub const ZERO: CacheFlags = CacheFlags(4);
    /// Objects start on a cache line, or on the fraction of a line that they fill.
    /// (`SLAB_HWCACHE_ALIGN`.)
    pub const HWCACHE_ALIGN: CacheFlags = CacheFlags(8);
    /// [`Cache::destroy`](super::Cache::destroy) panics instead of refusing if objects are in use.
    pub const PANIC_ON_LEAK: CacheFlags = CacheFlags(16);

    /// Returns whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: CacheFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for CacheFlags {
    type Output = CacheFlags;

    fn bitor(self, other: CacheFlags) -> CacheFlags {
        CacheFlags(self.0 | other.0)
    }
}
