//! Traces replayed on this machine: by Hayloft, and by nothing at all, which tells what the replaying itself takes.

use std::alloc::Layout;
use std::hint::{black_box, spin_loop};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

use alloc_core::kmalloc;
use alloc_core::size_class::{CLASSES, Class};

use super::trace::{Op, Thread, Trace};
use crate::compare::statistics::median;

/// Who serves a trace.
pub trait Heap: Sync {
    /// Allocates for a layout.
    fn alloc(&self, layout: Layout) -> *mut u8;

    /// Frees.
    ///
    /// # Safety
    /// `block` is from [`alloc`](Heap::alloc), with the same layout, and nobody uses it.
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
        // SAFETY: the caller's promise.
        unsafe { kmalloc::free(block, layout) }
    }
}

/// Gives nothing and takes it back.
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

/// Replays a trace, each thread on a core of its own as far as there are any; nanoseconds of its timed part.
pub fn replay(trace: &Trace, heap: &impl Heap) -> f64 {
    let table: Vec<AtomicPtr<u8>> =
        trace.classes.iter().map(|_| AtomicPtr::new(ptr::null_mut())).collect();
    let layouts: Vec<Layout> = (0..CLASSES).filter_map(Class::from_index).map(layout).collect();
    let barrier = Barrier::new(trace.threads.len());
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let worker = |index: usize, thread: &Thread| {
        if let Some(core) = cores.get(index % cores.len().max(1)) {
            // A refusal leaves the thread where it is.
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
            // SAFETY: allocated by `operations` with this layout, and still there.
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
                // Release: pairs with the Acquire below, on the thread that frees it.
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
                // Release: pairs with the Acquire in the wait for it.
                slot.store(ptr::null_mut(), Ordering::Release);
                // SAFETY: allocated with this layout; the trace frees each block once.
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

/// Nanoseconds of a trace under Hayloft and under nothing, medians of so many rounds in which both take turns.
pub fn measure(trace: &Trace, rounds: usize) -> (f64, f64) {
    let mut hayloft = Vec::new();
    let mut nothing = Vec::new();
    for _ in 0..rounds {
        hayloft.push(replay(trace, &Hayloft));
        nothing.push(replay(trace, &Nothing));
    }
    // Not the least: threads that contend are lucky at times.
    (median(hayloft).unwrap_or(0.0), median(nothing).unwrap_or(0.0))
}

/// The least: what it takes when nobody else uses the machine meanwhile.
pub fn least(values: Vec<f64>) -> f64 {
    values.into_iter().min_by(f64::total_cmp).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::trace::rule;
    use super::*;

    #[test]
    fn a_trace_runs_on_threads() {
        let trace = (rule("handoff").unwrap().make)(2);
        assert!(replay(&trace, &Hayloft) > 0.0 && replay(&trace, &Nothing) > 0.0);
    }
}
