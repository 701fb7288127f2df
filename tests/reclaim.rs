//! Memory returns to the system: at once on request, after a while by itself, and in an idle
//! program.

use std::alloc::Layout;
use std::env;
use std::fs;
use std::process;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::irq_work::IrqWork;
use hayloft_core::{cpu, heap, nolock};
use tests::entry_points::Hayloft;
use tests::fork::{exit_child, fork, wait_for};
use tests::process::{Limit, status_bytes, this_thread, wait_until_asleep};
use tests::scenario::{on_both_backends, on_both_backends_with, with_decay, with_larger_pages};
use tests::sizes::MIB;
use tests::skipped;
use tests::sysfs::{affinity, pin_here};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const BURST: usize = 96 * MIB;
/// Bytes of a burst that may stay resident.
const REST: usize = 8 * MIB;

/// Allocates and frees small blocks of many sizes, and some large ones. Returns the resident bytes
/// before and at the peak.
fn burst() -> (usize, usize) {
    let before = status_bytes("VmRSS");
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for number in 0.. {
        let size = if number % 5000 == 0 { 3 * MIB } else { 16 + number * 7919 % 3000 };
        blocks.push(vec![number as u8; size]);
        bytes += size;
        if bytes > BURST {
            break;
        }
    }
    let peak = status_bytes("VmRSS");
    drop(blocks);
    assert!(peak > before + BURST * 9 / 10, "{before} bytes resident before, {peak} at the peak");
    (before, peak)
}

/// Waits until at most `limit` bytes are resident, doing nothing but checking.
fn wait_until_resident(limit: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status_bytes("VmRSS") > limit {
        assert!(Instant::now() < deadline, "{} bytes stay resident", status_bytes("VmRSS"));
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the number of threads of this process. Allocates nothing, since checking on an idle
/// program must not keep it busy.
fn threads() -> usize {
    // SAFETY: the path ends in a null byte, and `found` is valid for the write.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        assert_eq!(libc::stat(c"/proc/self/task".as_ptr(), &raw mut found), 0);
        // The folder has two links of its own, and one for each thread.
        found.st_nlink as usize - 2
    }
}

/// Waits until the process has `count` threads.
fn wait_for_threads(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while threads() != count {
        assert!(Instant::now() < deadline, "{} threads, not {count}", threads());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Name of the background thread that decommits memory.
const BACKGROUND_THREAD: &str = "hayloft/reclaim";

/// Returns the kernel's number of the thread with that name.
fn thread_named(name: &str) -> Option<libc::pid_t> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let mut paths = tasks.map(|task| task.expect("the folder can be read").path());
    let found = paths.find(|path| {
        // A thread may have ended meanwhile.
        fs::read_to_string(path.join("comm")).is_ok_and(|text| text.trim_end() == name)
    })?;
    found.file_name()?.to_str()?.parse().ok()
}

/// Runs `body` in the child of a fork, which has one thread, and waits for it to succeed.
fn in_child(body: impl FnOnce()) {
    let child = fork();
    if child == 0 {
        body();
        exit_child();
    }
    wait_for(child);
}

/// A burst whose blocks are freed by `nolock`, which never waits.
fn burst_freed_without_waiting() {
    const LAYOUT: Layout = Layout::new::<[u8; 3 * MIB]>();
    let blocks = [(); BURST / (3 * MIB)].map(|()| {
        let block = nolock::alloc(LAYOUT).expect("there is memory");
        // SAFETY: the block is of this layout.
        unsafe { block.write_bytes(1, LAYOUT.size()) };
        block
    });
    // SAFETY: the blocks are live and of this layout.
    blocks.into_iter().for_each(|block: NonNull<u8>| unsafe { nolock::free(block, LAYOUT) });
}

/// Setting by which any program has the background thread that decommits memory.
const WITH_BACKGROUND_THREAD: (&str, &str) = ("HAYLOFT_BACKGROUND", "1");

#[test]
fn trim_decommits_at_once() {
    on_both_backends(|| {
        let (before, peak) = burst();
        let trimmed = hayloft::trim();
        let now = status_bytes("VmRSS");
        assert!(
            now < before + REST,
            "{before} bytes resident before, {peak} at the peak, {now} now"
        );
        assert!(trimmed > peak - before - REST, "{trimmed} bytes were decommitted");
        let trimmed = hayloft::trim();
        assert!(trimmed < REST, "another {trimmed} bytes were decommitted");
    });
}

/// With larger pages, memory and metadata return in whole pages, both at once and in an idle
/// program.
#[test]
fn freed_memory_returns_with_larger_pages() {
    with_larger_pages(None, || {
        let (before, _) = burst();
        hayloft::trim();
        let now = status_bytes("VmRSS");
        assert!(now < before + REST, "{before} bytes resident before, {now} after trim");
        let (_, peak) = burst();
        assert!(
            peak > before + BURST * 9 / 10,
            "{before} bytes resident before, {peak} at the peak"
        );
        wait_until_resident(before + REST);
    });
}

/// Threads allocate and free while another one trims. No block that is in use is decommitted.
#[test]
fn trim_keeps_memory_in_use() {
    with_decay(|| {
        let workers: Vec<_> = (0..4)
            .map(|number: u8| {
                thread::spawn(move || {
                    for round in 0..300 {
                        let blocks: Vec<Vec<u8>> = (0..200)
                            .map(|index| vec![number; 1 + (index * 131 + round) % 5000])
                            .collect();
                        let is_intact = blocks.iter().flatten().all(|byte| *byte == number);
                        assert!(is_intact, "contents changed");
                    }
                })
            })
            .collect();
        while !workers.iter().all(thread::JoinHandle::is_finished) {
            hayloft::trim();
        }
        workers.into_iter().for_each(|worker| worker.join().expect("the worker does not panic"));
    });
}

/// Idle memory returns as windows end, however much time is between them.
#[test]
fn idle_memory_returns_as_windows_end() {
    on_both_backends(|| {
        let (before, peak) = burst();
        let mut windows = 1;
        while heap::end_window() {
            assert!(
                windows < 10,
                "{} of {peak} bytes stay resident after {windows} windows",
                status_bytes("VmRSS")
            );
            windows += 1;
        }
        let now = status_bytes("VmRSS");
        assert!(
            now < before + REST,
            "{before} bytes resident before, {peak} at the peak, {now} now"
        );
    });
}

/// Memory that is due decreases by equal shares in the course of a window, not at once.
#[test]
fn due_memory_returns_in_slices() {
    const SLICES: usize = 10;
    // The reclaim thread does the first slice of its window as soon as it runs.
    on_both_backends_with(&[("HAYLOFT_BACKGROUND", "0")], || {
        let unneeded = || hayloft_core::stats::gather_own().unneeded;
        let rest = unneeded();
        drop((0..50).map(|_| vec![1_u8; 8 * MIB]).collect::<Vec<_>>());
        let freed = unneeded() - rest;
        assert!(freed >= 400 * MIB, "{freed} bytes are idle after 400 MiB were freed");
        // The memory is not due before a whole window has ended.
        heap::end_window_in_slices(SLICES as u32, || assert!(unneeded() >= freed, "not due yet"));
        let mut left = Vec::new();
        heap::end_window_in_slices(SLICES as u32, || left.push(unneeded()));
        let mut before = freed + rest;
        for (slice, left) in left.iter().enumerate() {
            let share = (before - left).abs_diff(freed / SLICES);
            // A run is decommitted in pieces of some megabytes.
            assert!(share < 16 * MIB, "slice {slice} went from {before} to {left} bytes");
            before = *left;
        }
        assert!(before < 8 * MIB, "{before} bytes stay idle after the window");
    });
}

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
            // Most that stays resident without a background thread.
            let most = 64 << 20;
            assert!(
                now < before + most + REST,
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

/// Pages of partial slabs that hold no live object are decommitted, in an idle program or on
/// request. No other pages are.
#[test]
fn pages_without_live_objects_are_decommitted() {
    with_decay(|| {
        for (size, by_trim) in [(4096, false), (1000, true), (20_000, false), (1500, true)] {
            let before = status_bytes("VmRSS");
            let mut blocks: Vec<Option<Vec<u8>>> =
                (0..BURST / size).map(|number| Some(vec![number as u8; size])).collect();
            let table = blocks.len() * size_of::<Option<Vec<u8>>>();
            let peak = status_bytes("VmRSS");
            // One block in each sixteen survives, at a varying position.
            let survives = |number: usize| number % 16 == number / 16 * 7 % 16;
            for (number, block) in blocks.iter_mut().enumerate() {
                if !survives(number) {
                    *block = None;
                }
            }
            // A survivor keeps the pages on which it lies.
            let pages = (size - 1) / 4096 + 2;
            let limit = before + table + BURST / size / 16 * pages * 4096 + REST;
            assert!(
                peak > limit + 16 * MIB,
                "{peak} bytes resident at the peak, {limit} expected to stay"
            );
            if by_trim {
                hayloft::trim();
                let now = status_bytes("VmRSS");
                assert!(now < limit, "{now} bytes resident after trim, not {limit}");
            } else {
                wait_until_resident(limit);
            }
            // Decommitted memory may read as anything when it is allocated again. Survivors are
            // intact.
            for (number, block) in blocks.iter_mut().enumerate() {
                match block {
                    Some(block) => assert!(*block == vec![number as u8; size], "contents changed"),
                    None => *block = Some(vec![number as u8; size]),
                }
            }
            for (number, block) in blocks.iter().enumerate() {
                assert!(*block == Some(vec![number as u8; size]), "contents changed");
            }
            drop(blocks);
            hayloft::trim();
        }
    });
}

/// Pages that have no memory do not count as decommitted when more of their slab is.
#[test]
fn holes_count_once() {
    const SIZE: usize = 4096;
    on_both_backends(|| {
        let mut blocks: Vec<_> = (0..BURST / SIZE).map(|_| Some(vec![1u8; SIZE])).collect();
        hayloft::trim();
        let decommitted = || hayloft_core::stats::gather_own().decommitted as usize;
        // Each quarter puts its slabs into another list, by the share of free objects.
        for quarter in 0..3 {
            let before = decommitted();
            blocks.iter_mut().skip(quarter).step_by(4).for_each(|block| *block = None);
            let trimmed = hayloft::trim();
            let counted = decommitted() - before;
            for bytes in [trimmed, counted] {
                let excess = bytes.abs_diff(BURST / 4);
                assert!(excess < REST, "{bytes} bytes decommitted of quarter {quarter}");
            }
        }
    });
}

/// Where programs stall for memory, idle memory returns early: memory kept for the next burst as
/// well as pages between survivors.
#[test]
fn memory_pressure_returns_idle_memory() {
    let file = env::temp_dir().join(format!("hayloft-pressure-{}", process::id()));
    let stalled = |microseconds: u64| {
        let next = env::var("HAYLOFT_PRESSURE").expect("this is a child") + ".next";
        let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}\n");
        fs::write(&next, line).expect("the file can be written");
        fs::rename(&next, next.trim_end_matches(".next")).expect("the file can be replaced");
    };
    let path = file.to_str().expect("a path that is text");
    on_both_backends_with(&[("HAYLOFT_PRESSURE", path), WITH_BACKGROUND_THREAD], || {
        stalled(1000);
        let (before, peak) = burst();
        thread::sleep(Duration::from_millis(1500));
        let rested = status_bytes("VmRSS");
        assert!(
            rested > peak - REST,
            "{before} bytes resident before, {peak} at the peak, {rested} later"
        );
        stalled(1_000_000_000);
        wait_until_resident(before + REST);
    });
    // Only the parent gets here.
    fs::remove_file(&file).expect("a child created it");
}

/// Stalls of other programs and stalls for page cache do not count as memory pressure on this
/// program. Stalls of its own cgroup do.
#[test]
fn pressure_outside_the_cgroup_is_ignored() {
    let folder = env::temp_dir().join(format!("hayloft-cgroup-{}", process::id()));
    let files = |anon: usize, microseconds: u64| {
        let root = env::var("HAYLOFT_SYSFS").expect("this is a child");
        let cgroup = format!("{root}/fs/cgroup");
        fs::create_dir_all(&cgroup).expect("folders can be created");
        let write = |name: &str, text: String| {
            fs::write(format!("{cgroup}/next"), text).expect("the file can be written");
            fs::rename(format!("{cgroup}/next"), format!("{cgroup}/{name}"))
                .expect("the file can be replaced");
        };
        write("memory.stat", format!("anon {anon}\nfile 1000000\nkernel 5\n"));
        let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}\n");
        write("memory.pressure", line);
    };
    let path = folder.to_str().expect("a path that is text");
    on_both_backends_with(&[("HAYLOFT_SYSFS", path), WITH_BACKGROUND_THREAD], || {
        files(10, 1000);
        let (before, peak) = burst();
        for round in 1..6 {
            thread::sleep(Duration::from_millis(400));
            files(10, round * 1_000_000_000);
        }
        let rested = status_bytes("VmRSS");
        assert!(
            rested > peak - REST,
            "{before} bytes resident before, {peak} at the peak, {rested} later"
        );
        let deadline = Instant::now() + Duration::from_secs(60);
        for round in 10.. {
            files(2_000_000, round * 1_000_000_000);
            thread::sleep(Duration::from_millis(50));
            if status_bytes("VmRSS") < before + REST {
                break;
            }
            assert!(Instant::now() < deadline, "{} bytes stay resident", status_bytes("VmRSS"));
        }
    });
    // Only the parent gets here.
    fs::remove_dir_all(&folder).expect("a child created it");
}

/// A block larger than the one before takes over its memory, and only as much more as it needs.
#[test]
fn growing_blocks_reuse_freed_memory() {
    on_both_backends(|| {
        let before = status_bytes("VmRSS");
        for size in (8..64).map(|size| size * MIB) {
            drop(vec![1_u8; size]);
        }
        let peak = status_bytes("VmHWM");
        // Less than twice the largest block, although some block may lie behind one of the first.
        assert!(peak < before + 96 * MIB, "{before} bytes resident before, {peak} at the peak");
    });
}

/// With a decay time of zero, frees decommit pages at once where no background thread would do so a
/// moment later.
#[test]
fn zero_decay_decommits_at_each_free() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "0"), ("HAYLOFT_BACKGROUND", "0")], || {
        let (before, peak) = burst();
        let now = status_bytes("VmRSS");
        // One empty slab of each class stays, and so do the objects in sheaves.
        assert!(
            now < before + 2 * REST,
            "{before} bytes resident before, {peak} at the peak, {now} now"
        );
    });
}

#[test]
fn zero_decay_decommits_soon_with_the_background_thread() {
    on_both_backends_with(&[("HAYLOFT_DECAY_MS", "0"), WITH_BACKGROUND_THREAD], || {
        let (before, _) = burst();
        wait_until_resident(before + REST);
    });
}

/// Frees blocks now and then until at most `limit` bytes are resident.
fn free_until_resident(limit: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status_bytes("VmRSS") > limit {
        assert!(Instant::now() < deadline, "{} bytes stay resident", status_bytes("VmRSS"));
        drop(vec![1u8; 2 * MIB]);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn frees_return_memory_without_the_background_thread() {
    on_both_backends_with(&[("HAYLOFT_BACKGROUND", "0"), ("HAYLOFT_DECAY_MS", "100")], || {
        let before_threads = threads();
        let (before, _) = burst();
        free_until_resident(before + 2 * REST);
        assert_eq!(threads(), before_threads);
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
