//! Bytes that threads allocate and free. All of this holds with the feature `thread-totals`, too.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use hayloft::thread::{self, Total};
use hayloft_core::kmalloc::good_size;
use hayloft_core::{profile, stats};
use tests::entry_points::Hayloft;
use tests::scenario::{on_both_backends, on_both_backends_with};
use tests::slow_paths::{among_signals, handle_sigusr1};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const EXACT: bool = cfg!(feature = "thread-totals");

fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    let block = black_box(unsafe { GLOBAL.alloc(layout) });
    assert!(!block.is_null());
    block
}

fn free(block: *mut u8, layout: Layout) {
    // SAFETY: the tests free blocks once, with their layouts.
    unsafe { GLOBAL.dealloc(block, layout) };
}

/// With a mean of one byte, and by the feature, numbers are exact: for all sizes, through `realloc`
/// and growth in place, and apart from other threads.
#[test]
fn bytes_of_a_thread_are_counted() {
    on_both_backends(|| {
        assert!(profile::start(1));
        let (allocated, freed) = (thread::allocated(), thread::freed());
        let mut blocks = [None; 40];
        let mut bytes = 0;
        let sizes = [1, 8, 24, 100, 4096, 5000, 30_000, 40_000, 500_000, 3 << 20];
        let pairs = sizes.into_iter().flat_map(|size| [1, 16, 64, 4096].map(|align| (size, align)));
        for (to, (size, align)) in blocks.iter_mut().zip(pairs) {
            let layout = Layout::from_size_align(size, align).unwrap();
            *to = Some((alloc(layout), layout));
            bytes += good_size(layout) as u64;
        }
        let during = thread::allocated().since(allocated);
        assert_eq!((during.error, thread::freed().since(freed).bytes), (0, 0));
        // A middle block may have come from a larger class.
        assert!(during.bytes >= bytes && during.bytes <= 2 * bytes, "{during:?}, not {bytes}");
        assert!(!EXACT || during.bytes == bytes);
        for (block, layout) in blocks.iter_mut().flatten() {
            let size = 2 * layout.size() + 1;
            // SAFETY: the block is live, and of this layout.
            *block = unsafe { GLOBAL.realloc(*block, *layout, size) };
            *layout = Layout::from_size_align(size, layout.align()).unwrap();
            // SAFETY: as above.
            if unsafe { GLOBAL.grow_in_place(*block, *layout, size + 100) } {
                *layout = Layout::from_size_align(size + 100, layout.align()).unwrap();
            }
        }
        for (block, layout) in blocks.into_iter().flatten() {
            free(block, layout);
        }
        // Flushes the sheaves, on this thread.
        profile::for_each(|_, _| ());
        let all = [thread::allocated().since(allocated), thread::freed().since(freed)];
        assert!(all[0].bytes > 2 * bytes, "{all:?}");
        assert_eq!(all[0].bytes, all[1].bytes, "{all:?}");
        std::thread::spawn(|| {
            let before = thread::allocated();
            assert!(before.bytes < 1 << 20, "{before:?}");
            free(alloc(Layout::new::<[u8; 1 << 20]>()), Layout::new::<[u8; 1 << 20]>());
            assert_eq!(thread::allocated().since(before).bytes, 1 << 20);
        })
        .join()
        .unwrap();
        profile::stop();
    });
}

/// Estimates of several threads are right within five of their errors, and add up to those of the
/// whole program.
#[test]
fn estimates_are_right_within_their_errors() {
    on_both_backends(|| {
        const MEAN: usize = 32 << 10;
        assert!(profile::start(MEAN));
        let run = |rounds: usize| {
            let before = (thread::allocated(), thread::freed());
            let mut bytes = 0;
            for round in 0..rounds {
                let layout = Layout::from_size_align(16 << (round % 10), 8).unwrap();
                free(alloc(layout), layout);
                bytes += layout.size();
            }
            (bytes, thread::allocated().since(before.0), thread::freed().since(before.1))
        };
        let totals: Vec<(usize, Total, Total)> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (1..=4).map(|number| scope.spawn(move || run(number * 30_000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let off = |bytes: usize, found: Total| (found.bytes as f64 - bytes as f64).abs();
        let mut freed = Total::default();
        for (bytes, allocated, freed_here) in &totals {
            let deviation = (*bytes as f64 * MEAN as f64).sqrt();
            assert!(off(*bytes, *allocated) <= 5.0 * deviation, "{allocated:?}, not {bytes}");
            let relative = allocated.error as f64 / deviation;
            assert!(EXACT || (0.6..1.4).contains(&relative), "{relative}: {allocated:?}");
            freed.bytes += freed_here.bytes;
            freed.variance += freed_here.variance;
        }
        let bytes = totals.iter().map(|(bytes, ..)| bytes).sum::<usize>();
        // Blocks that are in sheaves still, a few of a class, are found later.
        let waiting = 64.0 * MEAN as f64;
        assert!(off(bytes, freed) <= 5.0 * (bytes as f64 * MEAN as f64).sqrt() + waiting);
        if !EXACT {
            let all = stats::gather().tags().next().unwrap();
            let of_threads = totals.iter().map(|(_, allocated, _)| allocated.bytes).sum::<u64>();
            assert!(all.alloc_bytes >= of_threads, "{all:?}, {of_threads}");
        }
        profile::stop();
    });
}

/// What handlers allocate is of the thread that they interrupt, and nothing is lost where they
/// interrupt a count.
#[test]
fn handlers_count_for_their_threads() {
    const LAYOUT: Layout = Layout::new::<[u8; 1024]>();
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: libc::c_int) {
        free(alloc(LAYOUT), LAYOUT);
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    // The handler does not come between the two numbers.
    fn counts() -> (usize, Total) {
        loop {
            let handled = HANDLED.load(Ordering::Relaxed);
            let allocated = thread::allocated();
            if handled == HANDLED.load(Ordering::Relaxed) {
                return (handled, allocated);
            }
        }
    }
    on_both_backends(|| {
        assert!(profile::start(1));
        handle_sigusr1(handler);
        among_signals(&HANDLED, || {
            let (handled_before, before) = counts();
            let mut blocks = 0;
            let (handled, found) = loop {
                free(alloc(LAYOUT), LAYOUT);
                blocks += 1;
                let counts = counts();
                if counts.0 > handled_before + 1000 {
                    break counts;
                }
            };
            let in_handlers = handled - handled_before;
            let found = found.since(before).bytes as usize / LAYOUT.size();
            blocks += in_handlers;
            // A handler that interrupts a slow path may get a block that is not sampled.
            assert!(found <= blocks && found + in_handlers >= blocks, "{found} of {blocks}");
            assert!(!EXACT || found == blocks, "{found} of {blocks}");
        });
        profile::stop();
    });
}

/// Without samples and without the feature there are no numbers.
#[test]
fn threads_without_samples_have_no_estimates() {
    on_both_backends_with(&[("HAYLOFT_PROFILE", "")], || {
        let before = thread::allocated();
        let layout = Layout::new::<[u8; 1000]>();
        free(alloc(layout), layout);
        let bytes = if EXACT { good_size(layout) as u64 } else { 0 };
        assert_eq!(thread::allocated().since(before).bytes, bytes);
        assert_eq!(thread::allocated().error, 0);
    });
}
