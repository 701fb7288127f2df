//! Signal handlers that allocate and free, wherever they interrupt the allocator.
//!
//! A fault point raises a signal on its own thread, so the handler runs right there, with the locks held that are held
//! there. It allocates, grows and frees blocks of its own and of the code it interrupted, and is itself interrupted at
//! the places it comes to. A place that no scenario comes to fails the test.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::env;
use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use alloc_core::fault::{self, Place};
use tests::pattern;
use tests::routes::{Hayloft, Registered};
use tests::scenario::{Scenario, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// What handlers allocate: objects of sheaves of all lengths, of slabs of several units, and runs.
const SIZES: [usize; 8] = [16, 64, 700, 3000, 9000, 30_000, 100_000, 3 << 20];

/// Handlers on one thread at a time.
const MAX_LEVEL: usize = 2;

/// Value of `errno` that a handler must find as it left it.
const ERRNO: libc::c_int = 12345;

/// Blocks on their way from the program to handlers and back.
static EXCHANGE: [AtomicPtr<u8>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];

/// How often each place was interrupted.
static HITS: [AtomicUsize; Place::ALL.len()] = [const { AtomicUsize::new(0) }; Place::ALL.len()];

/// Set in a child that is to be interrupted in the making of its first arena: the places on the way there raise no signal,
/// as their handlers would make it.
const FIRST_ARENA: &CStr = c"TEST_FIRST_ARENA";

/// Places raise signals.
static ARMED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Handlers that this thread is in.
    static LEVEL: Cell<usize> = const { Cell::new(0) };
}

fn interrupt(place: Place) {
    let level = LEVEL.get();
    if !ARMED.load(Ordering::Relaxed) || level == MAX_LEVEL {
        return;
    }
    // SAFETY: the name ends in a null byte; nobody changes the environment.
    let first_arena = unsafe { !libc::getenv(FIRST_ARENA.as_ptr()).is_null() };
    if first_arena && place != Place::ArenaMaking {
        return;
    }
    let index = Place::ALL.iter().position(|listed| *listed == place).expect("a listed place");
    // Every time at first; later now and then, so that the tests come to an end.
    let hits = HITS[index].fetch_add(1, Ordering::Relaxed);
    if hits < 200 || hits.is_multiple_of(17) {
        // SAFETY: the handler is installed.
        unsafe { libc::raise(libc::SIGUSR1) };
    }
}

extern "C" fn handler(_: libc::c_int) {
    LEVEL.set(LEVEL.get() + 1);
    // SAFETY: this thread's `errno`.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.replace(ERRNO) };
    pass_a_block_on();
    // SAFETY: as above.
    let after = unsafe { errno.replace(before) };
    if after != ERRNO {
        fail("errno changed");
    }
    LEVEL.set(LEVEL.get() - 1);
}

/// Allocates a block, grows it, leaves it on the exchange, and frees what was there.
fn pass_a_block_on() {
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

/// Says what went wrong, from a handler, and ends the process.
fn fail(what: &str) -> ! {
    // SAFETY: the pointer and the length are those of a string; both calls may be made anywhere.
    unsafe {
        libc::write(libc::STDERR_FILENO, what.as_ptr().cast(), what.len());
        libc::abort()
    }
}

/// Called by the loader before anything was allocated, so that the first slow path can be interrupted too.
extern "C" fn before_main() {
    // SAFETY: a zeroed action with a handler and a flag is a valid one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
    }
    fault::set_hook(interrupt);
    ARMED.store(true, Ordering::Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// Comes to every place.
fn go_everywhere() {
    for round in 0..3 {
        for size in SIZES {
            let count = if size > 1 << 20 { 20 } else { 20_000_000 / size.max(1000) / 10 };
            let mut blocks: Vec<_> = (0..count).map(|id| allocated(size, id as u64)).collect();
            pass_a_block_on();
            if round == 1 {
                blocks.reverse();
            }
            blocks.into_iter().for_each(free);
        }
        let mut block = grown(allocated(100_000, 1), 900_000);
        // SAFETY: a block of that size, and then of the other.
        unsafe {
            block = Registered.realloc(block, layout(900_000), 200_000);
            block.cast::<u64>().write(200_000);
        }
        free(block);
        // What nobody needed for a second is purged.
        thread::sleep(Duration::from_millis(1100));
    }
    EXCHANGE.iter().for_each(|slot| free(slot.swap(ptr::null_mut(), Ordering::AcqRel)));
}

/// How often a place was interrupted.
fn hits(place: Place) -> usize {
    let listed = Place::ALL.iter().zip(&HITS).find(|(listed, _)| **listed == place);
    listed.map_or(0, |(_, hits)| hits.load(Ordering::Relaxed))
}

/// One thread, interrupted everywhere.
#[test]
fn every_place_is_interrupted() {
    on_both_backends(|| {
        go_everywhere();
        ARMED.store(false, Ordering::Relaxed);
        let fallback = env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "fallback");
        for place in Place::ALL {
            let reached = match place {
                // Restartable sequences need no lock.
                Place::SheavesLocked => fallback,
                // That of the first is made by a handler, which interrupted something on the way there.
                Place::ArenaMaking => continue,
                _ => true,
            };
            assert_eq!(hits(place) > 0, reached, "{place:?}");
        }
    });
    let name = FIRST_ARENA.to_str().expect("a name");
    let first_arena = || assert_eq!(hits(Place::ArenaMaking), 2, "once by the handler");
    Scenario::new("arena", first_arena).env(name, "").succeeds();
}

/// Threads that interrupt themselves and each other's critical sections.
#[test]
fn threads_are_interrupted() {
    on_both_backends(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(go_everywhere);
            }
        });
        ARMED.store(false, Ordering::Relaxed);
    });
}
