//! The selection of the backend, and the registration of threads with the kernel.
//!
//! The first slow path, or `HAYLOFT_BACKEND=rseq|fallback`, selects the backend for the life of the
//! process. One thread selects, the *decider*; other threads wait for it. A signal handler that
//! interrupts the selection sees no backend yet; its operations miss.
//!
//! The decider reserves the regions, publishes their address to the sections, then the offset of a
//! thread's `struct rseq`, and [`BACKEND`] last. A thread whose C library does not register a
//! `struct rseq` registers one of ours in its first slow path.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::region;
use crate::arch;
use crate::fault::{self, Place};
use crate::os;
use crate::settings::{self, Name};
use crate::sync::{Backoff, Context};

/// How this process operates its sheaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Backend {
    /// Not selected yet: every operation misses. Only contexts that must not wait for the selection
    /// see this.
    Undecided,
    /// Restartable sequences; the C library registers threads.
    Rseq,
    /// Restartable sequences; this allocator registers threads.
    OwnRseq,
    /// A try-lock per CPU.
    Locked,
}

/// The selected [`Backend`].
static BACKEND: AtomicU8 = AtomicU8::new(UNDECIDED);
const UNDECIDED: u8 = Backend::Undecided as u8;
const RSEQ: u8 = Backend::Rseq as u8;
const OWN_RSEQ: u8 = Backend::OwnRseq as u8;
const LOCKED: u8 = Backend::Locked as u8;
/// Token of the thread that selects, or has selected, the backend; 0 before.
static DECIDER: AtomicUsize = AtomicUsize::new(0);

/// Returns the backend of this process; the first call selects it. Registers the thread if that is
/// this allocator's task.
#[inline]
pub(crate) fn backend(context: Context) -> Backend {
    // Acquire: pairs with the Release in `decide`, so that the regions are visible.
    match BACKEND.load(Ordering::Acquire) {
        RSEQ => Backend::Rseq,
        LOCKED => Backend::Locked,
        OWN_RSEQ => {
            register_thread();
            Backend::OwnRseq
        }
        _ => decide(context),
    }
}

#[cold]
#[inline(never)]
fn decide(context: Context) -> Backend {
    // Relaxed: `BACKEND` publishes the result.
    let decider =
        DECIDER.compare_exchange(0, Context::thread(), Ordering::Relaxed, Ordering::Relaxed);
    if decider.is_err() {
        let mut backoff = Backoff::new();
        while BACKEND.load(Ordering::Relaxed) == UNDECIDED {
            if !context.may_wait() {
                return Backend::Undecided;
            }
            backoff.pause();
        }
        return backend(context);
    }
    fault::point(Place::BackendDeciding);
    // From now on handlers that other libraries register run outside of ours.
    os::take_place_at_forks();
    let rseq_wanted = match settings::text(Name::Backend) {
        None => kernel_aborts_sections(),
        Some(backend) => backend == "rseq",
    };
    let regions = region::reserve();
    let rseq = regions.filter(|_| rseq_wanted).and_then(|regions| {
        // SAFETY: two closed regions lie in front of the others. This comes before any thread is
        // registered by us: a registered thread has a CPU number, and handlers on it may use it.
        unsafe { arch::publish_region(regions.as_ptr()) };
        rseq()
    });
    let backend = match rseq {
        // SAFETY: the regions are published; every thread has a `struct rseq` at the offset.
        Some((backend, offset)) => unsafe {
            arch::publish_rseq_offset(offset);
            backend
        },
        None => Backend::Locked,
    };
    // Release: pairs with the Acquire in `backend`.
    BACKEND.store(backend as u8, Ordering::Release);
    backend
}

/// Returns whether the kernel aborts interrupted sections, as it should.
#[cfg(all(target_arch = "aarch64", not(miri)))]
fn kernel_aborts_sections() -> bool {
    aborts_sections_on_arm(os::release(&mut [0; 65]))
}
#[cfg(not(all(target_arch = "aarch64", not(miri))))]
fn kernel_aborts_sections() -> bool {
    true
}

/// Returns whether an AArch64 kernel aborts sections that are preempted by another thread of the
/// same CPU, or by a signal. 6.19, and 7.0 before 7.0.14, do not. (Linux 411c1cf43039,
/// "arm64/entry: Fix arm64-specific rseq brokenness".)
#[cfg(all(any(test, target_arch = "aarch64"), not(miri)))]
fn aborts_sections_on_arm(release: &[u8]) -> bool {
    let mut numbers = release.split(|byte| !byte.is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u32, |number, digit| {
            number.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
        })
    });
    let mut next = || numbers.next().unwrap_or(0);
    !matches!((next(), next(), next()), (6, 19, _) | (7, 0, ..=13))
}

/// Returns the backend by which threads are registered, and the offset of their `struct rseq` from
/// the thread pointer; `None` if the kernel refuses.
fn rseq() -> Option<(Backend, isize)> {
    if let Some(offset) = arch::libc_rseq() {
        return Some((Backend::Rseq, offset));
    }
    let offset = arch::own_rseq().addr().wrapping_sub(arch::thread_pointer().addr());
    (arch::HAVE_RSEQ && register_thread()).then_some((Backend::OwnRseq, offset as isize))
}

/// Registers this thread's own `struct rseq`, unless that was tried before. Returns whether the
/// thread is registered. Does not write to the area, which may be the kernel's already.
#[cold]
fn register_thread() -> bool {
    unsafe extern "C" fn unregister(_: *mut core::ffi::c_void) {
        // SAFETY: this thread's area, registered below. The thread uses no sheaves from now on.
        unsafe { os::unregister_rseq(arch::own_rseq()) };
    }
    static AT_EXIT: os::ThreadExit = os::ThreadExit::new(unregister);

    let area = arch::own_rseq();
    let registration = &arch::locals().registration;
    // No compare-exchange: if a handler registers between load and store, the second registration
    // is redundant and harmless.
    if registration.load(Ordering::Relaxed) == 0 {
        fault::point(Place::ThreadRegistering);
        // Stored before the hook is set: allocations that setting it makes then go to barn and
        // slabs.
        registration.store(1, Ordering::Relaxed);
        // SAFETY: this thread's area, which lives until the hook has run.
        if AT_EXIT.expect() && unsafe { os::register_rseq(area) } {
            fault::point(Place::ThreadRegistered);
        }
    }
    // SAFETY: this thread's area, which the kernel may write at any time. The number is -1 before
    // registration and after its end.
    unsafe { (&raw const (*area).cpu_id).read_volatile() >= 0 }
}

/// Returns whether the backend is the fallback.
#[inline]
pub(super) fn is_locked() -> bool {
    BACKEND.load(Ordering::Acquire) == LOCKED
}

/// Makes the selection start anew in a fork child, if another thread was selecting the backend.
pub(super) fn in_child() {
    if BACKEND.load(Ordering::Relaxed) == UNDECIDED
        && DECIDER.load(Ordering::Relaxed) != Context::thread()
    {
        DECIDER.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_do_not_abort_sections_are_recognised() {
        for broken in ["6.19.0", "6.19.12-arch1-1", "7.0.0-rc3", "7.0.13", "7.0", "6.19-rc1"] {
            assert!(!aborts_sections_on_arm(broken.as_bytes()), "{broken}");
        }
        for sound in ["", "5.10.0", "6.1.9", "6.18.19", "7.0.14-generic", "7.1.0", "16.19.0", "x"] {
            assert!(aborts_sections_on_arm(sound.as_bytes()), "{sound}");
        }
    }
}
