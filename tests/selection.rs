//! The selection of the backend by the first slow path.
//!
//! The test code itself uses the system's allocator, so that a test decides when the first slow
//! path runs.

use std::alloc::{GlobalAlloc as _, Layout};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};

use hayloft_core::fault::{self, Place};
use tests::entry_points::Hayloft;
use tests::process::{this_thread, wait_until_asleep};
use tests::scenario::on_both_backends;

fn allocate() {
    // SAFETY: the size is not zero.
    let block = unsafe { Hayloft.alloc(Layout::new::<u64>()) };
    assert!(!block.is_null(), "there is no memory");
}

/// A thread that waits for the selection must not need the CPU of the thread that selects. It may
/// be of a real-time policy, and yields only to threads of its priority.
#[test]
fn threads_sleep_while_another_selects_the_backend() {
    static WAITER: AtomicI32 = AtomicI32::new(0);
    static HANDLE: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);
    on_both_backends(|| {
        fault::set_hook(|place| {
            if place == Place::BackendDeciding {
                let waiter = thread::spawn(|| {
                    WAITER.store(this_thread(), Ordering::Relaxed);
                    allocate();
                });
                *HANDLE.lock().expect("no thread panics") = Some(waiter);
                while WAITER.load(Ordering::Relaxed) == 0 {
                    thread::yield_now();
                }
                wait_until_asleep(WAITER.load(Ordering::Relaxed));
            }
        });
        allocate();
        let waiter = HANDLE.lock().expect("no thread panics").take().expect("the hook ran");
        waiter.join().expect("the waiter does not panic");
    });
}
