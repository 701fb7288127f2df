//! `record`: runs a workload under an allocator that records its requests, and turns them into a
//! trace.
//!
//! Blocks that no size class serves are left out: they are runs of pages, and the model knows only
//! the runs of slabs. The program's own work, and waits unrelated to memory, are not recorded.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use clap::Parser;
use hayloft_core::size_class::{Class, class_of};

use super::trace::{Maker, Trace};
use crate::exit;
use crate::run::{Run, Scale};
use crate::workloads::{self, Workload};

/// Requests that can be recorded.
const ROOM: usize = 1 << 26;

/// A request: the address in one word; the thread, the operation and the class in the other.
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
    /// Number of this thread, from 1 on. It has no destructor, so an allocator can access it at any
    /// time.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which records its requests.
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
    // Relaxed: a thread that gets a block freed by another thread synchronises with it in the
    // allocator. So the numbers of the free and of the allocation are in that order.
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(request) = requests().get(index) {
        request.address.store(address.addr() as u64, Ordering::Relaxed);
        let what = thread << THREAD_SHIFT | kind | class.index() as u64;
        request.what.store(what, Ordering::Relaxed);
    }
}

/// Returns the requests so far and the room for more. Empty before [`make_room`].
fn requests() -> &'static [Request] {
    let address = REQUESTS.load(Ordering::Acquire);
    if address == 0 {
        return &[];
    }
    // SAFETY: `make_room` mapped `ROOM` zeroed requests there permanently, and requests are
    // atomics.
    unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(address), ROOM) }
}

/// Maps memory for requests. The kernel backs only the part that is used.
fn make_room() -> Result<(), String> {
    let bytes = ROOM * size_of::<Request>();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at a new address affects no other memory.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err("no memory for what is recorded".to_owned());
    }
    REQUESTS.store(mapped.expose_provenance(), Ordering::Release);
    Ok(())
}

/// Returns the layout of a block of the class that serves `layout`, or `layout` itself if no class
/// does.
fn rounded(layout: Layout) -> Layout {
    let size = class_of(layout).map_or(layout.size(), Class::size);
    Layout::from_size_align(size, layout.align()).unwrap_or(layout)
}

// SAFETY: every call goes to the system's allocator, with a layout that is no smaller and equally
// aligned.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is no shorter than the caller's, and equally aligned.
        let block = unsafe { System.alloc(rounded(layout)) };
        record(block, layout, 0);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Recorded before the free, after which another thread may get the block.
        record(block, layout, FREE);
        // SAFETY: the caller guarantees that `alloc` returned `block` for `layout`, so it has the
        // rounded layout.
        unsafe { System.dealloc(block, rounded(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `new_size` and this alignment make a valid layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let (class, new_class) = (class_of(layout), class_of(new_layout));
        if class.is_some() && class == new_class {
            // Each block of a class has the size of the class, so the block stays where it is, as
            // in Hayloft.
            return block;
        }
        // SAFETY: the caller guarantees that `block` is live and has this layout. Both blocks have
        // room for the smaller size.
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

/// Record the requests that a workload makes to its allocator, for `simulate --trace`.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
struct Args {
    /// The workload; `compare --list` lists them all.
    #[arg(value_parser = workloads::parse)]
    workload: &'static Workload,

    /// Where to write the trace.
    file: std::path::PathBuf,

    /// Do more than a little.
    #[arg(long)]
    quick: bool,
}

/// Runs `record`: the body of its `main`. The executable must have a [`Recorder`] as its allocator.
pub fn main() -> ExitCode {
    exit::code(run(&Args::parse()).map(|()| true))
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
            // Frees of blocks that were allocated before the recording are left out.
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
