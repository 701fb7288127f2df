//! Forks while other threads are in the control plane: hotplug, barriers, and caches that are
//! created and destroyed.

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use hayloft_core::cache::Cache;
use hayloft_core::{cpu, fault, heap, rcu};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::fork::{exercise_allocator, exercise_in_child, exit_child, fork, wait_for};
use tests::process::{this_thread, wait_until_asleep};
use tests::scenario::{in_every_mode, on_both_backends, with_decay};
use tests::slow_paths::{defer_run, defer_run_hook};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Whether the threads beside the forking one end.
static DONE: AtomicBool = AtomicBool::new(false);

/// Other threads take CPUs offline and online, hold the hotplug lock as readers, wait for deferred
/// frees, and defer frees, while this thread forks with or without the hotplug lock held as a
/// reader.
#[test]
fn forked_child_works_amid_hotplug_and_barriers() {
    in_every_mode(|| {
        fn until_done(body: impl Fn()) {
            while !DONE.load(Ordering::Relaxed) {
                body();
            }
        }
        cpu::start();
        fault::set_hook(defer_run_hook);
        thread::scope(|scope| {
            let cpu = cpu::online().last().expect("a CPU");
            scope.spawn(move || {
                until_done(|| {
                    if cpu::down(cpu).is_ok() {
                        assert_eq!(cpu::up(cpu), Ok(()));
                    }
                });
            });
            for body in [heap::barrier, || drop(cpu::read_lock()), defer_run] {
                scope.spawn(move || until_done(body));
            }
            for number in 0..30 {
                let cpus = (number % 3 == 0).then(cpu::read_lock);
                let child = fork();
                if child == 0 {
                    drop(cpus);
                    exercise_in_child();
                }
                drop(cpus);
                wait_for(child);
            }
            DONE.store(true, Ordering::Relaxed);
        });
        exercise_allocator();
    });
}

/// Threads of the parent sleep on the hotplug lock. The child wakes its own sleepers, not the
/// parent's.
#[test]
fn forked_child_wakes_its_own_sleepers() {
    with_decay(|| {
        let all: Vec<_> = cpu::read_lock().online().collect();
        let cpus = cpu::read_lock();
        thread::scope(|scope| {
            let (start, started) = mpsc::channel();
            let take_down = move || {
                start.send(this_thread()).expect("the receiver waits");
                let is_down = all.iter().any(|cpu| cpu::down(*cpu).is_ok());
                assert!(is_down || all.len() < 2, "no CPU could be taken offline");
            };
            let wait_and_change = |stack: usize| {
                let thread = thread::Builder::new().stack_size(stack);
                let sleeper = thread.spawn_scoped(scope, take_down.clone()).expect("a thread");
                wait_until_asleep(started.recv().expect("the thread starts"));
                sleeper
            };
            let _sleeper = wait_and_change(1 << 20);
            let child = fork();
            if child == 0 {
                // A stack other than the parent's sleeper's, so that the state that the sleeper
                // left in the lock stays intact.
                let sleeper = wait_and_change(16 << 20);
                drop(cpus);
                sleeper.join().expect("the thread ends well");
                exercise_allocator();
                exit_child();
            }
            wait_for(child);
            drop(cpus);
        });
    });
}

/// The parent's threads contend for locks by creating and destroying caches, and so do the child's.
/// The child's locks have no waiters of the parent.
#[test]
fn forked_child_inherits_no_lock_waiters() {
    fn create_and_destroy_caches(prefix: &str, rounds: usize) {
        for round in 0..rounds {
            let name = format!("{prefix} {round}");
            let cache = Cache::builder(&name, Layout::new::<[u64; 9]>()).build().expect("a cache");
            let object = cache.alloc().expect("memory");
            // SAFETY: the object belongs to this cache and is freed once.
            unsafe { cache.free(object) };
            cache.destroy().expect("no object is in use");
        }
    }
    on_both_backends(|| {
        thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    while !DONE.load(Ordering::Relaxed) {
                        create_and_destroy_caches(&format!("parent {number}"), 1);
                    }
                });
            }
            for _ in 0..10 {
                let child = fork();
                if child == 0 {
                    thread::scope(|scope| {
                        for number in 0..8 {
                            scope.spawn(move || {
                                create_and_destroy_caches(&format!("child {number}"), 5)
                            });
                        }
                    });
                    exercise_allocator();
                    exit_child();
                }
                wait_for(child);
            }
            DONE.store(true, Ordering::Relaxed);
        });
        exercise_allocator();
    });
}

/// The child of a fork can create, use and destroy caches, although the parent forked while other
/// threads did so.
#[test]
fn forked_child_can_use_caches() {
    on_both_backends(|| {
        let before = unmerged("before", 40);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..2 {
                let done = &done;
                scope.spawn(move || {
                    let mut round = 0;
                    while !done.load(Ordering::Relaxed) {
                        let cache = unmerged(&format!("{number}-{round}"), 56);
                        let _reading = (round % 3 == 0).then(rcu::read_lock);
                        let objects = alloc_filled(&cache, 50);
                        check_and_free(&cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                        drop(_reading);
                        cache.destroy().expect("no object is in use");
                        round += 1;
                    }
                });
            }
            for round in 0..60 {
                let reading = (round % 2 == 0).then(rcu::read_lock);
                let child = fork();
                if child == 0 {
                    drop(reading);
                    let cache = unmerged("in the child", 64);
                    for cache in [&before, &cache] {
                        let objects = alloc_filled(cache, 100);
                        check_and_free(cache, &objects, |object| {
                            // SAFETY: the object belongs to this cache, has no readers, and is
                            // freed once.
                            unsafe { cache.free_rcu(object) }
                        });
                    }
                    cache.destroy().expect("no object is in use");
                    exit_child();
                }
                drop(reading);
                wait_for(child);
            }
            done.store(true, Ordering::Relaxed);
        });
        before.destroy().expect("no object is in use");
    });
}
