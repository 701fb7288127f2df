//! Signal handlers that allocate and free, wherever they interrupt the allocator.
//!
//! A fault point raises a signal on its own thread, so the handler runs right there, with the locks held that are held
//! there. It allocates, grows and frees blocks of its own and of the code it interrupted, and is itself interrupted at
//! the places it comes to. A place that no scenario comes to fails the test.

use std::cell::Cell;
use std::env;
use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use alloc_core::fault::{self, Place};
use tests::everywhere::{fail, go_everywhere, pass_a_block_on};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Handlers on one thread at a time.
const MAX_LEVEL: usize = 2;

/// Value of `errno` that a handler must find as it left it.
const ERRNO: libc::c_int = 12345;

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

/// How often a place was interrupted.
fn hits(place: Place) -> usize {
    let listed = Place::ALL.iter().zip(&HITS).find(|(listed, _)| **listed == place);
    listed.map_or(0, |(_, hits)| hits.load(Ordering::Relaxed))
}

/// One thread, interrupted everywhere.
#[test]
fn every_place_is_interrupted() {
    on_both_backends(|| {
        go_everywhere(|| false);
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
                scope.spawn(|| go_everywhere(|| false));
            }
        });
        ARMED.store(false, Ordering::Relaxed);
    });
}
