//! A shared library whose allocator is Hayloft, which `shared.rs` loads and closes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Whether this library's constructor could use the heap.
static CONSTRUCTED: AtomicBool = AtomicBool::new(false);

extern "C" fn construct() {
    CONSTRUCTED.store(words(500).concat().len() == 1390, Ordering::Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = construct;

fn words(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// An object on this library's heap.
#[derive(Debug)]
pub struct Words(Vec<String>);

/// Allocates in several threads. Returns the number of calls so far, or 0 if a result is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn shared_allocate() -> usize {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(|| words(1000))).collect();
    let lengths =
        threads.into_iter().map(|thread| thread.join().map_or(0, |all| all.concat().len()));
    let is_right = lengths.map(|length| length == 2890).min() == Some(true);
    let calls = 1 + CALLS.fetch_add(1, Ordering::Relaxed);
    if is_right && CONSTRUCTED.load(Ordering::Relaxed) { calls } else { 0 }
}

/// Makes an object that outlives the call.
#[unsafe(no_mangle)]
pub extern "C" fn shared_make() -> Box<Words> {
    Box::new(Words(words(1000)))
}

/// Drops `made`. Returns whether it was intact.
#[unsafe(no_mangle)]
pub extern "C" fn shared_drop(made: Box<Words>) -> bool {
    made.0.concat().len() == 2890
}

/// Starts threads that allocate and free as long as the process lives.
#[unsafe(no_mangle)]
pub extern "C" fn shared_start_threads() {
    for _ in 0..2 {
        thread::spawn(|| {
            loop {
                assert_eq!(words(100).concat().len(), 190);
            }
        });
    }
}
