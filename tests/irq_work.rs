//! Irq work: a queued item runs, on its CPU and in the requested context, or wherever it can.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::cpu::{self, CpuError};
use hayloft_core::fault::{self, Place};
use hayloft_core::irq_work::IrqWork;
use hayloft_core::{dump, heap};
use tests::entry_points::Hayloft;
use tests::process::{Limit, this_thread};
use tests::scenario::{Scenario, describe, in_every_mode};
use tests::sizes::LARGE;
use tests::slow_paths::{defer_run, defer_run_hook};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

static RUNS: AtomicUsize = AtomicUsize::new(0);

fn count(_: &IrqWork) {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

/// Core on which the last item ran.
static LAST_CORE: AtomicUsize = AtomicUsize::new(usize::MAX);

fn record_cpu(_: &IrqWork) {
    // SAFETY: `sched_getcpu` has no preconditions.
    let cpu = unsafe { libc::sched_getcpu() };
    LAST_CORE.store(cpu as usize, Ordering::Relaxed);
}

#[test]
fn queued_work_runs() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(count);
        static HARD: IrqWork = IrqWork::new(count).hard();
        // Before `cpu::start` the waiting thread runs the item.
        assert!(WORK.queue(), "an idle item was refused");
        assert!(WORK.is_pending() && !WORK.queue(), "a queued item was queued again");
        WORK.sync();
        assert!(!WORK.is_busy(), "the item is busy after `sync`");
        assert_eq!(RUNS.swap(0, Ordering::Relaxed), 1);

        cpu::start();
        for work in [&WORK, &HARD] {
            for _ in 0..1000 {
                assert!(work.queue(), "an idle item was refused");
                work.sync();
                assert!(!work.is_busy() && !work.is_pending(), "the item is busy after `sync`");
            }
            assert_eq!(RUNS.swap(0, Ordering::Relaxed), 1000);
        }
        // Queued repeatedly, the item runs at least once after the last time, and at most as often
        // as it was accepted.
        let accepted = (0..100_000).filter(|_| WORK.queue()).count();
        WORK.sync();
        assert_eq!(RUNS.load(Ordering::Relaxed), accepted, "runs of an item queued repeatedly");
    });
}

#[test]
fn work_runs_on_its_cpu() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(record_cpu);
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        assert_eq!(online, cpu::present().collect::<Vec<_>>());
        for cpu in online {
            assert!(WORK.queue_on(cpu), "an idle item was refused");
            WORK.sync();
            assert_eq!(LAST_CORE.load(Ordering::Relaxed), cpu);
        }
        let names: BTreeSet<_> = fs::read_dir("/proc/self/task")
            .expect("/proc is mounted")
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .collect();
        for cpu in cpu::online() {
            assert!(
                names.contains(&format!("hayloft/{cpu}\n")),
                "no thread of CPU {cpu}: {names:?}"
            );
        }
    });
}

/// An item may be freed once `sync` returned, on however many CPUs it ran.
#[test]
fn work_may_be_freed_after_sync() {
    in_every_mode(|| {
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        for _ in 0..5000 {
            let work = Box::new(IrqWork::new(count));
            let address = ptr::from_ref(&*work);
            // An out-of-range number selects another CPU.
            for cpu in online.iter().chain([&usize::MAX]) {
                // SAFETY: the box stays in place until `sync` returned.
                unsafe { IrqWork::queue_raw(address, *cpu) };
            }
            work.sync();
            drop(work);
        }
    });
}

/// Several threads queue items and wait for them before there are CPU threads, and while these
/// start.
#[test]
fn work_queued_before_start_may_be_freed_after_sync() {
    in_every_mode(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let work = Box::new(IrqWork::new(count));
                        // SAFETY: the box stays in place until `sync` returned.
                        unsafe { IrqWork::queue_raw(&raw const *work, 0) };
                        work.sync();
                    }
                });
            }
            while RUNS.load(Ordering::Relaxed) < 4000 {
                thread::yield_now();
            }
            cpu::start();
        });
        assert_eq!(RUNS.load(Ordering::Relaxed), 8000);
    });
}

/// A panic in an item's function ends the process, since waiters of the item would wait forever.
#[test]
fn work_that_panics_aborts_the_process() {
    static PANICS: IrqWork = IrqWork::new(|_| panic!("on purpose"));
    let panics = |started: bool| {
        if started {
            cpu::start();
        }
        PANICS.queue();
        PANICS.sync();
    };
    for irq in ["hard", "threaded", "none"] {
        for started in [false, true] {
            Scenario::new(format!("{irq}-{started}"), || panics(started))
                .env("HAYLOFT_IRQ", irq)
                .run(|output| {
                    let all = describe(output);
                    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
                    assert!(all.contains("on purpose"), "{all}");
                });
        }
    }
}

#[test]
fn handlers_can_queue_work() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(count);
        extern "C" fn handler(_: libc::c_int) {
            WORK.queue();
        }
        cpu::start();
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
        for _ in 0..1000 {
            // SAFETY: the handler is installed.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        WORK.sync();
        let runs = RUNS.load(Ordering::Relaxed);
        assert!((1..=1000).contains(&runs), "{runs} runs of an item queued 1000 times");
    });
}

/// Where the kernel refuses to send the signal, the CPU thread is woken without it.
#[test]
fn work_runs_without_signals() {
    static WORK: IrqWork = IrqWork::new(count).hard();
    extern "C" fn handler(_: libc::c_int) {
        for _ in 0..10 {
            WORK.queue();
        }
    }
    let work = || {
        cpu::start();
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { libc::signal(libc::SIGALRM, handler as *const () as usize) };
        for _ in 0..100 {
            assert!(WORK.queue(), "an idle item was refused");
            WORK.sync();
            // A signal with a number this low needs no memory, and `tkill` is not filtered.
            // SAFETY: the handler is installed.
            unsafe { libc::syscall(libc::SYS_tkill, this_thread(), libc::SIGALRM) };
            WORK.sync();
        }
        let runs = RUNS.load(Ordering::Relaxed);
        assert!(runs >= 200, "{runs} runs, less than one for each `sync`");
        let online: Vec<_> = cpu::online().collect();
        let last = if online.len() == 1 { Err(CpuError::Last) } else { Ok(()) };
        assert_eq!(cpu::down(online[0]), last);
    };
    for irq in ["hard", "threaded"] {
        Scenario::new(format!("too-many-{irq}"), work)
            .env("HAYLOFT_IRQ", irq)
            .limit(Limit::PendingSignals, 0)
            .succeeds();
        Scenario::new(format!("filtered-{irq}"), work)
            .env("HAYLOFT_IRQ", irq)
            .refuse_system_call(libc::SYS_tgkill)
            .succeeds();
    }
}

/// Where threads cannot be created there are no CPU threads, and everything works without them.
#[test]
fn everything_works_without_cpu_threads() {
    static WORK: IrqWork = IrqWork::new(count);
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    fn defer(place: Place) {
        defer_run_hook(place);
        if place == Place::DeferredTaken {
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    let work = || {
        cpu::start();
        fault::set_hook(defer);
        let ends: [fn(); 2] = [|| drop(vec![0_u8; LARGE]), heap::barrier];
        for end in ends {
            TAKEN.store(0, Ordering::Relaxed);
            defer_run();
            assert_eq!(TAKEN.load(Ordering::Relaxed), 0, "the deferred free was taken early");
            end();
            assert_ne!(TAKEN.load(Ordering::Relaxed), 0, "the deferred free was not taken");
        }
        let cpus = cpu::read_lock();
        heap::barrier();
        assert!(cpus.online().next().is_none(), "a CPU is online without a thread");
        drop(cpus);
        for round in 1..=3 {
            assert!(WORK.queue(), "an idle item was refused");
            cpu::start();
            assert!(cpu::online().next().is_none(), "a CPU is online without a thread");
            WORK.sync();
            assert_eq!(RUNS.load(Ordering::Relaxed), round);
            heap::barrier();
        }
        let cpu = cpu::present().next().expect("a CPU");
        assert_eq!(cpu::up(cpu), Err(CpuError::Refused));
        assert_eq!(cpu::down(cpu), Err(CpuError::Offline));
        assert_eq!(cpu::refresh(), Err(CpuError::Refused));
    };
    for irq in ["hard", "threaded", "none"] {
        Scenario::new(irq, work)
            .env("HAYLOFT_IRQ", irq)
            .env("HAYLOFT_FAULT", "clone:1/1")
            .succeeds();
    }
}

/// Returns the names of the CPU threads.
fn cpu_thread_names() -> BTreeSet<String> {
    let all = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let names = all.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let of_cpu = |name: &String| {
        let number = name.trim().strip_prefix("hayloft/");
        number.is_some_and(|number| number.parse::<usize>().is_ok())
    };
    names.filter(of_cpu).collect()
}

/// A CPU's thread starts when the first item is queued for the CPU, and not earlier.
#[test]
fn cpu_threads_start_on_first_use() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(count);
        heap::barrier();
        assert_eq!(cpu_thread_names(), BTreeSet::new());
        let mut names = BTreeSet::new();
        for cpu in cpu::online() {
            WORK.queue_on(cpu);
            WORK.sync();
            names.insert(format!("hayloft/{cpu}\n"));
            assert_eq!(cpu_thread_names(), names);
        }
    });
}

/// Where threads cannot be pinned, or the process may have few threads, one CPU thread also does
/// the work of the CPUs without one.
#[test]
fn cpus_can_share_a_thread() {
    static WORK: IrqWork = IrqWork::new(count);
    let work = |most: usize| {
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        assert!(!online.is_empty(), "no CPU is online");
        for round in 0..3 {
            for (number, cpu) in online.iter().enumerate() {
                assert!(WORK.queue_on(*cpu), "an idle item was refused");
                WORK.sync();
                assert_eq!(RUNS.load(Ordering::Relaxed), round * online.len() + number + 1);
            }
        }
        heap::barrier();
        let threads = cpu_thread_names();
        assert!(threads.len() <= most, "more than {most} CPU threads: {threads:?}");
        if let [first, _, ..] = online[..] {
            assert_eq!(cpu::down(first), Ok(()));
            assert_eq!(cpu::up(first), Ok(()));
        }
    };
    for irq in ["hard", "threaded", "none"] {
        Scenario::new(format!("unpinned-{irq}"), || work(0))
            .env("HAYLOFT_IRQ", irq)
            .refuse_system_call(libc::SYS_sched_setaffinity)
            .succeeds();
        // With this limit, users other than root could have no thread at all.
        // SAFETY: `geteuid` has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            continue;
        }
        Scenario::new(format!("few-{irq}"), || work(1))
            .env("HAYLOFT_IRQ", irq)
            .limit(Limit::Threads, 15)
            .succeeds();
    }
}

/// If a CPU thread is busy, a waiter runs the item.
#[test]
fn waiter_runs_work_of_a_busy_cpu() {
    in_every_mode(|| {
        static DONE: AtomicBool = AtomicBool::new(false);
        static STARTED: AtomicBool = AtomicBool::new(false);
        static ENDLESS: IrqWork = IrqWork::new(|_| {
            STARTED.store(true, Ordering::Relaxed);
            while !DONE.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        static WORK: IrqWork = IrqWork::new(count);
        cpu::start();
        let cpu = cpu::online().next().expect("a CPU");
        ENDLESS.queue_on(cpu);
        while !STARTED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        WORK.queue_on(cpu);
        WORK.sync();
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        DONE.store(true, Ordering::Relaxed);
        ENDLESS.sync();
    });
}

/// A signal with the number that CPU threads use, sent to the process by other code, reaches the
/// thread that waits for it.
#[test]
fn foreign_signals_are_forwarded() {
    static WORK: IrqWork = IrqWork::new(count);
    let wait = |value: Option<i32>| {
        // SAFETY: the set, the record and the timeout are local. All threads of this process block
        // the signal.
        unsafe {
            let signal = libc::SIGRTMAX();
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, signal);
            match value {
                Some(value) => {
                    let value =
                        libc::sigval { sival_ptr: ptr::without_provenance_mut(value as usize) };
                    assert_eq!(libc::sigqueue(libc::getpid(), signal, value), 0);
                }
                None => assert_eq!(libc::kill(libc::getpid(), signal), 0),
            }
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let timeout = libc::timespec { tv_sec: 60, tv_nsec: 0 };
            assert_eq!(
                libc::sigtimedwait(&raw const set, &raw mut info, &raw const timeout),
                signal
            );
            assert_eq!(info.si_pid(), libc::getpid());
            if let Some(value) = value {
                assert_eq!(info.si_value().sival_ptr.addr(), value as usize);
            }
        }
    };
    let fork_and_wait = || {
        // The child has one thread, so all later threads inherit the blocked signal.
        // SAFETY: the child relies only on what the allocator promises for it.
        let child = unsafe { libc::fork() };
        if child == 0 {
            std::panic::set_hook(Box::new(|info| {
                eprintln!("{info}");
                // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
                unsafe { libc::_exit(1) }
            }));
            // SAFETY: the set is local and valid during both calls.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigaddset(&raw mut set, libc::SIGRTMAX());
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            }
            cpu::start();
            for round in 0..20 {
                for cpu in cpu::online() {
                    WORK.queue_on(cpu);
                    WORK.sync();
                }
                wait(Some(round));
                wait(None);
            }
            // SAFETY: `_exit` runs none of the parent's destructors and exit handlers.
            unsafe { libc::_exit(0) }
        }
        let mut status = 0;
        // SAFETY: `status` is valid for the write.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child failed");
    };
    in_every_mode(fork_and_wait);
}

/// A deferred free is counted, and after a barrier it is counted as flushed.
#[test]
fn deferred_frees_are_counted() {
    in_every_mode(|| {
        fault::set_hook(defer_run_hook);
        defer_run();
        let counts = heap::deferred_frees();
        assert_eq!((counts.deferred, counts.flushed), (1, 0));
        heap::barrier();
        let counts = heap::deferred_frees();
        assert_eq!((counts.deferred, counts.flushed), (1, 1));
    });
}

/// Measures the time from a deferred free to its completion by a CPU thread:
///
/// `cargo test --release -p tests --test irq_work -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, which needs an idle machine"]
fn deferred_frees_complete_within_a_millisecond() {
    let measure = || {
        cpu::start();
        fault::set_hook(defer_run_hook);
        let mut times: Vec<_> = (0..2000)
            .map(|_| {
                // Lets the thread that the last free woke fall asleep again.
                thread::sleep(Duration::from_millis(1));
                let before = heap::deferred_frees().flushed;
                let start = Instant::now();
                defer_run();
                while heap::deferred_frees().flushed == before {
                    thread::yield_now();
                }
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("median {median:?}, p99 {p99:?}");
        assert!(p99 <= Duration::from_millis(1), "p99 {p99:?}");
    };
    for irq in ["hard", "threaded", "none"] {
        Scenario::new(irq, measure).env("HAYLOFT_IRQ", irq).run(|output| {
            assert!(output.status.success(), "{}", describe(output));
            let stdout = String::from_utf8_lossy(&output.stdout);
            println!("{irq}: {}", stdout.lines().find(|line| line.contains("p99")).unwrap_or(""));
        });
    }
}

/// The report names the item in which a CPU thread is stuck.
#[test]
fn dump_names_stuck_work() {
    in_every_mode(|| {
        static STARTED: AtomicBool = AtomicBool::new(false);
        static DONE: AtomicBool = AtomicBool::new(false);
        static STUCK: IrqWork = IrqWork::new(|_| {
            STARTED.store(true, Ordering::Relaxed);
            while !DONE.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        cpu::start();
        STUCK.queue();
        while !STARTED.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let report = RefCell::new(String::new());
        dump::machine(&|line| writeln!(report.borrow_mut(), "{line}").expect("a string has room"));
        DONE.store(true, Ordering::Relaxed);
        let (report, item) = (report.into_inner(), format!("at item {:p};", &raw const STUCK));
        assert_eq!(report.matches(&item).count(), 1, "{report}");
        assert!(report.contains("hotplug lock: free"), "{report}");
        STUCK.sync();
    });
}

/// The lock witness of debug builds reports a sleeping call in a CPU thread's signal handler.
#[test]
#[cfg(debug_assertions)]
fn sleeping_in_a_handler_is_reported() {
    static SLEEPING: IrqWork = IrqWork::new(|_| heap::barrier());
    let sleep = || {
        cpu::start();
        SLEEPING.queue();
        SLEEPING.sync();
    };
    Scenario::new("hard", sleep).env("HAYLOFT_IRQ", "hard").run(|output| {
        let all = describe(output);
        assert!(!output.status.success(), "{all}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("may sleep, in a handler"),
            "{all}"
        );
    });
}

/// An item has room for one waiter. Debug builds report two threads that wait at once.
#[test]
#[cfg(debug_assertions)]
fn two_waiters_are_reported() {
    /// Whether a waiter has returned or panicked, which ends the item.
    static DONE: AtomicBool = AtomicBool::new(false);
    static SLOW: IrqWork = IrqWork::new(|_| {
        while !DONE.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            DONE.store(true, Ordering::Relaxed);
        }
    }
    let wait = || {
        cpu::start();
        SLOW.queue();
        let sync = || {
            let _end = End;
            SLOW.sync();
        };
        thread::scope(|scope| {
            scope.spawn(sync);
            scope.spawn(sync);
        });
    };
    Scenario::new("threaded", wait).env("HAYLOFT_IRQ", "threaded").run(|output| {
        let all = describe(output);
        assert!(!output.status.success(), "{all}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("two threads wait at once"),
            "{all}"
        );
    });
}
