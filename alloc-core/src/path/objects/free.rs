//! Entry points of the fast paths that free one object: the sheaf refused it, or it used up the
//! allowance of middle sizes.

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

use super::check::misused;
use super::put::{bound_middle, free_object, put_away};
use super::slow_path;
use crate::batch::Batch;
use crate::node;
use crate::percpu::{self, Backend};
use crate::sampling;
use crate::size_class::Class;
use crate::slab::Misuse;
use crate::sync::Context;

/// Frees `object` after this CPU's sheaf had no room for it.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_slow(class: Class, object: *mut u8) {
    if sampling::owns(object) {
        // SAFETY: the caller guarantees that `object` is not in use.
        return unsafe { free_apart(class, object) };
    }
    // SAFETY: the caller guarantees that `object` is of `class` and not in use.
    if unsafe { push_on_fallback(class, object, || true) } {
        return;
    }
    slow_path::free(|context| {
        // SAFETY: the caller guarantees that `object` is of `class` and not in use.
        unsafe { free_object(context, class, object) };
    });
}

/// Frees an object that `push_once` or `push_by_address` refused. The sheaf may be full, or may
/// hold the object already; in the second case, this aborts the process.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn free_refused(class: Class, object: *mut u8) {
    let is_new = || !percpu::is_on_top(class, object);
    // SAFETY: the caller guarantees that `object` is of `class` and not in use.
    if unsafe { push_on_fallback(class, object, is_new) } {
        return;
    }
    slow_path::free(|context| {
        let backend = percpu::backend(context);
        if is_on_top(context, backend, class, object) {
            misused(object, class, Misuse::DoubleFree);
        }
        // SAFETY: the caller guarantees that `object` is of `class` and not in use.
        unsafe { free_object(context, class, object) };
    });
}

/// Frees a block apart from slabs: a sampled or guarded one. Ends the process if it is not in use,
/// or not of `class`.
///
/// # Safety
/// Nobody uses the block.
#[cold]
#[inline(never)]
unsafe fn free_apart(class: Class, block: *mut u8) {
    match sampling::class_of(block) {
        Some(found) if found != class => misused(block, class, Misuse::Foreign),
        // SAFETY: the caller guarantees that nobody uses the block.
        _ if unsafe { sampling::free(block) } => {}
        _ => misused(block, class, Misuse::DoubleFree),
    }
}

/// Pushes an object onto this CPU's sheaf if the backend is the fallback and `may_push` holds: the
/// fast path of that backend, without the steps of a slow path. Returns whether the object was
/// pushed. Never pushes an object of a middle size, which spends the allowance.
///
/// # Safety
/// `object` is of `class`, and nobody uses it.
#[inline(always)]
unsafe fn push_on_fallback(class: Class, object: *mut u8, may_push: impl FnOnce() -> bool) -> bool {
    !class.is_middle()
        && Context::enter(|context| {
            let backend = percpu::backend(context);
            // SAFETY: the caller guarantees that `object` is of `class` and not in use.
            backend == Backend::Locked && may_push() && unsafe { backend.push(class, object) }
        })
}

/// Returns whether `object` is one of the two topmost of this CPU's sheaf.
#[inline(never)]
fn is_on_top(context: Context, backend: Backend, class: Class, object: *mut u8) -> bool {
    if backend == Backend::Locked {
        return percpu::is_on_top(class, object);
    }
    // With rseq, plain loads may see what the sheaf held before: only a section on this CPU reads
    // it reliably. So take the two topmost off for a moment.
    let mut batch = Batch::new();
    backend.drain(class, &mut batch, 2);
    let found = batch.objects().contains(&object);
    // SAFETY: the batch has just left a sheaf, so this thread alone holds its objects.
    unsafe {
        backend.fill(class, &mut batch);
        put_away(context, backend, class, node::current(), &mut batch);
    }
    found
}

/// Runs [`bound_middle`] after a fast path has pushed an object of `class`, a middle size, and used
/// up the allowance of its CPU.
#[cold]
#[inline(never)]
pub(crate) extern "C" fn allowance_is_used_up(class: Class) {
    slow_path::free(|context| bound_middle(context, percpu::backend(context), class));
}
