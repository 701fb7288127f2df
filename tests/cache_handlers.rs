//! Caches in signal handlers.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use hayloft_core::cache::Cache;
use hayloft_core::rcu;
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::process::this_thread;
use tests::scenario::on_both_backends;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// `destroy` finds the objects that a signal handler freed.
#[test]
fn handlers_can_use_caches() {
    static SHARED: AtomicPtr<Cache> = AtomicPtr::new(std::ptr::null_mut());
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: the pointer is set before the first signal, and the cache outlives the last.
        let cache = unsafe { &*SHARED.load(Ordering::Acquire) };
        let _reading = rcu::read_lock();
        if let Ok(object) = cache.alloc() {
            // SAFETY: the object was just allocated, is 72 bytes long, and is freed once.
            unsafe {
                object.write_bytes(1, 72);
                match HANDLED.fetch_add(1, Ordering::Relaxed) % 3 {
                    0 => cache.free(object),
                    1 => cache.free_nolock(object),
                    _ => cache.free_rcu(object),
                }
            }
        }
    }
    on_both_backends(|| {
        let cache = unmerged("in handlers", 72);
        SHARED.store((&raw const cache).cast_mut(), Ordering::Release);
        // SAFETY: the handler calls only what a signal handler may call.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let (cache, done) = (&cache, &done);
                    let (start, started) = mpsc::channel();
                    scope.spawn(move || {
                        start.send(this_thread()).expect("the receiver waits");
                        while !done.load(Ordering::Relaxed) {
                            let objects = alloc_filled(cache, 150);
                            check_and_free(cache, &objects, |object| {
                                // SAFETY: the object belongs to this cache, has no readers, and is
                                // freed once.
                                unsafe { cache.free_rcu(object) }
                            });
                        }
                    });
                    started.recv().expect("the worker starts")
                })
                .collect();
            // A signal that arrives while another is pending is lost, hence the count of handled
            // ones.
            for worker in workers.iter().cycle() {
                if HANDLED.load(Ordering::Relaxed) >= 5000 {
                    break;
                }
                // SAFETY: the call touches no memory, and the workers run until `done` is set.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *worker, libc::SIGUSR1) };
            }
            done.store(true, Ordering::Relaxed);
        });
        cache.destroy().expect("no object is in use");
    });
}
