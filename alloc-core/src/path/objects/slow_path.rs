//! The frame of every slow path: the context, the first step and the last one.

use super::deferral::free_deferred;
use super::reclaim::{may_reclaim, may_reclaim_what_was_left};
use crate::sync::{Context, do_what_was_left};

/// Runs a slow path that allocates: frees deferred blocks first, since the path may use their
/// memory. At the end starts the threads that the child of a fork lacks, and lets `reclaim` act on
/// what frees that must not wait have left.
#[inline(always)]
pub(crate) fn alloc<R>(path: impl FnOnce(Context) -> R) -> R {
    Context::enter(|context| {
        free_deferred(context);
        let result = path(context);
        do_what_was_left(context);
        may_reclaim_what_was_left(context);
        result
    })
}

/// Runs a slow path that frees: frees deferred blocks first, and at the end lets `reclaim` act on
/// what was freed. Starts no thread in the child of a fork: a C library may free with a lock held
/// that it also acquires to start a thread.
#[inline(always)]
pub(crate) fn free<R>(path: impl FnOnce(Context) -> R) -> R {
    Context::enter(|context| {
        free_deferred(context);
        let result = path(context);
        may_reclaim(context);
        result
    })
}

/// Runs a slow path that allocates and frees, with the steps of [`alloc`] and of [`free`].
#[inline(always)]
pub(crate) fn realloc<R>(path: impl FnOnce(Context) -> R) -> R {
    alloc(|context| {
        let result = path(context);
        may_reclaim(context);
        result
    })
}
