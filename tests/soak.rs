//! Heap profiles in the worst of conditions, all at once: a storm of `SIGPROF`, handlers that
//! allocate and take profiles, 64 threads that do so as well, children of forks, CPUs that go
//! offline and come back. Nothing hangs, sums are right, and memory does not grow.
//!
//! The work is done in phases. Each ends when everything has happened often enough, however long
//! that takes, and then everything is freed. The short form has a few phases; `.ci/soak MINUTES`
//! goes on for that long.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::{cpu, heap, profile, stats};
use tests::entry_points::Hayloft;
use tests::process::status_bytes;
use tests::scenario::{BACKENDS, CHILD_TIMEOUT, Scenario, describe};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Environment variable with the seconds that the phases take at least.
const SECONDS: &str = "SOAK_SECONDS";

/// Bytes from one sample to the next.
const MEAN: usize = 8 << 10;
const THREADS: usize = 64;
/// Most blocks that a thread holds.
const HELD: usize = 50;

/// How often something happened.
struct Count {
    what: &'static str,
    /// What a phase needs.
    least: usize,
    so_far: AtomicUsize,
}

impl Count {
    const fn new(what: &'static str, least: usize) -> Count {
        Count { what, least, so_far: AtomicUsize::new(0) }
    }

    fn add(&self) {
        self.so_far.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.so_far.load(Ordering::Relaxed)
    }
}

static SIGNALS: Count = Count::new("signals", 100);
static IN_HANDLERS: Count = Count::new("profiles in handlers", 10);
static IN_THREADS: Count = Count::new("profiles in threads", THREADS);
static IN_CHILDREN: Count = Count::new("profiles in children of forks", 3);
static OFFLINE: Count = Count::new("CPUs that went offline", 20);
static COUNTS: [&Count; 5] = [&SIGNALS, &IN_HANDLERS, &IN_THREADS, &IN_CHILDREN, &OFFLINE];

/// Threads of the phase that run. The C library's own allocator is used where a thread starts and
/// ends. A handler that interrupts it there may wait for a lock of Hayloft, which a thread that
/// forks holds while it waits for the C library's. So signals and forks begin when all threads run,
/// and end before them.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static FORKS_ARE_OVER: AtomicBool = AtomicBool::new(false);
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Takes a profile, or every other time one of growth, which must succeed, in any context.
fn take_profile(counted: &Count) {
    let (mut bytes, mut is_first) = (0, true);
    let mut sink = |part: &[u8]| {
        assert!(!is_first || part.starts_with(&[0x1f, 0x8b]), "not in the format of gzip");
        (bytes, is_first) = (bytes + part.len(), false);
        true
    };
    let done = if counted.get().is_multiple_of(2) {
        profile::write(&mut sink)
    } else {
        profile::write_growth(profile::mark(), &mut sink)
    };
    assert!(done && bytes > 100, "{bytes} bytes");
    counted.add();
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

/// Allocates a block and fills its ends.
fn alloc(size: usize) -> (*mut u8, usize) {
    // SAFETY: the layout is not empty, and the block has `size` bytes.
    unsafe {
        let block = GLOBAL.alloc(layout(size));
        assert!(!block.is_null());
        block.write(size as u8);
        block.add(size - 1).write(size as u8);
        (block, size)
    }
}

/// Frees a block, whose ends must be as they were.
fn free((block, size): (*mut u8, usize)) {
    // SAFETY: the block has `size` bytes, and is freed once.
    unsafe {
        assert_eq!([block.read(), block.add(size - 1).read()], [size as u8; 2]);
        GLOBAL.dealloc(block, layout(size));
    }
}

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: `errno` is the interrupted code's.
    let errno = unsafe { *libc::__errno_location() };
    SIGNALS.add();
    free(alloc(256));
    // Another signal of the storm waits until this handler returns.
    if SIGNALS.get().is_multiple_of(8) {
        take_profile(&IN_HANDLERS);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Sends `SIGPROF` each time that the process has run for so long; 0 ends that.
fn storm(microseconds: i64) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the timer is valid.
    let done = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) };
    assert_eq!(done, 0);
}

/// What a thread does in a phase.
fn work(number: usize) {
    RUNNING.fetch_add(1, Ordering::Relaxed);
    const SIZES: [usize; 8] = [16, 64, 256, 1000, 4096, 20_000, 40_000, 100_000];
    let mut held = Vec::with_capacity(HELD);
    let mut state = number as u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut has_written = false;
    while !IS_OVER.load(Ordering::Relaxed) || !has_written {
        for _ in 0..200 {
            if held.len() == HELD {
                free(held.swap_remove(random(HELD)));
            }
            held.push(alloc(SIZES[random(SIZES.len())]));
        }
        if random(8) == 0 || !has_written {
            take_profile(&IN_THREADS);
            has_written = true;
        }
    }
    held.into_iter().for_each(free);
}

/// Forks a child, which takes a profile and ends.
fn fork() {
    // SAFETY: the child calls only functions for any context, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    if child == 0 {
        // SAFETY: ends the child, in which an assertion would wait for other threads.
        unsafe {
            libc::alarm(CHILD_TIMEOUT);
            free(alloc(1000));
            let mut bytes = 0;
            let done = profile::write(&mut |part| {
                bytes += part.len();
                true
            });
            free(alloc(1000));
            libc::_exit(libc::c_int::from(!done || bytes < 100));
        }
    }
    let mut status = 0;
    loop {
        // SAFETY: waits for the child, and writes to a local variable.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child {
            break;
        }
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINTR));
    }
    assert_eq!(status, 0, "the child failed");
    IN_CHILDREN.add();
}

/// Everything at once, until all of it has happened often enough.
fn phase() {
    let before = COUNTS.map(Count::get);
    for flag in [&FORKS_ARE_OVER, &IS_OVER] {
        flag.store(false, Ordering::Relaxed);
    }
    RUNNING.store(0, Ordering::Relaxed);
    thread::scope(|scope| {
        (0..THREADS).for_each(|number| drop(scope.spawn(move || work(number))));
        let wait_until = |condition: &dyn Fn() -> bool| {
            while !condition() {
                thread::sleep(Duration::from_millis(10));
            }
        };
        let forks = scope.spawn(move || {
            RUNNING.fetch_add(1, Ordering::Relaxed);
            wait_until(&|| RUNNING.load(Ordering::Relaxed) == THREADS + 2);
            while !FORKS_ARE_OVER.load(Ordering::Relaxed) {
                fork();
            }
        });
        scope.spawn(|| {
            RUNNING.fetch_add(1, Ordering::Relaxed);
            let cpus: Vec<_> = cpu::online().collect();
            while !IS_OVER.load(Ordering::Relaxed) {
                for cpu in cpus.iter().skip(1) {
                    if cpu::down(*cpu).is_ok() {
                        assert_eq!(cpu::up(*cpu), Ok(()));
                    }
                    OFFLINE.add();
                }
                if cpus.len() == 1 {
                    OFFLINE.add();
                }
            }
        });
        wait_until(&|| RUNNING.load(Ordering::Relaxed) == THREADS + 2);
        storm(1000);
        let is_enough = || {
            let mut all = COUNTS.iter().zip(before);
            all.all(|(count, before)| count.get() - before >= count.least)
        };
        wait_until(&is_enough);
        FORKS_ARE_OVER.store(true, Ordering::Relaxed);
        assert!(forks.join().is_ok(), "the thread that forks panicked");
        storm(0);
        IS_OVER.store(true, Ordering::Relaxed);
    });
    heap::trim();
}

/// Bytes that the allocator holds, and that are resident, when everything is freed.
fn memory() -> [usize; 2] {
    [stats::gather().held, status_bytes("VmRSS")]
}

fn soak(least: Duration) {
    /// Phases before memory is compared: threads, stacks and sheaves need some at first.
    const FIRST: usize = 1;
    const PHASES: usize = 3;
    /// What may come in addition: other sheaves are wide, other CPUs have freed last.
    const HELD_MORE: usize = 4 << 20;
    /// The same, with a bound on the memory for stacks: those of handlers are ever new ones.
    const RESIDENT_MORE: usize = 48 << 20;
    cpu::start();
    assert!(profile::start(MEAN));
    // SAFETY: the handler calls only functions for any context.
    unsafe { libc::signal(libc::SIGPROF, on_signal as *const () as libc::sighandler_t) };
    let start = Instant::now();
    let mut first = [usize::MAX; 2];
    let mut phases = 0;
    while phases < PHASES || start.elapsed() < least {
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(CHILD_TIMEOUT) };
        phase();
        phases += 1;
        let now = memory();
        if phases <= FIRST {
            first = now;
        }
        let [held, resident] = now;
        assert!(held <= first[0] + HELD_MORE, "{held} bytes are held, at first {}", first[0]);
        assert!(
            resident <= first[1] + RESIDENT_MORE,
            "{resident} bytes are resident, at first {}",
            first[1]
        );
    }
    // Each block of the threads was freed, so no site of theirs has any.
    let mut sums = [0; 2];
    profile::for_each(|_, of_site| {
        sums[0] += of_site.live_bytes;
        sums[1] += of_site.alloc_bytes;
    });
    let [live, allocated] = sums;
    assert!(live < 4 << 20, "{live} bytes are in use in profiles");
    assert!(allocated > 100 << 20, "only {allocated} bytes were allocated");
    println!("{phases} phases in {} s", start.elapsed().as_secs());
    COUNTS.iter().for_each(|count| println!("{:>10} {}", count.get(), count.what));
    println!("{:>10} samples lost", profile::missed());
    println!("{:>10?} KiB held and resident", memory().map(|bytes| bytes >> 10));
}

#[test]
fn profiles_survive_everything_at_once() {
    let least = env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    for backend in BACKENDS {
        Scenario::new(backend, || soak(Duration::from_secs(least) / BACKENDS.len() as u32))
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| {
                assert!(output.status.success(), "{}", describe(output));
                println!("{}", String::from_utf8_lossy(&output.stdout));
            });
    }
}
