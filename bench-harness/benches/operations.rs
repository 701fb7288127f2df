//! Single operations of the allocator. Each operation and size has a group of its own, with Hayloft
//! beside mimalloc.
//!
//! Both allocators are called directly through `GlobalAlloc`. Neither is the global allocator, so
//! criterion's own allocations disturb neither.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hayloft::Hayloft;
use mimalloc::MiMalloc;

const SIZES: [usize; 5] = [16, 64, 512, 4096, 65_536];
/// Blocks in a batch.
const BATCH: usize = 1000;

/// Allocates and frees one block.
fn pair(allocator: &impl GlobalAlloc, layout: Layout) {
    // SAFETY: the size is not zero, and the block is freed once with its own layout.
    unsafe {
        let block = black_box(allocator.alloc(black_box(layout)));
        allocator.dealloc(block, layout);
    }
}

/// Allocates zeroed memory, dirties it, and frees it.
fn zeroed(allocator: &impl GlobalAlloc, layout: Layout) {
    // SAFETY: the size is not zero, the write stays within the block, and the block is freed once
    // with its own layout.
    unsafe {
        let block = black_box(allocator.alloc_zeroed(black_box(layout)));
        block.write_bytes(0xa5, layout.size());
        allocator.dealloc(black_box(block), layout);
    }
}

/// Allocates a block, grows it to twice its size, and frees it.
fn realloc(allocator: &impl GlobalAlloc, layout: Layout) {
    // SAFETY: no size is zero, and each use and free passes the block's current layout.
    unsafe {
        let block = black_box(allocator.alloc(black_box(layout)));
        block.write(1);
        let grown = Layout::from_size_align_unchecked(layout.size() * 2, layout.align());
        let block = black_box(allocator.realloc(block, layout, grown.size()));
        allocator.dealloc(block, grown);
    }
}

/// Allocates `BATCH` blocks, then frees them in the order of their allocation.
fn batch(allocator: &impl GlobalAlloc, layout: Layout, blocks: &mut Vec<*mut u8>) {
    // SAFETY: the size is not zero, and every block is freed once with its own layout.
    unsafe {
        for _ in 0..BATCH {
            blocks.push(allocator.alloc(layout));
        }
        for block in blocks.drain(..) {
            allocator.dealloc(block, layout);
        }
    }
}

/// Benchmarks one operation, compiled separately for each of the two allocators.
macro_rules! group {
    ($criterion:expr, $name:literal, $elements:expr, $operation:expr) => {
        for size in SIZES {
            let layout = Layout::from_size_align(size, 8).expect("a valid layout");
            let mut group = $criterion.benchmark_group(format!("{}/{size}", $name));
            group.throughput(Throughput::Elements($elements));
            group.bench_function(BenchmarkId::from_parameter("hayloft"), |bencher| {
                bencher.iter(|| $operation(&Hayloft, layout))
            });
            group.bench_function(BenchmarkId::from_parameter("mimalloc"), |bencher| {
                bencher.iter(|| $operation(&MiMalloc, layout))
            });
            group.finish();
        }
    };
}

fn operations(criterion: &mut Criterion) {
    group!(criterion, "pair", 1, pair);
    group!(criterion, "zeroed", 1, zeroed);
    group!(criterion, "realloc", 1, realloc);
    let mut blocks = Vec::with_capacity(BATCH);
    group!(criterion, "batch", BATCH as u64, |allocator, layout| batch(
        allocator,
        layout,
        &mut blocks
    ));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = operations
}
criterion_main!(benches);
