//! Replays traces on this machine under Hayloft, and under no allocator to measure the replay
//! itself.

use std::alloc::Layout;
use std::hint::{black_box, spin_loop};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

use hayloft_core::kmalloc;
use hayloft_core::size_class::{CLASSES, Class};

use super::trace::{Op, Thread, Trace};
use crate::statistics::median;

/// An allocator that serves a trace.
pub trait Heap: Sync {
    /// Allocates a block of `layout`.
    fn alloc(&self, layout: Layout) -> *mut u8;

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// `block` comes from [`alloc`](Heap::alloc) with the same layout, and nothing uses it
    /// afterwards.
    unsafe fn free(&self, block: *mut u8, layout: Layout);
}

/// Hayloft, without being the allocator of this process.
pub struct Hayloft;

impl Heap for Hayloft {
    #[inline(always)]
    fn alloc(&self, layout: Layout) -> *mut u8 {
        kmalloc::alloc(layout)
    }

    #[inline(always)]
    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees that `block` came from `kmalloc::alloc` with this layout
        // and is unused.
        unsafe { kmalloc::free(block, layout) }
    }
}

/// No allocator: returns a pointer without memory, and ignores frees.
pub struct Nothing;

impl Heap for Nothing {
    #[inline(always)]
    fn alloc(&self, layout: Layout) -> *mut u8 {
        black_box(ptr::without_provenance_mut(layout.align()))
    }

    #[inline(always)]
    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        black_box((block, layout));
    }
}

/// Replays a trace, with each thread on a core of its own as far as there are enough. Returns the
/// nanoseconds of the timed part.
pub fn replay(trace: &Trace, heap: &impl Heap) -> f64 {
    let table: Vec<AtomicPtr<u8>> =
        trace.classes.iter().map(|_| AtomicPtr::new(ptr::null_mut())).collect();
    let layouts: Vec<Layout> = (0..CLASSES).filter_map(Class::from_index).map(layout).collect();
    let barrier = Barrier::new(trace.threads.len());
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let worker = |index: usize, thread: &Thread| {
        if let Some(core) = cores.get(index % cores.len().max(1)) {
            // If the system refuses, the thread stays where it is.
            core_affinity::set_for_current(*core);
        }
        let (before, timed) = thread.ops.split_at(thread.mark);
        let run = |ops: &[_]| operations(ops, trace, &table, &layouts, heap);
        run(before);
        barrier.wait();
        let start = Instant::now();
        run(timed);
        (start, Instant::now())
    };
    let laps: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let worker = &worker;
        let threads = trace.threads.iter().enumerate();
        let threads: Vec<_> =
            threads.map(|(index, thread)| scope.spawn(move || worker(index, thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics here")).collect()
    });
    for (block, class) in table.iter().zip(&trace.classes) {
        let block = block.load(Ordering::Relaxed);
        if !block.is_null() {
            // SAFETY: `operations` allocated the block with this layout, and no thread freed it.
            unsafe { heap.free(block, layouts[usize::from(*class)]) };
        }
    }
    let start = laps.iter().map(|lap| lap.0).min();
    let end = laps.iter().map(|lap| lap.1).max();
    start.zip(end).map_or(0.0, |(start, end)| (end - start).as_nanos() as f64)
}

fn layout(class: Class) -> Layout {
    Layout::from_size_align(class.size(), 8).expect("the size of a class")
}

#[inline(never)]
fn operations(
    ops: &[super::trace::Packed],
    trace: &Trace,
    table: &[AtomicPtr<u8>],
    layouts: &[Layout],
    heap: &impl Heap,
) {
    for packed in ops {
        match packed.op() {
            Op::Alloc(number) => {
                let layout = layouts[usize::from(trace.classes[number as usize])];
                let block = heap.alloc(layout);
                assert!(!block.is_null(), "out of memory");
                // Release: pairs with the Acquire below, on the thread that frees the block.
                table[number as usize].store(block, Ordering::Release);
            }
            Op::Free(number) => {
                let layout = layouts[usize::from(trace.classes[number as usize])];
                let slot = &table[number as usize];
                let block = loop {
                    // Acquire: pairs with the Release above.
                    let block = slot.load(Ordering::Acquire);
                    if !block.is_null() {
                        break block;
                    }
                    spin_loop();
                };
                // Release: pairs with the Acquire in the wait for this block.
                slot.store(ptr::null_mut(), Ordering::Release);
                // SAFETY: the block was allocated with this layout, and the trace frees each block
                // once.
                unsafe { heap.free(block, layout) };
            }
            Op::Await(number) => {
                while !table[number as usize].load(Ordering::Acquire).is_null() {
                    spin_loop();
                }
            }
        }
    }
}

/// Returns the nanoseconds of a trace under Hayloft and under no allocator: medians over `rounds`
/// rounds, in which both alternate.
pub fn measure(trace: &Trace, rounds: usize) -> (f64, f64) {
    let mut hayloft = Vec::new();
    let mut nothing = Vec::new();
    for _ in 0..rounds {
        hayloft.push(replay(trace, &Hayloft));
        nothing.push(replay(trace, &Nothing));
    }
    // Not the minimum: contending threads are sometimes lucky.
    (median(hayloft).unwrap_or(0.0), median(nothing).unwrap_or(0.0))
}

/// Returns the minimum: the time on an otherwise idle machine.
pub fn least(values: Vec<f64>) -> f64 {
    values.into_iter().min_by(f64::total_cmp).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::trace::rule;
    use super::*;

    #[test]
    fn trace_runs_on_threads() {
        let trace = (rule("handoff").unwrap().make)(2);
        assert!(replay(&trace, &Hayloft) > 0.0 && replay(&trace, &Nothing) > 0.0);
    }
}
