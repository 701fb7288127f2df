//! CPUs that come and go: on request, by the affinity of the process, by its cgroup. What they had goes elsewhere.
//!
//! A core that is unplugged is not tried, since everybody on the machine would lose it. What the process sees of it is what it
//! sees of a cpuset that shrinks: a core less in its affinity, and threads that the kernel moved.

use std::alloc::Layout;
use std::env;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use alloc_core::cpu::{self, CpuError};
use alloc_core::fault;
use alloc_core::irq_work::IrqWork;
use alloc_core::{cache, nolock};
use tests::cgroup::{Cgroup, be_kept_to};
use tests::everywhere::{defer_a_run, defer_here};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, in_every_mode};
use tests::skipped;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

fn online() -> Vec<usize> {
    cpu::online().collect()
}

/// The core that work found itself on.
static SEEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Queues work on a CPU; the core on which it ran.
fn work_on(cpu: usize) -> usize {
    static WORK: IrqWork = IrqWork::new(|_| {
        // SAFETY: no arguments.
        let core = unsafe { libc::sched_getcpu() };
        SEEN.store(core as usize, Ordering::Relaxed);
    });
    SEEN.store(usize::MAX, Ordering::Relaxed);
    assert!(WORK.queue_on(cpu));
    WORK.sync();
    SEEN.load(Ordering::Relaxed)
}

/// What is queued on a CPU runs there, or on another if it is offline; what is deferred is freed.
fn work_on_each_cpu() {
    for cpu in 0..cpu::possible() {
        let core = work_on(cpu);
        assert!(if cpu::is_online(cpu) { core == cpu } else { cpu::is_online(core) });
    }
    defer_a_run();
    cache::barrier();
}

/// Some CPUs after others, and in the end all: each first CPU that is left was not left before.
fn subsets(all: &[usize]) -> [&[usize]; 3] {
    let (some, others) = all.split_at(all.len() / 2);
    [if some.is_empty() { all } else { some }, others, all]
}

/// The affinity of the process is that of its first thread.
#[test]
fn affinities_change() {
    in_every_mode(|| {
        cpu::start();
        fault::set_hook(defer_here);
        let all = online();
        for kept in subsets(&all) {
            // SAFETY: a zeroed set is an empty one; the set is readable for its size.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                kept.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
                let size = size_of_val(&set);
                assert_eq!(libc::sched_setaffinity(libc::getpid(), size, &raw const set), 0);
            }
            assert_eq!(cpu::present().collect::<Vec<_>>(), kept);
            work_on_each_cpu();
            assert_eq!(cpu::refresh(), Ok(()));
            assert_eq!(online(), kept);
            work_on_each_cpu();
        }
    });
}

#[test]
fn cpusets_change() {
    const PATH: &str = "TEST_CPUSET";
    // Made by the parent, and used by its children.
    let cpuset = env::var_os(PATH).is_none().then(Cgroup::of_cpus).flatten();
    let path = cpuset.as_ref().map(|cpuset| cpuset.path().into()).or_else(|| env::var_os(PATH));
    let Some(path) = path else {
        skipped("cpusets that change", "no cpuset can be made here");
        return;
    };
    let change = || {
        let cpuset = env::var_os(PATH).expect("a path");
        let all: Vec<_> = cpu::present().collect();
        let keep_to = |cpus| be_kept_to(Path::new(&cpuset), cpus).expect("a cpuset of ours");
        keep_to(&all);
        cpu::start();
        fault::set_hook(defer_here);
        for kept in subsets(&all) {
            keep_to(kept);
            assert_eq!(cpu::present().collect::<Vec<_>>(), kept);
            // Until somebody says so the CPUs stay; their threads are where the kernel has moved them.
            for cpu in 0..cpu::possible() {
                assert!(kept.contains(&work_on(cpu)));
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
fn cpus_that_cannot_come_or_go() {
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

/// CPUs come and go while threads allocate, free, free without waiting, and queue work.
#[test]
fn cpus_come_and_go() {
    in_every_mode(|| {
        static WORK: IrqWork = IrqWork::new(|_| {});
        static DONE: AtomicBool = AtomicBool::new(false);
        let cycles = 60;
        let layouts = [16, 100, 2000, 20_000, 200_000]
            .map(|size| Layout::from_size_align(size, 8).expect("a valid layout"));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !DONE.load(Ordering::Relaxed) {
                        for layout in layouts {
                            let blocks = [(); 50].map(|()| nolock::alloc(layout).expect("memory"));
                            for (index, block) in blocks.into_iter().enumerate() {
                                // SAFETY: a block of this layout.
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
                    cache::barrier();
                    assert_eq!(cpu::up(cpu), Ok(()));
                }
                cache::barrier();
            }
            DONE.store(true, Ordering::Relaxed);
        });
        WORK.sync();
        assert!(!WORK.is_busy());
    });
}
