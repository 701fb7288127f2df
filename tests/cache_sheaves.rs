//! Sheaves of caches: their width follows the use of the cache, and idle ones are flushed.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use hayloft_core::cache::Cache;
use hayloft_core::heap;
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::scenario::on_both_backends;
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A CPU keeps few objects of a cache that is hardly used, and many of a busy one.
#[test]
fn sheaves_grow_with_use() {
    on_both_backends(|| {
        pin_here();
        let cache = unmerged("growing", 40);
        let capacity = cache.stats().sheaf_capacity;
        let use_and_count = |objects: usize| {
            check_and_free(&cache, &alloc_filled(&cache, objects), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
            cache.stats().in_sheaves
        };
        let kept = use_and_count(1);
        assert!((1..=capacity / 8).contains(&kept), "kept {kept} objects after use of one");
        let kept = use_and_count(10 * capacity);
        assert!(kept >= capacity / 2, "kept {kept} objects after use of many");
        // `shrink` flushes the sheaf, which starts small again.
        cache.shrink();
        assert_eq!(cache.stats().in_sheaves, 0);
        let kept = use_and_count(1);
        assert!((1..=capacity / 8).contains(&kept), "kept {kept} objects after `shrink`");
        cache.destroy().expect("no object is in use");
    });
}

/// A sheaf that is refilled in each decay window is in use, even if it holds the same number of
/// objects at the end of each.
#[test]
fn busy_sheaves_are_not_flushed() {
    on_both_backends(|| {
        pin_here();
        let cache = unmerged("busy", 40);
        let capacity = cache.stats().sheaf_capacity;
        let mut levels = BTreeSet::new();
        for round in 0..12 {
            check_and_free(&cache, &alloc_filled(&cache, 10 * capacity), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
            let level = cache.stats().in_sheaves;
            levels.insert(level);
            let _ = heap::end_window();
            assert_eq!(
                cache.stats().in_sheaves,
                level,
                "a busy sheaf was flushed in round {round}"
            );
        }
        assert!(levels.len() < 12, "no level occurred twice: {levels:?}");
        // Now the cache is idle.
        let _ = heap::end_window();
        assert_eq!(cache.stats().in_sheaves, 0);
        cache.destroy().expect("no object is in use");
    });
}

/// A sheaf that serves pairs of an allocation and a free is in use, although its level is the same
/// at the end of each window.
#[test]
fn sheaves_of_alloc_free_pairs_are_not_flushed() {
    on_both_backends(|| {
        pin_here();
        let cache = unmerged("pairs", 40);
        let use_once = || {
            check_and_free(&cache, &alloc_filled(&cache, 1), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
        };
        use_once();
        let before = cache.stats();
        for _ in 0..20 {
            use_once();
            let _ = heap::end_window();
        }
        let after = cache.stats();
        assert_eq!(after.events.refills, before.events.refills);
        assert_eq!(after.in_sheaves, before.in_sheaves);
        // Now the cache is idle.
        let _ = heap::end_window();
        assert_eq!(cache.stats().in_sheaves, 0);
        cache.destroy().expect("no object is in use");
    });
}

/// A cache of large objects takes over a class whose sheaves are wide, open and empty, since they
/// served a cache of small ones.
#[test]
fn wide_sheaves_of_a_reused_class_do_not_overflow() {
    on_both_backends(|| {
        pin_here();
        let (small, other) = (unmerged("small", 64), unmerged("other", 64));
        // SAFETY: the objects belong to `cache`, and each is freed once.
        let free = |cache: &Cache, objects: &[NonNull<u8>]| unsafe {
            objects.iter().for_each(|object| cache.free(*object));
        };
        free(&small, &alloc_filled(&small, 4000));
        let mut all = alloc_filled(&small, 4000);
        while small.stats().in_sheaves > 0 {
            all.extend(small.alloc());
        }
        // SAFETY: the objects belong to `small`, and each is freed once. On the fallback this call
        // bypasses the sheaf.
        unsafe { small.free_bulk(&all) };
        small.destroy().expect("no object is in use");
        free(&other, &alloc_filled(&other, 12));
        let large = unmerged("large", 8000);
        let mut room = [MaybeUninit::uninit(); 400];
        assert_eq!(large.alloc_bulk(&mut room), 400);
        // SAFETY: `alloc_bulk` wrote all 400.
        let objects = room.map(|object| unsafe { object.assume_init() });
        let of_large: BTreeSet<_> = objects.iter().map(|object| object.addr()).collect();
        free(&large, &objects);
        let object = other.alloc().expect("memory");
        assert!(!of_large.contains(&object.addr()), "an object of `large` came from `other`");
    });
}
