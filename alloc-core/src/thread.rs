//! The threads that act as CPUs: one per core, pinned to it, and the only targets of our signal.
//!
//! A thread has all signals blocked, as a CPU that has interrupts disabled, and takes ours only
//! where it waits for something to do. So its handler interrupts nothing that holds a lock. Other
//! signals go to the program's own threads, and none of these ever sees one of ours. A signal of
//! that number which somebody else sent to the process goes on to the program, which may wait for
//! it (`sigwait`, `signalfd`); after that there is no signal any more, as with `HAYLOFT_IRQ=none`.
//!
//! It waits beside a [wake](WakeFlag), which whoever has work for it rings before sending the signal. So nothing depends on the
//! signal: where the kernel refuses to send it (the user has too many queued already, or a filter is in the way), the thread
//! is woken like any other, and does in its loop what the handler would have done.
//!
//! The signal is the highest real-time signal that nobody handles, or `HAYLOFT_IRQ_SIGNAL`. `HAYLOFT_IRQ` says what is done
//! in the handler: `hard` (the default: everything), `threaded` (what insists on it; the rest in the loop, as in a kernel
//! with `PREEMPT_RT`), `none` (no signal: the loop does all, as for a CPU that cannot be interrupted). Where no signal can
//! be had, that is what happens.
//!
//! A thread is made when something is first queued for its CPU, which may be done in a handler. So
//! the machine has one more thread, *the maker*, which is pinned to no CPU. Where there can be no
//! thread for a CPU, or there are as many as a bound allows, the maker does the work of that CPU.
//!
//! These are not threads of the standard library: such a thread takes a lock of the library's when it starts and when it
//! ends, and a child that was forked meanwhile could not have any.
//!
//! This file may touch `sync` and `os`.

extern crate std;

use core::ffi::{CStr, c_int, c_void};
use core::fmt::Write as _;
use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence,
};

use crate::arch;
use crate::os;
use crate::sync::{Backoff, WakeFlag, witness};

/// CPUs that are told apart; those beyond share with the first ones.
pub(crate) const MAX_CPUS: usize = 512;

/// Bytes of stack of such a thread.
const STACK: usize = 256 << 10;

/// Of the threads that this process may have, one in so many may act as a CPU.
const SHARE: usize = 8;

/// Where work for a CPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum IrqMode {
    /// In the signal handler.
    Hard = 1,
    /// In the loop, but for what insists on the handler.
    Threaded,
    /// In the loop; there is no signal.
    None,
}

/// What these threads do.
pub(crate) struct Routines {
    /// In the signal handler.
    pub(crate) interrupt: fn(usize),
    /// In the loop, whenever something may be there to be done.
    pub(crate) work: fn(usize),
    /// In the maker, for a CPU that does not come to its work.
    pub(crate) help: fn(usize),
}

struct Thread {
    /// Its number for the kernel; 0 where there is none, or it has not run yet.
    id: AtomicI32,
    /// Rung when there is something to do.
    wake: WakeFlag,
    /// One of the states below. Changed by the maker, and by who brings the CPU online or takes it
    /// offline, who hold the hotplug lock.
    state: AtomicU32,
    /// For the C library, where there is a thread.
    thread: os::ThreadSlot,
}

/// The CPU is offline, and there is no thread.
const NONE: u32 = 0;
/// There is no thread, and the maker makes one when there is something to do.
const WANTED: u32 = 1;
/// The maker makes the thread.
const MAKING: u32 = 2;
/// There is a thread.
const RUNS: u32 = 3;
/// The thread is to end.
const ENDS: u32 = 4;
/// There can be no thread on that core: the maker does the work.
const SHARED: u32 = 5;

static THREADS: [Thread; MAX_CPUS] = [const {
    Thread {
        id: AtomicI32::new(0),
        wake: WakeFlag::new(),
        state: AtomicU32::new(NONE),
        thread: os::ThreadSlot::new(),
    }
}; MAX_CPUS];

/// Rung when a CPU that has no thread has something to do.
static MAKER_WAKE: WakeFlag = WakeFlag::new();
/// Threads that wait for work of CPUs that these have not begun.
static WATCHERS: AtomicUsize = AtomicUsize::new(0);
/// Milliseconds that a CPU gets to begin what is waited for.
const PATIENCE: u64 = 1000;
/// The maker is to end.
static MAKER_ENDS: AtomicBool = AtomicBool::new(false);
static MAKER: os::ThreadSlot = os::ThreadSlot::new();
/// Threads that act as CPUs, and how many there may be. Changed by the maker, and by who waits for
/// a thread to end.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

static ROUTINES: AtomicPtr<Routines> = AtomicPtr::new(ptr::null_mut());

fn routines() -> &'static Routines {
    // SAFETY: what `start` stored before there was any such thread.
    unsafe { &*ROUTINES.load(Ordering::Relaxed) }
}

/// An [`IrqMode`], or 0 before the machine was started.
static MODE: AtomicU8 = AtomicU8::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Has this thread act as a CPU, or as none.
fn act_as(cpu: Option<usize>) {
    let number = cpu.map_or(0, |cpu| cpu + 1);
    arch::locals().acts_as.store(number, Ordering::Relaxed);
}

/// Whether there is a machine.
pub(crate) fn is_started() -> bool {
    MODE.load(Ordering::Acquire) != 0
}

/// Where work runs. Before the machine was started: nowhere that could be spun for.
pub(crate) fn mode() -> IrqMode {
    // Acquire: pairs with the Release in `start`: the signal is seen.
    match MODE.load(Ordering::Acquire) {
        1 => IrqMode::Hard,
        2 => IrqMode::Threaded,
        _ => IrqMode::None,
    }
}

/// The CPU that this thread acts as, if it does.
pub(crate) fn acts_as() -> Option<usize> {
    arch::locals().acts_as.load(Ordering::Relaxed).checked_sub(1)
}

/// The number for the kernel of the thread that acts as `cpu`; 0 where there is none yet.
pub(crate) fn id(cpu: usize) -> i32 {
    THREADS[cpu].id.load(Ordering::Relaxed)
}

/// Settles how threads are told that there is work, and makes the maker; false where there can be
/// no thread. To be called once, before the first [`online`].
pub(crate) fn start(routines: &'static Routines) -> bool {
    let wanted = match os::env(c"HAYLOFT_IRQ") {
        None | Some(b"hard") => IrqMode::Hard,
        Some(b"threaded") => IrqMode::Threaded,
        Some(b"none") => IrqMode::None,
        Some(_) => {
            os::ignored(c"HAYLOFT_IRQ", format_args!("none of hard, threaded and none"));
            IrqMode::Hard
        }
    };
    let number = match os::env(c"HAYLOFT_IRQ_SIGNAL") {
        None => None,
        Some(text) => {
            let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            let number = number.filter(|number| os::is_realtime_signal(*number));
            if number.is_none() {
                os::ignored(c"HAYLOFT_IRQ_SIGNAL", format_args!("no real-time signal"));
            }
            number
        }
    };
    // The child of a fork has it already.
    let known = Some(SIGNAL.load(Ordering::Relaxed)).filter(|signal| *signal != 0);
    let take = || known.or_else(|| os::take_signal(number, interrupted));
    let signal = (wanted != IrqMode::None).then(take).flatten();
    SIGNAL.store(signal.unwrap_or(0), Ordering::Relaxed);
    let mode = if signal.is_some() { wanted } else { IrqMode::None };
    ROUTINES.store(ptr::from_ref(routines).cast_mut(), Ordering::Relaxed);
    BOUND.store((os::most_threads() / SHARE).max(1), Ordering::Relaxed);
    MAKER_ENDS.store(false, Ordering::Relaxed);
    // Release: pairs with the Acquire in `mode`.
    MODE.store(mode as u8, Ordering::Release);
    // The new thread inherits the mask.
    let _masked = os::block_signals();
    let made = os::spawn(STACK, make_threads, ptr::null_mut());
    let is_there = made.is_some();
    MAKER.set(made);
    if !is_there {
        in_child();
    }
    is_there
}

extern "C" fn interrupted(number: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: called by the kernel as a handler.
    let signal = unsafe { os::Signal::new(number, info, context) };
    match acts_as() {
        Some(cpu) if signal.is_own() => witness::interrupt(|| (routines().interrupt)(cpu)),
        Some(_) => {
            // The program waits for this signal by `sigwait` or the like, and has no handler. From
            // now on none of these threads takes it. Release: pairs with the Acquire in `mode`.
            MODE.store(IrqMode::None as u8, Ordering::Release);
            signal.pass_on();
        }
        // One of ours may be late, and the number of its thread be that of another.
        None if signal.is_own() => {}
        None => signal.do_the_default(),
    }
}

/// Lets a CPU have a thread.
pub(crate) fn online(cpu: usize) {
    let thread = &THREADS[cpu];
    thread.wake.clear();
    // Release: pairs with the Acquire in `exchange`.
    thread.state.store(WANTED, Ordering::Release);
}

/// Ends the thread that acts as `cpu`, if there is one, and lets it have none.
pub(crate) fn offline(cpu: usize) {
    let thread = &THREADS[cpu];
    let mut backoff = Backoff::new();
    // Until there is a thread, or none.
    while !thread.exchange(WANTED, NONE) && !thread.exchange(SHARED, NONE) {
        if thread.exchange(RUNS, ENDS) {
            end(thread, NONE);
            return;
        }
        backoff.pause();
    }
}

impl Thread {
    fn exchange(&self, from: u32, to: u32) -> bool {
        // Acquire and Release: who finds a thread finds what it is for the C library.
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Waits for the end of a thread that was told to end.
fn end(thread: &Thread, then: u32) {
    // Its CPU may be one that a real-time thread never leaves.
    thread.thread.pin(&os::affinity());
    let _ = thread.wake.set();
    // In any case: who rang before may not have come to this.
    thread.wake.wake();
    thread.thread.join();
    thread.id.store(0, Ordering::Relaxed);
    COUNT.fetch_sub(1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `exchange`.
    thread.state.store(then, Ordering::Release);
}

/// The life of the maker.
extern "C" fn make_threads(_: *mut c_void) -> *mut c_void {
    os::name_thread(c"hayloft/cpus");
    os::schedule_as_the_process();
    // The bells that somebody rang, and since when, where somebody waits.
    let mut watch = None;
    loop {
        MAKER_WAKE.clear();
        if MAKER_ENDS.load(Ordering::Acquire) {
            return ptr::null_mut();
        }
        let now = os::milliseconds();
        if let Some((since, late)) = watch
            && now.saturating_sub(since) >= PATIENCE
        {
            watch = None;
            help(&late);
        }
        for (cpu, thread) in THREADS.iter().enumerate().filter(|(_, it)| !it.wake.is_clear()) {
            match thread.state.load(Ordering::Relaxed) {
                WANTED if make(cpu) => {}
                WANTED | SHARED => do_work_of(cpu),
                // Whoever rang did not see it yet.
                RUNS => thread.wake.wake(),
                _ => {}
            }
        }
        // Acquire: pairs with the Release in `watched`: what is waited for was queued.
        if WATCHERS.load(Ordering::Acquire) == 0 {
            watch = None;
            MAKER_WAKE.sleep();
        } else {
            let (since, _) = watch.get_or_insert_with(|| (now, rung()));
            MAKER_WAKE.sleep_for((*since + PATIENCE).saturating_sub(now).max(1));
        }
    }
}

/// CPUs whose bells were rung and not answered.
fn rung() -> [bool; MAX_CPUS] {
    core::array::from_fn(|cpu| !THREADS[cpu].wake.is_clear())
}

/// Runs what CPUs do not come to, of those that had as much to do a while ago.
fn help(late: &[bool; MAX_CPUS]) {
    for (cpu, thread) in THREADS.iter().enumerate() {
        let has_thread = thread.state.load(Ordering::Relaxed) == RUNS;
        if late[cpu] && has_thread && !thread.wake.is_clear() {
            (routines().help)(cpu);
        }
    }
}

/// Waits for work of a CPU by `wait`, and has the maker run it if that CPU does not begin it.
pub(crate) fn watched<R>(wait: impl FnOnce() -> R) -> R {
    // Release: pairs with the Acquire in `make_threads`.
    WATCHERS.fetch_add(1, Ordering::Release);
    if MAKER_WAKE.set() {
        MAKER_WAKE.wake();
    }
    let result = wait();
    WATCHERS.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Makes the thread that acts as `cpu`; false if there can be none.
fn make(cpu: usize) -> bool {
    let thread = &THREADS[cpu];
    let count = COUNT.load(Ordering::Relaxed);
    if count >= BOUND.load(Ordering::Relaxed) || !thread.exchange(WANTED, MAKING) {
        return false;
    }
    let made = os::spawn(STACK, thread_main, ptr::without_provenance_mut(cpu));
    let is_there = made.is_some();
    thread.thread.set(made);
    COUNT.fetch_add(usize::from(is_there), Ordering::Relaxed);
    if is_there && thread.thread.pin(&os::CpuMask::one(cpu)) {
        // Release: pairs with the Acquire in `exchange` and in `live`.
        thread.state.store(RUNS, Ordering::Release);
        thread.wake.wake();
        return true;
    }
    if is_there {
        thread.state.store(ENDS, Ordering::Release);
        end(thread, SHARED);
    } else {
        // There is no room for more. The program may want what is left.
        BOUND.store(count, Ordering::Relaxed);
        thread.state.store(WANTED, Ordering::Release);
    }
    false
}

/// In the maker: does what the thread of a CPU would do.
fn do_work_of(cpu: usize) {
    act_as(Some(cpu));
    THREADS[cpu].wake.clear();
    round(cpu);
    act_as(None);
}

/// Does what there is to be done for a CPU.
fn round(cpu: usize) {
    // By the rules of the handler, where this work might as well have run.
    witness::interrupt(|| (routines().interrupt)(cpu));
    (routines().work)(cpu);
}

/// The life of a thread that acts as a CPU.
extern "C" fn thread_main(cpu: *mut c_void) -> *mut c_void {
    let cpu = cpu.addr();
    let thread = &THREADS[cpu];
    let mut name = os::Line::<16>::new();
    let _ = write!(name, "hayloft/{cpu}");
    let name = name.into_bytes();
    os::name_thread(CStr::from_bytes_until_nul(&name).unwrap_or_default());
    let mut backoff = Backoff::new();
    // Until it is pinned.
    while thread.state.load(Ordering::Acquire) == MAKING {
        backoff.pause();
    }
    act_as(Some(cpu));
    thread.id.store(os::thread_id(), Ordering::Relaxed);
    loop {
        thread.wake.clear();
        round(cpu);
        if thread.state.load(Ordering::Acquire) == ENDS {
            return ptr::null_mut();
        }
        // A signal that came since the start of the round is handled here, and its ring ends the sleep.
        let _interruptible =
            (mode() != IrqMode::None).then(|| os::admit_signal(SIGNAL.load(Ordering::Relaxed)));
        // Pairs with the fence in `raise`: who still sends a signal to a thread that takes none any
        // more has rung before that falls asleep.
        fence(Ordering::SeqCst);
        thread.wake.sleep();
    }
}

/// Ends the maker. Nothing is queued for CPUs any more, and none has a thread.
pub(crate) fn stop() {
    // Release: pairs with the Acquire in `make_threads`.
    MAKER_ENDS.store(true, Ordering::Release);
    let _ = MAKER_WAKE.set();
    MAKER_WAKE.wake();
    MAKER.join();
    MODE.store(0, Ordering::Relaxed);
}

/// There are none of these threads: in the child of a fork, or where there can be none.
pub(crate) fn in_child() {
    for thread in &THREADS {
        thread.id.store(0, Ordering::Relaxed);
        thread.state.store(NONE, Ordering::Relaxed);
    }
    COUNT.store(0, Ordering::Relaxed);
    WATCHERS.store(0, Ordering::Relaxed);
    // A ring of before would keep the next from being heard.
    MAKER_WAKE.clear();
    MODE.store(0, Ordering::Relaxed);
}

/// Tells the thread that acts as `cpu`, or the maker, that there is something to do. May be called
/// in any context.
pub(crate) fn raise(cpu: usize) {
    let thread = &THREADS[cpu];
    if !thread.wake.set() {
        return;
    }
    // Pairs with the fence in `live`.
    fence(Ordering::SeqCst);
    // Relaxed: the number alone. Who finds none tells the maker, which looks again.
    let id = thread.id.load(Ordering::Relaxed);
    if id == 0 {
        if MAKER_WAKE.set() {
            MAKER_WAKE.wake();
        }
        return;
    }
    let interrupted =
        mode() != IrqMode::None && os::signal_thread(id, SIGNAL.load(Ordering::Relaxed));
    if !interrupted {
        thread.wake.wake();
    }
}
