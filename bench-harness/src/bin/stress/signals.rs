//! The storm: signals that interrupt threads wherever they are. Their handlers allocate and free.
//!
//! Each thread that takes part has a timer of its own, which sends it a signal after a random time,
//! again and again. Sometimes a handler is itself interrupted. A handler makes a [`Visit`], queues
//! [`irq`] work, and checks that `errno` still has the value that it set.

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

/// Nesting depth up to which handlers do their work.
const MAX_LEVEL: u32 = 2;

/// Value of `errno` that a handler sets and must find unchanged.
const ERRNO: libc::c_int = 12345;

/// Handlers that have returned.
pub(crate) static HANDLERS: Pulse = Pulse::new();

/// Operations that handlers have done.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The timer of this thread, if it takes part.
    static TIMER: Cell<Option<libc::timer_t>> = const { Cell::new(None) };
    /// Handlers that this thread is currently in.
    static LEVEL: Cell<u32> = const { Cell::new(0) };
    /// Thread number and generation, for reports.
    static PLACE: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Returns the operations that handlers have done so far.
pub(crate) fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Installs the handler.
pub(crate) fn install() {
    // SAFETY: a zeroed action with a handler and flags is valid. The handler does only what any
    // context may do.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER | libc::SA_RESTART;
        libc::sigaction(SIGNAL, &raw const action, ptr::null_mut())
    };
    assert_eq!(result, 0, "the signal can be handled");
}

/// Keeps signals coming to its thread for as long as it exists.
#[derive(Debug)]
pub(crate) struct Enlisted(libc::timer_t);

impl Enlisted {
    /// Starts the timer of this thread.
    pub(crate) fn new(thread: u32, generation: u32) -> Self {
        let mut timer = ptr::null_mut();
        // SAFETY: a zeroed event with these fields is valid, and `timer` is valid for the write.
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
        // A signal already on its way is still delivered, and finds no timer.
        TIMER.set(None);
        // SAFETY: `new` created the timer, and nothing uses it any longer.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Arms the timer to send the next signal after `pause` nanoseconds.
fn arm(pause: usize) {
    let Some(timer) = TIMER.get() else { return };
    // SAFETY: `timer` belongs to this thread and exists. A zeroed specification is valid.
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
    // Lets the outermost handler be interrupted, but not those nested in it.
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

/// Sets `errno` of this thread and returns its previous value.
fn replace_errno(value: libc::c_int) -> libc::c_int {
    // SAFETY: the address of this thread's `errno` is valid.
    unsafe { libc::__errno_location().replace(value) }
}
