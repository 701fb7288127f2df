//! Cost of any-context operations and of object caches: the nolock path beside the plain one,
//! caches beside mimalloc, bulk beside single objects, RCU readers, and the latency of a cache's
//! destruction and of a deferred free on an otherwise idle system.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::irq_work::IrqWork;
use hayloft_core::{cpu, kmalloc, nolock, rcu};
use hdrhistogram::Histogram;
use mimalloc::MiMalloc;

const LAYOUT: Layout = Layout::new::<[u64; 16]>();
const BULK: usize = 64;
/// Samples of an operation that is too slow for criterion's loops.
const TIMES: usize = 10_000;

fn construct(object: NonNull<u8>) {
    // SAFETY: the cache passes its constructor an object of `LAYOUT`.
    unsafe { object.write_bytes(0x5a, LAYOUT.size()) };
}

fn constructed(name: &str) -> Cache {
    Cache::builder(name, LAYOUT).ctor(construct).build().expect("a cache")
}

fn pairs(criterion: &mut Criterion) {
    let cache = constructed("pairs");
    let mut group = criterion.benchmark_group("pair of 128 B");
    group.bench_function("kmalloc", |bencher| {
        bencher.iter(|| {
            let block = black_box(kmalloc::alloc(LAYOUT));
            // SAFETY: the line above allocated `block` with this layout, and nothing else frees it.
            unsafe { kmalloc::free(block, LAYOUT) };
        });
    });
    group.bench_function("nolock", |bencher| {
        bencher.iter(|| {
            let block = black_box(nolock::alloc(LAYOUT)).expect("nobody holds a lock");
            // SAFETY: the line above allocated `block` with this layout, and nothing else frees it.
            unsafe { nolock::free(block, LAYOUT) };
        });
    });
    group.bench_function("cache", |bencher| {
        bencher.iter(|| {
            let object = black_box(cache.alloc()).expect("memory");
            // SAFETY: the line above allocated `object` from this cache, and nothing else frees it.
            unsafe { cache.free(object) };
        });
    });
    group.bench_function("cache, free_rcu", |bencher| {
        bencher.iter(|| {
            let object = black_box(cache.alloc()).expect("memory");
            // SAFETY: the line above allocated `object` from this cache, and nothing else frees it.
            unsafe { cache.free_rcu(object) };
        });
    });
    group.bench_function("mimalloc", |bencher| {
        bencher.iter(|| {
            // SAFETY: the size is not zero, and the block is freed once.
            unsafe { MiMalloc.dealloc(black_box(MiMalloc.alloc(LAYOUT)), LAYOUT) };
        });
    });
    group
        .bench_function("rcu reader", |bencher| bencher.iter(|| drop(black_box(rcu::read_lock()))));
    group.finish();
    cache.destroy().expect("nothing is in use");
}

fn bulk(criterion: &mut Criterion) {
    let cache = constructed("bulk");
    let mut group = criterion.benchmark_group("64 objects of 128 B");
    group.throughput(Throughput::Elements(BULK as u64));
    let mut room = [MaybeUninit::uninit(); BULK];
    group.bench_function("bulk", |bencher| {
        bencher.iter(|| {
            assert_eq!(cache.alloc_bulk(black_box(&mut room)), BULK);
            // SAFETY: `alloc_bulk` returned `BULK`, so it wrote every element of `room`.
            let objects = room.map(|object| unsafe { object.assume_init() });
            // SAFETY: `alloc_bulk` just took all of them from this cache, and nothing else frees
            // them.
            unsafe { cache.free_bulk(&objects) };
        });
    });
    group.bench_function("single", |bencher| {
        bencher.iter(|| {
            let objects = black_box([(); BULK].map(|()| cache.alloc().expect("memory")));
            // SAFETY: the line above allocated every object from this cache, and nothing else frees
            // one.
            objects.iter().for_each(|object| unsafe { cache.free(*object) });
        });
    });
    group.finish();
    cache.destroy().expect("nothing is in use");
}

/// Prints the distribution of the durations that `TIMES` calls of `body` return.
fn distribution(name: &str, mut body: impl FnMut() -> Duration) {
    const LONGEST: u64 = 10_000_000_000;
    let histogram = Histogram::<u64>::new_with_bounds(1, LONGEST, 3);
    let mut histogram = histogram.expect("ten seconds in three digits");
    for _ in 0..TIMES {
        histogram.saturating_record(body().as_nanos() as u64);
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{name}: median {:.1} µs, p99 {:.1} µs, max {:.1} µs",
        at(0.5),
        at(0.99),
        histogram.max() as f64 / 1000.0
    );
}

fn waits(_: &mut Criterion) {
    cpu::start();
    distribution("destroy an empty cache", || {
        let builder = Cache::builder("waits", LAYOUT).flags(CacheFlags::NO_MERGE);
        let cache = builder.build().expect("a cache");
        let object = cache.alloc().expect("memory");
        // SAFETY: the line above allocated `object` from this cache, and nothing else frees it.
        unsafe { cache.free(object) };
        let start = Instant::now();
        cache.destroy().expect("nothing is in use");
        start.elapsed()
    });
    // Follows the path of a deferred free: the item is queued on the CPU that runs this thread, and
    // that CPU's own thread frees the block.
    distribution("irq work that frees a block", || {
        let block = kmalloc::alloc(LAYOUT);
        PUT_OFF.store(block, Ordering::Release);
        let start = Instant::now();
        assert!(FREE.queue());
        while !PUT_OFF.load(Ordering::Acquire).is_null() {
            std::hint::spin_loop();
        }
        let elapsed = start.elapsed();
        FREE.sync();
        elapsed
    });
}

static PUT_OFF: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static FREE: IrqWork = IrqWork::new(|_| {
    let block = PUT_OFF.load(Ordering::Acquire);
    // SAFETY: `waits` stored a block of this layout, and only this function frees it.
    unsafe { kmalloc::free(block, LAYOUT) };
    PUT_OFF.store(ptr::null_mut(), Ordering::Release);
});

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = pairs, bulk, waits
}
criterion_main!(benches);
