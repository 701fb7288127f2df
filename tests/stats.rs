//! Statistics: their numbers are right, in each format and amid other threads.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::process;
use std::sync::mpsc;
use std::thread;

use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::report::{self, Format};
use hayloft_core::stats::{self, CacheStats, NodeStats, Stats};
use serde_json::Value;
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::scenario::on_both_backends;
use tests::sizes::RARE;
use tests::temporary::Temporary;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// As [`RARE`], for a middle size.
const RARE_MIDDLE: Layout = Layout::new::<[u8; 53_248]>();

fn of_size(size: usize) -> CacheStats {
    let name = format!("kmalloc-{size}");
    let found = stats::gather().caches().find(|cache| cache.name.as_str() == name);
    found.unwrap_or_default()
}

#[test]
fn objects_are_counted_by_location() {
    on_both_backends(|| [RARE, RARE_MIDDLE].into_iter().for_each(counts_by_location));
}

fn counts_by_location(rare: Layout) {
    let before = of_size(rare.size());
    let mut stack = BlockStack::new(1000);
    stack.fill(rare);
    let full = of_size(rare.size());
    assert_eq!(full.in_use, before.in_use + 1000, "{full:?}");
    assert!(full.bytes() >= 1000 * rare.size());
    let free = full.objects() - full.in_use;
    assert!(full.in_sheaves + full.in_barns <= free, "{full:?}");
    assert!(full.events.refills > before.events.refills);
    assert!(full.events.barn_empty > 0 && full.events.new_slabs as usize >= full.slabs);
    stack.free_all(rare);
    let empty = of_size(rare.size());
    assert_eq!(empty.in_use, before.in_use, "{empty:?}");
    assert!(empty.events.flushes > 0 && empty.events.barn_full > 0, "{empty:?}");
    // Barns of middle sizes hold nothing.
    let has_barn = rare.size() == RARE.size();
    assert!(empty.in_sheaves > 0 && (empty.in_barns > 0) == has_barn, "{empty:?}");
    hayloft_core::heap::trim();
    let trimmed = of_size(rare.size());
    assert_eq!((trimmed.slabs, trimmed.partial_slabs), (0, 0), "{trimmed:?}");
    assert_eq!(trimmed.in_sheaves + trimmed.in_barns, 0);
}

/// Allocations and frees are counted to the last one, through sheaves, slow paths and batches, in
/// several threads, across closed sheaves, and beyond the largest count of a header.
#[test]
fn allocations_and_frees_are_counted_exactly() {
    on_both_backends(|| [RARE, RARE_MIDDLE].into_iter().for_each(counts_exactly));
}

fn counts_exactly(rare: Layout) {
    const PAIRS: u64 = 200_000;
    const LIVE: usize = 700;
    let before = of_size(rare.size());
    let threads: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(move || {
                let mut stack = BlockStack::new(LIVE);
                stack.fill(rare);
                for number in 0..PAIRS {
                    if number % 50_000 == 0 {
                        hayloft_core::heap::trim();
                    }
                    // SAFETY: the layout is not empty, and the block is freed once.
                    unsafe { GLOBAL.dealloc(GLOBAL.alloc(rare), rare) };
                }
                stack.free_all(rare);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("the thread does not panic");
    }
    let after = of_size(rare.size());
    let made = 3 * (PAIRS + LIVE as u64);
    assert_eq!(after.events.allocs - before.events.allocs, made, "{after:?}");
    assert_eq!(after.frees() - before.frees(), made, "{after:?}");
    assert!(after.events.hits < after.events.allocs && after.events.hits > made / 2);
}

/// As [`allocations_and_frees_are_counted_exactly`], for the objects of a cache.
#[test]
fn objects_of_batches_are_counted_exactly() {
    on_both_backends(|| {
        let layout = Layout::new::<[u8; 56]>();
        let cache = Cache::builder("counted", layout).flags(CacheFlags::NO_MERGE).build();
        let cache = cache.expect("a cache can be created");
        let found = || stats::gather().caches().find(|cache| cache.name.as_str() == "counted");
        let mut made = 0;
        for round in 0..20_000 {
            let mut room = [MaybeUninit::uninit(); 40];
            let room = &mut room[..1 + round % 40];
            assert_eq!(cache.alloc_bulk(room), room.len());
            made += room.len() as u64;
            // SAFETY: the objects are of this cache, and are freed once.
            unsafe {
                let objects = room.iter().map(|object| object.assume_init());
                cache.free_bulk(&objects.collect::<Vec<_>>());
            }
        }
        let counted = found().expect("the cache has objects");
        assert_eq!((counted.events.allocs, counted.frees()), (made, made), "{counted:?}");
        cache.destroy().expect("no object is in use");

        let cache = Cache::builder("counted", layout).flags(CacheFlags::NO_MERGE).build();
        let cache = cache.expect("a cache can be created");
        let object = cache.alloc().expect("there is memory");
        let counted = found().expect("the cache has objects");
        assert_eq!((counted.events.allocs, counted.frees()), (1, 0), "{counted:?}");
        // SAFETY: the object is of this cache, and is freed once.
        unsafe { cache.free(object) };
        cache.destroy().expect("no object is in use");
    });
}

#[test]
fn totals_equal_the_sums_of_their_parts() {
    on_both_backends(|| {
        let mut stack = BlockStack::new(1000);
        stack.fill(RARE);
        let mut large = BlockStack::new(10);
        large.fill(Layout::new::<[u8; 2 << 20]>());
        let stats = stats::gather();
        let sum =
            |of: fn(&CacheStats) -> usize| stats.caches().map(|cache| of(&cache)).sum::<usize>();
        assert_eq!(stats.held, stats.in_slabs + stats.large + stats.unneeded);
        assert!(stats.large >= 20 << 20 && stats.resident > 1000 * RARE.size(), "{stats:?}");
        assert_eq!(stats.in_slabs, sum(CacheStats::bytes));
        // Nothing from here to the last comparison allocates, so the counts stay valid.
        let of_nodes =
            |of: fn(&NodeStats) -> usize| stats.nodes().map(|node| of(&node)).sum::<usize>();
        assert_eq!(of_nodes(|node| node.slabs), sum(|cache| cache.slabs));
        assert_eq!(of_nodes(|node| node.in_barns), sum(|cache| cache.in_barns));
        let held = stats.cpus().map(|cpu| cpu.objects).sum::<usize>();
        assert_eq!(held, sum(|cache| cache.in_sheaves));
        let refills = stats.cpus().map(|cpu| cpu.events.refills).sum::<u64>();
        assert_eq!(refills, stats.caches().map(|cache| cache.events.refills).sum::<u64>());
        stack.free_all(RARE);
        large.free_all(Layout::new::<[u8; 1 << 20]>());
        hayloft_core::heap::trim();
        let trimmed = stats::gather();
        assert!(trimmed.decommitted >= stats.decommitted + (10 << 20), "{trimmed:?}");
        assert!(trimmed.held + (10 << 20) <= stats.held, "{trimmed:?}");
        assert!(trimmed.decommits > stats.decommits, "{trimmed:?}");
        // The clock is a coarse one: some calls take a tick, and most take none.
        while stats::gather().decommit_nanoseconds == stats.decommit_nanoseconds {
            drop(vec![1_u8; 64 << 20]);
            hayloft_core::heap::trim();
        }
        // Decommitted pages that are used again.
        drop(vec![1_u8; 4 << 20]);
        assert!(stats::gather().faults >= trimmed.faults + 500, "{trimmed:?}");
    });
}

/// Returns the report in `format`, written while a cache exists whose name needs quoting.
fn written(format: Format) -> String {
    let layout = Layout::new::<[u64; 7]>();
    let name = "of \"quotes\",\nand \\";
    let cache = Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build();
    let cache = cache.expect("a cache can be created");
    let objects: Vec<_> = (0..3).map(|_| cache.alloc().expect("memory")).collect();
    let to = Temporary::new("written");
    let file = File::create(&to.0).expect("the file can be created");
    assert!(report::write(file.as_raw_fd(), format), "the report cannot be written");
    for object in objects {
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { cache.free(object) };
    }
    to.text()
}

#[test]
fn openmetrics_report_can_be_parsed() {
    let text = written(Format::OpenMetrics);
    let exposition = openmetrics_parser::openmetrics::parse_openmetrics(&text);
    let families = exposition.expect("the text is in the format").families;
    assert!(families.len() > 30, "{:?}", families.keys());
    assert!(
        text.contains(r#"hayloft_cache_objects_in_use{cache="of \"quotes\",\nand \\"} 3"#),
        "{text}"
    );
    assert!(text.ends_with("\n# EOF\n"), "{text}");
}

#[test]
fn slabinfo_report_is_well_formed() {
    let text = written(Format::Slabinfo);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("slabinfo - version: 2.1 (statistics)"));
    assert!(lines.next().is_some_and(|line| line.starts_with("# name ")));
    let (mut caches, mut totals) = (0, BTreeMap::new());
    for line in lines {
        if let Some(total) = line.strip_prefix("# ") {
            let (name, number) = total.split_once(' ').expect("a name and a number");
            totals.insert(name.to_owned(), number.parse::<u64>().expect("a number"));
            continue;
        }
        let (head, rest) = line.split_once(" : tunables ").expect("sections");
        let numbers: Vec<u64> = head
            .split_whitespace()
            .rev()
            .take(5)
            .map(|word| word.parse().expect("a number"))
            .collect();
        let [pages, per_slab, size, all, active] = numbers[..] else { panic!("{line}") };
        assert!(active <= all && size * per_slab <= pages * 65536, "{line}");
        assert!(rest.contains(" : slabdata ") && rest.contains(" : sheafstat "), "{line}");
        caches += 1;
    }
    assert!(text.contains("\nof_\"quotes\",_and_\\ "), "{text}");
    assert!(caches > 5 && totals["held_bytes"] >= totals["free_bytes"], "{text}");
}

/// The table for people fits on a screen, in lines and in columns.
#[test]
fn table_report_fits_on_a_screen() {
    let mut stack = BlockStack::new(100_000);
    stack.fill(RARE);
    let text = written(Format::Table);
    stack.free_all(RARE);
    let lines: Vec<_> = text.lines().collect();
    let start = format!("hayloft[{}]: ", process::id());
    assert!(
        lines[0].starts_with(&start)
            && lines[0].contains(" held: ")
            && lines[0].contains(" resident"),
        "{text}"
    );
    assert!(lines[1].starts_with("CACHE ") && lines[2].starts_with("kmalloc-3072 "), "{text}");
    let words: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(words[1], "3072");
    assert!(words[2].parse::<usize>().is_ok_and(|in_use| in_use >= 100_000), "{text}");
    assert_eq!(words[5], "MiB");
    assert!(lines.last().is_some_and(|last| last.contains(" others ")), "{text}");
    assert_eq!(lines.len(), 13);
    assert!(lines[1..].iter().all(|line| line.len() < 80), "{text}");
    assert!(stats::gather().to_string().lines().count() > 2);
}

#[test]
fn json_report_can_be_parsed() {
    let text = written(Format::Json);
    let report: Value = serde_json::from_str(&text).expect("the text is JSON");
    let ours = report["caches"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|cache| cache["name"] == "of \"quotes\",\nand \\");
    assert_eq!(ours.expect("the cache is listed")["in_use"], 3);
    assert!(report["stats"]["held"].as_u64() > report["stats"]["free"].as_u64());
    assert!(!report["cpus"].as_array().expect("a list").is_empty());
    assert!(!report["nodes"].as_array().expect("a list").is_empty());
}

#[test]
fn write_errors_are_reported() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full exists");
    for format in [Format::Slabinfo, Format::Table, Format::OpenMetrics, Format::Json] {
        assert!(!report::write(full.as_raw_fd(), format), "a full device took a report");
        assert!(!report::write(-1, format), "a descriptor that is not open took a report");
    }
}

/// Names in reports are distinct, and each is one word in tables.
#[test]
fn cache_names_in_reports_are_distinct() {
    let layout = Layout::new::<[u64; 9]>();
    let made = ["cut off after thirty-two letters, one", "cut off after thirty-two letters, two"]
        .map(|name| Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build())
        .map(|cache| cache.expect("a cache can be created"));
    let objects = made.each_ref().map(|cache| cache.alloc().expect("memory"));
    let shown = || {
        let all = stats::gather().caches().map(|cache| cache.name.to_string());
        all.filter(|name| name.starts_with("cut off after ")).collect::<Vec<_>>()
    };
    let [first, second] = &shown()[..] else { panic!("{:?}", shown()) };
    assert_eq!(first, "cut off after thirty-two letters");
    assert!(second.starts_with("cut off after thirty-two l") && second.contains('~'), "{second}");
    let slabinfo = stats::gather().slabinfo().to_string();
    assert!(slabinfo.contains("\ncut_off_after_thirty-two_letters "), "{slabinfo}");
    for (cache, object) in made.iter().zip(objects) {
        // SAFETY: the object belongs to its cache and is freed once.
        unsafe { cache.free(object) };
    }
    made.into_iter().for_each(|cache| cache.destroy().expect("no object is in use"));
}

/// Statistics that are gathered while other threads allocate, and create and destroy caches, are
/// plausible.
#[test]
fn statistics_are_plausible_amid_other_threads() {
    on_both_backends(|| {
        let (done, is_done) = mpsc::channel::<()>();
        let churn = thread::spawn(move || {
            let mut round = 0;
            while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let name = format!("amid {}", round % 3);
                let layout = Layout::new::<[u64; 20]>();
                let cache = Cache::builder(&name, layout).flags(CacheFlags::NO_MERGE).build();
                let cache = cache.expect("a cache can be created");
                let objects: Vec<_> = (0..100).map(|_| cache.alloc().expect("memory")).collect();
                for object in objects {
                    // SAFETY: the object belongs to this cache and is freed once.
                    unsafe { cache.free(object) };
                }
                // SAFETY: the layout is not empty, and the block is freed once, with the same
                // layout.
                unsafe { GLOBAL.dealloc(GLOBAL.alloc(RARE), RARE) };
                cache.destroy().expect("no object is in use");
                round += 1;
            }
        });
        for _ in 0..300 {
            let stats: Stats = stats::gather();
            assert!(stats.free <= stats.held, "{stats:?}");
            for cache in stats.caches() {
                let name = cache.name.as_str();
                assert!(name.starts_with("kmalloc-") || name.starts_with("amid "), "{name}");
                assert!(cache.in_use <= cache.objects() && cache.stride > 0, "{cache:?}");
            }
        }
        drop(done);
        churn.join().expect("the thread does not panic");
    });
}
