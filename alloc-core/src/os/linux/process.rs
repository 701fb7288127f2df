//! The process as a whole: hooks for its end and its forks, and the lock of the C library's
//! streams, which is held across forks.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::super::ForkHooks;
use crate::arch;
use crate::atomic_fn::FnPtr;

/// Registers `hook` to run when the program ends by `exit` or by returning from `main`.
pub(crate) fn at_exit(hook: extern "C" fn()) {
    // SAFETY: the hook lives as long as the program.
    unsafe { libc::atexit(hook) };
}

/// The hooks of [`at_fork`]; null before that call.
static FORK_HOOKS: AtomicPtr<ForkHooks> = AtomicPtr::new(ptr::null_mut());

/// Calls `hooks` at each fork from now on. Takes this allocator's place among all fork handlers, if
/// [`take_place_at_forks`] has not.
pub(crate) fn at_fork(hooks: &'static ForkHooks) {
    // Relaxed: the hooks are constant.
    FORK_HOOKS.store(ptr::from_ref(hooks).cast_mut(), Ordering::Relaxed);
    take_place_at_forks();
}

/// Takes this allocator's place among the fork handlers of all libraries: those that are registered
/// later run earlier before a fork, and later after it. Further calls do nothing.
pub(crate) fn take_place_at_forks() {
    static IS_TAKEN: AtomicBool = AtomicBool::new(false);
    fn call(hook: fn(&ForkHooks) -> fn()) {
        // SAFETY: the pointer is null, or that of constant hooks.
        if let Some(hooks) = unsafe { FORK_HOOKS.load(Ordering::Relaxed).as_ref() } {
            hook(hooks)();
        }
    }
    extern "C" fn prepare() {
        call(|hooks| hooks.prepare);
    }
    extern "C" fn parent() {
        call(|hooks| hooks.in_parent);
    }
    extern "C" fn child() {
        call(|hooks| hooks.in_child);
    }
    // Relaxed: one caller registers the functions; no other relies on that.
    if !IS_TAKEN.load(Ordering::Relaxed) && !IS_TAKEN.swap(true, Ordering::Relaxed) {
        // SAFETY: the functions may be called at a fork. If the C library has no memory to record
        // them, they are never called.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    }
}

/// Acquires the lock of the C library's list of all streams, if it has one. It is held across
/// forks.
pub(crate) fn lock_streams() {
    call_streams(0);
}

/// Releases the lock of [`lock_streams`].
pub(crate) fn unlock_streams() {
    call_streams(1);
}

/// Resets the lock of [`lock_streams`] to free, in a fork child.
pub(crate) fn renew_streams() {
    call_streams(2);
}

fn call_streams(which: usize) {
    let address = arch::stream_locks()[which].cast_mut();
    // SAFETY: the address is null, or that of glibc's `_IO_list_lock`, `_IO_list_unlock` or
    // `_IO_list_resetlock`, which take and return nothing.
    unsafe {
        if let Some(function) = <unsafe extern "C" fn()>::at(address) {
            function();
        }
    }
}
