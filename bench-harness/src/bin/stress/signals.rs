//! The storm: signals that interrupt threads wherever they are, and whose handlers allocate and free.
//!
//! Each thread that takes part has a timer of its own, which sends it a signal after a random time,
//! and then again after another. A handler is itself interrupted now and then. It makes a [`Visit`],
//! queues [`irq`] work, and finds `errno` as it left it.

use std::cell::Cell;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::{self, Role};
use crate::pulse::Pulse;
use crate::visit::Visit;
use crate::{caches, irq};

/// The signal of the storm.
const SIGNAL: libc::c_int = libc::SIGUSR1;

/// Nanoseconds from one signal of a thread to the next.
const PAUSE: Range<usize> = 20_000..180_000;

/// Handlers on one thread at a time.
const MAX_LEVEL: u32 = 2;

/// Value of `errno` that a handler must find as it left it.
const ERRNO: libc::c_int = 12345;

/// Handlers that came to their end.
pub(crate) static HANDLERS: Pulse = Pulse::new();

/// Operations that handlers have done.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The timer of this thread, if it takes part.
    static TIMER: Cell<Option<libc::timer_t>> = const { Cell::new(None) };
    /// Handlers that this thread is in.
    static LEVEL: Cell<u32> = const { Cell::new(0) };
    /// Thread number and generation, for reports.
    static PLACE: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Operations that handlers have done so far.
pub(crate) fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Installs the handler.
pub(crate) fn install() {
    // SAFETY: a zeroed action with a handler and flags is a valid one; the handler keeps to what may be
    // done in one.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER | libc::SA_RESTART;
        libc::sigaction(SIGNAL, &raw const action, ptr::null_mut())
    };
    assert_eq!(result, 0, "the signal can be handled");
}

/// As long as this exists, its thread gets signals.
#[derive(Debug)]
pub(crate) struct Enlisted(libc::timer_t);

impl Enlisted {
    /// Starts the timer of this thread.
    pub(crate) fn new(thread: u32, generation: u32) -> Self {
        let mut timer = ptr::null_mut();
        // SAFETY: a zeroed event with these fields is a valid one; the timer is ours to be written.
        let result = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        assert_eq!(result, 0, "the system can make a timer");
        PLACE.set((thread, generation));
        TIMER.set(Some(timer));
        arm(PAUSE.start);
        Self(timer)
    }
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        // A signal that is under way comes still, and finds no timer.
        TIMER.set(None);
        // SAFETY: a timer that was made by `new` and that nobody uses any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Has the next signal come after so many nanoseconds.
fn arm(pause: usize) {
    let Some(timer) = TIMER.get() else { return };
    // SAFETY: a timer of this thread; zeroed specifications are valid ones.
    unsafe {
        let mut time: libc::itimerspec = mem::zeroed();
        time.it_value.tv_nsec = pause as libc::c_long;
        libc::timer_settime(timer, 0, &raw const time, ptr::null_mut());
    }
}

extern "C" fn handler(_: libc::c_int) {
    let before = replace_errno(ERRNO);
    let level = LEVEL.replace(LEVEL.get() + 1);
    let (thread, generation) = PLACE.get();
    let mut visit = Visit::new(Role::Handler, thread, generation);
    let pause = PAUSE.start + visit.rng.below(PAUSE.len());
    // The outermost handler is to be interrupted, those in it are not.
    if level == 0 {
        arm(pause);
    }
    if level < MAX_LEVEL {
        OPERATIONS.fetch_add(visit.run(), Ordering::Relaxed);
        caches::interrupt(&mut visit.rng, visit.actor);
        irq::queue(&mut visit.rng);
    }
    if level > 0 {
        arm(pause);
    }
    LEVEL.set(level);
    HANDLERS.beat();
    if replace_errno(before) != ERRNO {
        failure::give_up(format_args!("errno changed in a handler"));
    }
}

/// Sets `errno` of this thread; what it was.
fn replace_errno(value: libc::c_int) -> libc::c_int {
    // SAFETY: the address of this thread's `errno` is valid.
    unsafe { libc::__errno_location().replace(value) }
}
