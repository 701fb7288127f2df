//! The CPU threads: one per core, pinned to it, acting as the CPU, and the only targets of our
//! signal.
//!
//! A CPU thread has all signals blocked, as a CPU has with interrupts disabled. It admits ours only
//! where it waits for work, so its handler never interrupts a holder of a lock. Other signals go to
//! the program's own threads, and these never see one of ours. If another process or the program
//! itself sends a signal of that number to the process, it is passed on to the program, which may
//! wait for it (`sigwait`, `signalfd`). From then on the signal is not used, as with
//! `HAYLOFT_IRQ=none`.
//!
//! A CPU thread sleeps on a [wake flag](WakeFlag). A thread with work for it sets the flag before
//! sending the signal. So nothing depends on the signal: if the kernel refuses to send it (the user
//! has too many queued already, or a filter is in the way), the thread is woken like any other, and
//! does in its loop what the handler would have done.
//!
//! The signal is the highest real-time signal without a handler, or `HAYLOFT_IRQ_SIGNAL`.
//! `HAYLOFT_IRQ` says what runs in the handler:
//!
//! - `hard`, the default: everything;
//! - `threaded`: items that insist on it; the others run in the loop, as in a kernel with
//!   `PREEMPT_RT`;
//! - `none`: nothing. There is no signal and the loop runs everything, as for a CPU that cannot be
//!   interrupted. This is also the mode if there is no signal to take.
//!
//! A CPU thread is made when work is first queued for its CPU, possibly in a handler. So there is
//! one more thread, *the maker*, pinned to no CPU. If a CPU cannot have a thread, or a bound on
//! their number is reached, the maker does the work of that CPU.

extern crate std;

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence,
};

use crate::arch;
use crate::os;
use crate::settings::{self, Name};
use crate::sync::{Backoff, WakeFlag, witness};

/// Number of CPUs with state of their own; higher CPU numbers alias modulo this.
pub(crate) const MAX_CPUS: usize = 512;

/// Divisor of the process's thread limit that gives the bound on CPU threads.
const SHARE: usize = 8;

/// Place where work for a CPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum IrqMode {
    /// In the signal handler.
    Hard = 1,
    /// In the loop, except for items that insist on the handler.
    Threaded,
    /// In the loop; there is no signal.
    None,
}

/// Functions that the threads call with the number of a CPU.
pub(crate) struct Routines {
    /// Called in the signal handler.
    pub(crate) interrupt: fn(usize),
    /// Called in the loop, whenever there may be work.
    pub(crate) work: fn(usize),
    /// Called in the maker, for a CPU that does not get to its work.
    pub(crate) help: fn(usize),
}

struct Thread {
    /// Kernel thread id; 0 if there is no thread, or it has not run yet.
    id: AtomicI32,
    /// Set when there is work.
    wake: WakeFlag,
    /// One of the states below. Changed by the maker, and under the hotplug lock by the thread that
    /// brings the CPU online or takes it offline.
    state: AtomicU32,
    /// Handle of the C library, if there is a thread.
    thread: os::ThreadSlot,
}

/// The CPU is offline and has no thread.
const NONE: u32 = 0;
/// The CPU has no thread; the maker makes one when there is work.
const WANTED: u32 = 1;
/// The maker is making the thread.
const MAKING: u32 = 2;
/// The CPU has a thread.
const RUNS: u32 = 3;
/// The thread must end.
const ENDS: u32 = 4;
/// The CPU cannot have a thread: the maker does its work.
const SHARED: u32 = 5;

static THREADS: [Thread; MAX_CPUS] = [const {
    Thread {
        id: AtomicI32::new(0),
        wake: WakeFlag::new(),
        state: AtomicU32::new(NONE),
        thread: os::ThreadSlot::new(),
    }
}; MAX_CPUS];

/// Set when a CPU without a thread has work.
static MAKER_WAKE: WakeFlag = WakeFlag::new();
/// Number of threads that wait for work which its CPU may not have begun.
static WATCHERS: AtomicUsize = AtomicUsize::new(0);
/// Milliseconds that a CPU has to begin work that is waited for.
const PATIENCE: u64 = 1000;
/// Whether the maker must end.
static MAKER_ENDS: AtomicBool = AtomicBool::new(false);
static MAKER: os::ThreadSlot = os::ThreadSlot::new();
/// Number of CPU threads, and the bound on it. Changed by the maker, and by the thread that waits
/// for a CPU thread to end.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

static ROUTINES: AtomicPtr<Routines> = AtomicPtr::new(ptr::null_mut());

fn routines() -> &'static Routines {
    // SAFETY: `start` stored a static before it made any of these threads.
    unsafe { &*ROUTINES.load(Ordering::Relaxed) }
}

/// An [`IrqMode`], or 0 before [`start`].
static MODE: AtomicU8 = AtomicU8::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Makes this thread act as a CPU, or as none.
fn act_as(cpu: Option<usize>) {
    let number = cpu.map_or(0, |cpu| cpu + 1);
    arch::locals().acts_as.store(number, Ordering::Relaxed);
}

/// Returns whether the CPU threads are started.
pub(crate) fn is_started() -> bool {
    MODE.load(Ordering::Acquire) != 0
}

/// Returns where work runs. Before [`start`] this is [`IrqMode::None`]: no handler runs work, so no
/// thread may wait for it by spinning.
pub(crate) fn mode() -> IrqMode {
    // Acquire: pairs with the Release in `start`, so that the signal is visible.
    match MODE.load(Ordering::Acquire) {
        1 => IrqMode::Hard,
        2 => IrqMode::Threaded,
        _ => IrqMode::None,
    }
}

/// Returns the CPU that this thread acts as, if any.
pub(crate) fn acts_as() -> Option<usize> {
    arch::locals().acts_as.load(Ordering::Relaxed).checked_sub(1)
}

/// Returns the kernel thread id of the thread that acts as `cpu`; 0 if there is none yet.
pub(crate) fn id(cpu: usize) -> i32 {
    THREADS[cpu].id.load(Ordering::Relaxed)
}

/// Selects the mode and the signal, and makes the maker. Returns false if there can be no thread.
/// Call before the first [`online`], while nothing is started.
pub(crate) fn start(routines: &'static Routines) -> bool {
    let wanted = match settings::text(Name::Irq) {
        Some("threaded") => IrqMode::Threaded,
        Some("none") => IrqMode::None,
        _ => IrqMode::Hard,
    };
    let number = settings::number(Name::IrqSignal);
    // A fork child has the signal already.
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
    let made = os::spawn::<Maker>(0);
    let is_there = made.is_some();
    MAKER.set(made);
    if !is_there {
        in_child();
    }
    is_there
}

extern "C" fn interrupted(number: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments are from the kernel, which called this function as a handler.
    let signal = unsafe { os::Signal::new(number, info, context) };
    match acts_as() {
        Some(cpu) if signal.is_own() => witness::interrupt(|| (routines().interrupt)(cpu)),
        Some(_) => {
            // The program waits for this signal by `sigwait` or the like, and has no handler. From
            // now on no CPU thread takes it. Release: pairs with the Acquire in `mode`.
            MODE.store(IrqMode::None as u8, Ordering::Release);
            signal.pass_on();
        }
        // A signal of ours may be late: its thread has ended, and another has its id.
        None if signal.is_own() => {}
        None => signal.do_the_default(),
    }
}

/// Allows a CPU to have a thread.
pub(crate) fn online(cpu: usize) {
    let thread = &THREADS[cpu];
    thread.wake.clear();
    // Release: pairs with the Acquire in `exchange`.
    thread.state.store(WANTED, Ordering::Release);
}

/// Ends the thread that acts as `cpu`, if there is one, and allows it none.
pub(crate) fn offline(cpu: usize) {
    let thread = &THREADS[cpu];
    let mut backoff = Backoff::new();
    // While the maker is making the thread, waits for the outcome.
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
        // Acquire and Release: the thread that succeeds sees the C library's handle of a CPU thread
        // in the state `from`.
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Waits for the end of a thread whose state is [`ENDS`], and sets the state to `then`.
fn end(thread: &Thread, then: u32) {
    // The thread's CPU may be one that a real-time thread never leaves.
    thread.thread.pin(&os::affinity());
    let _ = thread.wake.set();
    // Not only if the flag was clear: a thread that set it before may not have got to its wake-up.
    thread.wake.wake();
    thread.thread.join();
    thread.id.store(0, Ordering::Relaxed);
    COUNT.fetch_sub(1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `exchange`.
    thread.state.store(then, Ordering::Release);
}

/// The thread that makes CPU threads.
struct Maker;

impl os::Service for Maker {
    const NAME: Option<&'static str> = Some("cpus");
    const SCHEDULING: os::Scheduling = os::Scheduling::AsTheProcess;
    const MAIN: fn(usize) = make_threads;
}

fn make_threads(_: usize) {
    // While a thread waits for work: a time, and the CPUs whose wake flags were set then.
    let mut watch = None;
    loop {
        MAKER_WAKE.clear();
        if MAKER_ENDS.load(Ordering::Acquire) {
            return;
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
                // The thread that set the flag did not see the CPU thread's id yet.
                RUNS => thread.wake.wake(),
                _ => {}
            }
        }
        // Acquire: pairs with the Release in `watched`, so that the work which is waited for is
        // queued.
        if WATCHERS.load(Ordering::Acquire) == 0 {
            watch = None;
            MAKER_WAKE.sleep();
        } else {
            let (since, _) = watch.get_or_insert_with(|| (now, rung()));
            MAKER_WAKE.sleep_for((*since + PATIENCE).saturating_sub(now).max(1));
        }
    }
}

/// Returns the CPUs whose wake flags are set.
fn rung() -> [bool; MAX_CPUS] {
    core::array::from_fn(|cpu| !THREADS[cpu].wake.is_clear())
}

/// Runs the work of those `late` CPUs that have a thread and whose wake flags are set still, or
/// again.
fn help(late: &[bool; MAX_CPUS]) {
    for (cpu, thread) in THREADS.iter().enumerate() {
        let has_thread = thread.state.load(Ordering::Relaxed) == RUNS;
        if late[cpu] && has_thread && !thread.wake.is_clear() {
            (routines().help)(cpu);
        }
    }
}

/// Runs `wait`, which waits for work of a CPU, and lets the maker run that work if the CPU does not
/// begin it.
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

/// Makes the thread that acts as `cpu`. Returns false if there can be none.
fn make(cpu: usize) -> bool {
    let thread = &THREADS[cpu];
    let count = COUNT.load(Ordering::Relaxed);
    if count >= BOUND.load(Ordering::Relaxed) || !thread.exchange(WANTED, MAKING) {
        return false;
    }
    let made = os::spawn::<CpuThread>(cpu);
    let is_there = made.is_some();
    thread.thread.set(made);
    COUNT.fetch_add(usize::from(is_there), Ordering::Relaxed);
    if is_there && thread.thread.pin(&os::CpuMask::one(cpu)) {
        // Release: pairs with the Acquire in `exchange` and in `thread_main`.
        thread.state.store(RUNS, Ordering::Release);
        thread.wake.wake();
        return true;
    }
    if is_there {
        thread.state.store(ENDS, Ordering::Release);
        end(thread, SHARED);
    } else {
        // Another thread cannot be made. Later attempts would take room that the program may want.
        BOUND.store(count, Ordering::Relaxed);
        thread.state.store(WANTED, Ordering::Release);
    }
    false
}

/// Does the work of a CPU's thread, in the maker.
fn do_work_of(cpu: usize) {
    act_as(Some(cpu));
    THREADS[cpu].wake.clear();
    round(cpu);
    act_as(None);
}

/// Runs the work that is queued for a CPU.
fn round(cpu: usize) {
    // Checked by the rules for handlers, as this work might have run in one.
    witness::interrupt(|| (routines().interrupt)(cpu));
    (routines().work)(cpu);
}

/// A CPU thread, numbered as its CPU.
struct CpuThread;

impl os::Service for CpuThread {
    const NAME: Option<&'static str> = None;
    /// The maker's, until the maker pins the thread.
    const SCHEDULING: os::Scheduling = os::Scheduling::AsItsCreator;
    const MAIN: fn(usize) = thread_main;
}

fn thread_main(cpu: usize) {
    let thread = &THREADS[cpu];
    let mut backoff = Backoff::new();
    // Until the maker has pinned this thread.
    while thread.state.load(Ordering::Acquire) == MAKING {
        backoff.pause();
    }
    act_as(Some(cpu));
    thread.id.store(os::thread_id(), Ordering::Relaxed);
    loop {
        thread.wake.clear();
        round(cpu);
        if thread.state.load(Ordering::Acquire) == ENDS {
            return;
        }
        // A signal that arrived since the start of the round is handled here; the flag that was set
        // before it ends the sleep.
        let _interruptible =
            (mode() != IrqMode::None).then(|| os::admit_signal(SIGNAL.load(Ordering::Relaxed)));
        // Pairs with the fence in `raise`: a thread that still sends a signal although this thread
        // no longer takes one has set the flag before the sleep.
        fence(Ordering::SeqCst);
        thread.wake.sleep();
    }
}

/// Ends the maker. No CPU has a thread, and the caller runs the work that is still queued.
pub(crate) fn stop() {
    // Release: pairs with the Acquire in `make_threads`.
    MAKER_ENDS.store(true, Ordering::Release);
    let _ = MAKER_WAKE.set();
    MAKER_WAKE.wake();
    MAKER.join();
    MODE.store(0, Ordering::Relaxed);
}

/// Resets this module to a state without these threads: in the child of a fork, or where there can
/// be none.
pub(crate) fn in_child() {
    for thread in &THREADS {
        thread.id.store(0, Ordering::Relaxed);
        thread.state.store(NONE, Ordering::Relaxed);
    }
    COUNT.store(0, Ordering::Relaxed);
    WATCHERS.store(0, Ordering::Relaxed);
    // A flag that is still set would suppress the next wake-up.
    MAKER_WAKE.clear();
    MODE.store(0, Ordering::Relaxed);
}

/// Notifies the thread that acts as `cpu`, or the maker, that there is work. May be called in any
/// context.
pub(crate) fn raise(cpu: usize) {
    let thread = &THREADS[cpu];
    if !thread.wake.set() {
        return;
    }
    // Pairs with the fence in `thread_main`.
    fence(Ordering::SeqCst);
    // Relaxed: only the id is used. A thread that reads 0 notifies the maker, which looks again.
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
