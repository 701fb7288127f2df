//! Faults: a handler for invalid memory accesses that knows some addresses, and passes all other
//! faults on to the handler that was there before.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::signal::signal_thread;
use super::system_call::SavedErrno;
use super::thread::thread_id;
use crate::atomic_fn::{AtomicFn, FnPtr};

/// An invalid access to memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) address: usize,
    /// Whether it is a write; `None` if that is unknown.
    pub(crate) is_write: Option<bool>,
    /// The context that the kernel passed to the handler, a `ucontext_t`.
    pub(crate) context: *const c_void,
}

/// Explains a fault. Returns false if it knows nothing of the address.
pub(crate) type Explain = fn(Fault) -> bool;

/// The function to call. Stored before a handler is installed.
static EXPLAIN: AtomicFn<Explain> = AtomicFn::new();

/// A handler, and the action that it replaced: written once, before the handler is installed that
/// reads it.
struct Layer {
    handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
    before: UnsafeCell<MaybeUninit<libc::sigaction>>,
}

// SAFETY: the thread that took the layer writes the action, and the kernel orders that before the
// handler.
unsafe impl Sync for Layer {}

impl Layer {
    const fn new(handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) -> Layer {
        Layer { handler, before: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

/// All handlers. Where the program installs one later, another is put in front of it: a handler of
/// its own for each, so that a program's handler that calls the one before it ends up at the first.
static LAYERS: [Layer; 4] = [
    Layer::new(on_fault::<0>),
    Layer::new(on_fault::<1>),
    Layer::new(on_fault::<2>),
    Layer::new(on_fault::<3>),
];
/// Handlers that were installed so far.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Installs a handler of `SIGSEGV`, unless the handler in force is one of these already. Where that
/// fails, faults do what they did before. Any context.
pub(crate) fn explain_faults(explain: Explain) {
    EXPLAIN.set(explain);
    let _errno = SavedErrno::new();
    // SAFETY: zeroed actions are valid. This thread alone writes the action of the layer that it
    // took, before anything reads it. The handler does only what signal handlers may do.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        if libc::sigaction(libc::SIGSEGV, ptr::null(), &raw mut action) != 0 {
            return;
        }
        let is_in_force =
            |layer: &Layer| layer.handler as *const () as usize == action.sa_sigaction;
        if LAYERS.iter().any(is_in_force) {
            return;
        }
        let take = |taken| (taken < LAYERS.len()).then_some(taken + 1);
        let Ok(taken) = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
            return;
        };
        let Some(layer) = LAYERS.get(taken) else { return };
        (*layer.before.get()).write(action);
        action.sa_sigaction = layer.handler as *const () as usize;
        action.sa_flags &= libc::SA_NODEFER | libc::SA_RESTART;
        action.sa_flags |= libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut());
    }
}

extern "C" fn on_fault<const LAYER: usize>(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    let _errno = SavedErrno::new();
    // SAFETY: the kernel passes valid pointers to a handler with this flag.
    let (code, fault) = unsafe { ((*info).si_code, fault(info, context.cast())) };
    // SAFETY: written before the handler was installed.
    let before = unsafe { (*LAYERS[LAYER].before.get()).assume_init_ref() };
    // The kernel's codes are positive: no process or thread has sent the signal.
    let is_of_access = code > 0;
    if is_of_access && EXPLAIN.get().is_some_and(|explain| explain(fault)) {
        // The access is repeated when the handler returns, and faults under the former action.
        restore(before);
    } else {
        pass_on(before, signal, info, context, is_of_access);
    }
}

/// Returns the access that a signal reports.
///
/// # Safety
/// The kernel passed these to a handler.
unsafe fn fault(info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) -> Fault {
    // SAFETY: the caller guarantees valid pointers.
    unsafe {
        let address = (*info).si_addr().addr();
        #[cfg(target_arch = "x86_64")]
        let is_write = {
            let registers = &(*context).uc_mcontext.gregs;
            // Bit 1 of the page fault's error code.
            registers.get(libc::REG_ERR as usize).map(|error| error & 2 != 0)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let is_write = None;
        Fault { address, is_write, context: context.cast() }
    }
}

/// Restores the action that the handler had replaced.
fn restore(before: &libc::sigaction) {
    // SAFETY: the action is one that the program had set.
    unsafe { libc::sigaction(libc::SIGSEGV, before, ptr::null_mut()) };
}

/// Acts as the kernel would have acted without this handler.
fn pass_on(
    before: &libc::sigaction,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    is_of_access: bool,
) {
    match before.sa_sigaction {
        libc::SIG_IGN if !is_of_access => {}
        // The access is repeated when the handler returns.
        libc::SIG_DFL | libc::SIG_IGN => {
            restore(before);
            if !is_of_access {
                signal_thread(thread_id(), signal);
            }
        }
        // SAFETY: zeroed actions are valid. The program's handler has the type that its flags say,
        // and the kernel would have called it with these arguments.
        handler => unsafe {
            if before.sa_flags & libc::SA_RESETHAND != 0 {
                libc::sigaction(signal, &core::mem::zeroed(), ptr::null_mut());
            }
            let handler = ptr::with_exposed_provenance_mut(handler);
            if before.sa_flags & libc::SA_SIGINFO == 0 {
                type Handler = unsafe extern "C" fn(c_int);
                if let Some(handler) = Handler::at(handler) {
                    handler(signal);
                }
            } else {
                type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                if let Some(handler) = Handler::at(handler) {
                    handler(signal, info, context);
                }
            }
        },
    }
}
