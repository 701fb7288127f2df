//! Counts of lock acquisitions and sheaf events: a known sequence of operations yields known
//! numbers.
//!
//! Needs this package's feature `counters`. No other code in this process uses the allocator.

use std::alloc::Layout;

use hayloft_core::counters::{Snapshot, snapshot};
use hayloft_core::kmalloc;
use hayloft_core::stats::{self, Events};
use tests::sysfs::pin_here;

/// Capacity of a sheaf of `LAYOUT`'s class.
const SHEAF: usize = 256;
const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Returns the acquisitions of the barn, slabs and arena locks during `body`. None may be
/// contended.
fn acquired(body: impl FnOnce()) -> [u64; 3] {
    let before = snapshot();
    body();
    let counted = snapshot().since(&before);
    assert!(counted.locks().all(|lock| lock.contended == 0), "a lock was contended");
    ["barn", "slabs", "arena"].map(|name| acquisitions_of(&counted, name))
}

fn acquisitions_of(counted: &Snapshot, name: &str) -> u64 {
    counted.locks().find(|lock| lock.name == name).expect("the lock is counted").acquired
}

/// Allocates `count` objects.
fn alloc_objects(objects: &mut Vec<*mut u8>, count: usize) {
    objects.extend((0..count).map(|_| kmalloc::alloc(LAYOUT)));
}

/// Frees `count` objects.
fn free_objects(objects: &mut Vec<*mut u8>, count: usize) {
    for object in objects.drain(..count) {
        // SAFETY: the object was allocated with `LAYOUT`, and leaves the list.
        unsafe { kmalloc::free(object, LAYOUT) };
    }
}

#[test]
fn locks_are_acquired_once_per_half_sheaf() {
    // Each CPU has its own sheaves.
    pin_here();
    let mut objects = Vec::with_capacity(8 * SHEAF);

    // Slabs lock: once to search the partial slabs, once to list the new slab. Arena lock: once to
    // ask for a run, and again after the arena committed its first memory without the lock.
    assert_eq!(acquired(|| alloc_objects(&mut objects, 1)), [0, 2, 2]);
    // A sheaf starts at an eighth of its capacity, and the first batch was half of that. Each miss
    // doubles it, so the next two batches are an eighth and a quarter of the capacity. An empty
    // barn is skipped without its lock.
    assert_eq!(acquired(|| alloc_objects(&mut objects, SHEAF / 16 - 1)), [0, 0, 0]);
    assert_eq!(acquired(|| alloc_objects(&mut objects, SHEAF / 8 + SHEAF / 4)), [0, 2, 0]);
    // From here on, every batch is half a sheaf.
    assert_eq!(acquired(|| alloc_objects(&mut objects, 1)), [0, 1, 0]);
    assert_eq!(acquired(|| alloc_objects(&mut objects, SHEAF / 2 - 1)), [0, 0, 0]);
    assert_eq!(acquired(|| alloc_objects(&mut objects, 1)), [0, 1, 0]);
    // The sheaf still holds all of the last batch except one object, so these frees fill it
    // exactly.
    assert_eq!(acquired(|| free_objects(&mut objects, SHEAF / 2 + 1)), [0, 0, 0]);
    // Pairs stay within the sheaf.
    let pairs = acquired(|| {
        for _ in 0..1000 {
            alloc_objects(&mut objects, 1);
            free_objects(&mut objects, 1);
        }
    });
    assert_eq!(pairs, [0, 0, 0]);
    // One allocation more than the sheaf holds. Then one free more than it has room for, so that a
    // batch goes to the barn.
    assert_eq!(acquired(|| alloc_objects(&mut objects, SHEAF + 1)), [0, 1, 0]);
    assert_eq!(acquired(|| free_objects(&mut objects, SHEAF / 2 + 1)), [0, 0, 0]);
    assert_eq!(acquired(|| free_objects(&mut objects, SHEAF / 2)), [1, 0, 0]);
    // The barn serves the next miss.
    assert_eq!(acquired(|| alloc_objects(&mut objects, SHEAF + 1)), [1, 0, 0]);

    // Each of these allocations is either a hit or a refill.
    let before = events();
    alloc_objects(&mut objects, 1000);
    let during = events().since(&before);
    assert_eq!((during.allocs, during.hits + during.refills), (1000, 1000));
    assert!((1..20).contains(&during.refills), "{during:?}");
    assert!(during.hit_rate().is_some_and(|rate| rate > 0.9), "{during:?}");
}

/// Returns the sheaf events of `LAYOUT`'s class.
fn events() -> Events {
    let stats = stats::gather();
    let found = stats.caches().find(|cache| cache.object_size == LAYOUT.size());
    found.expect("the class is in use").events
}
