//! CPUs that go offline and come online: on request, by the affinity of the process, by its cgroup.
//! Their objects and their work move elsewhere.
//!
//! No core is unplugged here, since the whole system would lose it. To a process it would look like
//! a cpuset that shrinks: its affinity loses a core, and the kernel moves its threads.

use std::env;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use hayloft_core::cpu::{self, CpuError};
use hayloft_core::fault;
use hayloft_core::irq_work::IrqWork;
use hayloft_core::{heap, nolock};
use tests::cgroup::{Cgroup, confine_to};
use tests::entry_points::Hayloft;
use tests::scenario::{Scenario, in_every_mode};
use tests::sizes::layout;
use tests::skipped;
use tests::slow_paths::{defer_run, defer_run_hook};
use tests::sysfs::set_affinity;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

fn online() -> Vec<usize> {
    cpu::online().collect()
}

/// Core on which the last work ran.
static LAST_CORE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Queues work on `cpu` and waits for it. Returns the core on which it ran.
fn work_on(cpu: usize) -> usize {
    static WORK: IrqWork = IrqWork::new(|_| {
        // SAFETY: `sched_getcpu` has no preconditions.
        let core = unsafe { libc::sched_getcpu() };
        LAST_CORE.store(core as usize, Ordering::Relaxed);
    });
    LAST_CORE.store(usize::MAX, Ordering::Relaxed);
    assert!(WORK.queue_on(cpu), "the work is queued already");
    WORK.sync();
    LAST_CORE.load(Ordering::Relaxed)
}

/// Checks that work queued on a CPU runs there, or on an online CPU if that one is offline, and
/// that deferred frees complete.
fn work_on_each_cpu() {
    for cpu in 0..cpu::possible() {
        let core = work_on(cpu);
        let is_right = if cpu::is_online(cpu) { core == cpu } else { cpu::is_online(core) };
        assert!(is_right, "work for CPU {cpu} ran on {core}");
    }
    defer_run();
    heap::barrier();
}

/// Returns the sets of CPUs that a test keeps in turn: the first half, the second half, and all. If
/// there are several CPUs, the first CPU of each set differs from that of the set before.
fn subsets(all: &[usize]) -> [&[usize]; 3] {
    let (some, others) = all.split_at(all.len() / 2);
    [if some.is_empty() { all } else { some }, others, all]
}

/// The allocator takes the affinity of the first thread for that of the process.
#[test]
fn affinity_changes_are_followed() {
    in_every_mode(|| {
        cpu::start();
        fault::set_hook(defer_run_hook);
        let all = online();
        for kept in subsets(&all) {
            set_affinity(process::id() as libc::pid_t, kept);
            assert_eq!(cpu::present().collect::<Vec<_>>(), kept);
            work_on_each_cpu();
            assert_eq!(cpu::refresh(), Ok(()));
            assert_eq!(online(), kept);
            work_on_each_cpu();
        }
    });
}

#[test]
fn cpuset_changes_are_followed() {
    const PATH: &str = "TEST_CPUSET";
    // The parent creates the cpuset, its children use it.
    let cpuset = env::var_os(PATH).is_none().then(Cgroup::cpuset).flatten();
    let path = cpuset.as_ref().map(|cpuset| cpuset.path().into()).or_else(|| env::var_os(PATH));
    let Some(path) = path else {
        skipped("changing cpusets", "cpusets cannot be created here");
        return;
    };
    let change = || {
        let cpuset = env::var_os(PATH).expect("a path");
        let all: Vec<_> = cpu::present().collect();
        let keep_to =
            |cpus| confine_to(Path::new(&cpuset), cpus).expect("this test created the cpuset");
        keep_to(&all);
        cpu::start();
        fault::set_hook(defer_run_hook);
        for kept in subsets(&all) {
            keep_to(kept);
            assert_eq!(cpu::present().collect::<Vec<_>>(), kept);
            // The CPUs stay online until `refresh`. Their threads run where the kernel moved them.
            for cpu in 0..cpu::possible() {
                let core = work_on(cpu);
                assert!(kept.contains(&core), "work for CPU {cpu} ran on {core}");
            }
            assert_eq!(cpu::refresh(), Ok(()));
            assert_eq!(online(), kept);
            work_on_each_cpu();
        }
    };
    for irq in ["hard", "threaded", "none"] {
        Scenario::new(irq, change).env("HAYLOFT_IRQ", irq).env(PATH, &path).succeeds();
    }
}

#[test]
fn invalid_hotplug_requests_are_rejected() {
    in_every_mode(|| {
        static DOWN: IrqWork = IrqWork::new(|_| {
            assert_eq!(cpu::down(0), Err(CpuError::OwnThread));
            assert_eq!(cpu::up(0), Err(CpuError::OwnThread));
        });
        cpu::start();
        DOWN.queue();
        DOWN.sync();
        assert_eq!(cpu::down(cpu::possible()), Err(CpuError::NoSuchCpu));
        assert_eq!(cpu::up(usize::MAX), Err(CpuError::NoSuchCpu));
        let all = online();
        for cpu in &all {
            assert_eq!(cpu::up(*cpu), Err(CpuError::Online));
        }
        let (last, others) = all.split_last().expect("a CPU");
        for cpu in others {
            assert_eq!(cpu::down(*cpu), Ok(()));
            assert_eq!(cpu::down(*cpu), Err(CpuError::Offline));
        }
        assert_eq!(cpu::down(*last), Err(CpuError::Last));
        work_on_each_cpu();
        assert_eq!(cpu::refresh(), Ok(()));
        assert_eq!(online(), all);
    });
}

/// CPUs go offline and come online while threads allocate, free without waiting, and queue work.
#[test]
fn allocation_continues_during_hotplug() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(|_| {});
        static DONE: AtomicBool = AtomicBool::new(false);
        let cycles = 60;
        let layouts = [16, 100, 2000, 20_000, 200_000].map(|size| layout(size, 8));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !DONE.load(Ordering::Relaxed) {
                        for layout in layouts {
                            let blocks = [(); 50].map(|()| nolock::alloc(layout).expect("memory"));
                            for (index, block) in blocks.into_iter().enumerate() {
                                // SAFETY: the block has this layout and is freed once.
                                unsafe {
                                    block.as_ptr().write_bytes(index as u8, layout.size());
                                    nolock::free(block, layout);
                                }
                            }
                            let words: Vec<String> =
                                (0..50).map(|word: usize| word.to_string()).collect();
                            assert_eq!(words.concat().len(), 90);
                        }
                        WORK.queue();
                    }
                });
            }
            for cycle in 0..cycles {
                let online: Vec<_> = cpu::read_lock().online().collect();
                if let [.., _] = online[1..] {
                    let cpu = online[cycle % online.len()];
                    assert_eq!(cpu::down(cpu), Ok(()));
                    heap::barrier();
                    assert_eq!(cpu::up(cpu), Ok(()));
                }
                heap::barrier();
            }
            DONE.store(true, Ordering::Relaxed);
        });
        WORK.sync();
        assert!(!WORK.is_busy(), "the work is busy after `sync`");
    });
}
