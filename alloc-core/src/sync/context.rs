//! Whether a slow path may wait.
//!
//! A signal handler may interrupt a slow path and then allocate. The interrupted code keeps its
//! locks until the handler returns, so the handler must not wait for these locks. It must not wait
//! for any other lock either, since that lock's holder may be in a handler that waits for one of
//! these. So each thread counts the slow paths it is in, and only the outermost may wait. (Like
//! `gfpflags_allow_spinning` of `mm/slub.c`, but detected instead of promised by the caller.)
//!
//! A handler that interrupted a slow path must return to it. A handler that leaves by `siglongjmp`
//! leaves the slow path's locks held and the thread's count too high: that thread never waits
//! again, and others wait for it forever.

/// Permission of the running code to wait. Passed to every acquisition of a lock. It is for the
/// slow path that received it: debug builds end the process if a context that may wait is used
/// after that (`witness`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    may_wait: bool,
}

impl Context {
    /// A context that only tries.
    pub(crate) const TRYING: Context = Context { may_wait: false };

    /// A context that waits, in models without signal handlers.
    #[cfg(loom)]
    pub(crate) const WAITING: Context = Context { may_wait: true };

    /// Returns whether the code may wait for a lock.
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

    /// Returns the number of slow paths that this thread is in. It needs no allocation,
    /// initialisation or destructor, so it is available anywhere: before `main`, in a signal
    /// handler, in the destructors of other thread-locals.
    #[inline]
    fn depth() -> &'static AtomicU32 {
        &arch::locals().depth
    }

    impl Context {
        /// Runs a slow path, which may wait if this thread is in no other.
        #[inline]
        pub(crate) fn enter<R>(slow_path: impl FnOnce(Context) -> R) -> R {
            let result = slow_path(Context::pin());
            Context::unpin();
            result
        }

        /// Returns whether this thread is in no slow path.
        #[cfg(debug_assertions)]
        pub(crate) fn is_outermost() -> bool {
            Context::depth() == 0
        }

        /// Returns the number of slow paths that this thread is in.
        pub(crate) fn depth() -> usize {
            depth().load(Ordering::Relaxed) as usize
        }

        /// Returns the token of this thread: an address such that neither it nor any of the next 63
        /// is the token of another live thread.
        #[inline]
        pub(crate) fn thread() -> usize {
            ptr::from_ref(arch::locals()).addr()
        }

        /// Makes later slow paths of this thread not wait, until [`Context::unpin`]. Returns the
        /// context for the code in between, which may wait if this thread was in no slow path.
        pub(crate) fn pin() -> Context {
            let depth = depth();
            // No locked instruction is needed: a handler that interrupts this restores the number
            // before it returns.
            let outer = depth.load(Ordering::Relaxed);
            depth.store(outer + 1, Ordering::Relaxed);
            // Orders against handlers on this thread: `depth` is raised before any lock is
            // acquired.
            compiler_fence(Ordering::SeqCst);
            Context { may_wait: outer == 0 }
        }

        /// Reverts [`Context::pin`].
        pub(crate) fn unpin() {
            let depth = depth();
            compiler_fence(Ordering::SeqCst);
            let outer = depth.load(Ordering::Relaxed) - 1;
            depth.store(outer, Ordering::Relaxed);
            // Sections that gave up after too many aborts have made progress by this slow path.
            let aborts = &arch::locals().aborts;
            if outer == 0 && aborts.load(Ordering::Relaxed) >= MOST_ABORTS {
                aborts.store(0, Ordering::Relaxed);
            }
        }

        /// Runs `body` such that no slow path in it waits.
        #[inline]
        pub(crate) fn without_waiting<R>(body: impl FnOnce() -> R) -> R {
            Context::enter(|_| body())
        }
    }
}
