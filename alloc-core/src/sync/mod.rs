//! Atomics and locks: the only folder that knows whether atomics are the machine's or loom's.
//!
//! - [`Lock`], the one lock of the slow paths: a word, tried, spun on a little and then slept on in a futex.
//! - [`Rcuwait`], a place for one thread to wait for what a signal handler does.
//! - [`Backoff`], how to wait for another thread without sleeping in a lock of its own.
//! - [`WakeFlag`], what tells a thread that there is something to do.
//! - [`counters`], which count what CPUs have to agree on, for who wants to know.
//! - [`witness`], which holds locks against an order in debug builds.
//! - [`Context`], whether whoever takes a lock may wait for it.
//! - [`Llist`], a list that any context may add to.
//! - [`Grace`], whether all readers of before are gone.
//! - [`forks`], which process this is, and what a child has yet to do.
//! - [`ControlRwLock`] and `ControlMutex`, locks of the control plane.
//!
//! Nothing here allocates. This folder may touch `os` and `arch`.

mod backoff;
mod context;
mod control;
pub(crate) mod counters;
mod futex;
mod grace;
mod llist;
mod lock;
mod process;
mod rcuwait;
mod wake_flag;
pub(crate) mod witness;

pub(crate) use backoff::Backoff;
pub(crate) use context::Context;
pub(crate) use control::ControlRwLock;
#[cfg(not(loom))]
pub(crate) use control::{ControlGuard, ControlMutex, Holders};
pub(crate) use futex::Futex;
pub(crate) use grace::{Grace, Ticket};
pub(crate) use llist::{CpuLists, Link, Llist, Taken};
#[cfg(not(loom))]
pub(crate) use lock::{Fork, RawLock, SPINS};
pub(crate) use lock::{Guard, Lock};
pub(crate) use primitive::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
pub(crate) use process::forks;
#[cfg(not(loom))]
pub(crate) use process::{count_fork, do_what_was_left, leave_for_later};
pub(crate) use rcuwait::Rcuwait;
pub(crate) use wake_flag::WakeFlag;
pub(crate) use witness::LockClass;

/// Waits a little for another thread, which may need this CPU to go on.
pub(crate) fn spin_or_yield() {
    #[cfg(not(loom))]
    {
        primitive::spin_loop();
        crate::os::yield_now();
    }
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(not(loom))]
mod primitive {
    pub(crate) use core::cell::UnsafeCell;
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
}

#[cfg(loom)]
mod primitive {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
}
