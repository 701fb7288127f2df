//! `destroy` succeeds or names the objects in use, wherever other threads moved the free ones.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::fault::{self, Place};
use hayloft_core::{cpu, heap};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::scenario::on_both_backends;
use tests::sizes::layout;
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

#[test]
fn destroy_returns_a_cache_with_live_objects() {
    on_both_backends(|| {
        let cache = unmerged("in use", 1000);
        let mut objects = alloc_filled(&cache, 100);
        let kept = objects.split_off(93);
        check_and_free(&cache, &objects, |object| {
            // SAFETY: the object belongs to this cache and is freed once, after its last use.
            unsafe { cache.free(object) }
        });
        let error = cache.destroy().expect_err("seven objects are in use");
        assert_eq!(error.live(), 7);
        assert!(error.to_string().contains("in use has 7 objects"), "{error}");
        let reported: BTreeSet<_> = error.objects().iter().copied().collect();
        assert_eq!(reported, kept.iter().copied().collect(), "the objects in use are named");
        let cache = error.into_cache();
        let more = alloc_filled(&cache, 93);
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
        cache.destroy().expect("no object is in use any longer");
    });
}

#[test]
fn leak_panics_with_panic_on_leak() {
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
fn destroy_finds_frees_of_other_threads() {
    on_both_backends(|| {
        cpu::start();
        for _ in 0..20 {
            let cache = unmerged("crossed", 64);
            let objects = alloc_filled(&cache, 3000);
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
            cache.destroy().expect("no object is in use");
        }
    });
}

/// Destroys `cache` while another thread holds its free objects. That thread repeats `body` until
/// it stops at `place`.
fn destroy_while_stopped_at(place: Place, cache: Cache, body: impl Fn() + Sync) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    static STOPPED: AtomicBool = AtomicBool::new(false);
    static DESTROYING: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static IS_STOPPABLE: Cell<bool> = const { Cell::new(false) };
    }
    PLACE.get_or_init(|| place);
    fault::set_hook(|place| {
        if PLACE.get() == Some(&place) && IS_STOPPABLE.replace(false) {
            STOPPED.store(true, Ordering::Relaxed);
            while !DESTROYING.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // Long enough for a broken `destroy` to miss the objects. On a slow machine this thread
            // may continue before `destroy` looks, and the objects are found.
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
        DESTROYING.store(true, Ordering::Relaxed);
        cache.destroy().expect("no object is in use");
    });
}

/// Objects that wait for readers leave a full RCU sheaf together with the objects of other caches.
#[test]
fn destroy_finds_objects_being_set_aside() {
    on_both_backends(|| {
        cpu::start();
        // On one CPU, both caches share one RCU sheaf.
        pin_here();
        let (cache, other) = (unmerged("aside", 64), unmerged("other", 64));
        // SAFETY: the objects belong to this cache, have no readers, and are freed once.
        alloc_filled(&cache, 20).into_iter().for_each(|object| unsafe { cache.free_rcu(object) });
        destroy_while_stopped_at(Place::SheafDrained, cache, || {
            // SAFETY: the object belongs to `other`, has no readers, and is freed once.
            unsafe { other.free_rcu(other.alloc().expect("memory")) };
        });
    });
}

/// The end of a decay window flushes idle objects to the slabs, from the sheaves of all classes at
/// once.
#[test]
fn destroy_finds_objects_being_flushed() {
    on_both_backends(|| {
        let cache = unmerged("flushed", 64);
        let objects = alloc_filled(&cache, 20);
        check_and_free(&cache, &objects, |object| {
            // SAFETY: the object belongs to this cache and is freed once, after its last use.
            unsafe { cache.free(object) };
        });
        destroy_while_stopped_at(Place::SheavesClosed, cache, || {
            heap::end_window();
        });
    });
}

/// Several threads destroy caches at once. If the barrier were not serialised, one of them would
/// hang.
#[test]
fn caches_can_be_destroyed_concurrently() {
    on_both_backends(|| {
        thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    for round in 0..50 {
                        let cache = unmerged(&format!("{number}-{round}"), 32 + number * 16);
                        let objects = alloc_filled(&cache, 100);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache and is freed once, after its
                            // last use.
                            unsafe { cache.free_nolock(object) }
                        });
                        cache.destroy().expect("no object is in use");
                    }
                });
            }
        });
    });
}

/// CPUs go offline and come online while caches have objects in their sheaves.
#[test]
fn caches_survive_cpu_hotplug() {
    on_both_backends(|| {
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        let Some(&last) = online.get(1) else { return };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..30 {
                    cpu::down(last).expect("the CPU is online");
                    cpu::up(last).expect("the CPU is offline");
                }
                done.store(true, Ordering::Relaxed);
            });
            for number in 0..2 {
                let done = &done;
                scope.spawn(move || {
                    let mut round = 0;
                    while !done.load(Ordering::Relaxed) {
                        let cache = unmerged(&format!("{number}-{round}"), 48);
                        let objects = alloc_filled(&cache, 200);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                        cache.destroy().expect("no object is in use");
                        round += 1;
                    }
                });
            }
        });
    });
}
