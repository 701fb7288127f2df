//! Forks: the child can allocate at once, whatever other threads did when the parent forked.
//!
//! Before a fork all locks of the slow paths are taken, so what they protect is whole in the child; a thread that is in a slow
//! path finishes first. Where the fork itself is in a handler that interrupted a slow path, the locks of that slow path are
//! left alone, as it will let go of them in the child too; others are waited for, but not for ever. One that cannot be had is
//! *abandoned* in the child: slow paths there go round it, as handlers do. Only sheaves are whole after each store, so that their
//! locks can be had all the same; what the other thread had in its hands is lost. A handler may interrupt a fork and fork: what
//! the outer one holds is left alone as well.
//!
//! *Other locks around a fork.* A thread that flushes all streams holds the list of streams, and waits for a stream whose user
//! may be in here, to allocate a line. So the list is held before any lock of ours, as glibc does with its own; and handlers of
//! other libraries, which may wait for threads that allocate, run before ours in the parent: the preloaded library registers its
//! own before any other library can (`build.rs` there).
//!
//! The child has no CPUs, since it has no threads but one: what was queued for them goes back to the time before they were
//! started.
//!
//! Not served: forks by the function of an irq work, whose thread is pinned and never ends; forks in a handler that
//! interrupted the control plane (CPUs that come or go, a barrier); and forks that run no handlers (`_Fork`, system calls).
//!
//! This file may touch everything in the crate.

use core::cell::Cell;

use crate::percpu::{self, Backend};
use crate::sync::{Context, Fork, LockClass, RawLock, spin_or_yield};
use crate::{cache, cpu, objects, os, page, rcu, reclaim, report};

/// Run by the loader: before `main`, or where a library with this allocator is loaded later, among other threads.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = {
    extern "C" fn register() {
        os::at_fork(prepare, in_parent, in_child);
    }
    register
};

/// Every lock of the slow paths, in the order in which they may be taken.
fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    rcu::for_each_lock(visit);
    objects::for_each_lock(visit);
}

/// Attempts to take locks, in all, by a handler that may not wait for them. Each lets other threads run, so they are enough for
/// any holder that is not itself in such a place.
const ATTEMPTS: u32 = 100_000;

/// Bytes that nobody needs with which a program may fork: it may be a shell, which does it all the time.
const LEFT: usize = 256 << 10;

/// The depth of a thread that forks, where it interrupted no slow path.
const OUTERMOST: usize = 1;

extern "C" fn prepare() {
    let context = Context::pin();
    if context.may_wait() {
        // What nobody needs is not for the child to inherit. A handler leaves it.
        if page::dirty() >= LEFT {
            page::trim(context);
        }
        os::lock_streams();
    }
    let attempts = Cell::new(ATTEMPTS);
    // Whoever decides comes to an end, or is what this handler interrupted.
    while percpu::backend(context) == Backend::Undecided && attempts.get() > 0 {
        attempts.set(attempts.get() - 1);
        spin_or_yield();
    }
    for_each_lock(&|_, lock| lock.hold_for_fork(Fork::current(), context, &attempts));
}

extern "C" fn in_parent() {
    for_each_lock(&|_, lock| lock.release_in_parent(Fork::current()));
    if Context::depth() == OUTERMOST {
        os::unlock_streams();
    }
    Context::unpin();
}

extern "C" fn in_child() {
    for_each_lock(&|class, lock| match class {
        LockClass::Sheaves
        | LockClass::Flushing
        | LockClass::Closing
        | LockClass::Purging
        | LockClass::Committing => {
            lock.free_in_child(Fork::current());
        }
        _ => lock.release_in_child(Fork::current()),
    });
    if Context::depth() == OUTERMOST {
        os::renew_streams();
    }
    percpu::without_cpus();
    cpu::in_child();
    page::in_child();
    rcu::in_child();
    cache::in_child();
    reclaim::in_child();
    report::in_child();
    Context::unpin();
}
