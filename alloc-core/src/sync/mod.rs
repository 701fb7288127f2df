//! Atomics and locks: the only folder that knows whether atomics are the machine's or loom's.
//!
//! - [`Lock`], the one lock of the slow paths: a word, tried, spun on a little and then slept on in a futex.
//! - [`Context`], whether whoever takes a lock may wait for it.
//! - [`Llist`], a list that any context may add to.
//!
//! Nothing here allocates. This folder may touch `os`.

mod context;
mod llist;
mod lock;

pub(crate) use context::Context;
pub(crate) use llist::{Link, Llist};
pub(crate) use lock::{Guard, Lock};
pub(crate) use primitive::{AtomicUsize, Ordering};

#[cfg(not(loom))]
mod primitive {
    pub(crate) use core::cell::UnsafeCell;
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
}

#[cfg(loom)]
mod primitive {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
}
