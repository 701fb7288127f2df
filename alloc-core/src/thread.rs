//! The threads that act as CPUs: one per core, pinned to it, and the only targets of our signal.
//!
//! A thread has all signals blocked, as a CPU that has interrupts disabled, and takes ours only where it waits for something
//! to do. So its handler interrupts nothing that holds a lock. Other signals go to the program's own threads, and none of
//! these ever sees one of ours.
//!
//! It waits beside a [bell](Bell), which whoever has work for it rings before sending the signal. So nothing depends on the
//! signal: where the kernel refuses to send it (the user has too many queued already, or a filter is in the way), the thread
//! is woken like any other, and does in its loop what the handler would have done.
//!
//! The signal is the highest real-time signal that nobody handles, or `HAYLOFT_IRQ_SIGNAL`. `HAYLOFT_IRQ` says what is done
//! in the handler: `hard` (the default: everything), `threaded` (what insists on it; the rest in the loop, as in a kernel
//! with `PREEMPT_RT`), `none` (no signal: the loop does all, as for a CPU that cannot be interrupted). Where no signal can
//! be had, that is what happens.
//!
//! These are not threads of the standard library: such a thread takes a lock of the library's when it starts and when it
//! ends, and a child that was forked meanwhile could not have any.
//!
//! This file may touch `sync` and `os`.

extern crate std;

use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, compiler_fence};
use std::boxed::Box;
use std::sync::mpsc;

use crate::arch;
use crate::os;
use crate::sync::{Bell, witness};

/// CPUs that are told apart; those beyond share with the first ones.
pub(crate) const MAX_CPUS: usize = 512;

/// Bytes of stack of such a thread.
const STACK: usize = 256 << 10;

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
}

struct Thread {
    /// Its number for the kernel; 0 where there is none.
    id: AtomicI32,
    /// Rung when there is something to do.
    bell: Bell,
    stop: AtomicBool,
}

static THREADS: [Thread; MAX_CPUS] =
    [const { Thread { id: AtomicI32::new(0), bell: Bell::new(), stop: AtomicBool::new(false) } };
        MAX_CPUS];

/// An [`IrqMode`], or 0 before the machine was started.
static MODE: AtomicU8 = AtomicU8::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The CPU that this thread acts as, if it does, and what it does then.
fn role() -> Option<(usize, &'static Routines)> {
    let locals = arch::locals();
    let cpu = locals.acts_as.load(Ordering::Relaxed).checked_sub(1)?;
    // SAFETY: what `take_role` stored before it.
    Some((cpu, unsafe { &*locals.routines.load(Ordering::Relaxed).cast() }))
}

fn take_role(cpu: usize, routines: &'static Routines) {
    let locals = arch::locals();
    locals.routines.store(ptr::from_ref(routines).cast_mut().cast(), Ordering::Relaxed);
    // Towards handlers on this thread: there are routines where there is a CPU.
    compiler_fence(Ordering::SeqCst);
    locals.acts_as.store(cpu + 1, Ordering::Relaxed);
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
    role().map(|(cpu, _)| cpu)
}

/// The number for the kernel of the thread that acts as `cpu`; 0 where there is none.
pub(crate) fn id(cpu: usize) -> i32 {
    THREADS[cpu].id.load(Ordering::Relaxed)
}

/// Settles how threads are told that there is work. To be called once, before the first [`spawn`].
pub(crate) fn start() {
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
    // Release: pairs with the Acquire in `mode`.
    MODE.store(mode as u8, Ordering::Release);
}

extern "C" fn interrupted(_signal: c_int) {
    if let Some((cpu, routines)) = role() {
        witness::interrupt(|| (routines.interrupt)(cpu));
    }
}

/// What a new thread is told.
struct Birth {
    cpu: usize,
    routines: &'static Routines,
    /// Hears whether it is pinned to that CPU.
    pinned: mpsc::SyncSender<bool>,
}

/// Makes the thread that acts as `cpu`, and waits until it does; `None` if there can be no such thread, or it cannot be pinned
/// to that CPU.
pub(crate) fn spawn(cpu: usize, routines: &'static Routines) -> Option<os::Thread> {
    let (pinned, is_pinned) = mpsc::sync_channel(1);
    let birth = Box::into_raw(Box::new(Birth { cpu, routines, pinned }));
    // The new thread inherits the mask.
    let _masked = os::block_signals();
    let Some(thread) = os::spawn(STACK, live, birth.cast()) else {
        // SAFETY: nobody else got it.
        drop(unsafe { Box::from_raw(birth) });
        return None;
    };
    if is_pinned.recv().unwrap_or(false) {
        return Some(thread);
    }
    thread.join();
    None
}

/// The life of a thread.
extern "C" fn live(birth: *mut c_void) -> *mut c_void {
    // SAFETY: what `spawn` made for this thread.
    let Birth { cpu, routines, pinned } = *unsafe { Box::from_raw(birth.cast::<Birth>()) };
    let name = std::format!("hayloft/{cpu}\0");
    os::name_thread(CStr::from_bytes_until_nul(name.as_bytes()).unwrap_or_default());
    let done = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    if done {
        take_role(cpu, routines);
        THREADS[cpu].stop.store(false, Ordering::Relaxed);
        THREADS[cpu].id.store(os::thread_id(), Ordering::Relaxed);
    }
    // The spawner waits for it.
    let _ = pinned.send(done);
    if done {
        act(cpu, routines);
    }
    ptr::null_mut()
}

/// The loop of a thread.
fn act(cpu: usize, routines: &Routines) {
    let thread = &THREADS[cpu];
    loop {
        thread.bell.answer();
        // By the rules of the handler, where this work might as well have run.
        witness::interrupt(|| (routines.interrupt)(cpu));
        (routines.work)(cpu);
        if thread.stop.load(Ordering::Acquire) {
            break;
        }
        // A signal that came since the start of the round is handled here, and its ring ends the sleep.
        let _interruptible =
            (mode() != IrqMode::None).then(|| os::admit_signal(SIGNAL.load(Ordering::Relaxed)));
        thread.bell.sleep();
    }
    thread.id.store(0, Ordering::Relaxed);
}

/// Ends the thread that acts as `cpu`.
pub(crate) fn stop(cpu: usize, thread: os::Thread) {
    // Release: pairs with the Acquire in `act`.
    THREADS[cpu].stop.store(true, Ordering::Release);
    raise(cpu);
    thread.join();
}

/// There are none of these threads: in the child of a fork, or where none could be had.
pub(crate) fn forget() {
    THREADS.iter().for_each(|thread| thread.id.store(0, Ordering::Relaxed));
    MODE.store(0, Ordering::Relaxed);
}

/// Tells the thread that acts as `cpu` that there is something to do. May be called in any context.
pub(crate) fn raise(cpu: usize) {
    let thread = &THREADS[cpu];
    if thread.bell.ring() {
        // Relaxed: the number alone; there is a thread before there is work for it.
        let interrupted = mode() != IrqMode::None
            && os::signal_thread(thread.id.load(Ordering::Relaxed), SIGNAL.load(Ordering::Relaxed));
        if !interrupted {
            thread.bell.wake();
        }
    }
}
