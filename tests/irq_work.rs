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
use tests::everywhere::{defer_a_run, defer_here};
use tests::process::{Limit, this_thread};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, describe, in_every_mode};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

static RUNS: AtomicUsize = AtomicUsize::new(0);

fn count(_: &IrqWork) {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

/// Core on which the last item ran.
static SEEN_CPU: AtomicUsize = AtomicUsize::new(usize::MAX);

fn note_cpu(_: &IrqWork) {
    // SAFETY: `sched_getcpu` has no preconditions.
    let cpu = unsafe { libc::sched_getcpu() };
    SEEN_CPU.store(cpu as usize, Ordering::Relaxed);
}

#[test]
fn queued_work_runs() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(count);
        static HARD: IrqWork = IrqWork::new(count).hard();
        // Before `cpu::start` the waiting thread runs the item.
        assert!(WORK.queue() && WORK.is_pending() && !WORK.queue());
        WORK.sync();
        assert!(!WORK.is_busy());
        assert_eq!(RUNS.swap(0, Ordering::Relaxed), 1);

        cpu::start();
        for work in [&WORK, &HARD] {
            for _ in 0..1000 {
                assert!(work.queue());
                work.sync();
                assert!(!work.is_busy() && !work.is_pending());
            }
            assert_eq!(RUNS.swap(0, Ordering::Relaxed), 1000);
        }
        // Queued repeatedly, the item runs at least once after the last time, and at most as often
        // as it was accepted.
        let accepted = (0..100_000).filter(|_| WORK.queue()).count();
        WORK.sync();
        assert_eq!(RUNS.load(Ordering::Relaxed), accepted);
    });
}

#[test]
fn work_runs_on_its_cpu() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(note_cpu);
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        assert_eq!(online, cpu::present().collect::<Vec<_>>());
        for cpu in online {
            assert!(WORK.queue_on(cpu));
            WORK.sync();
            assert_eq!(SEEN_CPU.load(Ordering::Relaxed), cpu);
        }
        let names: BTreeSet<_> = fs::read_dir("/proc/self/task")
            .expect("/proc is mounted")
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .collect();
        for cpu in cpu::online() {
            assert!(names.contains(&format!("hayloft/{cpu}\n")), "{names:?}");
        }
    });
}

/// An item may be freed once `sync` returned, on however many CPUs it ran.
#[test]
fn waited_for_work_may_go() {
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
fn early_work_may_go() {
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
fn work_that_panics_ends_the_process() {
    static PANICS: IrqWork = IrqWork::new(|_| panic!("as it should"));
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
                    assert!(all.contains("as it should"), "{all}");
                });
        }
    }
}

#[test]
fn work_is_queued_by_handlers() {
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
        assert!((1..=1000).contains(&RUNS.load(Ordering::Relaxed)));
    });
}

/// Where the kernel refuses to send the signal, the CPU thread is woken without it.
#[test]
fn work_runs_though_signals_are_refused() {
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
            assert!(WORK.queue());
            WORK.sync();
            // A signal with a number this low needs no memory, and `tkill` is not filtered.
            // SAFETY: the handler is installed.
            unsafe { libc::syscall(libc::SYS_tkill, this_thread(), libc::SIGALRM) };
            WORK.sync();
        }
        assert!(RUNS.load(Ordering::Relaxed) >= 200);
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
            .refuse(libc::SYS_tgkill)
            .succeeds();
    }
}

/// Where threads cannot be created there are no CPU threads, and everything works without them.
#[test]
fn no_cpu_can_be_had() {
    static WORK: IrqWork = IrqWork::new(count);
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    fn defer(place: Place) {
        defer_here(place);
        if place == Place::DeferredTaken {
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    let work = || {
        cpu::start();
        fault::set_hook(defer);
        let ends: [fn(); 2] = [|| drop(vec![0_u64; 50_000]), heap::barrier];
        for end in ends {
            TAKEN.store(0, Ordering::Relaxed);
            defer_a_run();
            assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
            end();
            assert_ne!(TAKEN.load(Ordering::Relaxed), 0);
        }
        let cpus = cpu::read_lock();
        heap::barrier();
        assert!(cpus.online().next().is_none());
        drop(cpus);
        for round in 1..=3 {
            assert!(WORK.queue());
            cpu::start();
            assert!(cpu::online().next().is_none());
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
fn threads_of_cpus() -> BTreeSet<String> {
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
fn threads_come_when_they_are_needed() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(count);
        heap::barrier();
        assert_eq!(threads_of_cpus(), BTreeSet::new());
        let mut names = BTreeSet::new();
        for cpu in cpu::online() {
            WORK.queue_on(cpu);
            WORK.sync();
            names.insert(format!("hayloft/{cpu}\n"));
            assert_eq!(threads_of_cpus(), names);
        }
    });
}

/// Where threads cannot be pinned, or the process may have few threads, one CPU thread also does
/// the work of the CPUs without one.
#[test]
fn cpus_share_a_thread() {
    static WORK: IrqWork = IrqWork::new(count);
    let work = |most: usize| {
        cpu::start();
        let online: Vec<_> = cpu::online().collect();
        assert!(!online.is_empty());
        for round in 0..3 {
            for (number, cpu) in online.iter().enumerate() {
                assert!(WORK.queue_on(*cpu));
                WORK.sync();
                assert_eq!(RUNS.load(Ordering::Relaxed), round * online.len() + number + 1);
            }
        }
        heap::barrier();
        assert!(threads_of_cpus().len() <= most);
        if let [first, _, ..] = online[..] {
            assert_eq!(cpu::down(first), Ok(()));
            assert_eq!(cpu::up(first), Ok(()));
        }
    };
    for irq in ["hard", "threaded", "none"] {
        Scenario::new(format!("unpinned-{irq}"), || work(0))
            .env("HAYLOFT_IRQ", irq)
            .refuse(libc::SYS_sched_setaffinity)
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

/// If a CPU thread does not get to an item, a waiter runs it.
#[test]
fn who_waits_helps() {
    in_every_mode(|| {
        static OVER: AtomicBool = AtomicBool::new(false);
        static BEGUN: AtomicBool = AtomicBool::new(false);
        static HOG: IrqWork = IrqWork::new(|_| {
            BEGUN.store(true, Ordering::Relaxed);
            while !OVER.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        static WORK: IrqWork = IrqWork::new(count);
        cpu::start();
        let cpu = cpu::online().next().expect("a CPU");
        HOG.queue_on(cpu);
        while !BEGUN.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        WORK.queue_on(cpu);
        WORK.sync();
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        OVER.store(true, Ordering::Relaxed);
        HOG.sync();
    });
}

/// A signal with the number that CPU threads use, sent to the process by other code, reaches the
/// thread that waits for it.
#[test]
fn signals_of_others_are_passed_on() {
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
            let patience = libc::timespec { tv_sec: 60, tv_nsec: 0 };
            assert_eq!(
                libc::sigtimedwait(&raw const set, &raw mut info, &raw const patience),
                signal
            );
            assert_eq!(info.si_pid(), libc::getpid());
            if let Some(value) = value {
                assert_eq!(info.si_value().sival_ptr.addr(), value as usize);
            }
        }
    };
    let take_turns = || {
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
        assert_eq!(status, 0);
    };
    in_every_mode(take_turns);
}

/// A deferred free is counted, and after a barrier it is counted as flushed.
#[test]
fn deferred_frees_are_counted() {
    in_every_mode(|| {
        fault::set_hook(defer_here);
        defer_a_run();
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
#[ignore = "a measurement, which wants a machine that is idle"]
fn deferred_frees_take_a_millisecond_at_most() {
    let measure = || {
        cpu::start();
        fault::set_hook(defer_here);
        let mut times: Vec<_> = (0..2000)
            .map(|_| {
                // Lets the thread that the last free woke fall asleep again.
                thread::sleep(Duration::from_millis(1));
                let before = heap::deferred_frees().flushed;
                let start = Instant::now();
                defer_a_run();
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
            let said = String::from_utf8_lossy(&output.stdout);
            println!("{irq}: {}", said.lines().find(|line| line.contains("p99")).unwrap_or(""));
        });
    }
}

/// The report names the item in which a CPU thread is stuck.
#[test]
fn what_is_stuck_is_told() {
    in_every_mode(|| {
        static BEGUN: AtomicBool = AtomicBool::new(false);
        static OVER: AtomicBool = AtomicBool::new(false);
        static STUCK: IrqWork = IrqWork::new(|_| {
            BEGUN.store(true, Ordering::Relaxed);
            while !OVER.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
        cpu::start();
        STUCK.queue();
        while !BEGUN.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let report = RefCell::new(String::new());
        dump::machine(&|line| writeln!(report.borrow_mut(), "{line}").expect("a string has room"));
        OVER.store(true, Ordering::Relaxed);
        let (report, item) = (report.into_inner(), format!("at item {:p};", &raw const STUCK));
        assert_eq!(report.matches(&item).count(), 1, "{report}");
        assert!(report.contains("hotplug lock: free"), "{report}");
        STUCK.sync();
    });
}

/// The lock witness of debug builds reports a sleeping call in a CPU thread's signal handler.
#[test]
#[cfg(debug_assertions)]
fn sleeping_in_a_handler_is_named() {
    static SLEEPY: IrqWork = IrqWork::new(|_| heap::barrier());
    let sleep = || {
        cpu::start();
        SLEEPY.queue();
        SLEEPY.sync();
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
fn two_waiters_are_named() {
    /// Whether a waiter has returned or panicked, which ends the item.
    static OVER: AtomicBool = AtomicBool::new(false);
    static SLOW: IrqWork = IrqWork::new(|_| {
        while !OVER.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            OVER.store(true, Ordering::Relaxed);
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
