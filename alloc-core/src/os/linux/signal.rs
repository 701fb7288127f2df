//! Signals: sending, handling and passing them on, and masks of blocked signals.
//!
//! The C library installs the handlers and changes the masks; it keeps some signals for itself.
//! [`change_bare_mask`] changes the mask of those too.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;

use super::super::inject::{Call, fails};
use super::system_call::{SavedErrno, call, word};
use super::thread::thread_id;
use crate::text::process_id;

/// Sends a signal to a thread of this process. Returns false if the thread does not exist or the
/// kernel refuses, as it does when the user has too many signals queued (`RLIMIT_SIGPENDING`).
pub(crate) fn signal_thread(id: i32, signal: c_int) -> bool {
    let arguments = [word(process_id()), word(id), word(signal)];
    // SAFETY: the call takes only numbers; the thread is of this process or gone.
    !fails(Call::Tgkill) && unsafe { call(libc::SYS_tgkill, arguments).is_ok() }
}

/// The arguments of a signal handler.
pub(crate) struct Signal {
    number: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
}

/// A signal handler, as the kernel calls it.
pub(crate) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

impl Signal {
    /// # Safety
    /// The kernel called a handler with these arguments, and the handler has not returned yet.
    pub(crate) unsafe fn new(
        number: c_int,
        info: *mut libc::siginfo_t,
        context: *mut c_void,
    ) -> Signal {
        Signal { number, info, context }
    }

    /// Returns whether [`signal_thread`] sent the signal in this process.
    pub(crate) fn is_own(&self) -> bool {
        // SAFETY: by the contract of `new`, `info` is valid; a signal with this code has a sender.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == process_id() }
    }

    /// Passes the signal on to the program. Blocks it on this thread as soon as the handler
    /// returns, and sends it to the process again, with its information unchanged where the kernel
    /// permits that. So a thread of the program that waits for the signal receives it.
    pub(crate) fn pass_on(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: by the contract of `new`, `context` is the handler's, and the kernel restores the
        // mask from it.
        unsafe {
            libc::sigaddset(
                &raw mut (*self.context.cast::<libc::ucontext_t>()).uc_sigmask,
                self.number,
            )
        };
        let send = || {
            let arguments = [word(process_id()), word(self.number), self.info.expose_provenance()];
            // SAFETY: the kernel only reads the information.
            unsafe { call(libc::SYS_rt_sigqueueinfo, arguments).is_ok() }
        };
        // A code reserved to the kernel or to a sender's own process becomes one that any process
        // may send.
        let send_as_queued = || {
            // SAFETY: by the contract of `new`, `info` is valid. The fields of both codes are the
            // same except for the value.
            unsafe { (*self.info).si_code = libc::SI_QUEUE };
            send()
        };
        if !send() && !send_as_queued() {
            // The user has too many signals queued. The information is lost, but not the signal.
            // SAFETY: `kill` takes only numbers.
            let _ = unsafe { call(libc::SYS_kill, [word(process_id()), word(self.number)]) };
        }
    }

    /// Resets the signal to its default action and sends it to this thread again, so that the
    /// default action occurs when the handler returns.
    pub(crate) fn do_the_default(&self) {
        let _errno = SavedErrno::new();
        // SAFETY: a zeroed action is the default one.
        unsafe { libc::sigaction(self.number, &core::mem::zeroed(), ptr::null_mut()) };
        signal_thread(thread_id(), self.number);
    }
}

/// Installs `handler` for the signal `wanted`, or without one for the highest real-time signal that
/// has no handler. Returns the signal, or `None` if it has a handler already or the kernel refuses.
/// The handler runs on the thread's stack: alternate signal stacks are too small for a report, and
/// Rust's have 8 KiB.
pub(crate) fn take_signal(wanted: Option<c_int>, handler: Handler) -> Option<c_int> {
    let _errno = SavedErrno::new();
    let take = |signal: &c_int| {
        // SAFETY: zeroed actions are valid, and the handler does only what signal handlers may do.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            let got = libc::sigaction(*signal, ptr::null(), &raw mut action);
            if got != 0 || action.sa_sigaction != libc::SIG_DFL {
                return false;
            }
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
            libc::sigaction(*signal, &raw const action, ptr::null_mut()) == 0
        }
    };
    match wanted {
        Some(signal) => Some(signal).filter(take),
        None => (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(take),
    }
}

/// Returns whether this thread blocks any signal, as it does in most handlers.
pub(crate) fn has_signals_blocked() -> bool {
    let mut mask = 0u64;
    let (to, len) = ((&raw mut mask).expose_provenance(), size_of_val(&mask));
    // SAFETY: the pointer is to a local mask of the length that is passed.
    let asked = unsafe { call(libc::SYS_rt_sigprocmask, [word(libc::SIG_BLOCK), 0, to, len]) };
    asked.is_err() || mask != 0
}

/// A thread's previous signal mask, which is restored when this is dropped.
pub(crate) struct OldMask(libc::sigset_t);

/// Blocks all signals on this thread.
pub(crate) fn block_signals() -> OldMask {
    // SAFETY: the calls write only a local set.
    unsafe {
        let mut all = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        change_mask(libc::SIG_SETMASK, &all)
    }
}

/// Unblocks `signal` on this thread.
pub(crate) fn admit_signal(signal: c_int) -> OldMask {
    // SAFETY: the calls write only a local set.
    unsafe {
        let mut one = core::mem::zeroed();
        libc::sigemptyset(&raw mut one);
        libc::sigaddset(&raw mut one, signal);
        change_mask(libc::SIG_UNBLOCK, &one)
    }
}

fn change_mask(how: c_int, set: &libc::sigset_t) -> OldMask {
    // SAFETY: one set may be read and the other written; the call cannot fail.
    unsafe {
        let mut old = core::mem::zeroed();
        libc::pthread_sigmask(how, set, &raw mut old);
        OldMask(old)
    }
}

impl Drop for OldMask {
    fn drop(&mut self) {
        // SAFETY: the kernel filled the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Sets this thread's signal mask, including the signals that the C library reserves. Stores the
/// previous mask in `before`.
pub(in super::super) fn change_bare_mask(mask: &u64, before: Option<&mut u64>) {
    let to = before.map_or(ptr::null_mut(), ptr::from_mut).expose_provenance();
    let from = ptr::from_ref(mask).expose_provenance();
    let arguments = [word(libc::SIG_SETMASK), from, to, size_of::<u64>()];
    // SAFETY: both masks have the length that is passed.
    let _ = unsafe { call(libc::SYS_rt_sigprocmask, arguments) };
}

/// Returns the alternate signal stack, if this thread runs on it.
pub(crate) fn alternate_stack() -> Option<Range<usize>> {
    let mut stack = MaybeUninit::<libc::stack_t>::uninit();
    let to = (&raw mut stack).expose_provenance();
    // SAFETY: the kernel writes the struct if the call succeeds.
    let stack = unsafe {
        call(libc::SYS_sigaltstack, [0, to]).ok()?;
        stack.assume_init()
    };
    let start = stack.ss_sp.addr();
    (stack.ss_flags & libc::SS_ONSTACK != 0).then(|| start..start.saturating_add(stack.ss_size))
}
