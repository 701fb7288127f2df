//! Blocks that come to every slow path, in any context.
//!
//! They are made, checked and freed without anything that a signal handler may not do: what is wrong ends the process with a
//! few words. An *exchange* passes blocks between the code that a handler interrupted and the handler.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use alloc_core::cache;

use alloc_core::fault::Place;
use alloc_core::nolock;

use crate::pattern;
use crate::routes::Registered;

/// What is allocated: objects of sheaves of all lengths, of slabs of several units, of middle sizes, and runs.
pub const SIZES: [usize; 8] = [16, 64, 700, 3000, 9000, 30_000, 100_000, 3 << 20];

/// Blocks on their way from the program to handlers and back.
static EXCHANGE: [AtomicPtr<u8>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];

/// Allocates a block, grows it, leaves it on the exchange, and frees what was there.
pub fn pass_a_block_on() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let id = COUNT.fetch_add(1, Ordering::Relaxed);
    let size = SIZES[(pattern::mix(id) % SIZES.len() as u64) as usize];
    let block = grown(allocated(size / 2, id), size);
    let slot = pattern::mix(!id) % EXCHANGE.len() as u64;
    free(EXCHANGE[slot as usize].swap(block, Ordering::AcqRel));
}

/// A block: its size, the number its contents follow from, its contents.
fn allocated(size: usize, id: u64) -> *mut u8 {
    let size = size.max(16);
    // SAFETY: the layout is not empty; the header fits.
    unsafe {
        let block = Registered.alloc(layout(size));
        if block.is_null() {
            fail("out of memory");
        }
        block.cast::<[u64; 2]>().write([size as u64, id]);
        pattern::fill(block.add(16), 0, size - 16, id);
        block
    }
}

fn grown(block: *mut u8, size: usize) -> *mut u8 {
    let (old, id) = checked(block);
    let size = size.max(old);
    // SAFETY: a block of the old size.
    unsafe {
        let block = Registered.realloc(block, layout(old), size);
        if block.is_null() {
            fail("out of memory");
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
        // SAFETY: a block of that size, which its owner has given away.
        unsafe { Registered.dealloc(block, layout(size)) };
    }
}

/// Size and number of a block, all of whose contents are as they should be.
fn checked(block: *mut u8) -> (usize, u64) {
    // SAFETY: a block as `allocated` makes them.
    unsafe {
        let [size, id] = block.cast::<[u64; 2]>().read();
        if pattern::find_mismatch(block.add(16), size as usize - 16, id).is_some() {
            fail("contents changed");
        }
        (size as usize, id)
    }
}

fn layout(size: usize) -> Layout {
    // SAFETY: a power of two, and small sizes.
    unsafe { Layout::from_size_align_unchecked(size, 8) }
}

/// A run that is to be freed where its arena is busy.
static TO_DEFER: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
const DEFERRED: Layout = Layout::new::<[u64; 300_000]>();

/// Frees a run such that it is deferred, if [`defer_here`] is called at each place.
pub fn defer_a_run() {
    let allocated = || nolock::alloc(DEFERRED).unwrap_or_else(|| fail("out of memory"));
    let free = |run| {
        if let Some(run) = NonNull::new(run) {
            // SAFETY: a run of this layout, which nobody else has.
            unsafe { nolock::free(run, DEFERRED) };
        }
    };
    free(TO_DEFER.swap(allocated().as_ptr(), Ordering::AcqRel));
    free(allocated().as_ptr());
}

/// Does its part of [`defer_a_run`].
pub fn defer_here(place: Place) {
    if place == Place::ArenaAllocating
        && let Some(run) = NonNull::new(TO_DEFER.swap(ptr::null_mut(), Ordering::AcqRel))
    {
        // SAFETY: as in `defer_a_run`.
        unsafe { nolock::free(run, DEFERRED) };
    }
}

/// Whether `SIGUSR1` can interrupt this thread: not that of a CPU.
pub fn is_interruptible() -> bool {
    // SAFETY: a set that is ours to be written.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut blocked);
        libc::sigismember(&raw const blocked, libc::SIGUSR1) == 0
    }
}

/// Has `handler` called when `SIGUSR1` is raised, in handlers too.
pub fn handle(handler: extern "C" fn(libc::c_int)) {
    // SAFETY: a zeroed action with a handler and a flag is a valid one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
    }
}

/// Raises `SIGUSR1`, for which there is a handler.
pub fn raise() {
    // SAFETY: the handler does what handlers may do.
    unsafe { libc::raise(libc::SIGUSR1) };
}

/// Says what went wrong, from a handler, and ends the process.
pub fn fail(what: &str) -> ! {
    // SAFETY: the pointer and the length are those of a string; both calls may be made anywhere.
    unsafe {
        libc::write(libc::STDERR_FILENO, what.as_ptr().cast(), what.len());
        libc::abort()
    }
}

/// Allocates a run that is longer than all free memory, so that the heap grows, and frees it untouched.
pub fn grow_the_heap() {
    const STEP: usize = 128 << 20;
    static LEN: AtomicUsize = AtomicUsize::new(0);
    let layout = layout(LEN.fetch_add(STEP, Ordering::Relaxed) + STEP);
    // SAFETY: the layout is not empty; the run is freed with the layout it was allocated with.
    unsafe {
        let run = Registered.alloc(layout);
        if run.is_null() {
            fail("out of memory");
        }
        Registered.dealloc(run, layout);
    }
}

/// Comes to every slow path, or to as many as it can before it is over.
pub fn go_everywhere(is_over: fn() -> bool) {
    for round in 0..3 {
        for size in SIZES {
            if is_over() {
                return;
            }
            let count = if size > 1 << 20 { 20 } else { 20_000_000 / size.max(1000) / 10 };
            let mut blocks: Vec<_> = (0..count).map(|id| allocated(size, id as u64)).collect();
            pass_a_block_on();
            if round == 1 {
                blocks.reverse();
            }
            blocks.into_iter().for_each(free);
        }
        let mut block = grown(allocated(2_000_000, 1), 9_000_000);
        // SAFETY: a block of that size, and then of the other.
        unsafe {
            block = Registered.realloc(block, layout(9_000_000), 3_000_000);
            block.cast::<u64>().write(3_000_000);
        }
        free(block);
    }
    EXCHANGE.iter().for_each(|slot| free(slot.swap(ptr::null_mut(), Ordering::AcqRel)));
    // Or else nobody but the thread that reclaims memory would come to where it is given back: pages, and holes of a slab.
    free(allocated(2_000_000, 2));
    let survivor = allocated(SIZES[0], 3);
    cache::trim();
    free(survivor);
}
