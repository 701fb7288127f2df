//! Forks in the midst of slow paths: of the forking thread's own, and of another's. The child allocates, starts CPUs of its
//! own, and waits for what was deferred.

use std::collections::BTreeSet;
use std::panic;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use alloc_core::fault::{self, Place};
use alloc_core::irq_work::IrqWork;
use alloc_core::{cache, cpu};
use tests::everywhere::{fail, go_everywhere, pass_a_block_on};
use tests::routes::Hayloft;
use tests::scenario::on_both_backends;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// What the child of a fork does before it ends.
fn live() {
    static WORK: IrqWork = IrqWork::new(|_| RAN.store(true, Ordering::Relaxed));
    static RAN: AtomicBool = AtomicBool::new(false);
    for _ in 0..50 {
        pass_a_block_on();
    }
    let words: Vec<String> = (0..1000).map(|number: usize| number.to_string()).collect();
    assert_eq!(words.concat().len(), 2890);
    assert!(cpu::online().next().is_none());
    WORK.queue();
    cache::barrier();
    assert!(cpu::online().next().is_some());
    WORK.sync();
    assert!(RAN.load(Ordering::Relaxed));
}

/// Ends a child. Nothing of the parent's test harness is to be run in it.
fn end() -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

fn fork() -> libc::pid_t {
    // SAFETY: the child does what the allocator promises, and not much more.
    let child = unsafe { libc::fork() };
    if child < 0 {
        fail("fork\n");
    }
    if child == 0 {
        // Its only thread would end, and the process well.
        panic::set_hook(Box::new(|info| {
            eprintln!("{info}");
            fail("in the child of a fork\n");
        }));
        // A child that hangs is a failure, too.
        // SAFETY: a number of seconds.
        unsafe { libc::alarm(60) };
    }
    child
}

/// Waits for a child, which must end well.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status is ours to be written.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || status != 0 {
        fail("the child failed\n");
    }
}

/// Places that were not come to yet.
static LEFT: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// The places that a running program comes to, but for that where deferred frees are taken: few are.
fn all_places() -> BTreeSet<usize> {
    let once = [Place::BackendDeciding, Place::ArenaMaking, Place::DeferredTaken];
    (0..Place::ALL.len()).filter(|index| !once.contains(&Place::ALL[*index])).collect()
}

fn is_new(place: Place) -> bool {
    let index = Place::ALL.iter().position(|listed| *listed == place);
    // A place that is come to while the set is in use is none for this time.
    LEFT.try_lock().is_ok_and(|mut left| index.is_some_and(|index| left.remove(&index)))
}

fn assert_all_new_ones_seen() {
    let mut left = LEFT.lock().expect("nobody panics with it").clone();
    if std::env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "rseq") {
        left.retain(|index| Place::ALL[*index] != Place::SheavesLocked);
    }
    let left: Vec<_> = left.into_iter().map(|index| Place::ALL[index]).collect();
    assert!(left.is_empty(), "not come to: {left:?}");
}

/// Another thread is stopped at each place in turn, while this one forks.
#[test]
fn while_another_thread_is_in_a_slow_path() {
    static STOPPED: AtomicBool = AtomicBool::new(false);
    static FORKED: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static IS_STOPPABLE: AtomicBool = const { AtomicBool::new(false) };
    }
    fn stop(place: Place) {
        if IS_STOPPABLE.with(|stoppable| stoppable.load(Ordering::Relaxed)) && is_new(place) {
            STOPPED.store(true, Ordering::Release);
            // Who forks waits for this thread, and this one does not wait for the fork: a while is all it gets.
            for _ in 0..20 {
                if FORKED.load(Ordering::Acquire) {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            FORKED.store(false, Ordering::Relaxed);
        }
    }
    on_both_backends(|| {
        cpu::start();
        *LEFT.lock().expect("nobody panics with it") = all_places();
        fault::set_hook(stop);
        thread::scope(|scope| {
            scope.spawn(|| {
                IS_STOPPABLE.with(|stoppable| stoppable.store(true, Ordering::Relaxed));
                go_everywhere(|| false);
                DONE.store(true, Ordering::Release);
            });
            while !DONE.load(Ordering::Acquire) {
                if STOPPED.swap(false, Ordering::Acquire) {
                    let child = fork();
                    if child == 0 {
                        live();
                        end();
                    }
                    FORKED.store(true, Ordering::Release);
                    wait_for(child);
                }
                thread::yield_now();
            }
        });
        // A deferral takes two handlers at once, or luck.
        LEFT.lock()
            .expect("nobody panics with it")
            .retain(|index| Place::ALL[*index] != Place::DeferredTaken);
        assert_all_new_ones_seen();
    });
}

/// A CPU runs one item and has another in hand. The child, which does not have that CPU, can queue both and wait for them.
#[test]
fn while_a_cpu_runs_irq_work() {
    static FIRST: IrqWork = IrqWork::new(|_| {
        // Both are taken at once, and the last one that came is run first.
        IN_HAND.queue_on(0);
        RUNNING.queue_on(0);
    });
    static IN_HAND: IrqWork = IrqWork::new(|_| ());
    static RUNNING: IrqWork = IrqWork::new(|_| {
        STARTED.store(true, Ordering::Relaxed);
        while !FORKED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    static STARTED: AtomicBool = AtomicBool::new(false);
    static FORKED: AtomicBool = AtomicBool::new(false);
    on_both_backends(|| {
        cpu::start();
        FIRST.queue_on(0);
        while !STARTED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let child = fork();
        FORKED.store(true, Ordering::Relaxed);
        for work in [&IN_HAND, &RUNNING] {
            if child == 0 {
                assert!(!work.is_busy() && work.queue());
            }
            work.sync();
            assert!(!work.is_busy());
        }
        if child == 0 {
            live();
            end();
        }
        wait_for(child);
    });
}

/// A handler that interrupted a slow path forks. The child ends that slow path, too.
#[test]
fn from_a_handler() {
    static IS_CHILD: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static IS_INTERRUPTED: AtomicBool = const { AtomicBool::new(false) };
    }
    extern "C" fn handler(_: libc::c_int) {
        IS_INTERRUPTED.with(|interrupted| interrupted.store(true, Ordering::Relaxed));
        let child = fork();
        pass_a_block_on();
        if child == 0 {
            IS_CHILD.store(true, Ordering::Relaxed);
        } else {
            wait_for(child);
        }
        IS_INTERRUPTED.with(|interrupted| interrupted.store(false, Ordering::Relaxed));
    }
    fn interrupt(place: Place) {
        let interrupted = IS_INTERRUPTED.with(|interrupted| interrupted.load(Ordering::Relaxed));
        if !interrupted && !IS_CHILD.load(Ordering::Relaxed) && is_new(place) {
            // SAFETY: the handler is installed.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
    }
    on_both_backends(|| {
        // SAFETY: a zeroed action with a handler is a valid one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
        }
        cpu::start();
        *LEFT.lock().expect("nobody panics with it") = all_places();
        fault::set_hook(interrupt);
        go_everywhere(|| IS_CHILD.load(Ordering::Relaxed));
        if IS_CHILD.load(Ordering::Relaxed) {
            live();
            end();
        }
        assert_all_new_ones_seen();
    });
}
