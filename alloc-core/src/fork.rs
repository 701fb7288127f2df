//! Forks: the child can allocate at once, whatever other threads of the parent were doing.
//!
//! Before a fork all locks of the slow paths are taken, so that the state they protect is whole in
//! the child. A thread that holds such a lock releases it first. What a thread holds between two
//! locks is lost in the child, where it stays charged: a batch of objects, a run on its way, or the
//! slabs that a free has emptied and is about to return to the pages
//! (`objects::put::free_emptied`). If the fork happens in a handler that interrupted a slow path,
//! the locks of that slow path are left alone, as it will release them in the child, too. Other
//! locks are waited for, but only for a bounded number of attempts. A lock that could not be taken
//! is *abandoned* in the child: slow paths there go around it, as handlers do. The locks for
//! sheaves, flushing, closing, purging and committing are exceptions: what they protect is whole
//! after each store, so the child frees them. Objects that the other thread held are lost. A
//! handler may interrupt a fork and fork itself: locks held for the outer fork are left alone as
//! well.
//!
//! *Other locks around a fork.* A thread that flushes all streams holds the lock of the list of
//! streams, and waits for a stream whose user may be allocating a line here. So that list is locked
//! before any lock of ours, as glibc does with its own locks. Handlers of other libraries may wait
//! for threads that allocate, so they must run before ours in the parent: ours must be registered
//! first. The preloaded library registers its own before any other library can (`build.rs` there).
//! In a program that this is linked into, constructors of libraries come earlier than [`REGISTER`];
//! there, the first allocation beyond the fast path takes our place among the handlers.
//!
//! The child has no CPUs, since it has a single thread. Work that was queued for CPUs is treated as
//! before the CPU threads were started.
//!
//! Not supported: forks by the function of an irq work, whose thread is pinned and never ends;
//! forks in a handler that interrupted the control plane (CPUs coming or going, a barrier); and
//! forks that run no handlers (`_Fork`, system calls).

use core::cell::Cell;

use crate::path::objects;
use crate::percpu::{self, Backend};
use crate::sync::{Backoff, Context, Fork, LockClass, RawLock};
use crate::{cache, cpu, os, page, rcu, reclaim, report};

/// Run by the loader: before `main`, or, where a library with this allocator is loaded later, among
/// other threads.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = {
    extern "C" fn register() {
        os::at_fork(&os::ForkHooks { prepare, in_parent, in_child });
    }
    register
};

/// Visits every lock of the slow paths, in the order in which they may be taken.
fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    rcu::for_each_lock(visit);
    objects::for_each_lock(visit);
}

/// Attempts at all locks together by a fork in a handler, which must not wait for them. All but the
/// first hundred at a lock sleep for 50 microseconds, so that threads of any priority run. A tenth
/// of a second is enough for any holder that is not in such a handler itself.
const ATTEMPTS: u32 = 2_000;

/// Free memory in bytes below which nothing is trimmed before a fork: shells fork constantly.
const LEFT: usize = 256 << 10;

/// Depth of slow paths in a thread that forks without having interrupted one.
const OUTERMOST: usize = 1;

fn prepare() {
    let context = Context::pin();
    if context.may_wait() {
        // The child should not inherit idle memory. A fork in a handler skips this.
        if page::dirty() >= LEFT {
            page::trim(context);
        }
        os::lock_streams();
    }
    let attempts = Cell::new(ATTEMPTS);
    // The selecting thread finishes, unless this handler interrupted it: hence the bound.
    let mut backoff = Backoff::new();
    while percpu::backend(context) == Backend::Undecided && attempts.get() > 0 {
        attempts.set(attempts.get() - 1);
        backoff.pause();
    }
    for_each_lock(&|_, lock| lock.hold_for_fork(Fork::current(), context, &attempts));
    page::doubt_huge_pages();
}

fn in_parent() {
    // The fork began before `REGISTER` ran.
    if Context::depth() == 0 {
        return;
    }
    for_each_lock(&|_, lock| lock.release_in_parent(Fork::current()));
    if Context::depth() == OUTERMOST {
        os::unlock_streams();
    }
    Context::unpin();
}

fn in_child() {
    // As in the parent.
    if Context::depth() == 0 {
        return;
    }
    // While the locks are held: from then on, frees may start a reclaim thread of this process.
    reclaim::in_child();
    for_each_lock(&|class, lock| match class {
        LockClass::Sheaves
        | LockClass::Flushing
        | LockClass::Closing
        | LockClass::Purging
        | LockClass::Committing => {
            // SAFETY: this is the child, and what these locks protect is whole after each store.
            unsafe { lock.free_in_child(Fork::current()) };
        }
        _ => lock.release_in_child(Fork::current()),
    });
    if Context::depth() == OUTERMOST {
        os::renew_streams();
    }
    // SAFETY: the C library calls this in the child, whose only thread this is.
    unsafe {
        percpu::without_cpus();
        cpu::in_child();
    }
    page::in_child();
    // SAFETY: the C library calls this in the child, whose only thread this is.
    unsafe {
        rcu::in_child();
        cache::in_child();
    }
    report::in_child();
    Context::unpin();
}
