//! Threads that start and exit: blocks that outlive their threads, frees by other threads, and
//! frees during thread exit.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::fs;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tests::entry_points::{Hayloft, Registered};
use tests::model::Model;
use tests::pattern;
use tests::process::status_bytes;
use tests::scenario::{Scenario, with_decay};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A buffer whose contents are recomputed from a number.
struct CheckedBuffer {
    bytes: Vec<u8>,
    id: u64,
}

impl CheckedBuffer {
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
        assert_eq!(mismatch, None, "the contents of buffer {} changed", self.id);
    }
}

/// Checks the contents, wherever the buffer is dropped.
impl Drop for CheckedBuffer {
    fn drop(&mut self) {
        self.check();
    }
}

/// Two thousand short threads run, eight at a time. Each leaves blocks behind and frees some of
/// those that dead threads left.
#[test]
fn blocks_outlive_their_threads() {
    with_decay(|| {
        static SURVIVORS: Mutex<Vec<CheckedBuffer>> = Mutex::new(Vec::new());
        let survivors = || SURVIVORS.lock().unwrap_or_else(PoisonError::into_inner);
        for wave in 0..250_u64 {
            thread::scope(|scope| {
                for member in 0..8 {
                    scope.spawn(move || {
                        let first = (wave * 8 + member) * 16;
                        let mut buffers: Vec<_> =
                            (first..first + 16).map(CheckedBuffer::new).collect();
                        buffers.truncate(10);
                        survivors().append(&mut buffers);
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

/// Producers allocate and consumers free, so no thread frees its own blocks.
#[test]
fn other_threads_can_free_blocks() {
    with_decay(|| {
        thread::scope(|scope| {
            for pair in 0..4_u64 {
                let (sender, receiver) = mpsc::sync_channel::<Vec<CheckedBuffer>>(8);
                scope.spawn(move || {
                    for batch in 0..100_u64 {
                        let first = (pair * 100 + batch) * 50;
                        let buffers = (first..first + 50).map(CheckedBuffer::new).collect();
                        sender.send(buffers).expect("the consumer receives until the end");
                    }
                });
                scope.spawn(move || {
                    let received: usize = receiver.iter().map(|buffers| buffers.len()).sum();
                    assert_eq!(received, 100 * 50);
                });
            }
        });
    });
}

/// Each thread uses its own blocks. Their patterns would reveal a block handed out to two threads.
#[test]
fn threads_do_not_share_blocks() {
    with_decay(|| {
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

/// Number of destructors below that have run.
static DESTROYED: AtomicUsize = AtomicUsize::new(0);

/// A thread-local that uses the heap while it is destroyed.
struct UsesHeapInDrop(RefCell<Vec<CheckedBuffer>>);

impl UsesHeapInDrop {
    const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    fn put(&self, id: u64) {
        self.0.borrow_mut().push(CheckedBuffer::new(id));
    }
}

impl Drop for UsesHeapInDrop {
    fn drop(&mut self) {
        let fresh: Vec<_> = (100..150).map(CheckedBuffer::new).collect();
        self.0.get_mut().extend((200..220).map(CheckedBuffer::new));
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

/// Thread-locals allocate and free in their destructors, after others were destroyed.
#[test]
fn heap_works_in_thread_local_destructors() {
    with_decay(|| {
        for round in 0..50 {
            let exits = thread::spawn(move || {
                // Varies the order of first use, since destruction takes the reverse order.
                if round % 2 == 0 {
                    FIRST.with(|local| local.put(1));
                }
                SECOND.with(|local| local.put(2));
                THIRD.with(|local| local.put(3));
                FIRST.with(|local| local.put(4));
            });
            exits.join().expect("the thread does not panic");
        }
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 150);
    });
}

/// The value of a key. It is on the heap itself, and counts the rounds of destruction left.
struct KeyValue {
    key: libc::pthread_key_t,
    rounds: u32,
    buffers: Vec<CheckedBuffer>,
}

/// Uses the heap after all thread-locals were destroyed. While rounds are left, requests another
/// one, as the C library allows.
unsafe extern "C" fn destroy_key_value(value: *mut c_void) {
    // SAFETY: `Box::into_raw` made the value, and the key no longer holds it.
    let mut value = unsafe { Box::from_raw(value.cast::<KeyValue>()) };
    value.buffers.extend((0..40).map(CheckedBuffer::new));
    value.buffers.drain(..20);
    match value.rounds.checked_sub(1) {
        Some(rounds) => {
            value.rounds = rounds;
            let key = value.key;
            // SAFETY: the key exists until the process ends, and takes over the box.
            let result = unsafe { libc::pthread_setspecific(key, Box::into_raw(value).cast()) };
            assert_eq!(result, 0);
        }
        None => {
            DESTROYED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The C library destroys keys after every thread-local. The heap must still work then.
#[test]
fn heap_works_after_all_thread_locals_are_destroyed() {
    with_decay(|| {
        let mut key = 0;
        // SAFETY: the pointer is valid, and the destructor fits the values that are set below.
        assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(destroy_key_value)) }, 0);
        for _ in 0..50 {
            let exits = thread::spawn(move || {
                FIRST.with(|local| local.put(1));
                let value = KeyValue { key, rounds: 2, buffers: vec![CheckedBuffer::new(9)] };
                let value = Box::into_raw(Box::new(value));
                // SAFETY: the key was created above, and takes over the box.
                assert_eq!(unsafe { libc::pthread_setspecific(key, value.cast()) }, 0);
            });
            exits.join().expect("the thread does not panic");
        }
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 100);
    });
}

/// Runs in a thread that the C library started and that the Rust runtime has not seen.
extern "C" fn plain_thread(_argument: *mut c_void) -> *mut c_void {
    let buffers: Vec<_> = (0..100).map(CheckedBuffer::new).collect();
    FIRST.with(|local| local.put(1));
    Box::into_raw(Box::new(buffers)).cast()
}

#[test]
fn heap_works_in_threads_started_from_c() {
    with_decay(|| {
        for _ in 0..50 {
            let mut result = ptr::null_mut();
            // SAFETY: the pointers are valid, the start function does not unwind, and the thread is
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
            let buffers = unsafe { Box::from_raw(result.cast::<Vec<CheckedBuffer>>()) };
            assert_eq!(buffers.len(), 100);
        }
    });
}

/// The process's use of the system: resident bytes, threads and mappings.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    resident: usize,
    threads: usize,
    mappings: usize,
}

impl Footprint {
    /// Measures the process, after releasing memory kept for later and waiting for joined threads
    /// to disappear.
    fn now() -> Self {
        hayloft::trim();
        let threads = || fs::read_dir("/proc/self/task").expect("/proc is mounted").count();
        for _ in 0..60_000 {
            // The main thread, the test's, and the one that reclaims memory.
            if threads() <= 3 {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        Self { resident: status_bytes("VmRSS"), threads: threads(), mappings: maps.lines().count() }
    }
}

/// A thread-local that frees and allocates a little when it is destroyed.
struct AllocatesInDrop(RefCell<Vec<CheckedBuffer>>);

impl Drop for AllocatesInDrop {
    fn drop(&mut self) {
        self.0.get_mut().push(CheckedBuffer::new(7));
    }
}

thread_local! {
    static ALLOCATES_IN_DROP: AllocatesInDrop = const { AllocatesInDrop(RefCell::new(Vec::new())) };
}

/// Runs a hundred thousand threads, in waves. Each allocates and frees, leaves blocks for later
/// threads, frees what earlier ones left, and uses the heap while its thread-locals and the C
/// library's keys are destroyed. Returns the footprint after the first ten thousand threads and at
/// the end.
fn run_a_hundred_thousand_threads() -> [Footprint; 2] {
    const WAVE: u64 = 20;
    static LEFT: Mutex<VecDeque<CheckedBuffer>> = Mutex::new(VecDeque::new());
    /// Number of threads that reached the very end of their destruction.
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    /// Number of the key's last value.
    const LAST: u64 = u64::MAX;
    static KEY: AtomicU32 = AtomicU32::new(0);

    /// Runs twice per thread. The second time comes after all other keys, this allocator's
    /// included, had their turn.
    unsafe extern "C" fn destroy(value: *mut c_void) {
        // SAFETY: `Box::into_raw` made the value, and the key no longer holds it.
        let buffer = unsafe { Box::from_raw(value.cast::<CheckedBuffer>()) };
        if buffer.id == LAST {
            ENDED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let last: *mut CheckedBuffer = Box::into_raw(Box::new(CheckedBuffer::new(LAST)));
        let key = KEY.load(Ordering::Relaxed);
        // SAFETY: the key exists until the process ends, and takes over the box.
        assert_eq!(unsafe { libc::pthread_setspecific(key, last.cast()) }, 0);
    }

    fn run_thread(number: u64) {
        let left = || LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers: Vec<_> = (number * 8..number * 8 + 8).map(CheckedBuffer::new).collect();
        ALLOCATES_IN_DROP.with(|local| local.0.borrow_mut().extend(buffers.pop()));
        let value: *mut CheckedBuffer = Box::into_raw(Box::new(CheckedBuffer::new(number)));
        // SAFETY: the key was created before the threads, and takes over the box.
        let result =
            unsafe { libc::pthread_setspecific(KEY.load(Ordering::Relaxed), value.cast()) };
        assert_eq!(result, 0);
        let old: Vec<_> = {
            let mut left = left();
            left.extend(buffers.drain(..4));
            let surplus = left.len().saturating_sub(500);
            left.drain(..surplus).collect()
        };
        drop(old);
    }

    let mut key = 0;
    // SAFETY: the pointer is valid, and the destructor fits the values that the threads set.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(destroy)) }, 0);
    KEY.store(key, Ordering::Relaxed);
    let run = |numbers: Range<u64>| {
        for first in numbers.step_by(WAVE as usize) {
            let wave =
                (first..first + WAVE).map(|number| thread::spawn(move || run_thread(number)));
            let wave: Vec<_> = wave.collect();
            wave.into_iter().for_each(|thread| thread.join().expect("the thread does not panic"));
        }
        Footprint::now()
    };
    let early = run(0..10_000);
    let late = run(10_000..100_000);
    assert_eq!(ENDED.load(Ordering::Relaxed), 100_000);
    [early, late]
}

/// Checks that ninety thousand threads left less memory than a small block each, and no threads or
/// mappings.
fn assert_no_leak([early, late]: [Footprint; 2]) {
    let growth = late.resident.saturating_sub(early.resident);
    assert!(growth < 2 << 20, "resident memory grew by {growth} bytes: {early:?}, {late:?}");
    assert!(late.threads <= early.threads.max(3), "{early:?}, {late:?}");
    // The C library caches up to 40 MiB of stacks, two mappings each, for as many threads as were
    // alive at once.
    assert!(late.mappings <= early.mappings + 64, "{early:?}, {late:?}");
}

#[test]
fn a_hundred_thousand_threads_leak_nothing() {
    with_decay(|| assert_no_leak(run_a_hundred_thousand_threads()));
}

/// The same where the allocator itself registers and unregisters each thread for restartable
/// sequences.
#[test]
fn a_hundred_thousand_registrations_leak_nothing() {
    Scenario::new("", || assert_no_leak(run_a_hundred_thousand_threads()))
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .env("HAYLOFT_BACKEND", "rseq")
        .succeeds();
}
