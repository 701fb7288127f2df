//! Readers: an object stays intact until the readers that may have found it are gone, and memory
//! that waits for readers is freed in the end.

use std::alloc::Layout;
use std::os::unix::thread::{JoinHandleExt as _, RawPthread};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::{fault, heap, rcu};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::process::{this_thread, wait_until_asleep};
use tests::scenario::on_both_backends;
use tests::slow_paths::{defer_run, defer_run_hook};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

#[test]
fn objects_stay_intact_while_readers_hold_them() {
    on_both_backends(|| {
        let cache = unmerged("read", 64);
        let (found, is_found) = mpsc::channel();
        let (resume, resumed) = mpsc::channel::<()>();
        let object = cache.alloc().expect("memory");
        // SAFETY: the object was just allocated and is 64 bytes long.
        unsafe { object.write_bytes(7, 64) };
        let shared = &AtomicPtr::new(object.as_ptr());
        thread::scope(|scope| {
            scope.spawn(move || {
                let reading = rcu::read_lock();
                let object = shared.load(Ordering::Acquire);
                found.send(()).expect("the writer waits");
                resumed.recv().expect("the writer continues");
                // SAFETY: a reader found the object and has not left its critical section, so the
                // object is intact.
                let bytes = unsafe { std::slice::from_raw_parts(object, 64) };
                assert!(bytes.iter().all(|byte| *byte == 7), "the object was reused");
                drop(reading);
            });
            is_found.recv().expect("the reader reports");
            shared.store(std::ptr::null_mut(), Ordering::Release);
            // SAFETY: the object belongs to this cache and is freed once. Later readers cannot find
            // it.
            unsafe { cache.free_rcu(object) };
            // None of the thousands of objects allocated meanwhile is the one that the reader
            // holds.
            for _ in 0..20 {
                let others = alloc_filled(&cache, 500);
                assert!(!others.contains(&object), "the object was reused while read");
                check_and_free(&cache, &others, |object| {
                    // SAFETY: the object belongs to this cache, has no readers, and is freed once.
                    unsafe { cache.free_rcu(object) }
                });
            }
            resume.send(()).expect("the reader waits");
        });
        rcu::barrier();
        assert_eq!(cache.stats().in_use, 0);
        cache.destroy().expect("no object is in use");
    });
}

/// In a program that has become idle, one or two window ends complete the frees that a signal
/// handler deferred and those that wait for readers. Such a program has no CPU threads, and none of
/// its threads waits.
#[test]
fn idle_programs_complete_deferred_frees() {
    on_both_backends(|| {
        fault::set_hook(defer_run_hook);
        defer_run();
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

/// A thread that is cancelled while it waits for readers continues, since it may hold locks.
#[test]
fn waiting_for_readers_is_not_a_cancellation_point() {
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
        waiter.join().expect("the thread does not panic");
        assert!(DONE.load(Ordering::Relaxed), "the thread was cancelled");
    });
}
