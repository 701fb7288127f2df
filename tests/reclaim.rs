//! Memory returns to the system: at once on request, after a while by itself, and in an idle
//! program.

use std::env;
use std::fs;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::heap;
use tests::entry_points::Hayloft;
use tests::process::status_bytes;
use tests::reclaim::{
    BURST, REST, WITH_BACKGROUND_THREAD, burst, free_until_resident, threads, wait_until_resident,
};
use tests::scenario::{on_both_backends, on_both_backends_with, with_decay, with_larger_pages};
use tests::sizes::MIB;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

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
fn frees_return_memory_without_the_background_thread() {
    on_both_backends_with(&[("HAYLOFT_BACKGROUND", "0"), ("HAYLOFT_DECAY_MS", "100")], || {
        let before_threads = threads();
        let (before, _) = burst();
        free_until_resident(before + 2 * REST);
        assert_eq!(threads(), before_threads);
    });
}
