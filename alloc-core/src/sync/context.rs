//! Whether a slow path may wait.
//!
//! A signal handler may interrupt a slow path and allocate in its turn. The interrupted code keeps its locks until the
//! handler returns, so the handler must not wait for one of them; nor for any other, whose holder may be in a handler
//! that waits for one of these. So each thread counts how many slow paths it is in, and only the outermost may wait.
//! (`gfpflags_allow_spinning` of `mm/slub.c`, found out instead of promised.)
//!
//! A handler that interrupted a slow path must return to it. One that leaves by `siglongjmp` leaves its locks held, and the
//! count of its thread too high: that thread never waits again, and others wait for it for ever.

/// What the code that runs now may do. Handed down to whatever takes a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    may_wait: bool,
}

impl Context {
    /// One that only tries.
    pub(crate) const TRYING: Context = Context { may_wait: false };

    /// One that waits, where no handler can interfere.
    #[cfg(loom)]
    pub(crate) const WAITING: Context = Context { may_wait: true };

    /// Whether a lock may be waited for.
    #[inline]
    pub(crate) fn may_wait(self) -> bool {
        self.may_wait
    }
}

#[cfg(loom)]
impl Context {
    pub(crate) fn thread() -> usize {
        0
    }
}

#[cfg(not(loom))]
mod depth {
    use super::Context;
    use crate::arch::{self, MOST_ABORTS};
    use core::ptr;
    use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

    /// Slow paths this thread is in. It needs no initialisation and no destructor, and is nobody's to allocate, so it can be had
    /// anywhere: before `main`, in a handler, in the destructors of other thread-locals.
    #[inline]
    fn depth() -> &'static AtomicU32 {
        &arch::locals().depth
    }

    impl Context {
        /// Runs a slow path: it may wait if this thread is in no other.
        #[inline]
        pub(crate) fn enter<R>(slow_path: impl FnOnce(Context) -> R) -> R {
            let result = slow_path(Context::pin());
            Context::unpin();
            result
        }

        /// Whether this thread is in no slow path.
        #[cfg(debug_assertions)]
        pub(crate) fn is_outermost() -> bool {
            Context::depth() == 0
        }

        /// How many slow paths this thread is in.
        pub(crate) fn depth() -> usize {
            depth().load(Ordering::Relaxed) as usize
        }

        /// A number that no other thread has now, nor has one within the next 63.
        #[inline]
        pub(crate) fn thread() -> usize {
            ptr::from_ref(arch::locals()).addr()
        }

        /// Has no slow path of this thread wait until [`Context::unpin`]; the context of before.
        pub(crate) fn pin() -> Context {
            let depth = depth();
            // No locked instruction: a handler in the midst of this leaves the number as it found it.
            let outer = depth.load(Ordering::Relaxed);
            depth.store(outer + 1, Ordering::Relaxed);
            // Towards handlers on this thread: no lock is taken before it counts, or kept after.
            compiler_fence(Ordering::SeqCst);
            Context { may_wait: outer == 0 }
        }

        /// Undoes [`Context::pin`].
        pub(crate) fn unpin() {
            let depth = depth();
            compiler_fence(Ordering::SeqCst);
            let outer = depth.load(Ordering::Relaxed) - 1;
            depth.store(outer, Ordering::Relaxed);
            // The sections that gave up have made their progress here, by other means.
            let aborts = &arch::locals().aborts;
            if outer == 0 && aborts.load(Ordering::Relaxed) >= MOST_ABORTS {
                aborts.store(0, Ordering::Relaxed);
            }
        }

        /// Runs something such that no slow path in it waits.
        #[inline]
        pub(crate) fn without_waiting<R>(body: impl FnOnce() -> R) -> R {
            Context::enter(|_| body())
        }
    }
}
