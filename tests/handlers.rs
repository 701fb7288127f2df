//! Signal handlers that allocate and free, wherever they interrupt the allocator.
//!
//! Each fault point raises a signal on its own thread, so the handler runs right there, while the
//! interrupted code holds its locks. The handler allocates, grows and frees blocks of its own and
//! of the interrupted code, and is itself interrupted at the fault points that it reaches. The test
//! fails if no scenario reaches some fault point.

use std::cell::Cell;
use std::env;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::fault::{self, Place};
use hayloft_core::{cpu, heap, stats};
use tests::caches::unmerged;
use tests::entry_points::Hayloft;
use tests::process::has_rseq;
use tests::scenario::{Scenario, in_every_mode, with_decay};
use tests::slow_paths::{
    abort_with, defer_run, defer_run_hook, exchange_block, grow_heap, handle_sigusr1,
    is_interruptible, raise_sigusr1, reach_all_slow_paths,
};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Most handlers that nest on one thread.
const MAX_LEVEL: usize = 2;

/// Value of `errno` that a handler sets and must find unchanged.
const ERRNO: libc::c_int = 12345;

/// Number of times each fault point was interrupted.
static HITS: [AtomicUsize; Place::ALL.len()] = [const { AtomicUsize::new(0) }; Place::ALL.len()];

/// Number of signals handled.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Number of times a CPU thread took deferred frees from their list.
static TAKEN_BY_CPUS: AtomicUsize = AtomicUsize::new(0);

/// Environment variable with the number of the only fault point that raises signals. A handler that
/// interrupted an earlier one would do what this one is about to do.
const ONLY: &CStr = c"TEST_ONLY_PLACE";

/// Whether fault points raise signals.
static ARMED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Number of handlers that nest on this thread.
    static LEVEL: Cell<usize> = const { Cell::new(0) };
}

fn interrupt(place: Place) {
    defer_run_hook(place);
    if !is_interruptible() {
        let taken = usize::from(place == Place::DeferredTaken);
        TAKEN_BY_CPUS.fetch_add(taken, Ordering::Relaxed);
        return;
    }
    if !ARMED.load(Ordering::Relaxed) || LEVEL.get() == MAX_LEVEL {
        return;
    }
    // The first 200 hits always raise a signal, later ones only now and then, so that the tests
    // end.
    let hits = hits_of(place).fetch_add(1, Ordering::Relaxed);
    // SAFETY: the name ends in a null byte, and no thread changes the environment.
    let only = unsafe { libc::getenv(ONLY.as_ptr()) };
    // SAFETY: values of variables end in a null byte.
    let raises = only.is_null() || unsafe { libc::atoi(only) } == place as i32;
    if raises && (hits < 200 || hits.is_multiple_of(17)) {
        raise_sigusr1();
    }
}

extern "C" fn handler(_: libc::c_int) {
    LEVEL.set(LEVEL.get() + 1);
    // SAFETY: `__errno_location` has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is valid for this thread, and only it accesses its `errno`.
    let before = unsafe { errno.replace(ERRNO) };
    // The block may be a large one, which needs no sheaf. This one is small.
    drop(Box::new(0u8));
    exchange_block();
    // Only now and then, so that the tests end. Each fault point is interrupted hundreds of times.
    if HANDLED.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
        let stats = stats::gather();
        if stats.free > stats.held || stats.caches().any(|cache| cache.in_use > cache.objects()) {
            abort_with("the statistics are inconsistent\n");
        }
    }
    // SAFETY: the pointer is valid for this thread, and only it accesses its `errno`.
    let after = unsafe { errno.replace(before) };
    if after != ERRNO {
        abort_with("a handler changed errno\n");
    }
    LEVEL.set(LEVEL.get() - 1);
}

/// Installs handler and hook before anything is allocated, so that even the first slow path is
/// interrupted. Called by the loader.
extern "C" fn before_main() {
    handle_sigusr1(handler);
    fault::set_hook(interrupt);
    ARMED.store(true, Ordering::Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

fn hits_of(place: Place) -> &'static AtomicUsize {
    let index = Place::ALL.iter().position(|listed| *listed == place).expect("a listed place");
    &HITS[index]
}

/// Returns the number of times `place` was interrupted.
fn hits(place: Place) -> usize {
    hits_of(place).load(Ordering::Relaxed)
}

/// Reaches all fault points and checks that each was interrupted.
fn interrupt_every_fault_point() {
    let has_cpus = cpu::online().next().is_some();
    // A CPU thread completes a deferred free, or this thread does in its next slow path.
    while has_cpus && TAKEN_BY_CPUS.load(Ordering::Relaxed) == 0 {
        defer_run();
        thread::sleep(Duration::from_millis(1));
    }
    while hits(Place::DeferredTaken) == 0 {
        defer_run();
        exchange_block();
    }
    reach_all_slow_paths(|| false);
    // Handlers that were not interrupted themselves may have grown the heap enough for all of the
    // above.
    while hits(Place::ArenaCommitting) == 0 {
        grow_heap();
    }
    // Work that still waits for its CPU's thread, which may be slow, is not claimed again.
    while has_cpus && hits(Place::WorkClaimed) == 0 {
        defer_run();
        thread::sleep(Duration::from_millis(1));
    }
    ARMED.store(false, Ordering::Relaxed);
    let fallback = env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "fallback");
    for place in Place::ALL {
        let reached = match place {
            // Restartable sequences need no lock.
            Place::SheavesLocked => fallback,
            // Reached only where the C library does not register threads.
            Place::ThreadRegistering | Place::ThreadRegistered => continue,
            // Reached only where the kernel refuses `membarrier`.
            Place::CpuVisiting => continue,
            Place::WorkClaimed | Place::WorkQueued => has_cpus,
            // A handler that interrupted an earlier fault point makes the first arena.
            Place::ArenaMaking => continue,
            _ => true,
        };
        assert_eq!(hits(place) > 0, reached, "whether {place:?} was interrupted");
    }
}

/// Lets only one fault point raise signals in a scenario.
fn only<F: FnOnce()>(place: Place, scenario: Scenario<F>) -> Scenario<F> {
    scenario.env(ONLY.to_str().expect("a name"), (place as i32).to_string())
}

/// One thread is interrupted at every fault point.
#[test]
fn handlers_can_interrupt_every_fault_point() {
    with_decay(|| {
        interrupt_every_fault_point();
    });
    let first_arena = || assert_eq!(hits(Place::ArenaMaking), 2, "the second hit is the handler's");
    only(Place::ArenaMaking, Scenario::new("arena", first_arena)).succeeds();
}

/// A handler interrupts the first thread right after the allocator registered it for restartable
/// sequences, and finds the sheaves of its CPU.
#[test]
fn handler_can_interrupt_the_first_rseq_registration() {
    let registered = || {
        exchange_block();
        assert!(
            !has_rseq() || hits(Place::ThreadRegistered) > 0,
            "the registration was not interrupted"
        );
    };
    Scenario::new("", registered)
        .env("HAYLOFT_BACKEND", "rseq")
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .succeeds();
}

/// A handler interrupts the registration of a second thread, and registers the thread itself. The
/// thread uses the sheaves of its CPU from then on.
#[test]
fn handler_can_register_the_thread_that_it_interrupts() {
    let registered = || {
        pin_here();
        let cache = unmerged("registered", 64);
        let interrupted = hits(Place::ThreadRegistering);
        let free_one = || {
            let object = cache.alloc().expect("memory");
            // SAFETY: the object belongs to this cache and is freed once.
            unsafe { cache.free(object) };
        };
        thread::scope(|scope| scope.spawn(free_one).join().expect("the thread does not panic"));
        assert!(cache.stats().in_sheaves > 0, "the thread used no sheaf");
        if has_rseq() {
            let begun = hits(Place::ThreadRegistering);
            assert!(begun > interrupted + 1, "the handler did not register the thread");
            assert_eq!(hits(Place::ThreadRegistered), begun, "registrations that succeeded");
        }
    };
    only(Place::ThreadRegistering, Scenario::new("", registered))
        .env("HAYLOFT_BACKEND", "rseq")
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .succeeds();
}

/// The same with CPU threads, whose irq work completes the frees that handlers deferred.
#[test]
fn handlers_can_interrupt_every_fault_point_with_cpu_threads() {
    in_every_mode(|| {
        cpu::start();
        interrupt_every_fault_point();
    });
}

/// Threads are interrupted at their own fault points, and in each other's critical sections, while
/// CPUs go offline and come online.
#[test]
fn handlers_can_interrupt_threads_during_hotplug() {
    in_every_mode(|| {
        let cpu = cpu::present().last().expect("a CPU");
        thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| reach_all_slow_paths(|| false)));
            while threads.iter().any(|thread| !thread.is_finished()) {
                if cpu::down(cpu).is_ok() {
                    heap::barrier();
                    assert_eq!(cpu::up(cpu), Ok(()));
                }
                heap::barrier();
            }
        });
        ARMED.store(false, Ordering::Relaxed);
    });
}
