//! Threads that come and go: survivors of dead threads, frees from elsewhere, thread exit.

use std::alloc::Layout;
use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use tests::model::Model;
use tests::pattern;
use tests::process::status_bytes;
use tests::routes::{Hayloft, Registered};
use tests::scenario::on_both_backends;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A buffer whose contents follow from a number.
struct Parcel {
    bytes: Vec<u8>,
    id: u64,
}

impl Parcel {
    fn new(id: u64) -> Self {
        let mut bytes = vec![0; 1 + (pattern::mix(id) % 3000) as usize];
        // SAFETY: the range is the whole vector.
        unsafe { pattern::fill(bytes.as_mut_ptr(), 0, bytes.len(), id) };
        Self { bytes, id }
    }

    fn check(&self) {
        // SAFETY: the range is the whole vector.
        let mismatch =
            unsafe { pattern::find_mismatch(self.bytes.as_ptr(), self.bytes.len(), self.id) };
        assert_eq!(mismatch, None, "parcel {}", self.id);
    }
}

/// Checked on every way to its end.
impl Drop for Parcel {
    fn drop(&mut self) {
        self.check();
    }
}

/// Two thousand short threads, eight at a time. Each leaves survivors and frees some of those left by
/// threads that are gone.
#[test]
fn survivors_of_short_threads() {
    on_both_backends(|| {
        static SURVIVORS: Mutex<Vec<Parcel>> = Mutex::new(Vec::new());
        let survivors = || SURVIVORS.lock().unwrap_or_else(PoisonError::into_inner);
        for wave in 0..250_u64 {
            thread::scope(|scope| {
                for member in 0..8 {
                    scope.spawn(move || {
                        let first = (wave * 8 + member) * 16;
                        let mut parcels: Vec<_> = (first..first + 16).map(Parcel::new).collect();
                        parcels.truncate(10);
                        survivors().append(&mut parcels);
                        for _ in 0..8 {
                            let mut all = survivors();
                            let pick = pattern::mix(first) as usize % all.len();
                            let old = all.swap_remove(pick);
                            drop(all);
                            drop(old);
                        }
                    });
                }
            });
        }
        let left = std::mem::take(&mut *survivors());
        assert_eq!(left.len(), 2000 * (10 - 8));
    });
}

/// Producers allocate, consumers free; no thread frees what it allocated.
#[test]
fn blocks_freed_by_other_threads() {
    on_both_backends(|| {
        thread::scope(|scope| {
            for pair in 0..4_u64 {
                let (sender, receiver) = mpsc::sync_channel::<Vec<Parcel>>(8);
                scope.spawn(move || {
                    for batch in 0..100_u64 {
                        let first = (pair * 100 + batch) * 50;
                        let parcels = (first..first + 50).map(Parcel::new).collect();
                        sender.send(parcels).expect("the consumer listens to the end");
                    }
                });
                scope.spawn(move || {
                    let received: usize = receiver.iter().map(|parcels| parcels.len()).sum();
                    assert_eq!(received, 100 * 50);
                });
            }
        });
    });
}

/// Every thread plays with its own blocks; patterns would show a block given to two of them.
#[test]
fn threads_do_not_share_blocks() {
    on_both_backends(|| {
        thread::scope(|scope| {
            for salt in 0..8 {
                scope.spawn(move || {
                    let mut model = Model::new(Registered, salt);
                    for round in 0..40_u64 {
                        for index in 0..60 {
                            let size = 1 + pattern::mix(salt ^ round << 8 ^ index << 16) % 5000;
                            let layout = Layout::from_size_align(size as usize, 8);
                            model.alloc(layout.expect("a valid layout"));
                        }
                        model.check_all();
                        model.free_all();
                    }
                });
            }
        });
    });
}

/// How many of the destructors below have run.
static DESTROYED: AtomicUsize = AtomicUsize::new(0);

/// A thread-local that uses the heap while it is destroyed.
struct UsesHeapInDrop(RefCell<Vec<Parcel>>);

impl UsesHeapInDrop {
    const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    fn put(&self, id: u64) {
        self.0.borrow_mut().push(Parcel::new(id));
    }
}

impl Drop for UsesHeapInDrop {
    fn drop(&mut self) {
        let fresh: Vec<_> = (100..150).map(Parcel::new).collect();
        self.0.get_mut().extend((200..220).map(Parcel::new));
        self.0.get_mut().clear();
        drop(fresh);
        DESTROYED.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local! {
    static FIRST: UsesHeapInDrop = const { UsesHeapInDrop::new() };
    static SECOND: UsesHeapInDrop = const { UsesHeapInDrop::new() };
    static THIRD: UsesHeapInDrop = const { UsesHeapInDrop::new() };
}

/// Thread-locals that allocate and free in their destructors, after others have died.
#[test]
fn heap_in_thread_local_destructors() {
    on_both_backends(|| {
        for round in 0..50 {
            let exits = thread::spawn(move || {
                // Destroyed in the reverse order of first use, whichever that is.
                if round % 2 == 0 {
                    FIRST.with(|local| local.put(1));
                }
                SECOND.with(|local| local.put(2));
                THIRD.with(|local| local.put(3));
                FIRST.with(|local| local.put(4));
            });
            exits.join().expect("the thread ends well");
        }
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 150);
    });
}

/// The value a key's destructor is given: itself on the heap, with rounds still to go.
struct KeyValue {
    key: libc::pthread_key_t,
    rounds: u32,
    parcels: Vec<Parcel>,
}

/// Runs when all thread-locals are gone. Uses the heap, and asks to be run again while rounds are
/// left, as the C library allows.
unsafe extern "C" fn destroy_key_value(value: *mut c_void) {
    // SAFETY: the value was made by `Box::into_raw`, and the key no longer holds it.
    let mut value = unsafe { Box::from_raw(value.cast::<KeyValue>()) };
    value.parcels.extend((0..40).map(Parcel::new));
    value.parcels.drain(..20);
    match value.rounds.checked_sub(1) {
        Some(rounds) => {
            value.rounds = rounds;
            let key = value.key;
            // SAFETY: the key lives to the end of the process; the box is given up.
            let result = unsafe { libc::pthread_setspecific(key, Box::into_raw(value).cast()) };
            assert_eq!(result, 0);
        }
        None => {
            DESTROYED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Keys of the C library are destroyed after every thread-local: the heap must still be there.
#[test]
fn heap_after_all_thread_locals_died() {
    on_both_backends(|| {
        let mut key = 0;
        // SAFETY: the pointer is valid, and the destructor fits the values set below.
        assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(destroy_key_value)) }, 0);
        for _ in 0..50 {
            let exits = thread::spawn(move || {
                FIRST.with(|local| local.put(1));
                let value = KeyValue { key, rounds: 2, parcels: vec![Parcel::new(9)] };
                let value = Box::into_raw(Box::new(value));
                // SAFETY: the key was created above.
                assert_eq!(unsafe { libc::pthread_setspecific(key, value.cast()) }, 0);
            });
            exits.join().expect("the thread ends well");
        }
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 100);
    });
}

/// A thread of the C library's own, which the Rust runtime has never seen.
extern "C" fn plain_thread(_argument: *mut c_void) -> *mut c_void {
    let parcels: Vec<_> = (0..100).map(Parcel::new).collect();
    FIRST.with(|local| local.put(1));
    Box::into_raw(Box::new(parcels)).cast()
}

#[test]
fn threads_started_from_c() {
    on_both_backends(|| {
        for _ in 0..50 {
            let mut result = ptr::null_mut();
            // SAFETY: the pointers are valid, the start function never unwinds, and the thread is
            // joined once.
            unsafe {
                let mut thread = std::mem::zeroed();
                let argument = ptr::null_mut();
                let attributes = ptr::null();
                let started =
                    libc::pthread_create(&raw mut thread, attributes, plain_thread, argument);
                assert_eq!(started, 0);
                assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
            }
            // SAFETY: the thread returned a box of this type.
            let parcels = unsafe { Box::from_raw(result.cast::<Vec<Parcel>>()) };
            assert_eq!(parcels.len(), 100);
        }
    });
}

/// Ten thousand threads, one after the other, leave nothing behind: from the thousandth on the
/// resident set stays as it is.
#[test]
fn ten_thousand_threads_cost_no_memory() {
    on_both_backends(|| {
        let live_and_die = || {
            let parcels: Vec<_> = (0..20).map(Parcel::new).collect();
            FIRST.with(|local| local.put(1));
            drop(parcels);
        };
        let run = |threads: usize| {
            for _ in 0..threads {
                thread::spawn(live_and_die).join().expect("the thread ends well");
            }
            status_bytes("VmRSS")
        };
        let (early, late) = (run(1000), run(9000));
        let growth = late.saturating_sub(early);
        assert!(growth < 16 << 20, "grew by {growth} bytes, from {early} to {late}");
    });
}
