//! Which caches can be created: limits on layouts, names and numbers, constructors, and the merging
//! of similar caches.

use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hayloft_core::cache::{AllocError, Cache, CacheError, CacheFlags};
use hayloft_core::rcu;
use tests::caches::unmerged;
use tests::entry_points::Hayloft;
use tests::scenario::on_both_backends;
use tests::sizes::layout;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

#[test]
fn invalid_parameters_are_rejected() {
    let build = |size, align, flags| {
        Cache::builder("invalid", layout(size, align)).flags(flags).build().map(drop)
    };
    let none = CacheFlags::default();
    assert_eq!(build(0, 1, none), Err(CacheError::ZeroSize));
    assert_eq!(build(32 * 1024, 8, none), Err(CacheError::TooLarge));
    assert_eq!(build(isize::MAX as usize - 7, 8, none), Err(CacheError::TooLarge));
    assert_eq!(build(8, 8192, none), Err(CacheError::TooLarge));
    let both = CacheFlags::ZERO | CacheFlags::TYPESAFE_BY_RCU;
    assert_eq!(build(8, 8, both), Err(CacheError::Contradiction));
    assert_eq!(
        Cache::builder("invalid", layout(8, 8)).flags(CacheFlags::ZERO).ctor(|_| {}).build().err(),
        Some(CacheError::Contradiction)
    );
    assert_eq!(Cache::builder("", layout(8, 8)).build().err(), Some(CacheError::NoName));

    let first = unmerged("a name", 8);
    assert_eq!(Cache::builder("a name", layout(8, 8)).build().err(), Some(CacheError::NameTaken));
    assert_eq!(
        Cache::builder("kmalloc-64", layout(64, 8)).build().err(),
        Some(CacheError::NameTaken)
    );
    drop(first);
    unmerged("a name", 8).destroy().expect("no object is in use");
}

#[test]
fn at_most_255_caches_exist() {
    on_both_backends(|| {
        let mut caches = Vec::new();
        let error = loop {
            let name = format!("one of many {}", caches.len());
            let cache = Cache::builder(&name, layout(40, 8)).flags(CacheFlags::NO_MERGE).build();
            match cache {
                Ok(cache) => caches.push(cache),
                Err(error) => break error,
            }
        };
        assert_eq!((error, caches.len()), (CacheError::TooMany, 255));
        for cache in &caches {
            let object = cache.alloc().expect("memory");
            // SAFETY: the object belongs to this cache and is freed once.
            unsafe { cache.free(object) };
        }
        caches.drain(..).for_each(|cache| cache.destroy().expect("no object is in use"));
        unmerged("another", 40).destroy().expect("no object is in use");
    });
}

#[test]
fn similar_caches_are_merged() {
    on_both_backends(|| {
        let build = |name: &str, size, align, flags| {
            Cache::builder(name, layout(size, align)).flags(flags).build().expect("a cache")
        };
        let first = build("first", 96, 8, CacheFlags::default());
        let similar = build("similar", 92, 4, CacheFlags::ZERO);
        let unmerged = build("unmerged", 96, 8, CacheFlags::NO_MERGE);
        let smaller = build("smaller", 80, 8, CacheFlags::default());
        let aligned = build("aligned differently", 96, 64, CacheFlags::default());
        assert_eq!(first.stats().sharers, 2);
        assert_eq!(similar.stats().sharers, 2);
        for alone in [&unmerged, &smaller, &aligned] {
            assert_eq!(alone.stats().sharers, 1, "{alone:?}");
        }
        let object = first.alloc().expect("memory");
        // Of two merged caches, the first to be destroyed need not be empty: the objects count as
        // the other's.
        similar.destroy().expect("the class has another owner");
        let error = first.destroy().expect_err("an object is in use");
        assert_eq!(error.objects(), [object]);
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { error.into_cache().free(object) };
    });
}

#[test]
fn freed_objects_stay_constructed() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    fn make(object: NonNull<u8>) {
        MADE.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the cache's objects have the layout of `[u64; 2]`.
        unsafe { object.cast::<[u64; 2]>().write([0xfeed, 0xbeef]) };
    }
    on_both_backends(|| {
        let cache = Cache::builder("made", Layout::new::<[u64; 2]>()).ctor(make).build();
        let cache = cache.expect("a cache");
        let before = MADE.load(Ordering::Relaxed);
        let mut slabs = 0;
        for _ in 0..5 {
            let objects: Vec<_> = (0..10_000).map(|_| cache.alloc().expect("memory")).collect();
            slabs = slabs.max(cache.stats().slabs);
            for object in objects {
                // SAFETY: the object is live, has the layout of `[u64; 2]`, and is freed once.
                // `free_rcu` links objects, which must not overwrite them.
                unsafe {
                    assert_eq!(object.cast::<[u64; 2]>().read(), [0xfeed, 0xbeef]);
                    cache.free_rcu(object);
                }
            }
            rcu::barrier();
        }
        let made = MADE.load(Ordering::Relaxed) - before;
        let wanted = slabs * cache.stats().objects_per_slab;
        assert!(made >= wanted, "{made} objects constructed in slabs of {wanted}");
        cache.destroy().expect("no object is in use");
    });
}

#[test]
fn constructor_panic_fails_the_allocation() {
    static FAILS: AtomicBool = AtomicBool::new(true);
    fn make(_: NonNull<u8>) {
        assert!(!FAILS.load(Ordering::Relaxed), "on purpose");
    }
    on_both_backends(|| {
        FAILS.store(true, Ordering::Relaxed);
        let cache = Cache::builder("panics", layout(64, 8)).ctor(make).build().expect("a cache");
        for _ in 0..3 {
            assert_eq!(cache.alloc(), Err(AllocError::Constructor));
            assert_eq!(cache.alloc_bulk(&mut [MaybeUninit::uninit(); 3]), 0);
        }
        FAILS.store(false, Ordering::Relaxed);
        let object = cache.alloc().expect("the constructor no longer panics");
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { cache.free(object) };
        cache.destroy().expect("no object is in use, and the failed slabs are gone");
    });
}
