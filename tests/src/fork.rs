//! Forks: a checked `fork`, work for parent and child after it, and how a thread that forks meets
//! one that is stopped at a fault point.
//!
//! After each fork the child allocates, starts CPUs of its own, waits for deferred frees, and
//! creates and destroys a cache. So does the parent.

use std::alloc::Layout;
use std::cell::Cell;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hayloft_core::cache::Cache;
use hayloft_core::irq_work::IrqWork;
use hayloft_core::{cpu, heap};

use crate::scenario::CHILD_TIMEOUT;
use crate::slow_paths::{abort_with, exchange_block};

/// Whether another thread is stopped at a fault point. It may be a CPU thread.
pub static STOPPED: AtomicBool = AtomicBool::new(false);
/// Whether a fork is over, in the parent.
pub static FORKED: AtomicBool = AtomicBool::new(false);
/// Whether this is the child of a signal handler or fault hook that forked.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread forks, and therefore must not be stopped.
    pub static IS_FORKING: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is in a signal handler.
    pub static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

/// Exercises the allocator after a fork, in the parent and in the child.
///
/// # Panics
///
/// If a result is wrong.
pub fn exercise_allocator() {
    static WORK: IrqWork = IrqWork::new(|_| RAN.store(true, Ordering::Relaxed));
    static RAN: AtomicBool = AtomicBool::new(false);
    for _ in 0..50 {
        exchange_block();
    }
    let words: Vec<String> = (0..1000).map(|number: usize| number.to_string()).collect();
    assert_eq!(words.concat().len(), 2890, "strings on the heap are intact");
    RAN.store(false, Ordering::Relaxed);
    WORK.queue();
    heap::barrier();
    let online: Vec<_> = cpu::online().collect();
    assert!(!online.is_empty(), "the barrier started no CPU");
    WORK.sync();
    assert!(RAN.load(Ordering::Relaxed), "`sync` returned before the work ran");
    let cache = Cache::builder("live", Layout::new::<[u64; 25]>()).build().expect("a cache");
    let objects = [(); 100].map(|()| cache.alloc().expect("memory"));
    // SAFETY: the objects belong to this cache and are freed once.
    objects.into_iter().for_each(|object| unsafe { cache.free(object) });
    cache.destroy().expect("no object is in use");
    if let [cpu, _, ..] = online[..] {
        assert_eq!(cpu::down(cpu), Ok(()));
        assert_eq!(cpu::up(cpu), Ok(()));
    }
}

/// Exercises the allocator in a child and exits. Nothing of the parent's test harness may run
/// there.
///
/// # Panics
///
/// If a result is wrong.
pub fn exercise_in_child() -> ! {
    assert!(cpu::online().next().is_none(), "the child has CPUs before it starts any");
    exercise_allocator();
    exit_child()
}

/// Ends the child of a fork with status 0.
pub fn exit_child() -> ! {
    // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
    unsafe { libc::_exit(0) }
}

/// Forks. In the child, a panic or a hang ends the process with a failure.
pub fn fork() -> libc::pid_t {
    // SAFETY: the child relies on what the allocator promises for it, and on little else.
    let child = unsafe { libc::fork() };
    if child < 0 {
        abort_with("fork failed\n");
    }
    if child == 0 {
        // A panic would end only the child's single thread, and the process would exit with status
        // 0.
        panic::set_hook(Box::new(|info| {
            eprintln!("{info}");
            abort_with("in the child of a fork\n");
        }));
        // The alarm makes a child that hangs a failure.
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(CHILD_TIMEOUT / 2) };
    }
    child
}

/// Waits for a child, which must exit with status 0.
pub fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is valid for the write.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || status != 0 {
        abort_with("the child of a fork failed\n");
    }
}

/// Forks, and waits for the child in the parent. Returns in both, and [`is_child`] distinguishes
/// them.
pub fn fork_and_return_in_both() {
    let child = fork();
    IS_CHILD.store(child == 0, Ordering::Relaxed);
    FORKED.store(true, Ordering::Release);
    if child != 0 {
        wait_for(child);
    }
}

/// Forks in a signal handler. Parent and child exchange a block before the handler returns.
pub extern "C" fn fork_in_handler(_: libc::c_int) {
    IN_HANDLER.set(true);
    let child = fork();
    if child == 0 {
        IS_CHILD.store(true, Ordering::Relaxed);
        exchange_block();
    } else {
        FORKED.store(true, Ordering::Release);
        exchange_block();
        wait_for(child);
    }
    IN_HANDLER.set(false);
}

/// Returns whether this is the child of [`fork_in_handler`] or [`fork_and_return_in_both`].
#[must_use]
pub fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// Stops this thread until another has forked, or for `milliseconds`.
pub fn stop_until_forked(milliseconds: u32) {
    FORKED.store(false, Ordering::Relaxed);
    STOPPED.store(true, Ordering::Release);
    for _ in 0..milliseconds {
        if FORKED.load(Ordering::Acquire) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
