//! Object caches: their promises about objects, the merging of similar caches, and that `destroy`
//! either succeeds or names the objects in use.

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::unix::thread::{JoinHandleExt as _, RawPthread};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use hayloft_core::cache::{AllocError, Cache, CacheError, CacheFlags, TypedCache};
use hayloft_core::fault::{self, Place};
use hayloft_core::{cpu, heap, rcu};
use tests::everywhere::{defer_a_run, defer_here};
use tests::process::{this_thread, wait_until_asleep};
use tests::routes::Hayloft;
use tests::scenario::{HANGS_AFTER, on_both_backends};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

fn plain(name: &str, size: usize) -> Cache {
    Cache::builder(name, layout(size, 8)).flags(CacheFlags::NO_MERGE).build().expect("a cache")
}

/// Allocates `count` objects, each filled with its own number.
fn filled(cache: &Cache, count: usize) -> Vec<NonNull<u8>> {
    let size = cache.layout().size();
    let fill = |number: usize| {
        let object = cache.alloc().expect("memory");
        // SAFETY: the object was just allocated and is `size` bytes long.
        unsafe { object.write_bytes(number as u8, size) };
        object
    };
    (0..count).map(fill).collect()
}

/// Checks the contents written by [`filled`], and frees each object with `free`.
fn check_and_free(cache: &Cache, objects: &[NonNull<u8>], free: impl Fn(NonNull<u8>)) {
    let size = cache.layout().size();
    for (number, object) in objects.iter().enumerate() {
        // SAFETY: the object is live, `size` bytes long and filled.
        let bytes = unsafe { std::slice::from_raw_parts(object.as_ptr(), size) };
        assert!(bytes.iter().all(|byte| *byte == number as u8), "object {number} was overwritten");
        free(*object);
    }
}

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
                let objects = filled(&cache, 300);
                assert!(objects.iter().all(|object| object.addr().get().is_multiple_of(expected)));
                // SAFETY: the object belongs to this cache, and its last use was the check.
                check_and_free(&cache, &objects, |object| unsafe { cache.free(object) });
            }
            cache.destroy().expect("nothing is in use");
        }
    });
}

#[test]
fn every_road_serves_every_cache() {
    on_both_backends(|| {
        let cache = plain("roads", 128);
        for _ in 0..3 {
            let mut room = [MaybeUninit::uninit(); 500];
            assert_eq!(cache.alloc_bulk(&mut room), 500);
            // SAFETY: `alloc_bulk` wrote all 500.
            let bulk: Vec<NonNull<u8>> =
                room.iter().map(|object| unsafe { object.assume_init() }).collect();
            let distinct: BTreeSet<_> = bulk.iter().map(|object| object.addr()).collect();
            assert_eq!(distinct.len(), 500);
            let nolock: Vec<_> =
                (0..200).map(|_| cache.alloc_nolock().expect("nobody holds a lock")).collect();
            assert!(nolock.iter().all(|object| !distinct.contains(&object.addr())));
            let stats = cache.stats();
            assert_eq!((stats.in_use, stats.object_size, stats.sharers), (700, 128, 1));
            // SAFETY: the objects belong to this cache, and each is freed once.
            unsafe {
                cache.free_bulk(&nolock);
                bulk.iter().for_each(|object| cache.free_nolock(*object));
            }
        }
        assert!(cache.shrink() > 0);
        let stats = cache.stats();
        assert_eq!((stats.slabs, stats.in_sheaves, stats.in_barns), (0, 0, 0), "{stats:?}");
        cache.destroy().expect("nothing is in use");
    });
}

/// A CPU keeps few objects of a cache that is hardly used, and many of a busy one.
#[test]
fn sheaves_grow_with_use() {
    on_both_backends(|| {
        pin_here();
        let cache = plain("growing", 40);
        let capacity = cache.stats().sheaf_capacity;
        let use_and_count = |objects: usize| {
            check_and_free(&cache, &filled(&cache, objects), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
            cache.stats().in_sheaves
        };
        assert!((1..=capacity / 8).contains(&use_and_count(1)), "one object was used");
        assert!(use_and_count(10 * capacity) >= capacity / 2, "many were used");
        // `shrink` flushes the sheaf, which starts small again.
        cache.shrink();
        assert_eq!(cache.stats().in_sheaves, 0);
        assert!((1..=capacity / 8).contains(&use_and_count(1)), "one object was used again");
        cache.destroy().expect("no object is in use");
    });
}

/// A sheaf that is refilled in each decay window is in use, even if it holds the same number of
/// objects at the end of each.
#[test]
fn busy_sheaves_are_left_alone() {
    on_both_backends(|| {
        pin_here();
        let cache = plain("busy", 40);
        let capacity = cache.stats().sheaf_capacity;
        let mut levels = BTreeSet::new();
        for round in 0..12 {
            check_and_free(&cache, &filled(&cache, 10 * capacity), |object| {
                // SAFETY: the object belongs to this cache and is freed once, after its last use.
                unsafe { cache.free(object) };
            });
            let level = cache.stats().in_sheaves;
            levels.insert(level);
            let _ = heap::end_window();
            assert_eq!(cache.stats().in_sheaves, level, "round {round}");
        }
        assert!(levels.len() < 12, "no level came twice: {levels:?}");
        // Now the cache is idle.
        let _ = heap::end_window();
        assert_eq!(cache.stats().in_sheaves, 0);
        cache.destroy().expect("no object is in use");
    });
}

/// Pairs of an allocation and a free leave no trace in the level of a sheaf. The sheaf therefore
/// looks idle and is flushed, but ever less often.
#[test]
fn sheaves_of_pairs_are_left_alone_in_the_end() {
    on_both_backends(|| {
        pin_here();
        let cache = plain("pairs", 40);
        let refills_of = |windows: usize| {
            let before = cache.stats().events.refills;
            for _ in 0..windows {
                check_and_free(&cache, &filled(&cache, 1), |object| {
                    // SAFETY: the object belongs to this cache and is freed once, after its last
                    // use.
                    unsafe { cache.free(object) };
                });
                let _ = heap::end_window();
            }
            cache.stats().events.refills - before
        };
        let (first, then) = (refills_of(40), refills_of(160));
        assert!((2..=8).contains(&first) && then <= 12, "{first} refills, then {then}");
        (0..40).for_each(|_| _ = heap::end_window());
        assert_eq!(cache.stats().in_sheaves, 0);
        cache.destroy().expect("no object is in use");
    });
}

#[test]
fn zero_means_zero() {
    on_both_backends(|| {
        let cache = Cache::builder("zeroed", layout(200, 8)).flags(CacheFlags::ZERO).build();
        let cache = cache.expect("a cache");
        for _ in 0..2 {
            let objects: Vec<_> = (0..300).map(|_| cache.alloc().expect("memory")).collect();
            for object in objects {
                // SAFETY: the object is 200 bytes long, and freed once.
                unsafe {
                    assert!((0..200).all(|index| *object.as_ptr().add(index) == 0));
                    object.write_bytes(0xff, 200);
                    cache.free(object);
                }
            }
        }
    });
}

#[test]
fn what_a_constructor_made_is_kept() {
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
        assert!(made >= slabs * cache.stats().objects_per_slab);
        cache.destroy().expect("nothing is in use");
    });
}

#[test]
fn a_constructor_may_panic() {
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
        let object = cache.alloc().expect("it does not panic any more");
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { cache.free(object) };
        cache.destroy().expect("nothing is in use, and nothing of the failed slabs is left");
    });
}

#[test]
fn caches_that_cannot_be() {
    let build = |size, align, flags| {
        Cache::builder("impossible", layout(size, align)).flags(flags).build().map(drop)
    };
    let none = CacheFlags::default();
    assert_eq!(build(0, 1, none), Err(CacheError::ZeroSize));
    assert_eq!(build(32 * 1024, 8, none), Err(CacheError::TooLarge));
    assert_eq!(build(isize::MAX as usize - 7, 8, none), Err(CacheError::TooLarge));
    assert_eq!(build(8, 8192, none), Err(CacheError::TooLarge));
    let both = CacheFlags::ZERO | CacheFlags::TYPESAFE_BY_RCU;
    assert_eq!(build(8, 8, both), Err(CacheError::Contradiction));
    assert_eq!(
        Cache::builder("impossible", layout(8, 8))
            .flags(CacheFlags::ZERO)
            .ctor(|_| {})
            .build()
            .err(),
        Some(CacheError::Contradiction)
    );
    assert_eq!(Cache::builder("", layout(8, 8)).build().err(), Some(CacheError::NoName));

    let first = plain("a name", 8);
    assert_eq!(Cache::builder("a name", layout(8, 8)).build().err(), Some(CacheError::NameTaken));
    assert_eq!(
        Cache::builder("kmalloc-64", layout(64, 8)).build().err(),
        Some(CacheError::NameTaken)
    );
    drop(first);
    plain("a name", 8).destroy().expect("nothing is in use");
}

#[test]
fn there_are_so_many_caches() {
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
        caches.drain(..).for_each(|cache| cache.destroy().expect("nothing is in use"));
        plain("another", 40).destroy().expect("nothing is in use");
    });
}

#[test]
fn like_caches_share() {
    on_both_backends(|| {
        let build = |name: &str, size, align, flags| {
            Cache::builder(name, layout(size, align)).flags(flags).build().expect("a cache")
        };
        let first = build("first", 96, 8, CacheFlags::default());
        let like = build("like", 92, 4, CacheFlags::ZERO);
        let apart = build("apart", 96, 8, CacheFlags::NO_MERGE);
        let smaller = build("smaller", 80, 8, CacheFlags::default());
        let aligned = build("aligned differently", 96, 64, CacheFlags::default());
        assert_eq!(first.stats().sharers, 2);
        assert_eq!(like.stats().sharers, 2);
        for alone in [&apart, &smaller, &aligned] {
            assert_eq!(alone.stats().sharers, 1, "{alone:?}");
        }
        let object = first.alloc().expect("memory");
        // Of two merged caches, the first to be destroyed need not be empty: the objects count as
        // the other's.
        like.destroy().expect("it is shared");
        let error = first.destroy().expect_err("an object is in use");
        assert_eq!(error.objects(), [object]);
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { error.into_cache().free(object) };
    });
}

#[test]
fn a_cache_with_objects_in_use_is_handed_back() {
    on_both_backends(|| {
        let cache = plain("in use", 1000);
        let mut objects = filled(&cache, 100);
        let kept = objects.split_off(93);
        check_and_free(&cache, &objects, |object| {
            // SAFETY: the object belongs to this cache and is freed once, after its last use.
            unsafe { cache.free(object) }
        });
        let error = cache.destroy().expect_err("seven objects are in use");
        assert_eq!(error.live(), 7);
        assert!(error.to_string().contains("in use has 7 objects"), "{error}");
        let reported: BTreeSet<_> = error.objects().iter().copied().collect();
        assert_eq!(reported, kept.iter().copied().collect());
        let cache = error.into_cache();
        let more = filled(&cache, 93);
        check_and_free(&cache, &more, |object| {
            // SAFETY: the object belongs to this cache and is freed once, after its last use.
            unsafe { cache.free(object) }
        });
        for (number, object) in kept.iter().enumerate() {
            // SAFETY: the object belongs to this cache, was filled with its number, and is freed
            // once.
            unsafe {
                assert_eq!(object.read(), 93 + number as u8);
                cache.free(*object);
            }
        }
        cache.destroy().expect("nothing is in use any more");
    });
}

#[test]
fn a_leak_panics_where_that_was_asked_for() {
    on_both_backends(|| {
        let cache = Cache::builder("leaky", layout(8, 8)).flags(CacheFlags::PANIC_ON_LEAK).build();
        let cache = cache.expect("a cache");
        let _object = cache.alloc().expect("memory");
        let panic = std::panic::catch_unwind(|| cache.destroy()).expect_err("an object is in use");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert_eq!(message, "cache leaky has 1 objects in use");
    });
}

/// `destroy` finds objects that other threads freed, on whatever CPU and by whatever path.
#[test]
fn frees_of_other_threads_are_found() {
    on_both_backends(|| {
        cpu::start();
        for _ in 0..20 {
            let cache = plain("crossed", 64);
            let objects = filled(&cache, 3000);
            thread::scope(|scope| {
                for (number, objects) in objects.chunks(500).enumerate() {
                    let objects: Vec<_> =
                        objects.iter().map(|object| AtomicPtr::new(object.as_ptr())).collect();
                    let cache = &cache;
                    scope.spawn(move || {
                        for object in objects {
                            let object = NonNull::new(object.into_inner()).expect("an object");
                            // SAFETY: the object belongs to this cache and is freed once.
                            unsafe {
                                match number % 4 {
                                    0 => cache.free(object),
                                    1 => cache.free_nolock(object),
                                    2 => cache.free_rcu(object),
                                    _ => cache.free_rcu_nolock(object),
                                }
                            }
                        }
                    });
                }
            });
            cache.destroy().expect("nothing is in use");
        }
    });
}

/// Destroys `cache` while another thread holds its free objects. That thread repeats `body` until
/// it stops at `place`.
fn destroy_while_at(place: Place, cache: Cache, body: impl Fn() + Sync) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    static STOPPED: AtomicBool = AtomicBool::new(false);
    static DESTROYS: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static IS_STOPPABLE: Cell<bool> = const { Cell::new(false) };
    }
    PLACE.get_or_init(|| place);
    fault::set_hook(|place| {
        if PLACE.get() == Some(&place) && IS_STOPPABLE.replace(false) {
            STOPPED.store(true, Ordering::Relaxed);
            while !DESTROYS.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // Long enough for `destroy` to miss the objects, were it wrong. On a slow machine this
            // thread may go on before `destroy` looks, and the objects are found.
            thread::sleep(Duration::from_millis(200));
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            IS_STOPPABLE.set(true);
            while !STOPPED.load(Ordering::Relaxed) {
                body();
            }
        });
        while !STOPPED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        DESTROYS.store(true, Ordering::Relaxed);
        cache.destroy().expect("nothing is in use");
    });
}

/// Objects that wait for readers leave a full RCU sheaf together with the objects of other caches.
#[test]
fn what_others_set_aside_is_found() {
    on_both_backends(|| {
        cpu::start();
        // On one CPU, both caches share one RCU sheaf.
        pin_here();
        let (cache, other) = (plain("aside", 64), plain("other", 64));
        // SAFETY: the objects belong to this cache, have no readers, and are freed once.
        filled(&cache, 20).into_iter().for_each(|object| unsafe { cache.free_rcu(object) });
        destroy_while_at(Place::SheafDrained, cache, || {
            // SAFETY: the object belongs to `other`, has no readers, and is freed once.
            unsafe { other.free_rcu(other.alloc().expect("memory")) };
        });
    });
}

/// The end of a decay window flushes idle objects to the slabs, from the sheaves of all classes at
/// once.
#[test]
fn what_others_take_home_is_found() {
    on_both_backends(|| {
        let cache = plain("home", 64);
        let objects = filled(&cache, 20);
        check_and_free(&cache, &objects, |object| {
            // SAFETY: the object belongs to this cache and is freed once, after its last use.
            unsafe { cache.free(object) };
        });
        destroy_while_at(Place::SheavesClosed, cache, || {
            heap::end_window();
        });
    });
}

/// Several threads destroy caches at once. If the barrier were not serialised, one of them would
/// hang.
#[test]
fn caches_are_destroyed_at_once() {
    on_both_backends(|| {
        thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    for round in 0..50 {
                        let cache = plain(&format!("{number}-{round}"), 32 + number * 16);
                        let objects = filled(&cache, 100);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache and is freed once, after its
                            // last use.
                            unsafe { cache.free_nolock(object) }
                        });
                        cache.destroy().expect("nothing is in use");
                    }
                });
            }
        });
    });
}

/// CPUs go offline and come online while caches have objects in their sheaves.
#[test]
fn caches_outlive_cpus() {
    on_both_backends(|| {
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        let Some(&last) = online.get(1) else { return };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..30 {
                    cpu::down(last).expect("it is online");
                    cpu::up(last).expect("it is offline");
                }
                over.store(true, Ordering::Relaxed);
            });
            for number in 0..2 {
                let over = &over;
                scope.spawn(move || {
                    let mut round = 0;
                    while !over.load(Ordering::Relaxed) {
                        let cache = plain(&format!("{number}-{round}"), 48);
                        let objects = filled(&cache, 200);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                        cache.destroy().expect("nothing is in use");
                        round += 1;
                    }
                });
            }
        });
    });
}

#[test]
fn readers_keep_what_they_found() {
    on_both_backends(|| {
        let cache = plain("read", 64);
        let (found, is_found) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let object = cache.alloc().expect("memory");
        // SAFETY: the object was just allocated and is 64 bytes long.
        unsafe { object.write_bytes(7, 64) };
        let shared = &AtomicPtr::new(object.as_ptr());
        thread::scope(|scope| {
            scope.spawn(move || {
                let reading = rcu::read_lock();
                let object = shared.load(Ordering::Acquire);
                found.send(()).expect("the writer waits");
                may_go_on.recv().expect("the writer goes on");
                // SAFETY: a reader found the object and has not left its critical section, so the
                // object is intact.
                let bytes = unsafe { std::slice::from_raw_parts(object, 64) };
                assert!(
                    bytes.iter().all(|byte| *byte == 7),
                    "the object was given to somebody else"
                );
                drop(reading);
            });
            is_found.recv().expect("the reader tells");
            shared.store(std::ptr::null_mut(), Ordering::Release);
            // SAFETY: the object belongs to this cache and is freed once. Later readers cannot find
            // it.
            unsafe { cache.free_rcu(object) };
            // None of the thousands of objects allocated meanwhile is the one that the reader
            // holds.
            for _ in 0..20 {
                let others = filled(&cache, 500);
                assert!(!others.contains(&object));
                check_and_free(&cache, &others, |object| {
                    // SAFETY: the object belongs to this cache, has no readers, and is freed once.
                    unsafe { cache.free_rcu(object) }
                });
            }
            go_on.send(()).expect("the reader waits");
        });
        rcu::barrier();
        assert_eq!(cache.stats().in_use, 0);
        cache.destroy().expect("nothing is in use");
    });
}

/// `destroy` finds the objects that a signal handler freed.
#[test]
fn handlers_use_caches() {
    static SHARED: AtomicPtr<Cache> = AtomicPtr::new(std::ptr::null_mut());
    static TURNS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: the pointer is set before the first signal, and the cache outlives the last.
        let cache = unsafe { &*SHARED.load(Ordering::Acquire) };
        let _reading = rcu::read_lock();
        if let Ok(object) = cache.alloc() {
            // SAFETY: the object was just allocated, is 72 bytes long, and is freed once.
            unsafe {
                object.write_bytes(1, 72);
                match TURNS.fetch_add(1, Ordering::Relaxed) % 3 {
                    0 => cache.free(object),
                    1 => cache.free_nolock(object),
                    _ => cache.free_rcu(object),
                }
            }
        }
    }
    on_both_backends(|| {
        let cache = plain("handled", 72);
        SHARED.store((&raw const cache).cast_mut(), Ordering::Release);
        // SAFETY: the handler calls only what a signal handler may call.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let (cache, over) = (&cache, &over);
                    let (tell, told) = mpsc::channel();
                    scope.spawn(move || {
                        tell.send(this_thread()).expect("the sender waits");
                        while !over.load(Ordering::Relaxed) {
                            let objects = filled(cache, 150);
                            check_and_free(cache, &objects, |object| {
                                // SAFETY: the object belongs to this cache, has no readers, and is
                                // freed once.
                                unsafe { cache.free_rcu(object) }
                            });
                        }
                    });
                    told.recv().expect("the worker tells")
                })
                .collect();
            // A signal that arrives while another is pending is lost, hence the count of handled
            // ones.
            for worker in workers.iter().cycle() {
                if TURNS.load(Ordering::Relaxed) >= 5000 {
                    break;
                }
                // SAFETY: the call touches no memory, and the workers run until `over` is set.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *worker, libc::SIGUSR1) };
            }
            over.store(true, Ordering::Relaxed);
        });
        cache.destroy().expect("nothing is in use");
    });
}

#[test]
fn values_are_dropped_once() {
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
        assert_eq!(cache.destroy().expect_err("one was forgotten").live(), 1);
    });
}

/// The child of a fork can create, use and destroy caches, although the parent forked while other
/// threads did so.
#[test]
fn the_child_of_a_fork_has_caches() {
    on_both_backends(|| {
        let before = plain("before", 40);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..2 {
                let over = &over;
                scope.spawn(move || {
                    let mut round = 0;
                    while !over.load(Ordering::Relaxed) {
                        let cache = plain(&format!("{number}-{round}"), 56);
                        let _reading = (round % 3 == 0).then(rcu::read_lock);
                        let objects = filled(&cache, 50);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                        drop(_reading);
                        cache.destroy().expect("nothing is in use");
                        round += 1;
                    }
                });
            }
            for round in 0..60 {
                let reading = (round % 2 == 0).then(rcu::read_lock);
                // SAFETY: the child relies only on what this allocator promises for it, and leaves
                // by `_exit`.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    drop(reading);
                    // The alarm kills a child that hangs.
                    // SAFETY: `alarm` has no preconditions.
                    unsafe { libc::alarm(HANGS_AFTER / 2) };
                    let cache = plain("in the child", 64);
                    for cache in [&before, &cache] {
                        let objects = filled(cache, 100);
                        check_and_free(cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                    }
                    let done = cache.destroy().is_ok();
                    // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
                    unsafe { libc::_exit(if done { 0 } else { 1 }) };
                }
                drop(reading);
                let mut status = 0;
                // SAFETY: `status` is valid for the write.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0, "the child of round {round}");
            }
            over.store(true, Ordering::Relaxed);
        });
        before.destroy().expect("nothing is in use");
    });
}

/// In a program that does nothing more, one or two window ends complete the frees that a signal
/// handler deferred and those that wait for readers. Such a program has no CPU threads, and none of
/// its threads waits.
#[test]
fn idle_programs_free_what_was_deferred() {
    on_both_backends(|| {
        fault::set_hook(defer_here);
        defer_a_run();
        let counts = heap::deferred_frees();
        assert_eq!((counts.deferred, counts.flushed), (1, 0));
        heap::end_window();
        assert_eq!(heap::deferred_frees().flushed, 1);

        let cache = Cache::builder("idle", Layout::new::<[u64; 5]>())
            .flags(CacheFlags::NO_MERGE)
            .build()
            .expect("a cache");
        for _ in 0..3 {
            let objects = [(); 20].map(|()| cache.alloc().expect("memory"));
            let reader = rcu::read_lock();
            // SAFETY: the objects belong to this cache and are freed once. The reader does not use
            // them.
            objects.into_iter().for_each(|object| unsafe { cache.free_rcu(object) });
            (0..5).for_each(|_| assert!(heap::end_window()));
            assert_eq!(cache.stats().in_use, 20);
            drop(reader);
            // One window end finds that the sheaf is idle, another one ends the grace period.
            for _ in 0..5 {
                let _ = heap::end_window();
            }
            assert_eq!(cache.stats().in_use, 0);
        }
        cache.destroy().expect("no object is in use");
    });
}

/// A thread that is cancelled while it waits for readers runs on, since it may hold locks.
#[test]
fn who_waits_for_readers_is_not_cancelled() {
    unsafe extern "C" {
        // `RawPthread` is the standard library's type. With musl, libc's is a pointer.
        fn pthread_cancel(thread: RawPthread) -> libc::c_int;
        fn pthread_setcancelstate(state: libc::c_int, old: *mut libc::c_int) -> libc::c_int;
    }
    const DISABLE: libc::c_int = 1;
    on_both_backends(|| {
        static WAITER: AtomicUsize = AtomicUsize::new(0);
        static DONE: AtomicBool = AtomicBool::new(false);
        let reader = rcu::read_lock();
        let waiter = thread::spawn(|| {
            WAITER.store(this_thread() as usize, Ordering::Relaxed);
            rcu::synchronize();
            // SAFETY: the state is valid, and null means that the old one is not stored.
            unsafe { pthread_setcancelstate(DISABLE, std::ptr::null_mut()) };
            DONE.store(true, Ordering::Relaxed);
        });
        while WAITER.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        wait_until_asleep(WAITER.load(Ordering::Relaxed) as libc::pid_t);
        // SAFETY: the thread exists, since it waits for this thread's reader.
        unsafe { pthread_cancel(waiter.as_pthread_t()) };
        drop(reader);
        waiter.join().expect("the thread ends well");
        assert!(DONE.load(Ordering::Relaxed));
    });
}

/// Bulk calls with zero objects write nothing and move no objects.
#[test]
fn no_objects_at_once() {
    on_both_backends(|| {
        let cache = plain("none at once", 32);
        let held = filled(&cache, 3);
        for round in 0..2 {
            let mut room = [MaybeUninit::new(NonNull::<u8>::dangling()); 64];
            assert_eq!(cache.alloc_bulk(&mut room[..0]), 0);
            assert_eq!(cache.alloc_bulk(&mut []), 0);
            // SAFETY: all words are initialised, and `free_bulk` gets no object.
            unsafe {
                assert!(room.iter().all(|word| word.assume_init() == NonNull::dangling()));
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
        cache.destroy().expect("nothing is in use");
    });
}

/// A cache of large objects takes over a class whose sheaves are wide, open and empty, since they
/// served a cache of small ones.
#[test]
fn sheaves_of_another_cache_overflow_into_none() {
    on_both_backends(|| {
        pin_here();
        let (small, other) = (plain("small", 64), plain("other", 64));
        // SAFETY: the objects belong to `cache`, and each is freed once.
        let free = |cache: &Cache, objects: &[NonNull<u8>]| unsafe {
            objects.iter().for_each(|object| cache.free(*object));
        };
        free(&small, &filled(&small, 4000));
        let mut all = filled(&small, 4000);
        while small.stats().in_sheaves > 0 {
            all.extend(small.alloc());
        }
        // SAFETY: the objects belong to `small`, and each is freed once. On the fallback this call
        // bypasses the sheaf.
        unsafe { small.free_bulk(&all) };
        small.destroy().expect("nothing is in use");
        free(&other, &filled(&other, 12));
        let large = plain("large", 8000);
        let mut room = [MaybeUninit::uninit(); 400];
        assert_eq!(large.alloc_bulk(&mut room), 400);
        // SAFETY: `alloc_bulk` wrote all 400.
        let objects = room.map(|object| unsafe { object.assume_init() });
        let of_large: BTreeSet<_> = objects.iter().map(|object| object.addr()).collect();
        free(&large, &objects);
        let object = other.alloc().expect("memory");
        assert!(!of_large.contains(&object.addr()), "an object of another cache");
    });
}
