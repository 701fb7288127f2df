//! Forks in the midst of slow paths: of the forking thread's own, and of another's; and while others are in the control plane.
//! The child allocates, starts CPUs of its own, waits for what was deferred, makes a cache and destroys it; so does the parent,
//! afterwards.

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

use alloc_core::cache::Cache;
use alloc_core::cpu;
use alloc_core::fault::{self, Place};
use alloc_core::irq_work::IrqWork;
use alloc_core::{cache, nolock, stats};
use tests::everywhere::{
    defer_a_run, defer_here, fail, go_everywhere, grow_the_heap, handle, pass_a_block_on, raise,
};
use tests::process::{this_thread, wait_until_asleep};
use tests::routes::Hayloft;
use tests::scenario::{HANGS_AFTER, amid_decay, in_every_mode, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// What the parent and the child of a fork do afterwards.
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
    cache::barrier();
    let online: Vec<_> = cpu::online().collect();
    assert!(!online.is_empty());
    WORK.sync();
    assert!(RAN.load(Ordering::Relaxed));
    let cache = Cache::builder("live", Layout::new::<[u64; 25]>()).build().expect("a cache");
    let objects = [(); 100].map(|()| cache.alloc().expect("memory"));
    // SAFETY: objects of this cache, which nobody uses.
    objects.into_iter().for_each(|object| unsafe { cache.free(object) });
    cache.destroy().expect("no object is in use");
    if let [cpu, _, ..] = online[..] {
        assert_eq!(cpu::down(cpu), Ok(()));
        assert_eq!(cpu::up(cpu), Ok(()));
    }
}

/// The rest of a child's life. Nothing of the parent's test harness is to be run in it.
fn live_as_a_child() -> ! {
    assert!(cpu::online().next().is_none());
    live();
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
        unsafe { libc::alarm(HANGS_AFTER / 2) };
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

fn index(place: Place) -> usize {
    Place::ALL.iter().position(|listed| *listed == place).expect("a listed place")
}

/// Whether it is the first time that a place is come to.
fn is_new(place: Place) -> bool {
    // One that is come to while the set is in use is none for this time.
    LEFT.try_lock().is_ok_and(|mut left| left.remove(&index(place)))
}

fn left() -> Vec<Place> {
    LEFT.lock().expect("nobody panics with it").iter().map(|index| Place::ALL[*index]).collect()
}

/// Has `come_to` called at each place.
fn at_each_place(come_to: fn(Place)) {
    *LEFT.lock().expect("nobody panics with it") = (0..Place::ALL.len()).collect();
    fault::set_hook(come_to);
}

/// Comes to all places, or to as many as it can before it is over.
fn go_to_all_places(is_over: fn() -> bool) {
    // A deferred block is freed by this thread, or by that of a CPU.
    while !is_over() && left().contains(&Place::DeferredTaken) {
        defer_a_run();
        pass_a_block_on();
    }
    while !is_over() && left().contains(&Place::ArenaCommitting) {
        grow_the_heap();
    }
    // One that was come to while the set was in use is come to again. On a busy machine that takes many rounds.
    for _ in 0..200 {
        go_everywhere(is_over);
        if is_over() || missing().is_empty() {
            break;
        }
    }
}

/// Places that are still to be come to.
fn missing() -> Vec<Place> {
    let fallback = env::var("HAYLOFT_BACKEND").is_ok_and(|backend| backend == "fallback");
    let has_cpus = cpu::online().next().is_some();
    let mut left = left();
    left.retain(|place| match place {
        // These came before.
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

/// Another thread is stopped at a place: its own, or that of a CPU.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// A fork is over, in the parent.
static FORKED: AtomicBool = AtomicBool::new(false);
/// The other thread has been to all places.
static DONE: AtomicBool = AtomicBool::new(false);
/// This is the child of a handler that forked.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread forks, and is not to be stopped.
    static FORKS: Cell<bool> = const { Cell::new(false) };
    /// This thread is in a handler.
    static IS_INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// Stops this thread until another has forked, or for so many milliseconds.
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

/// Forks at the word of another thread that goes to all places.
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

/// Other threads are stopped at each place in turn, while this one forks. It waits for their locks.
fn stop_others() {
    fn come_to(place: Place) {
        defer_here(place);
        if !FORKS.get() && is_new(place) {
            // Who forks waits for this thread, and this one does not wait for the fork: a while is all it gets.
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

/// A handler that interrupted a slow path forks. The child ends that slow path, too.
fn interrupt_this() {
    fn come_to(place: Place) {
        defer_here(place);
        // Not that of the test harness, which would wait in the child for the tests to end.
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

/// A handler that interrupted a slow path forks while other threads are stopped at each place in turn. It does not wait for
/// their locks, and the child does without.
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
        // Comes to a place soon, and does not wait on the way there.
        let layout = Layout::new::<[u64; 400]>();
        let blocks = [(); 20].map(|()| nolock::alloc(layout).expect("memory"));
        // SAFETY: blocks of this layout.
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

/// An item is claimed by another thread, which is stopped on the way to a list, when a handler forks that interrupted the queueing
/// of an item. The child does not have that thread: there the item is idle, or queued by who wants it queued.
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
                    // By this thread, as there is no other.
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

/// Others take CPUs offline and bring them back, hold them where they are, wait for deferred frees, and defer some, while this
/// thread forks, with a lock of its own on the CPUs or without.
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
            for body in [cache::barrier, || drop(cpu::read_lock()), defer_a_run] {
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

/// Threads of the parent sleep in the hotplug lock. The child's own are woken, and not these in their place.
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
                // Not on the stack of the sleeper, so what that left in the lock stays as it is.
                let waits = wait_and_change(16 << 20);
                drop(cpus);
                waits.join().expect("the thread ends well");
                live();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            wait_for(child);
            drop(cpus);
        });
    });
}

/// Another thread gives 64 MiB back to the system and stops in the midst of that, while this one forks in `fork`. The child has all
/// of it to use, or to give back in its turn.
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
        scope.spawn(alloc_global::trim);
        while !STOPPED.load(Ordering::Acquire) {
            thread::yield_now();
        }
        fork();
        if is_child() {
            alloc_global::trim();
            let now = stats::gather_own().held;
            assert!(now + BYTES - (1 << 20) < held, "{held} bytes with the block, {now} without");
            live_as_a_child();
        }
    });
    live();
}

/// Forks and waits for the child, which returns as well.
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

/// The fork does not wait for the other thread, and this one has an arena's lock.
#[test]
fn in_a_slow_path_while_another_gives_memory_back() {
    on_both_backends(|| {
        fork_while_another_purges(|| {
            IS_INTERRUPTED.set(true);
            assert!(nolock::alloc(Layout::new::<[u8; 2_000_000]>()).is_some());
        });
    });
}

/// Threads of the parent make and destroy caches, and wait for each other. Those of the child do so as
/// well: nothing in its locks is left of the parent's.
#[test]
fn while_others_contend_for_locks() {
    fn make_caches(prefix: &str, rounds: usize) {
        for round in 0..rounds {
            let name = format!("{prefix} {round}");
            let cache = Cache::builder(&name, Layout::new::<[u64; 9]>()).build().expect("a cache");
            let object = cache.alloc().expect("memory");
            // SAFETY: an object of this cache, which nobody uses.
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
                    // SAFETY: ends the process at once.
                    unsafe { libc::_exit(0) }
                }
                wait_for(child);
            }
            DONE.store(true, Ordering::Relaxed);
        });
        live();
    });
}
