//! `record`: runs a workload under an allocator that writes down what it is asked for, and makes a trace of it.
//!
//! Blocks that no size class serves are left out: they are runs of pages, of which the model knows only those of slabs. Time
//! that the program spends on itself, and waits that have nothing to do with memory, are not recorded.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use alloc_core::size_class::{Class, class_of};
use clap::Parser;

use super::trace::{Maker, Trace};
use crate::engine::{Run, Scale};
use crate::workloads::{self, Workload};

/// Requests that can be recorded.
const ROOM: usize = 1 << 26;

/// A request: the address, and whose it was, what, and of which class.
struct Request {
    address: AtomicU64,
    what: AtomicU64,
}

const FREE: u64 = 1 << 8;
const THREAD_SHIFT: u32 = 16;

static IS_ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static LEFT_OUT: AtomicUsize = AtomicUsize::new(0);
static REQUESTS: AtomicUsize = AtomicUsize::new(0);
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The number of this thread, from 1 on. Without a destructor, so that it can be had in an allocator.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which writes down what it is asked for.
#[derive(Debug)]
pub struct Recorder;

fn record(address: *mut u8, layout: Layout, kind: u64) {
    if !IS_ON.load(Ordering::Relaxed) {
        return;
    }
    let Some(class) = class_of(layout) else {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let thread = THREAD.with(|thread| {
        if thread.get() == 0 {
            thread.set(1 + THREADS.fetch_add(1, Ordering::Relaxed));
        }
        thread.get() - 1
    });
    // Relaxed: whoever gets a block freed by another thread was told so by the allocator, so their numbers are in that order.
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(request) = requests().get(index) {
        request.address.store(address.addr() as u64, Ordering::Relaxed);
        let what = thread << THREAD_SHIFT | kind | class.index() as u64;
        request.what.store(what, Ordering::Relaxed);
    }
}

/// The requests so far, and room for others; none before there is any.
fn requests() -> &'static [Request] {
    let address = REQUESTS.load(Ordering::Acquire);
    if address == 0 {
        return &[];
    }
    // SAFETY: a mapping of that length, zeroed, that stays; requests are atomics.
    unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(address), ROOM) }
}

/// Maps memory for requests, which takes as much as is used.
fn make_room() -> Result<(), String> {
    let bytes = ROOM * size_of::<Request>();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err("no memory for what is recorded".to_owned());
    }
    REQUESTS.store(mapped.expose_provenance(), Ordering::Release);
    Ok(())
}

/// The layout of a block of the class that serves `layout`, if one does.
fn rounded(layout: Layout) -> Layout {
    let size = class_of(layout).map_or(layout.size(), Class::size);
    Layout::from_size_align(size, layout.align()).unwrap_or(layout)
}

// SAFETY: the system's allocator does all, with layouts that are no smaller.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: no shorter than the caller's layout, and as aligned.
        let block = unsafe { System.alloc(rounded(layout)) };
        record(block, layout, 0);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Before somebody else gets it.
        record(block, layout, FREE);
        // SAFETY: allocated with that layout by `alloc`.
        unsafe { System.dealloc(block, rounded(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let (class, new_class) = (class_of(layout), class_of(new_layout));
        if class.is_some() && class == new_class {
            // Each block of a class is as long as the class, so the block stays where it is, as it does in Hayloft.
            return block;
        }
        // SAFETY: the caller's promise; both have room for the lesser size.
        unsafe {
            let moved = self.alloc(new_layout);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Record what a workload asks of its allocator, for `simulate --trace`.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Which one: `compare --list` lists them.
    #[arg(value_parser = workloads::parse)]
    workload: &'static Workload,

    /// Where to write the trace.
    file: std::path::PathBuf,

    /// Do more than a little.
    #[arg(long)]
    quick: bool,
}

/// The body of `main`. The executable has a [`Recorder`] as its allocator.
pub fn main() -> ExitCode {
    crate::exit(run(&Args::parse()).map(|()| true))
}

fn run(args: &Args) -> Result<(), String> {
    make_room()?;
    let scale = if args.quick { Scale::Quick } else { Scale::Tiny };
    let mut run = Run::new(scale);
    IS_ON.store(true, Ordering::Relaxed);
    (args.workload.body)(&mut run);
    IS_ON.store(false, Ordering::Relaxed);
    let count = COUNT.load(Ordering::Relaxed);
    if count > ROOM {
        return Err(format!("{count} requests are too many; there is room for {ROOM}"));
    }
    let trace = trace_of(&requests()[..count])?;
    let file = File::create(&args.file).map_err(|error| error.to_string())?;
    trace.save(&mut BufWriter::new(file))?;
    let left_out = LEFT_OUT.load(Ordering::Relaxed);
    eprintln!(
        "{count} requests of {} threads; {left_out} for runs of pages are left out",
        trace.threads.len()
    );
    Ok(())
}

fn trace_of(requests: &[Request]) -> Result<Trace, String> {
    let mut maker = Maker::new(THREADS.load(Ordering::Relaxed).max(1) as usize);
    let mut live: HashMap<u64, u32> = HashMap::new();
    for request in requests {
        let address = request.address.load(Ordering::Relaxed);
        let what = request.what.load(Ordering::Relaxed);
        let thread = (what >> THREAD_SHIFT) as usize;
        if what & FREE != 0 {
            // What was allocated before the recording is nobody's.
            if let Some(number) = live.remove(&address) {
                maker.free(thread, number);
            }
            continue;
        }
        let class = Class::from_index((what & 0xff) as usize).ok_or("a request is missing")?;
        live.insert(address, maker.alloc(thread, class));
    }
    Ok(maker.finish())
}
