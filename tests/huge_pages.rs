//! Memory that stays in use is collapsed into huge pages, by windows, within bounds on memory and
//! mappings; and it returns to the system as any other.

use std::alloc::Layout;
use std::fs;
use std::io::{self, PipeWriter, Read as _};
use std::ptr;

use hayloft_core::heap;
use hayloft_core::stats::{self, Stats};
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::fork::{exit_child, fork, wait_for};
use tests::process::{huge_page_bytes, status_bytes};
use tests::reclaim::{REST, WITH_BACKGROUND_THREAD, threads, wait_for_threads};
use tests::scenario::{Scenario, on_both_backends_with};
use tests::sizes::MIB;
use tests::skipped;
use tests::sysfs::{SYSFS, Tree};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Bytes of the memory that stays in use.
const BYTES: usize = 64 * MIB;
/// The blocks that it consists of.
const BLOCK: Layout = Layout::new::<[u8; 1000]>();
/// Windows after which nothing changes, unless the kernel refused meanwhile.
const WINDOWS: usize = 20;

/// The modes of most systems.
const MODES: &str = "always [madvise] never";

/// No thread ends windows but the test's.
const ALONE: (&str, &str) = ("HAYLOFT_BACKGROUND", "0");

/// Returns whether the kernel collapses memory. Says so if it does not.
fn can_collapse() -> bool {
    const MADV_COLLAPSE: libc::c_int = 25;
    const HUGE: usize = 2 * MIB;
    // SAFETY: a fresh mapping of two huge pages, of which one whole is touched and collapsed. The
    // mapping is removed again.
    let done = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapped = libc::mmap(ptr::null_mut(), 2 * HUGE, rights, flags, -1, 0).cast::<u8>();
        let region = mapped.add(mapped.align_offset(HUGE));
        region.write_bytes(1, HUGE);
        let done = libc::madvise(region.cast(), HUGE, MADV_COLLAPSE) == 0;
        libc::munmap(mapped.cast(), 2 * HUGE);
        done
    };
    if !done {
        skipped("huge pages for memory in use", "the kernel does not collapse memory");
    }
    done
}

/// Runs `body` with these settings in children, on both backends, where the system has huge pages
/// on request.
fn with_huge_pages<F: Fn()>(settings: &[(&str, &str)], body: F) {
    let tree = Tree::with_huge_pages(MODES);
    let tree = tree.path().to_str().expect("a path that is text");
    on_both_backends_with(&[settings, &[(SYSFS, tree)]].concat(), body);
}

/// As [`with_huge_pages`]; does nothing if the kernel does not collapse memory.
fn where_memory_collapses<F: Fn()>(settings: &[(&str, &str)], body: F) {
    if can_collapse() {
        with_huge_pages(settings, body);
    }
}

/// Frees all blocks, and checks that hardly more than `before` bytes are resident then.
fn free_and_check(stack: &mut BlockStack, before: usize) {
    stack.free_all(BLOCK);
    hayloft::trim();
    let rest = status_bytes("VmRSS");
    assert!(rest < before + REST, "{before} bytes resident before, {rest} after trim");
}

/// Forks a child that runs `body` and ends when the parent drops the end of a pipe that is
/// returned.
fn fork_waiting(body: impl FnOnce()) -> (libc::pid_t, PipeWriter) {
    let (mut read, write) = io::pipe().expect("a pipe can be made");
    let child = fork();
    if child == 0 {
        drop(write);
        read.read_to_end(&mut Vec::new()).expect("the pipe can be read");
        body();
        exit_child();
    }
    (child, write)
}

/// Returns a stack of filled blocks of [`BYTES`].
fn filled() -> BlockStack {
    // The length of windows, and so the budget, is known from the first free on.
    drop(vec![1_u8; 4 * MIB]);
    let mut stack = BlockStack::new(BYTES / BLOCK.size());
    stack.fill(BLOCK);
    assert!(stack.is_full(), "there is memory");
    stack
}

/// Ends [`WINDOWS`], in each of which all that is due may become huge pages.
fn end_windows() {
    (0..WINDOWS).for_each(|_| heap::end_window_in_slices(100, || ()));
}

/// Ends windows until at least `count` huge pages were made. The kernel may refuse some at first,
/// if its memory is fragmented.
fn end_windows_until(count: usize) {
    let is_done = (0..50).any(|_| {
        end_windows();
        now().collapses as usize >= count
    });
    assert!(is_done, "{:?} after a thousand windows", now());
}

fn now() -> Stats {
    stats::gather_own()
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("/proc is mounted").lines().count()
}

/// Memory in use becomes huge pages, and takes hardly more memory and mappings. All of it returns
/// when it is freed.
#[test]
fn memory_that_stays_in_use_becomes_huge_pages() {
    where_memory_collapses(&[ALONE], || {
        let before = status_bytes("VmRSS");
        let mut stack = filled();
        let (grown, mapped, huge) = (status_bytes("VmRSS"), mappings(), huge_page_bytes());
        (0..3).for_each(|_| heap::end_window_in_slices(100, || ()));
        assert_eq!(now().collapses, 0, "memory is collapsed after three windows");
        end_windows_until(BYTES / 10 * 9 / (2 * MIB));
        let (collapses, huge) = (now().collapses as usize, huge_page_bytes() - huge);
        assert_eq!(huge, collapses * 2 * MIB);
        let more = status_bytes("VmRSS").saturating_sub(grown);
        assert!(more < BYTES / 64 + MIB, "{more} bytes more are resident in huge pages");
        assert!(mappings() <= mapped + 2, "{mapped} mappings before, {} now", mappings());
        assert_eq!(now().collapse_splits, 0);
        free_and_check(&mut stack, before);
        assert!(now().collapse_splits <= 3, "memory returned in parts of huge pages: {:?}", now());
    });
}

/// Pages without live objects return from the middle of huge pages, which are made again later, but
/// not of memory that is mostly gone.
#[test]
fn holes_in_huge_pages_return() {
    where_memory_collapses(&[ALONE], || {
        filled().free_all(BLOCK);
        hayloft::trim();
        let blocks: Vec<_> = (0..BYTES / 4096).map(|_| vec![1_u8; 4096]).collect();
        end_windows_until(20);
        let (peak, made) = (status_bytes("VmRSS"), now().collapses);
        let keep = |(number, block)| (number % 16 == 0).then_some(block);
        let rest: Vec<_> = blocks.into_iter().enumerate().filter_map(keep).collect();
        end_windows();
        let now = (status_bytes("VmRSS"), self::now());
        let limit = peak - BYTES / 2;
        assert!(now.0 < limit, "{peak} bytes resident at the peak, {} now", now.0);
        assert!(now.1.collapse_splits >= 20, "{:?}", now.1);
        assert!(now.1.collapses < made + 4, "sparse memory is collapsed: {:?}", now.1);
        assert!(rest.iter().all(|block| *block == [1; 4096]), "contents changed");
    });
}

/// Memory that was allocated and never touched does not become resident.
#[test]
fn untouched_memory_stays_untouched() {
    with_huge_pages(&[ALONE], || {
        const LEN: usize = 256 << 10;
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        for _ in 0..BYTES / LEN {
            let mut block = Vec::with_capacity(LEN);
            block.resize(LEN / 2, 1);
            blocks.push(block);
        }
        let before = status_bytes("VmRSS");
        end_windows();
        let more = status_bytes("VmRSS").saturating_sub(before);
        assert!(more < 2 * MIB, "{more} bytes became resident: {:?}", now());
        assert!(now().collapses < 2, "{:?}", now());
    });
}

/// What the system or the user disables stays disabled, except that `always` overrides the system.
#[test]
fn settings_and_the_system_forbid_huge_pages() {
    if !can_collapse() {
        return;
    }
    for (label, modes, setting, expected) in [
        ("default", MODES, "", true),
        ("system-always", "[always] madvise never", "auto", true),
        ("never", MODES, "never", false),
        ("system-never", "always madvise [never]", "auto", false),
        ("always", "always madvise [never]", "always", true),
    ] {
        let tree = Tree::with_huge_pages(modes);
        let body = || {
            let mut stack = filled();
            if expected {
                end_windows_until(1);
            } else {
                end_windows();
                assert_eq!(now().collapses + now().collapse_failures, 0);
            }
            stack.free_all(BLOCK);
        };
        let scenario = Scenario::new(label, body).env(SYSFS, tree.path()).env(ALONE.0, ALONE.1);
        scenario.env("HAYLOFT_THP", setting).succeeds();
    }
}

/// Where the kernel refuses, attempts become rare, and there is nothing to do for a thread.
#[test]
fn refusals_are_not_repeated_for_long() {
    let tree = Tree::with_huge_pages(MODES);
    let body = |refuse: fn()| {
        move || {
            refuse();
            let mut stack = filled();
            (0..100).for_each(|_| heap::end_window_in_slices(100, || ()));
            let (failures, collapses) = (now().collapse_failures, now().collapses);
            assert_eq!(collapses, 0);
            assert!((1..=8).contains(&failures), "{failures} failures in 100 windows");
            stack.free_all(BLOCK);
        }
    };
    let disabled = || {
        // SAFETY: the option takes numbers only.
        let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        assert_eq!(done, 0, "the kernel has this option since 3.15");
    };
    Scenario::new("disabled", || body(disabled)())
        .env(SYSFS, tree.path())
        .env(ALONE.0, ALONE.1)
        .succeeds();
    Scenario::new("refused", || body(|| ())())
        .env(SYSFS, tree.path())
        .env(ALONE.0, ALONE.1)
        .env("HAYLOFT_FAULT", "madvise:1/1")
        .succeeds();
}

/// Memory that a child shares since a fork is not copied into huge pages. The child can use and
/// return memory in huge pages.
#[test]
fn memory_shared_with_a_child_is_not_collapsed() {
    where_memory_collapses(&[ALONE], || {
        let before = status_bytes("VmRSS");
        let mut stack = filled();
        let (child, end) = fork_waiting(|| free_and_check(&mut stack, before));
        end_windows();
        assert_eq!(now().collapses, 0, "shared memory is collapsed");
        drop(end);
        wait_for(child);
        end_windows_until(20);
        let made = now().collapses as usize;
        // This child has huge pages from the start.
        let child = fork();
        if child == 0 {
            free_and_check(&mut stack, before);
            let mut stack = filled();
            end_windows_until(made + 20);
            stack.free_all(BLOCK);
            exit_child();
        }
        wait_for(child);
        stack.free_all(BLOCK);
    });
}

/// Memory that a process wrote while a child had it, too, was copied in small pages. It becomes
/// huge pages again when the child has ended.
#[test]
fn huge_pages_come_back_after_a_fork() {
    where_memory_collapses(&[ALONE], || {
        filled().free_all(BLOCK);
        hayloft::trim();
        let mut blocks: Vec<_> = (0..BYTES / 4096).map(|_| vec![1_u8; 4096]).collect();
        end_windows_until(20);
        let (child, end) = fork_waiting(|| ());
        let huge = huge_page_bytes();
        blocks.iter_mut().for_each(|block| block[0] = 2);
        let split = huge_page_bytes();
        assert!(split < huge / 2, "{huge} bytes in huge pages before the writes, {split} after");
        drop(end);
        wait_for(child);
        let is_back = (0..50).any(|_| {
            end_windows();
            huge_page_bytes() > huge * 9 / 10
        });
        assert!(is_back, "{} bytes in huge pages, not {huge}", huge_page_bytes());
        assert!(blocks.iter().all(|block| block[..2] == [2, 1]), "contents changed");
    });
}

/// Locked memory is collapsed, or not, and returns to the system.
#[test]
fn locked_memory_returns_from_huge_pages() {
    with_huge_pages(&[ALONE], || {
        // SAFETY: `mlockall` takes flags only.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) } != 0 {
            println!("skipped: memory cannot be locked");
            return;
        }
        let before = status_bytes("VmRSS");
        let mut stack = filled();
        end_windows();
        free_and_check(&mut stack, before);
    });
}

/// The background thread makes huge pages, and ends when there is nothing left to do.
#[test]
fn background_thread_collapses_and_ends() {
    const SOME: usize = 24 * MIB;
    let decay = ("HAYLOFT_DECAY_MS", "300");
    where_memory_collapses(&[WITH_BACKGROUND_THREAD, decay], || {
        let before = threads();
        let mut stack = BlockStack::new(SOME / BLOCK.size());
        stack.fill(BLOCK);
        // A free starts the thread.
        drop(vec![1_u8; 4 * MIB]);
        wait_for_threads(before + 1);
        wait_for_threads(before);
        assert!(now().collapses + now().collapse_failures > 0, "{:?}", now());
        stack.free_all(BLOCK);
    });
}
