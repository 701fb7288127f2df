//! Allocation patterns that reach every slow path, in any context.
//!
//! Blocks are allocated, checked and freed with async-signal-safe calls only. A failed check writes
//! a few words and aborts the process. An *exchange* passes blocks between signal handlers and the
//! code that they interrupted.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use hayloft_core::heap;

use hayloft_core::fault::Place;
use hayloft_core::nolock;

use crate::entry_points::Registered;
use crate::pattern;

/// Sizes of small classes with sheaves of all lengths, of classes with multi-unit slabs, of middle
/// classes, and of a run.
pub const SIZES: [usize; 10] = [16, 64, 700, 3000, 9000, 30_000, 40_000, 100_000, 700_000, 3 << 20];

/// Blocks on their way from the program to signal handlers and back.
static EXCHANGE: [AtomicPtr<u8>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];

/// Allocates a block, grows it, and swaps it into a slot of the exchange. Frees the slot's previous
/// block.
pub fn exchange_block() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let id = COUNT.fetch_add(1, Ordering::Relaxed);
    let size = SIZES[(pattern::mix(id) % SIZES.len() as u64) as usize];
    let block = grown(allocated(size / 2, id), size);
    let slot = pattern::mix(!id) % EXCHANGE.len() as u64;
    free(EXCHANGE[slot as usize].swap(block, Ordering::AcqRel));
}

/// Allocates and fills a block. Its header holds the size and the number from which the contents
/// follow.
fn allocated(size: usize, id: u64) -> *mut u8 {
    let size = size.max(16);
    // SAFETY: the size is at least 16, so the layout is not empty and the header fits.
    unsafe {
        let block = Registered.alloc(layout(size));
        if block.is_null() {
            abort_with("out of memory\n");
        }
        block.cast::<[u64; 2]>().write([size as u64, id]);
        pattern::fill(block.add(16), 0, size - 16, id);
        block
    }
}

fn grown(block: *mut u8, size: usize) -> *mut u8 {
    let (old, id) = checked(block);
    let size = size.max(old);
    // SAFETY: `checked` read `old` from the header of this live block. The new size is no smaller.
    unsafe {
        let block = Registered.realloc(block, layout(old), size);
        if block.is_null() {
            abort_with("out of memory\n");
        }
        checked(block);
        block.cast::<[u64; 2]>().write([size as u64, id]);
        pattern::fill(block.add(16), 0, size - 16, id);
        block
    }
}

fn free(block: *mut u8) {
    if !block.is_null() {
        let (size, _) = checked(block);
        // SAFETY: the block is live and of `size` bytes, and the exchange or the caller handed it
        // over.
        unsafe { Registered.dealloc(block, layout(size)) };
    }
}

/// Checks the contents of `block`. Returns its size and its number.
fn checked(block: *mut u8) -> (usize, u64) {
    // SAFETY: `allocated` or `grown` wrote the header and filled the rest of `size` bytes.
    unsafe {
        let [size, id] = block.cast::<[u64; 2]>().read();
        if pattern::find_mismatch(block.add(16), size as usize - 16, id).is_some() {
            abort_with("the contents of a block changed\n");
        }
        (size as usize, id)
    }
}

fn layout(size: usize) -> Layout {
    // SAFETY: the alignment is a power of two, and all sizes here are far below `isize::MAX`.
    unsafe { Layout::from_size_align_unchecked(size, 8) }
}

/// A run for [`defer_run_hook`] to free while its arena is locked.
static TO_DEFER: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
const DEFERRED: Layout = Layout::new::<[u64; 300_000]>();

/// Frees a run in a way that defers the free, provided that the fault hook calls
/// [`defer_run_hook`].
pub fn defer_run() {
    let allocated = || nolock::alloc(DEFERRED).unwrap_or_else(|| abort_with("out of memory\n"));
    let free = |run| {
        if let Some(run) = NonNull::new(run) {
            // SAFETY: the run has this layout, and the swap made this thread its only owner.
            unsafe { nolock::free(run, DEFERRED) };
        }
    };
    free(TO_DEFER.swap(allocated().as_ptr(), Ordering::AcqRel));
    free(allocated().as_ptr());
}

/// Does the fault hook's part of [`defer_run`]: frees the run at a fault point where this thread
/// holds the arena's lock, so that the free is deferred.
pub fn defer_run_hook(place: Place) {
    if place == Place::ArenaAllocating
        && let Some(run) = NonNull::new(TO_DEFER.swap(ptr::null_mut(), Ordering::AcqRel))
    {
        // SAFETY: the run has this layout, and the swap made this thread its only owner.
        unsafe { nolock::free(run, DEFERRED) };
    }
}

/// Returns whether `SIGUSR1` can interrupt this thread. CPU threads block it.
pub fn is_interruptible() -> bool {
    // SAFETY: `blocked` is local and valid for the write of a signal set.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut blocked);
        libc::sigismember(&raw const blocked, libc::SIGUSR1) == 0
    }
}

/// Installs `handler` for `SIGUSR1`. The handler can interrupt itself.
pub fn handle_sigusr1(handler: extern "C" fn(libc::c_int)) {
    // SAFETY: a zeroed `sigaction` with a handler and a flag is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
    }
}

/// Raises `SIGUSR1`, for which a handler must be installed.
pub fn raise_sigusr1() {
    // SAFETY: the installed handler makes async-signal-safe calls only.
    unsafe { libc::raise(libc::SIGUSR1) };
}

/// Runs `body` while another thread sends `SIGUSR1` to this one again and again: each time after
/// the handler has counted the one before in `handled`.
pub fn among_signals(handled: &AtomicUsize, body: impl FnOnce()) {
    // With musl it is a pointer, which other threads may not have.
    // SAFETY: always sound.
    let this = unsafe { libc::pthread_self() } as usize;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let before = handled.load(Ordering::Relaxed);
                // SAFETY: the thread waits for this one, so it exists.
                unsafe { libc::pthread_kill(this as libc::pthread_t, libc::SIGUSR1) };
                while handled.load(Ordering::Relaxed) == before && !is_over.load(Ordering::Relaxed)
                {
                    thread::yield_now();
                }
            }
        });
        body();
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Writes `message` to standard error and aborts the process. Async-signal-safe.
pub fn abort_with(message: &str) -> ! {
    // SAFETY: the pointer and length are those of `message`. Both calls are async-signal-safe.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::abort()
    }
}

/// Allocates a run longer than all free memory, so that the heap grows, and frees it untouched.
pub fn grow_heap() {
    const STEP: usize = 128 << 20;
    static LEN: AtomicUsize = AtomicUsize::new(0);
    let layout = layout(LEN.fetch_add(STEP, Ordering::Relaxed) + STEP);
    // SAFETY: the layout is not empty, and the run is freed once, with the same layout.
    unsafe {
        let run = Registered.alloc(layout);
        if run.is_null() {
            abort_with("out of memory\n");
        }
        Registered.dealloc(run, layout);
    }
}

/// Reaches every slow path, or as many as it can before `is_over` returns true.
pub fn reach_all_slow_paths(is_over: fn() -> bool) {
    for round in 0..3 {
        for size in SIZES {
            if is_over() {
                return;
            }
            let count = if size > 1 << 20 { 20 } else { 20_000_000 / size.max(1000) / 10 };
            let mut blocks: Vec<_> = (0..count).map(|id| allocated(size, id as u64)).collect();
            exchange_block();
            if round == 1 {
                blocks.reverse();
            }
            blocks.into_iter().for_each(free);
        }
        let mut block = grown(allocated(2_000_000, 1), 9_000_000);
        // SAFETY: the block is live with 9,000,000 bytes, then with 3,000,000, and the header fits.
        unsafe {
            block = Registered.realloc(block, layout(9_000_000), 3_000_000);
            block.cast::<u64>().write(3_000_000);
        }
        free(block);
    }
    EXCHANGE.iter().for_each(|slot| free(slot.swap(ptr::null_mut(), Ordering::AcqRel)));
    // Reaches the decommitting of free pages and the punching of a slab's holes. Otherwise only the
    // reclaim thread would.
    free(allocated(2_000_000, 2));
    let survivor = allocated(SIZES[0], 3);
    heap::trim();
    free(survivor);
}
