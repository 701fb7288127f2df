//! What is counted of what CPUs have to agree on: a known sequence of operations gives known numbers.
//!
//! With the feature `counters` of this package. Nothing in this process but the test uses the allocator.

use std::alloc::Layout;

use alloc_core::counters::{Snapshot, snapshot};
use alloc_core::kmalloc;
use alloc_core::stats::{self, Events};
use tests::sysfs::pin_here;

/// Most objects of a sheaf of this layout's class.
const SHEAF: usize = 256;
const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Acquisitions of the locks of barns, slabs and arenas during `body`.
fn acquired(body: impl FnOnce()) -> [u64; 3] {
    let before = snapshot();
    body();
    let counted = snapshot().since(&before);
    assert!(counted.locks().all(|lock| lock.contended == 0));
    ["barn", "slabs", "arena"].map(|name| of_lock(&counted, name))
}

fn of_lock(counted: &Snapshot, name: &str) -> u64 {
    counted.locks().find(|lock| lock.name == name).expect("there is such a lock").acquired
}

/// Allocates `count` objects.
fn take(objects: &mut Vec<*mut u8>, count: usize) {
    objects.extend((0..count).map(|_| kmalloc::alloc(LAYOUT)));
}

/// Frees `count` objects.
fn give(objects: &mut Vec<*mut u8>, count: usize) {
    for object in objects.drain(..count) {
        // SAFETY: allocated with this layout.
        unsafe { kmalloc::free(object, LAYOUT) };
    }
}

#[test]
fn locks_are_taken_once_in_half_a_sheaf() {
    // Each CPU has sheaves of its own.
    pin_here();
    let mut objects = Vec::with_capacity(8 * SHEAF);

    // A look for partial slabs, a run, and the slab arrives. The arena commits its first memory without the lock, and is asked
    // again.
    assert_eq!(acquired(|| take(&mut objects, 1)), [0, 2, 2]);
    // A sheaf begins with an eighth of its capacity, so that batch was half of this; with each miss it has twice as much: the
    // next two are an eighth and a quarter. An empty barn is passed by.
    assert_eq!(acquired(|| take(&mut objects, SHEAF / 16 - 1)), [0, 0, 0]);
    assert_eq!(acquired(|| take(&mut objects, SHEAF / 8 + SHEAF / 4)), [0, 2, 0]);
    // The next one is of half a sheaf, as are all from then on.
    assert_eq!(acquired(|| take(&mut objects, 1)), [0, 1, 0]);
    assert_eq!(acquired(|| take(&mut objects, SHEAF / 2 - 1)), [0, 0, 0]);
    assert_eq!(acquired(|| take(&mut objects, 1)), [0, 1, 0]);
    // The sheaf holds all but one of these, and is full with these.
    assert_eq!(acquired(|| give(&mut objects, SHEAF / 2 + 1)), [0, 0, 0]);
    // Pairs stay in it.
    let pairs = acquired(|| {
        for _ in 0..1000 {
            take(&mut objects, 1);
            give(&mut objects, 1);
        }
    });
    assert_eq!(pairs, [0, 0, 0]);
    // One more than the sheaf has; and one more than there is room for, which the barn takes.
    assert_eq!(acquired(|| take(&mut objects, SHEAF + 1)), [0, 1, 0]);
    assert_eq!(acquired(|| give(&mut objects, SHEAF / 2 + 1)), [0, 0, 0]);
    assert_eq!(acquired(|| give(&mut objects, SHEAF / 2)), [1, 0, 0]);
    // Which has it for who wants it next.
    assert_eq!(acquired(|| take(&mut objects, SHEAF + 1)), [1, 0, 0]);

    // Each of these allocations found an object in the sheaf, or had it filled.
    let before = events();
    take(&mut objects, 1000);
    let during = events().since(&before);
    assert_eq!(during.hits + during.refills, 1000);
    assert!((1..20).contains(&during.refills), "{during:?}");
    assert!(during.hit_rate().is_some_and(|rate| rate > 0.9), "{during:?}");
}

/// What happened to the sheaves of this layout's class.
fn events() -> Events {
    let stats = stats::gather();
    let ours = stats.caches().find(|cache| cache.object_size == LAYOUT.size());
    ours.expect("the class is in use").events
}
