//! Objects of caches: alignment, contents, and each function that allocates or frees them.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use hayloft_core::cache::{Cache, CacheFlags, TypedCache};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::scenario::on_both_backends;
use tests::sizes::layout;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

#[test]
fn objects_are_disjoint_and_aligned() {
    on_both_backends(|| {
        for (size, align, flags, expected) in [
            (1, 1, CacheFlags::NO_MERGE, 8),
            (24, 8, CacheFlags::NO_MERGE, 8),
            (24, 1, CacheFlags::HWCACHE_ALIGN, 32),
            (64, 8, CacheFlags::HWCACHE_ALIGN, 64),
            (100, 256, CacheFlags::NO_MERGE, 256),
            (5000, 4096, CacheFlags::NO_MERGE, 4096),
            (32 * 1024 - 8, 8, CacheFlags::NO_MERGE, 8),
        ] {
            let cache = Cache::builder("aligned", layout(size, align)).flags(flags).build();
            let cache = cache.expect("a cache");
            for _ in 0..2 {
                let objects = alloc_filled(&cache, 300);
                let is_aligned =
                    |object: &NonNull<u8>| object.addr().get().is_multiple_of(expected);
                assert!(objects.iter().all(is_aligned), "not aligned to {expected}");
                // SAFETY: the object belongs to this cache, and its last use was the check.
                check_and_free(&cache, &objects, |object| unsafe { cache.free(object) });
            }
            cache.destroy().expect("no object is in use");
        }
    });
}

#[test]
fn bulk_and_nolock_functions_can_be_mixed() {
    on_both_backends(|| {
        let cache = unmerged("mixed", 128);
        for _ in 0..3 {
            let mut room = [MaybeUninit::uninit(); 500];
            assert_eq!(cache.alloc_bulk(&mut room), 500);
            // SAFETY: `alloc_bulk` wrote all 500.
            let bulk: Vec<NonNull<u8>> =
                room.iter().map(|object| unsafe { object.assume_init() }).collect();
            let distinct: BTreeSet<_> = bulk.iter().map(|object| object.addr()).collect();
            assert_eq!(distinct.len(), 500, "objects of `alloc_bulk` are distinct");
            let nolock: Vec<_> =
                (0..200).map(|_| cache.alloc_nolock().expect("no thread holds a lock")).collect();
            let is_new = |object: &NonNull<u8>| !distinct.contains(&object.addr());
            assert!(nolock.iter().all(is_new), "`alloc_nolock` returned a live object");
            let stats = cache.stats();
            assert_eq!((stats.in_use, stats.object_size, stats.sharers), (700, 128, 1));
            // SAFETY: the objects belong to this cache, and each is freed once.
            unsafe {
                cache.free_bulk(&nolock);
                bulk.iter().for_each(|object| cache.free_nolock(*object));
            }
        }
        assert!(cache.shrink() > 0, "`shrink` freed no slab");
        let stats = cache.stats();
        assert_eq!((stats.slabs, stats.in_sheaves, stats.in_barns), (0, 0, 0), "{stats:?}");
        cache.destroy().expect("no object is in use");
    });
}

/// Bulk calls with zero objects write nothing and move no objects.
#[test]
fn bulk_calls_with_no_objects_do_nothing() {
    on_both_backends(|| {
        let cache = unmerged("empty bulk", 32);
        let held = alloc_filled(&cache, 3);
        for round in 0..2 {
            let mut room = [MaybeUninit::new(NonNull::<u8>::dangling()); 64];
            assert_eq!(cache.alloc_bulk(&mut room[..0]), 0);
            assert_eq!(cache.alloc_bulk(&mut []), 0);
            // SAFETY: all words are initialised, and `free_bulk` gets no object.
            unsafe {
                let is_unchanged =
                    room.iter().all(|word| word.assume_init() == NonNull::dangling());
                assert!(is_unchanged, "`alloc_bulk` wrote into an empty slice");
                cache.free_bulk(&[]);
            }
            assert_eq!(cache.stats().in_use, if round == 0 { 3 } else { 0 });
            if round == 0 {
                // In the second round the sheaf holds these objects.
                // SAFETY: the objects belong to this cache and are freed once, after their last
                // use.
                check_and_free(&cache, &held, |object| unsafe { cache.free(object) });
            }
        }
        cache.destroy().expect("no object is in use");
    });
}

#[test]
fn zero_flag_clears_reused_objects() {
    on_both_backends(|| {
        let cache = Cache::builder("zeroed", layout(200, 8)).flags(CacheFlags::ZERO).build();
        let cache = cache.expect("a cache");
        for _ in 0..2 {
            let objects: Vec<_> = (0..300).map(|_| cache.alloc().expect("memory")).collect();
            for object in objects {
                // SAFETY: the object is 200 bytes long, and freed once.
                unsafe {
                    let is_zero = (0..200).all(|index| *object.as_ptr().add(index) == 0);
                    assert!(is_zero, "the object is not zero");
                    object.write_bytes(0xff, 200);
                    cache.free(object);
                }
            }
        }
    });
}

#[test]
fn boxes_of_a_typed_cache_own_their_values() {
    on_both_backends(|| {
        let cache = TypedCache::new("strings").expect("a cache");
        let mut boxes: Vec<_> = (0..1000)
            .map(|number| {
                cache.alloc(number.to_string()).map_err(|(error, _)| error).expect("memory")
            })
            .collect();
        boxes[7].push_str(" and more");
        assert_eq!(*boxes[7], "7 and more");
        let inner = boxes.swap_remove(7).into_inner();
        assert_eq!(inner, "7 and more");
        drop(boxes);
        let forgotten = cache.alloc(String::new()).map_err(|(error, _)| error).expect("memory");
        std::mem::forget(forgotten);
        assert_eq!(cache.destroy().expect_err("a box was forgotten").live(), 1);
    });
}
