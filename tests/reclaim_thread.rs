//! The background thread: which programs have it, when it runs, and that idle programs return their
//! memory by it.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::cpu;
use hayloft_core::irq_work::IrqWork;
use tests::entry_points::Hayloft;
use tests::process::{Limit, status_bytes, this_thread, wait_until_asleep};
use tests::reclaim::{
    BACKGROUND_THREAD, REST, WITH_BACKGROUND_THREAD, burst, burst_freed_without_waiting,
    free_until_resident, in_child, thread_named, threads, wait_for_threads, wait_until_resident,
};
use tests::scenario::{on_both_backends_with, with_decay};
use tests::sizes::MIB;
use tests::skipped;
use tests::sysfs::{affinity, pin_here};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// The background thread ends when there is nothing left to decommit, and is started again.
#[test]
fn idle_program_returns_memory() {
    with_decay(|| {
        let before_threads = threads();
        for _ in 0..2 {
            let (before, _) = burst();
            wait_until_resident(before + REST);
            wait_for_threads(before_threads);
        }
    });
}

/// A program that handles signals by `sigwait` blocks them in every thread. Its idle memory returns
/// all the same.
#[test]
fn memory_returns_with_all_signals_blocked() {
    with_decay(|| {
        // SAFETY: the set is local, and `sigfillset` initialises it.
        unsafe {
            let mut signals = std::mem::zeroed();
            libc::sigfillset(&raw mut signals);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        }
        let (before, _) = burst();
        wait_until_resident(before + REST);
    });
}

/// A program of one thread may enter a user namespace, which the kernel refuses to one of several
/// threads. It therefore gets no background thread, and needs none.
#[test]
fn single_threaded_program_stays_single_threaded() {
    // `HAYLOFT_BACKGROUND` is unset, as it is for users.
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "300")], || {
        in_child(|| {
            let (before, peak) = burst();
            let now = status_bytes("VmRSS");
            // Most free pages that stay resident without a background thread. Code and data that
            // the burst touched for the first time are resident as well.
            let most = 64 << 20;
            assert!(
                now < before + most + 2 * REST,
                "{before} bytes resident before, {peak} at the peak, {now} now"
            );
            assert!(now < peak - REST, "{peak} bytes resident at the peak, {now} now");
            assert_eq!(threads(), 1);
            // SAFETY: `unshare` takes flags only.
            let entered = unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0;
            let error = std::io::Error::last_os_error().raw_os_error();
            assert!(entered || error != Some(libc::EINVAL), "unshare found several threads");
        });
    });
}

/// The background thread keeps none of the program's descriptors open.
#[test]
fn background_thread_shares_no_descriptors() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "3000"), WITH_BACKGROUND_THREAD], || {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let [read, write] = ends;
        let before_threads = threads();
        burst();
        wait_for_threads(before_threads + 1);
        // SAFETY: the descriptors are this test's, and `byte` is valid for the write. The read ends
        // if no other thread holds the write end open.
        unsafe {
            libc::close(write);
            let mut byte = 0u8;
            assert_eq!(libc::read(read, (&raw mut byte).cast(), 1), 0);
            libc::close(read);
        }
    });
}

/// The background thread has the ordinary scheduling policy and the CPUs of the main thread, not
/// those of the thread that started it.
#[test]
fn background_thread_is_scheduled_as_the_process() {
    // The decay time is an hour, so the thread stays.
    on_both_backends_with(&[WITH_BACKGROUND_THREAD], || {
        assert_eq!(thread_named(BACKGROUND_THREAD), None, "the thread was started early");
        let starter = thread::spawn(|| {
            pin_here();
            let priority: libc::c_int = 0;
            let policy = libc::SCHED_BATCH;
            // Not `libc::sched_setscheduler`, which fails in musl.
            // SAFETY: the kernel only reads the priority.
            let result = unsafe {
                libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority)
            };
            assert_eq!(result, 0, "SCHED_BATCH was refused");
            burst();
        });
        starter.join().expect("the thread does not panic");
        // The thread names itself, and then schedules itself, before it first sleeps.
        let reclaim = loop {
            if let Some(thread) = thread_named(BACKGROUND_THREAD) {
                break thread;
            }
            thread::sleep(Duration::from_millis(5));
        };
        wait_until_asleep(reclaim);
        assert_eq!(affinity(reclaim), affinity(process::id() as libc::pid_t));
        // SAFETY: the call takes a number only.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, reclaim) };
        assert_eq!(policy, libc::c_long::from(libc::SCHED_OTHER));
    });
}

#[test]
fn zero_decay_decommits_soon_with_the_background_thread() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "0"), WITH_BACKGROUND_THREAD], || {
        let (before, _) = burst();
        wait_until_resident(before + REST);
    });
}

/// Where the system refuses the background thread, frees do its work.
#[test]
fn frees_return_memory_where_no_thread_can_be_created() {
    let refused = ("HAYLOFT_FAULT", "clone:1/1");
    on_both_backends_with(&[refused, ("HAYLOFT_DECAY_MS", "100"), WITH_BACKGROUND_THREAD], || {
        let before_threads = threads();
        let (before, _) = burst();
        free_until_resident(before + 2 * REST);
        assert_eq!(threads(), before_threads);
    });
}

/// At the limit of threads, frees return memory. Once the limit is raised, the background thread
/// starts.
#[test]
fn background_thread_starts_when_the_limit_of_threads_is_raised() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "300"), WITH_BACKGROUND_THREAD], || {
        // The limit does not bind root.
        const USER: libc::uid_t = 1_234_567;
        // SAFETY: the calls take numbers only.
        if unsafe { libc::geteuid() == 0 && libc::setresuid(USER, USER, USER) != 0 } {
            return skipped("the limit of threads", "root, without another user");
        }
        Limit::Threads.set(1).expect("a soft limit can be lowered");
        let before_threads = threads();
        let (before, _) = burst();
        free_until_resident(before + 2 * REST);
        assert_eq!(threads(), before_threads);
        Limit::Threads.raise().expect("a soft limit can be raised");
        let deadline = Instant::now() + Duration::from_secs(60);
        while threads() == before_threads {
            assert!(Instant::now() < deadline, "no background thread starts");
            drop(vec![1u8; 3 * MIB]);
        }
    });
}

/// Memory that only frees without waiting return, in a program that idles from then on.
#[test]
fn memory_freed_without_waiting_returns() {
    with_decay(|| {
        let before = status_bytes("VmRSS");
        burst_freed_without_waiting();
        wait_until_resident(before + REST);
    });
}

/// Where no background thread does so, the next slow path decommits memory that frees without
/// waiting had to leave, even if it allocates.
#[test]
fn allocations_decommit_memory_freed_without_waiting() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "0"), ("HAYLOFT_BACKGROUND", "0")], || {
        let before = status_bytes("VmRSS");
        burst_freed_without_waiting();
        std::mem::forget(Vec::<u8>::with_capacity(3 * MIB));
        let now = status_bytes("VmRSS");
        assert!(now < before + REST, "{before} bytes resident before, {now} now");
    });
}

/// The background thread sleeps through a long window if it need not look for memory pressure.
#[test]
fn background_thread_sleeps_where_pressure_does_not_count() {
    on_both_backends_with(&[("HAYLOFT_PRESSURE", "0"), WITH_BACKGROUND_THREAD], || {
        burst();
        let deadline = Instant::now() + Duration::from_secs(60);
        let thread = loop {
            if let Some(thread) = thread_named(BACKGROUND_THREAD) {
                break thread;
            }
            assert!(Instant::now() < deadline, "no background thread starts");
            thread::sleep(Duration::from_millis(5));
        };
        let switches = || {
            let status = fs::read_to_string(format!("/proc/self/task/{thread}/status"));
            let status = status.expect("the thread exists");
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            line.expect("the kernel counts switches").to_owned()
        };
        loop {
            let before = switches();
            thread::sleep(Duration::from_millis(2000));
            if switches() == before {
                break;
            }
            assert!(Instant::now() < deadline, "the thread keeps waking up");
        }
    });
}

/// Threads of the allocator's own, such as CPU threads, do not make a program one of several
/// threads.
#[test]
fn own_threads_are_none_of_the_program() {
    let settings = [("HAYLOFT_DECAY_MS", "3600000"), ("HAYLOFT_IRQ", "threaded")];
    on_both_backends_with(&settings, || {
        in_child(|| {
            static RAN_ON: AtomicI32 = AtomicI32::new(0);
            static WORK: IrqWork = IrqWork::new(|_| {
                drop(vec![1u8; 3 * MIB]);
                RAN_ON.store(this_thread(), Ordering::Relaxed);
            });
            cpu::start();
            let deadline = Instant::now() + Duration::from_secs(60);
            // A thread that starts the CPU threads may run the item in their place.
            while [0, this_thread()].contains(&RAN_ON.load(Ordering::Relaxed)) {
                assert!(Instant::now() < deadline, "no CPU thread runs the item");
                WORK.queue();
                thread::sleep(Duration::from_millis(1));
            }
            burst();
            assert!(thread_named(BACKGROUND_THREAD).is_none(), "the background thread was started");
        });
    });
}

#[test]
fn small_programs_start_no_background_thread() {
    with_decay(|| {
        let before = threads();
        for round in 1..200 {
            drop(vec![1u8; round * 1000]);
        }
        assert_eq!(threads(), before);
    });
}

/// The child of a fork lacks the background thread, and starts its own when it needs one.
#[test]
fn forked_child_returns_memory() {
    with_decay(|| {
        let (before, _) = burst();
        wait_until_resident(before + REST);
        in_child(|| {
            let (before, _) = burst();
            wait_until_resident(before + REST);
        });
    });
}
