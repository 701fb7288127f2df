//! Service threads: the threads of the allocator itself.
//!
//! | thread | made by | scheduling | for |
//! |---|---|---|---|
//! | `hayloft/cpus` | [`spawn`] | as the process | making CPU threads (`irq`) |
//! | `hayloft/NUMBER` | [`spawn`] | pinned by `hayloft/cpus` | the irq work of a CPU (`irq`) |
//! | `hayloft/stats` | [`spawn`] | as its creator | reports (`report`) |
//! | `hayloft/reclaim` | [`spawn_bare`] | as the process | decay windows (`reclaim`) |
//!
//! Every service thread starts with all signals blocked, so that the program's handlers run on the
//! program's own threads. It inherits the mask from its creator, which blocks signals while it
//! makes the thread.
//!
//! A thread made by [`spawn`] is one of the C library, which can pin it and wait for its end. It is
//! no thread of the standard library: such a thread takes a lock of the library when it starts and
//! when it ends, and a child forked while that is held could not make any threads. A thread made by
//! [`spawn_bare`] is unknown to the C library, too: `bare` describes what that permits and forbids.
//! That thread also takes a descriptor table of its own.

use core::ffi::{CStr, c_void};
use core::fmt::Write;
use core::ptr;
use core::sync::atomic::Ordering;

use super::{bare, imp};
use crate::arch;
use crate::text::Line;

/// Bytes of a service thread's stack.
const STACK: usize = 256 << 10;

/// A kind of service thread.
pub(crate) trait Service {
    /// The thread's name behind `hayloft/`, at most seven bytes; `None` for its number.
    const NAME: Option<&'static str>;
    /// The thread's scheduling at its start.
    const SCHEDULING: Scheduling;
    /// The thread's main function, called with the number that was passed to [`spawn`].
    const MAIN: fn(usize);
}

/// The policy and the CPUs by which the kernel schedules a service thread at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheduling {
    /// Ordinary scheduling, on the CPUs of the main thread.
    AsTheProcess,
    /// Those of the thread that makes it.
    AsItsCreator,
}

/// Starts a service thread of the C library. Returns `None` if no further thread can be created.
/// May allocate.
pub(crate) fn spawn<S: Service>(number: usize) -> Option<imp::Thread> {
    extern "C" fn body<S: Service>(number: *mut c_void) -> *mut c_void {
        run::<S>(number.addr());
        ptr::null_mut()
    }
    // The new thread inherits the mask.
    let _masked = imp::block_signals();
    imp::spawn(STACK, body::<S>, ptr::without_provenance_mut(number))
}

/// Starts a service thread that is unknown to the C library, with the number 0. Returns false if no
/// thread can be created. May be called in any context, by one caller at a time, and waits for the
/// previous such thread to leave its stack.
pub(crate) fn spawn_bare<S: Service>() -> bool {
    extern "C" fn body<S: Service>() {
        run::<S>(0);
    }
    bare::spawn(STACK, body::<S>)
}

/// Returns whether this thread is a service thread. May be called in any context.
pub(crate) fn is_service_thread() -> bool {
    arch::locals().is_service.load(Ordering::Relaxed) != 0
}

/// Runs a service thread, on that thread.
fn run<S: Service>(number: usize) {
    arch::locals().is_service.store(1, Ordering::Relaxed);
    let mut name = Line::<16>::new();
    let _ = match S::NAME {
        Some(of_kind) => write!(name, "hayloft/{of_kind}"),
        None => write!(name, "hayloft/{number}"),
    };
    let name = name.into_bytes();
    imp::name_thread(CStr::from_bytes_until_nul(&name).unwrap_or_default());
    if S::SCHEDULING == Scheduling::AsTheProcess {
        imp::schedule_as_the_process();
    }
    S::MAIN(number);
}
