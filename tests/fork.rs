//! Forks in the middle of slow paths, the forking thread's own or another thread's, and while other
//! threads are in the control plane.
//!
//! Afterwards the child allocates, starts CPUs of its own, waits for deferred frees, and creates
//! and destroys a cache. So does the parent.

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::env;
use std::panic;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hayloft_core::cache::Cache;
use hayloft_core::cpu;
use hayloft_core::fault::{self, Place};
use hayloft_core::irq_work::IrqWork;
use hayloft_core::{heap, nolock, stats};
use tests::everywhere::{
    defer_a_run, defer_here, fail, go_everywhere, grow_the_heap, handle, pass_a_block_on, raise,
};
use tests::process::{this_thread, wait_until_asleep};
use tests::routes::Hayloft;
use tests::scenario::{HANGS_AFTER, amid_decay, in_every_mode, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Exercises the allocator after a fork, in the parent and in the child.
fn live() {
    static WORK: IrqWork = IrqWork::new(|_| RAN.store(true, Ordering::Relaxed));
    static RAN: AtomicBool = AtomicBool::new(false);
    for _ in 0..50 {
        pass_a_block_on();
    }
    let words: Vec<String> = (0..1000).map(|number: usize| number.to_string()).collect();
    assert_eq!(words.concat().len(), 2890);
    RAN.store(false, Ordering::Relaxed);
    WORK.queue();
    heap::barrier();
    let online: Vec<_> = cpu::online().collect();
    assert!(!online.is_empty());
    WORK.sync();
    assert!(RAN.load(Ordering::Relaxed));
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
fn live_as_a_child() -> ! {
    assert!(cpu::online().next().is_none());
    live();
    // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
    unsafe { libc::_exit(0) }
}

fn fork() -> libc::pid_t {
    // SAFETY: the child relies on what the allocator promises for it, and on little else.
    let child = unsafe { libc::fork() };
    if child < 0 {
        fail("fork\n");
    }
    if child == 0 {
        // A panic would end only the child's single thread, and the process would exit with status
        // 0.
        panic::set_hook(Box::new(|info| {
            eprintln!("{info}");
            fail("in the child of a fork\n");
        }));
        // The alarm makes a child that hangs a failure.
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(HANGS_AFTER / 2) };
    }
    child
}

/// Waits for a child, which must exit with status 0.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is valid for the write.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || status != 0 {
        fail("the child failed\n");
    }
}

/// Fault points that were not reached yet.
static LEFT: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

fn index(place: Place) -> usize {
    Place::ALL.iter().position(|listed| *listed == place).expect("a listed place")
}

/// Returns whether `place` is reached for the first time.
fn is_new(place: Place) -> bool {
    // A fault point reached while the set is locked does not count this time.
    LEFT.try_lock().is_ok_and(|mut left| left.remove(&index(place)))
}

fn left() -> Vec<Place> {
    LEFT.lock().expect("nobody panics with it").iter().map(|index| Place::ALL[*index]).collect()
}

/// Installs `come_to` as the hook of all fault points, and marks them all as not reached.
fn at_each_place(come_to: fn(Place)) {
    *LEFT.lock().expect("nobody panics with it") = (0..Place::ALL.len()).collect();
    fault::set_hook(come_to);
}

/// Reaches all fault points, or as many as it can before `is_over` returns true.
fn go_to_all_places(is_over: fn() -> bool) {
    // Either this thread or a CPU thread completes a deferred free.
    while !is_over() && left().contains(&Place::DeferredTaken) {
        defer_a_run();
        pass_a_block_on();
    }
    while !is_over() && left().contains(&Place::ArenaCommitting) {
        grow_the_heap();
    }
    // Fault points that did not count because the set was locked have to be reached again. On a
    // busy machine that takes many rounds.
    for _ in 0..200 {
        go_everywhere(is_over);
        if is_over() || missing().is_empty() {
            break;
        }
    }
}

/// Returns the fault points that still have to be reached.
fn missing() -> Vec<Place> {
    let fallback = env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "fallback");
    let has_cpus = cpu::online().next().is_some();
    let mut left = left();
    left.retain(|place| match place {
        // These were reached before the hook was installed.
        Place::BackendDeciding
        | Place::ThreadRegistered
        | Place::NodesReading
        | Place::ArenaMaking => false,
        // Restartable sequences need no lock.
        Place::SheavesLocked => fallback,
        Place::WorkClaimed | Place::WorkQueued => has_cpus,
        _ => true,
    });
    left
}

fn assert_all_seen() {
    let missing = missing();
    assert!(missing.is_empty(), "not come to: {missing:?}");
}

/// Whether another thread is stopped at a fault point. It may be a CPU thread.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Whether a fork is over, in the parent.
static FORKED: AtomicBool = AtomicBool::new(false);
/// Whether the other thread has been at all fault points.
static DONE: AtomicBool = AtomicBool::new(false);
/// Whether this is the child of a signal handler that forked.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread forks, and therefore must not be stopped.
    static FORKS: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is in a signal handler.
    static IS_INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// Stops this thread until another has forked, or for `milliseconds`.
fn stop_for(milliseconds: u32) {
    FORKED.store(false, Ordering::Relaxed);
    STOPPED.store(true, Ordering::Release);
    for _ in 0..milliseconds {
        if FORKED.load(Ordering::Acquire) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Calls `when_it_stops`, which forks, whenever another thread stops at a fault point. That thread
/// reaches all of them.
fn fork_while_another_goes(when_it_stops: fn()) {
    FORKS.set(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            go_to_all_places(|| false);
            DONE.store(true, Ordering::Release);
        });
        while !DONE.load(Ordering::Acquire) {
            if STOPPED.load(Ordering::Acquire) {
                when_it_stops();
            }
            thread::yield_now();
        }
    });
    assert_all_seen();
    live();
}

/// Stops other threads at each fault point in turn while this one forks. The fork waits for their
/// locks.
fn stop_others() {
    fn come_to(place: Place) {
        defer_here(place);
        if !FORKS.get() && is_new(place) {
            // The forking thread may wait for this one's locks, so this one must not wait for the
            // fork: it stops only for a while.
            stop_for(20);
        }
    }
    at_each_place(come_to);
    fork_while_another_goes(|| {
        STOPPED.store(false, Ordering::Relaxed);
        let child = fork();
        if child == 0 {
            live_as_a_child();
        }
        FORKED.store(true, Ordering::Release);
        wait_for(child);
    });
}

#[test]
fn while_others_are_in_slow_paths() {
    amid_decay(|| {
        stop_others();
    });
    in_every_mode(|| {
        cpu::start();
        stop_others();
    });
}

/// A CPU thread runs one item and holds another. The child, which lacks that thread, can queue both
/// and wait for them.
#[test]
fn while_a_cpu_runs_irq_work() {
    static FIRST: IrqWork = IrqWork::new(|_| {
        // Both are taken from the list at once, and the one queued last runs first.
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
    amid_decay(|| {
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
            live_as_a_child();
        }
        wait_for(child);
    });
}

extern "C" fn fork_in_a_handler(_: libc::c_int) {
    IS_INTERRUPTED.set(true);
    let child = fork();
    if child == 0 {
        IS_CHILD.store(true, Ordering::Relaxed);
        pass_a_block_on();
    } else {
        FORKED.store(true, Ordering::Release);
        pass_a_block_on();
        wait_for(child);
    }
    IS_INTERRUPTED.set(false);
}

/// Forks in a signal handler that interrupted a slow path. The child completes that slow path, too.
fn interrupt_this() {
    fn come_to(place: Place) {
        defer_here(place);
        // Never interrupts the harness's thread. In the child it would wait for the tests to end.
        if FORKS.get() && !IS_INTERRUPTED.get() && !is_child() && is_new(place) {
            raise();
        }
    }
    handle(fork_in_a_handler);
    at_each_place(come_to);
    FORKS.set(true);
    go_to_all_places(is_child);
    if is_child() {
        live_as_a_child();
    }
    assert_all_seen();
    live();
}

#[test]
fn in_handlers() {
    amid_decay(|| {
        interrupt_this();
    });
    in_every_mode(|| {
        cpu::start();
        interrupt_this();
    });
}

/// Forks in a signal handler that interrupted a slow path, while other threads are stopped at each
/// fault point in turn. The fork does not wait for their locks, and the child does without them.
fn stop_others_and_interrupt_this() {
    fn come_to(place: Place) {
        defer_here(place);
        if is_child() {
            return;
        }
        if FORKS.get() {
            if STOPPED.swap(false, Ordering::Relaxed) && !IS_INTERRUPTED.get() {
                raise();
            }
        } else if is_new(place) {
            stop_for(5000);
        }
    }
    handle(fork_in_a_handler);
    at_each_place(come_to);
    fork_while_another_goes(|| {
        // Reaches a fault point soon, without waiting for a lock on the way.
        let layout = Layout::new::<[u64; 400]>();
        let blocks = [(); 20].map(|()| nolock::alloc(layout).expect("memory"));
        // SAFETY: the blocks have this layout, and each is freed once.
        blocks.into_iter().for_each(|block| unsafe { nolock::free(block, layout) });
        if is_child() {
            live_as_a_child();
        }
    });
}

#[test]
fn in_handlers_while_others_are_in_slow_paths() {
    amid_decay(|| {
        stop_others_and_interrupt_this();
    });
    in_every_mode(|| {
        cpu::start();
        stop_others_and_interrupt_this();
    });
}

/// Another thread has claimed an item and is stopped before it lists it. Meanwhile a signal handler
/// that interrupted this thread's queueing of an item forks. In the child, which lacks the other
/// thread, the claimed item is idle, or is queued by the thread that asked for that.
#[test]
fn in_handlers_while_others_queue_irq_work() {
    static THEIRS: IrqWork = IrqWork::new(|_| RUNS.set(RUNS.get() | 1));
    static MINE: IrqWork = IrqWork::new(|_| RUNS.set(RUNS.get() | 2));
    thread_local! {
        static RUNS: Cell<u32> = const { Cell::new(0) };
    }
    fn come_to(place: Place) {
        if is_child() {
            return;
        }
        if !FORKS.get() {
            if place == Place::WorkClaimed {
                stop_for(60_000);
            }
        } else if !IS_INTERRUPTED.get() && FORK_AT.get() == Some(place) {
            raise();
        }
    }
    thread_local! {
        static FORK_AT: Cell<Option<Place>> = const { Cell::new(None) };
    }
    let in_turn = |places: &[(Place, &'static IrqWork)]| {
        handle(fork_in_a_handler);
        fault::set_hook(come_to);
        FORKS.set(true);
        for (place, item) in places {
            STOPPED.store(false, Ordering::Relaxed);
            thread::scope(|scope| {
                scope.spawn(|| THEIRS.queue());
                while !STOPPED.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                RUNS.set(0);
                FORK_AT.set(Some(*place));
                let was_queued = item.queue();
                if is_child() {
                    assert!(was_queued);
                    assert!(ptr::eq(*item, &raw const THEIRS) || !THEIRS.is_busy());
                    item.sync();
                    assert!(!item.is_busy());
                    // This thread ran it, as there is no other.
                    assert_eq!(RUNS.get(), if ptr::eq(*item, &raw const MINE) { 2 } else { 1 });
                    live_as_a_child();
                }
                FORK_AT.set(None);
            });
            THEIRS.sync();
            MINE.sync();
        }
    };
    in_every_mode(|| {
        in_turn(&[
            (Place::WorkClaimed, &MINE),
            (Place::WorkQueued, &MINE),
            (Place::WorkQueued, &THEIRS),
        ]);
    });
}

/// Other threads take CPUs offline and online, hold the hotplug lock as readers, wait for deferred
/// frees, and defer frees, while this thread forks with or without the hotplug lock held as a
/// reader.
#[test]
fn while_others_are_in_the_control_plane() {
    in_every_mode(|| {
        fn until_done(body: impl Fn()) {
            while !DONE.load(Ordering::Relaxed) {
                body();
            }
        }
        cpu::start();
        fault::set_hook(defer_here);
        thread::scope(|scope| {
            let cpu = cpu::online().last().expect("a CPU");
            scope.spawn(move || {
                until_done(|| {
                    if cpu::down(cpu).is_ok() {
                        assert_eq!(cpu::up(cpu), Ok(()));
                    }
                });
            });
            for body in [heap::barrier, || drop(cpu::read_lock()), defer_a_run] {
                scope.spawn(move || until_done(body));
            }
            for number in 0..30 {
                let cpus = (number % 3 == 0).then(cpu::read_lock);
                let child = fork();
                if child == 0 {
                    drop(cpus);
                    live_as_a_child();
                }
                drop(cpus);
                wait_for(child);
            }
            DONE.store(true, Ordering::Relaxed);
        });
        live();
    });
}

/// Threads of the parent sleep on the hotplug lock. In the child its own sleepers are woken, not
/// the parent's.
#[test]
fn while_others_sleep() {
    amid_decay(|| {
        let all: Vec<_> = cpu::read_lock().online().collect();
        let cpus = cpu::read_lock();
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let changes = move || {
                tell.send(this_thread()).expect("it is waited for");
                assert!(all.iter().any(|cpu| cpu::down(*cpu).is_ok()) || all.len() < 2);
            };
            let wait_and_change = |stack: usize| {
                let thread = thread::Builder::new().stack_size(stack);
                let waits = thread.spawn_scoped(scope, changes.clone()).expect("a thread");
                wait_until_asleep(told.recv().expect("it starts"));
                waits
            };
            let _waits = wait_and_change(1 << 20);
            let child = fork();
            if child == 0 {
                // A stack other than the parent's sleeper's, so that the state that the sleeper
                // left in the lock stays intact.
                let waits = wait_and_change(16 << 20);
                drop(cpus);
                waits.join().expect("the thread ends well");
                live();
                // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
                unsafe { libc::_exit(0) }
            }
            wait_for(child);
            drop(cpus);
        });
    });
}

/// Another thread decommits 64 MiB and stops in the middle of that, while this one forks in `fork`.
/// The child can use all of the memory, or decommit it itself.
fn fork_while_another_purges(fork: fn()) {
    const BYTES: usize = 64 << 20;
    fn come_to(place: Place) {
        if place == Place::ArenaPurging && !FORKS.get() && !DONE.swap(true, Ordering::Relaxed) {
            stop_for(100);
        } else if place == Place::ArenaAllocating && IS_INTERRUPTED.get() {
            IS_INTERRUPTED.set(false);
            self::fork_and_note();
        }
    }
    FORKS.set(true);
    fault::set_hook(come_to);
    let block = vec![1_u8; BYTES];
    let held = stats::gather_own().held;
    drop(block);
    thread::scope(|scope| {
        scope.spawn(hayloft::trim);
        while !STOPPED.load(Ordering::Acquire) {
            thread::yield_now();
        }
        fork();
        if is_child() {
            hayloft::trim();
            let now = stats::gather_own().held;
            assert!(now + BYTES - (1 << 20) < held, "{held} bytes with the block, {now} without");
            live_as_a_child();
        }
    });
    live();
}

/// Forks, and waits for the child in the parent. Returns in both.
fn fork_and_note() {
    let child = fork();
    IS_CHILD.store(child == 0, Ordering::Relaxed);
    FORKED.store(true, Ordering::Release);
    if child != 0 {
        wait_for(child);
    }
}

#[test]
fn while_another_gives_memory_back() {
    on_both_backends(|| fork_while_another_purges(fork_and_note));
}

/// Here the fork does not wait for the other thread, since this one holds an arena's lock.
#[test]
fn in_a_slow_path_while_another_gives_memory_back() {
    on_both_backends(|| {
        fork_while_another_purges(|| {
            IS_INTERRUPTED.set(true);
            assert!(nolock::alloc(Layout::new::<[u8; 2_000_000]>()).is_some());
        });
    });
}

/// The parent's threads contend for locks by creating and destroying caches, and so do the child's.
/// Nothing of the parent's threads is left in the child's locks.
#[test]
fn while_others_contend_for_locks() {
    fn make_caches(prefix: &str, rounds: usize) {
        for round in 0..rounds {
            let name = format!("{prefix} {round}");
            let cache = Cache::builder(&name, Layout::new::<[u64; 9]>()).build().expect("a cache");
            let object = cache.alloc().expect("memory");
            // SAFETY: the object belongs to this cache and is freed once.
            unsafe { cache.free(object) };
            cache.destroy().expect("no object is in use");
        }
    }
    on_both_backends(|| {
        thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    while !DONE.load(Ordering::Relaxed) {
                        make_caches(&format!("parent {number}"), 1);
                    }
                });
            }
            for _ in 0..10 {
                let child = fork();
                if child == 0 {
                    thread::scope(|scope| {
                        for number in 0..8 {
                            scope.spawn(move || make_caches(&format!("child {number}"), 5));
                        }
                    });
                    live();
                    // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
                    unsafe { libc::_exit(0) }
                }
                wait_for(child);
            }
            DONE.store(true, Ordering::Relaxed);
        });
        live();
    });
}
