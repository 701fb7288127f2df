//! A sampling profiler that counts its samples in the signal handler. `SIGPROF` arrives at regular
//! intervals of CPU time, and the handler counts the interrupted stack in a
//! `HashMap<Vec<usize>, u64>`.
//!
//! Other profilers write samples to a buffer that was allocated in advance, and lose samples that
//! do not fit. Here the map grows in the handler, which may interrupt the allocator anywhere.
//! `cargo run --release -p examples --bin profiler` profiles three threads, and prints their
//! functions. Callers are found through frame pointers: `RUSTFLAGS=-Cforce-frame-pointers=yes`
//! finds more of them.
//!
//! The handler is safe for these reasons:
//! - The allocator may be called anywhere: see `docs/any-context.md`.
//! - The map hashes with fixed keys. `RandomState` would take them from a thread-local that is
//!   initialised on first use.
//! - The handler only tries the map's mutex, with an exchange, and never waits. If another thread
//!   or the interrupted code holds the mutex, the sample counts as missed. Releasing it wakes a
//!   waiter, if any, with a system call.
//! - The end of a thread's stack is in a thread-local without initialiser or destructor, which is 0
//!   until it is set.
//! - Frames are read within that stack only. Whatever the frame pointer is used for, no other
//!   memory is accessed.
//! - `errno` is preserved, as no call here sets it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::hint::black_box;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Microseconds of CPU time between samples; the kernel rounds up to its tick.
const INTERVAL: i64 = 1000;
/// Samples to take.
const SAMPLES: u64 = 400;
const DEEPEST: usize = 64;
/// Functions to print.
const SHOWN: usize = 12;

/// The number of samples of each stack. A stack is a list of code addresses, innermost first.
type Profile = HashMap<Vec<usize>, u64, BuildHasherDefault<DefaultHasher>>;

static PROFILE: Mutex<Profile> = Mutex::new(HashMap::with_hasher(BuildHasherDefault::new()));
static TAKEN: AtomicU64 = AtomicU64::new(0);
static MISSED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The end of this thread's stack, or 0 if it is not known.
    static STACK_END: Cell<usize> = const { Cell::new(0) };
}

// The handler and the functions that it calls.

extern "C" fn sample(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passed `context` to this handler, which has `SA_SIGINFO`.
    let stack = unsafe { interrupted_stack(context) };
    match PROFILE.try_lock() {
        Ok(mut profile) => {
            *profile.entry(stack).or_insert(0) += 1;
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
        Err(_) => {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns the code addresses of the interrupted stack, as far as frame pointers lead.
///
/// # Safety
/// `context` is the last argument of a handler that is running on the interrupted stack.
unsafe fn interrupted_stack(context: *mut c_void) -> Vec<usize> {
    // SAFETY: the caller guarantees that `context` comes from the kernel.
    let machine = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    let [pc, sp, mut frame] = [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP]
        .map(|register| machine.gregs[register as usize] as usize);
    #[cfg(target_arch = "aarch64")]
    let [pc, sp, mut frame] =
        [machine.pc, machine.sp, machine.regs[29]].map(|value| value as usize);

    let mut stack = vec![pc];
    let mut above = sp;
    // A frame has two words: the address of the caller's frame, which is higher, and the return
    // address.
    let end = STACK_END.get().saturating_sub(2 * size_of::<usize>());
    while stack.len() < DEEPEST && frame >= above && frame < end && frame.is_multiple_of(8) {
        let words = ptr::with_exposed_provenance::<usize>(frame);
        // SAFETY: the words are aligned, and lie between this thread's stack pointer and the end of
        // its stack.
        let (next, back) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
        if back == 0 {
            break;
        }
        // The call instruction precedes the return address.
        stack.push(back - 1);
        (above, frame) = (frame + 1, next);
    }
    stack
}

// Setup and output.

/// Stores the end of this thread's stack for the handler.
fn know_stack() {
    // SAFETY: `pthread_getattr_np` initialises the attributes, which are destroyed after use.
    unsafe {
        let mut attributes = mem::zeroed();
        let (mut start, mut size) = (ptr::null_mut(), 0);
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) == 0 {
            libc::pthread_attr_getstack(&attributes, &mut start, &mut size);
            libc::pthread_attr_destroy(&mut attributes);
            STACK_END.set(start as usize + size);
        }
    }
}

fn install() -> io::Result<()> {
    // SAFETY: `sample` has the type of a handler with `SA_SIGINFO`, and may run anywhere: see the
    // top of this file.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = sample as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(libc::SIGPROF, &action, ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `SIGPROF` arrive every `interval` microseconds of the process's CPU time, or never again
/// if `interval` is 0.
fn set_timer(interval: i64) -> io::Result<()> {
    let interval = libc::timeval { tv_sec: 0, tv_usec: interval };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: `setitimer` only reads the timer.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Prints the functions with the most samples, with their own share and the share including
/// callees. Returns the latter of the functions whose name contains `wanted`, in percent.
fn print(profile: &Profile, samples: u64, wanted: &str) -> f64 {
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for address in profile.keys().flatten() {
        names.entry(*address).or_insert_with(|| {
            let mut name = format!("{address:#x}");
            // The last symbol is the function itself; the earlier ones were inlined into it.
            backtrace::resolve(*address as *mut c_void, |symbol| {
                if let Some(found) = symbol.name() {
                    name = format!("{found:#}");
                }
            });
            name
        });
    }
    for (stack, count) in profile {
        let names: Vec<&str> = stack.iter().map(|address| &*names[address]).collect();
        counts.entry(names[0]).or_default()[0] += count;
        for (place, name) in names.iter().enumerate() {
            // A recursive function counts once.
            if !names[..place].contains(name) {
                counts.entry(name).or_default()[1] += count;
            }
        }
    }
    let share = |count: u64| 100.0 * count as f64 / samples as f64;
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(name, [own, total])| (std::cmp::Reverse((*own, *total)), **name));
    println!("{:>6} {:>6}", "self", "total");
    for (name, [own, total]) in sorted.iter().take(SHOWN) {
        println!("{:>5.1}% {:>5.1}% {name}", share(*own), share(*total));
    }
    counts
        .iter()
        .filter(|(name, _)| name.contains(wanted))
        .map(|(_, [_, total])| share(*total))
        .sum()
}

// The profiled work.

static END: AtomicBool = AtomicBool::new(false);

/// Computes without allocating. It has no iterators, so that it is a single function in debug
/// builds, too.
#[inline(never)]
fn count_primes() -> usize {
    let (mut primes, mut number) = (0, 2);
    while number < 20_000 {
        let mut divisor = 2;
        while divisor * divisor <= number && number % divisor != 0 {
            divisor += 1;
        }
        primes += usize::from(divisor * divisor > number);
        number += 1;
    }
    primes
}

/// Mostly allocates.
#[inline(never)]
fn build_strings() -> usize {
    let strings: Vec<String> = (0..5000).map(|number| "hay".repeat(number * 7 % 200)).collect();
    strings.iter().map(String::len).sum()
}

/// Computes and allocates.
#[inline(never)]
fn count_words() -> usize {
    let mut counts = BTreeMap::new();
    for number in 0..5000 {
        *counts.entry(format!("bale {}", number * 31 % 701)).or_insert(0usize) += 1;
    }
    counts.len()
}

fn main() -> Result<(), Box<dyn Error>> {
    install()?;
    let work: [fn() -> usize; 3] = [count_primes, build_strings, count_words];
    let threads = work.map(|work| {
        thread::spawn(move || {
            know_stack();
            while !END.load(Ordering::Relaxed) {
                black_box(work());
            }
        })
    });
    set_timer(INTERVAL)?;
    while TAKEN.load(Ordering::Relaxed) < SAMPLES {
        thread::sleep(Duration::from_millis(10));
    }
    set_timer(0)?;
    END.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")?;
    }
    // A late handler finds the mutex held, and counts its sample as missed.
    let profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    let samples: u64 = profile.values().sum();
    let share = print(&profile, samples, "count_primes");
    println!(
        "{samples} samples of {} stacks, {} missed",
        profile.len(),
        MISSED.load(Ordering::Relaxed)
    );
    if samples < SAMPLES || samples != TAKEN.load(Ordering::Relaxed) || share < 5.0 {
        return Err(format!("{samples} samples, {share} % of them in count_primes").into());
    }
    Ok(())
}
