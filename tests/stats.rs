//! Statistics: their numbers are right, in each format, in any context, and as read by other
//! processes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use alloc_core::cache::{Cache, CacheFlags};
use alloc_core::report::{self, AttachError, Format, Reader};
use alloc_core::stats::{self, CacheStats, NodeStats, Stats};
use serde_json::Value;
use tests::hoard::Hoard;
use tests::routes::Hayloft;
use tests::scenario::{Scenario, describe, is_child, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A layout whose class nothing else in this program uses.
const LAYOUT: Layout = Layout::new::<[u8; 3072]>();

fn of_size(size: usize) -> CacheStats {
    let name = format!("kmalloc-{size}");
    let found = stats::gather().caches().find(|cache| cache.name.as_str() == name);
    found.unwrap_or_default()
}

#[test]
fn objects_are_counted_where_they_are() {
    on_both_backends(|| {
        let before = of_size(LAYOUT.size());
        let mut hoard = Hoard::new(1000);
        hoard.fill_up(LAYOUT);
        let full = of_size(LAYOUT.size());
        assert_eq!(full.in_use, before.in_use + 1000, "{full:?}");
        assert!(full.bytes() >= 1000 * LAYOUT.size());
        let free = full.objects() - full.in_use;
        assert!(full.in_sheaves + full.in_barns <= free, "{full:?}");
        assert!(full.events.refills > before.events.refills);
        assert!(full.events.barn_empty > 0 && full.events.new_slabs as usize >= full.slabs);
        hoard.free_all(LAYOUT);
        let empty = of_size(LAYOUT.size());
        assert_eq!(empty.in_use, before.in_use, "{empty:?}");
        assert!(empty.events.flushes > 0 && empty.events.barn_full > 0, "{empty:?}");
        assert!(empty.in_sheaves > 0 && empty.in_barns > 0, "{empty:?}");
        alloc_core::heap::trim();
        let trimmed = of_size(LAYOUT.size());
        assert_eq!((trimmed.slabs, trimmed.partial_slabs), (0, 0), "{trimmed:?}");
        assert_eq!(trimmed.in_sheaves + trimmed.in_barns, 0);
    });
}

#[test]
fn parts_add_up() {
    on_both_backends(|| {
        let mut hoard = Hoard::new(1000);
        hoard.fill_up(LAYOUT);
        let mut large = Hoard::new(10);
        large.fill_up(Layout::new::<[u8; 2 << 20]>());
        let stats = stats::gather();
        let sum =
            |of: fn(&CacheStats) -> usize| stats.caches().map(|cache| of(&cache)).sum::<usize>();
        assert_eq!(stats.held, stats.in_slabs + stats.large + stats.unneeded);
        assert!(stats.large >= 20 << 20 && stats.resident > 1000 * LAYOUT.size(), "{stats:?}");
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
        hoard.free_all(LAYOUT);
        large.free_all(Layout::new::<[u8; 1 << 20]>());
        alloc_core::heap::trim();
        let trimmed = stats::gather();
        assert!(trimmed.decommitted >= stats.decommitted + (10 << 20), "{trimmed:?}");
        assert!(trimmed.held + (10 << 20) <= stats.held, "{trimmed:?}");
        assert!(trimmed.decommits > stats.decommits, "{trimmed:?}");
        // The clock is a coarse one: some calls take a tick, and most take none.
        while stats::gather().decommit_nanoseconds == stats.decommit_nanoseconds {
            drop(vec![1_u8; 64 << 20]);
            alloc_core::heap::trim();
        }
        // Decommitted pages that are used again.
        drop(vec![1_u8; 4 << 20]);
        assert!(stats::gather().faults >= trimmed.faults + 500, "{trimmed:?}");
    });
}

/// A file or folder that is removed when this is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("hayloft-{name}-{}", process::id())))
    }

    /// Makes a new folder. In the child of a scenario, returns only its name.
    fn folder(name: &str) -> Self {
        let folder = Self::new(name);
        if !is_child() {
            fs::create_dir(&folder.0).expect("the folder can be made");
        }
        folder
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}

/// Returns the report in `format`, written while a cache exists whose name needs quoting.
fn written(format: Format) -> String {
    let layout = Layout::new::<[u64; 7]>();
    let name = "of \"quotes\",\nand \\";
    let cache = Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build();
    let cache = cache.expect("a cache can be made");
    let objects: Vec<_> = (0..3).map(|_| cache.alloc().expect("there is memory")).collect();
    let to = Temporary::new("written");
    let file = File::create(&to.0).expect("the file can be made");
    assert!(report::write(file.as_raw_fd(), format));
    for object in objects {
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { cache.free(object) };
    }
    to.text()
}

#[test]
fn open_metrics() {
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
fn slabinfo() {
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
fn table() {
    let mut hoard = Hoard::new(100_000);
    hoard.fill_up(LAYOUT);
    let text = written(Format::Table);
    hoard.free_all(LAYOUT);
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
fn json() {
    let text = written(Format::Json);
    let report: Value = serde_json::from_str(&text).expect("the text is JSON");
    let ours = report["caches"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|cache| cache["name"] == "of \"quotes\",\nand \\");
    assert_eq!(ours.expect("the cache is there")["in_use"], 3);
    assert!(report["stats"]["held"].as_u64() > report["stats"]["free"].as_u64());
    assert!(!report["cpus"].as_array().expect("a list").is_empty());
    assert!(!report["nodes"].as_array().expect("a list").is_empty());
}

#[test]
fn a_file_that_takes_no_more_is_noticed() {
    let full = File::options().write(true).open("/dev/full").expect("there is such a device");
    for format in [Format::Slabinfo, Format::Table, Format::OpenMetrics, Format::Json] {
        assert!(!report::write(full.as_raw_fd(), format));
        assert!(!report::write(-1, format));
    }
}

/// A report at the end goes to a file descriptor, to standard error or to a path, in the requested
/// format.
#[test]
fn at_the_end() {
    let use_the_heap = || drop((0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
    for (value, start) in [
        ("stderr", "slabinfo - version"),
        ("1", "slabinfo - version"),
        ("fd:2,openmetrics", "# TYPE hayloft_held_bytes gauge"),
        ("stderr,json", "{\"stats\":{\"held\":"),
        ("stderr,slabinfo,every=100", "slabinfo - version"),
    ] {
        Scenario::new(value, use_the_heap).env("HAYLOFT_STATS", value).run(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && stderr.starts_with(start), "{}", describe(output));
        });
    }
    let path = Temporary::new("end");
    Scenario::new("path", use_the_heap).env("HAYLOFT_STATS", &path.0).run(|output| {
        assert!(output.stderr.is_empty(), "{}", describe(output));
        assert!(path.text().starts_with("slabinfo"), "{}", path.text());
    });
}

#[test]
fn settings_that_make_no_sense() {
    for value in [
        ",",
        "2",
        "STATS",
        "/tmp/%q.txt",
        "stderr,yaml",
        "stderr,every=0",
        "stderr,signal=x",
        "stderr,often=1",
        "stderr,json,",
    ] {
        Scenario::new(value, || {}).env("HAYLOFT_STATS", value).run(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_named = stderr.contains(&format!("]: HAYLOFT_STATS={value}: "));
            let is_named = is_named && stderr.lines().count() == 1;
            assert!(output.status.success() && is_named, "{}", describe(output));
        });
    }
    for (value, line) in [
        ("/nowhere/at/all", "]: statistics cannot be written to /nowhere/at/all\n"),
        ("/nowhere/%p.txt", "]: statistics cannot be written to /nowhere/%p.txt\n"),
        ("fd:99", "]: statistics cannot be written to file 99\n"),
    ] {
        Scenario::new(value, || {}).env("HAYLOFT_STATS", value).run(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                stderr.starts_with("hayloft[") && stderr.ends_with(line),
                "{}",
                describe(output)
            );
            assert!(output.status.success() && stderr.lines().count() == 1);
        });
    }
    for value in ["", "0", "off"] {
        Scenario::new(format!("none{value}"), || drop(vec![1; 1000]))
            .env("HAYLOFT_STATS", value)
            .run(|output| {
                assert!(
                    output.status.success() && output.stderr.is_empty(),
                    "{}",
                    describe(output)
                );
            });
    }
}

/// Signals that cannot request a report: those that cannot be handled, those that do not exist, and
/// those of faults, which would recur endlessly.
#[test]
fn signals_that_cannot_ask() {
    let faults = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGSYS,
    ];
    for signal in [libc::SIGKILL, libc::SIGSTOP, 1000].into_iter().chain(faults) {
        let value = format!("/dev/null,signal={signal}");
        Scenario::new(&value, || {
            for signal in [libc::SIGABRT, libc::SIGSYS] {
                // SAFETY: a null action only queries, and `action` is valid for the write.
                let action = unsafe {
                    let mut action = std::mem::zeroed::<libc::sigaction>();
                    assert_eq!(libc::sigaction(signal, std::ptr::null(), &raw mut action), 0);
                    action.sa_sigaction
                };
                assert_eq!(action, libc::SIG_DFL);
            }
        })
        .env("HAYLOFT_STATS", &value)
        .run(|output| {
            let line = format!("]: signal {signal} is taken, of a fault, or none; ignored\n");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.ends_with(&line) && stderr.lines().count() == 1, "{}", describe(output));
            assert!(output.status.success());
        });
    }
}

/// With `%p` in the path, each process writes a report. Otherwise only the process that was started
/// does, not its forks.
#[test]
fn forks_write_to_files_of_their_own() {
    let fork_and_end = || {
        // SAFETY: the child does nothing but end, and so does the parent after it.
        unsafe {
            if libc::fork() > 0 {
                libc::wait(std::ptr::null_mut());
            }
        }
    };
    let folder = Temporary::folder("forks");
    let files = || fs::read_dir(&folder.0).expect("the folder is there").count();
    let path = folder.0.join("%p.txt");
    Scenario::new("apart", fork_and_end).env("HAYLOFT_STATS", path).run(|output| {
        assert_eq!(files(), 2, "{}", describe(output));
    });
    Scenario::new("once", fork_and_end).env("HAYLOFT_STATS", "stderr").run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("slabinfo - version").count(), 1, "{}", describe(output));
    });
}

/// Forks. The child raises a signal that requests a report, uses the heap for a while, and ends by
/// `exit`.
fn fork_a_child_that_asks() {
    // SAFETY: the child relies only on what the allocator promises for it, and ends here.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::raise(libc::SIGUSR2);
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                use_the_heap();
                thread::sleep(Duration::from_millis(10));
            }
            process::exit(0);
        }
        let mut status = 1;
        assert_eq!((libc::waitpid(child, &raw mut status, 0), status), (child, 0));
    }
}

/// Allocates and frees enough objects to overflow the sheaves.
fn use_the_heap() {
    let mut hoard = Hoard::new(1000);
    hoard.fill_up(LAYOUT);
    hoard.free_all(LAYOUT);
}

/// The child writes no report on a signal, periodically, or at its end.
#[test]
fn a_child_does_not_write_over_the_file_of_its_parent() {
    let folder = Temporary::folder("parents");
    let path = folder.0.join("file");
    let scenario = Scenario::new("", || {
        fork_a_child_that_asks();
        // SAFETY: `_exit` has no preconditions. It skips the report at the end.
        unsafe { libc::_exit(0) };
    });
    // The period is so long that the parent writes nothing either.
    let setting = format!("{},every=100,signal={}", path.display(), libc::SIGUSR2);
    scenario.env("HAYLOFT_STATS", setting).run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert_eq!(fs::read_dir(&folder.0).expect("the folder is there").count(), 0);
    });
}

/// The child of a fork that stays alive, as a daemon does, writes its own file periodically and at
/// its end.
#[test]
fn a_child_that_stays_reports_like_its_parent() {
    let folder = Temporary::folder("daemon");
    let setting = folder.0.join("%p,every=1");
    let scenario = Scenario::new("", || {
        // SAFETY: the child relies only on what the allocator promises for it, and ends here.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let setting = std::env::var("HAYLOFT_STATS").expect("it is set");
                let path = setting.replace("%p,every=1", &process::id().to_string());
                let shown = || Reader::attach(process::id()).is_ok_and(|mut to| to.read().is_ok());
                while !Path::new(&path).exists() || !shown() {
                    use_the_heap();
                    thread::sleep(Duration::from_millis(10));
                }
                println!("page {}", process::id());
                process::exit(0);
            }
            let mut status = 1;
            assert_eq!((libc::waitpid(child, &raw mut status, 0), status), (child, 0));
        }
    });
    scenario.env("HAYLOFT_STATS", setting).env("HAYLOFT_STATS_SHM", "1").run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert_eq!(fs::read_dir(&folder.0).expect("the folder is there").count(), 2);
        let text = String::from_utf8_lossy(&output.stdout);
        let number = text.lines().find_map(|line| line.strip_prefix("page ")).expect("it says it");
        assert!(!page_of(number.parse().expect("a number")).exists(), "it takes its page along");
    });
}

/// A file that is being rewritten always reads as a whole report, and no other files remain in the
/// folder. A symbolic link at the path is replaced, not followed.
#[test]
fn a_file_is_never_found_half_written() {
    let folder = Temporary::folder("whole");
    let (path, other) = (folder.0.join("file"), folder.0.join("other"));
    if !is_child() {
        fs::write(&other, "precious").expect("the file can be written");
        symlink(&other, &path).expect("the link can be made");
    }
    let scenario = Scenario::new("", || {
        let setting = std::env::var("HAYLOFT_STATS").expect("it is set");
        let path = setting.split(',').next().expect("a path");
        let writer = || {
            for _ in 0..500 {
                // SAFETY: the allocator handles this signal.
                unsafe { libc::raise(libc::SIGUSR2) };
            }
        };
        let writers: Vec<_> = (0..2).map(|_| thread::spawn(writer)).collect();
        let mut files = BTreeSet::new();
        // Waits until the periodic report was written, too. Only that explains new files after the
        // last signal.
        let mut later = BTreeSet::new();
        while later.len() < 2 {
            if writers.iter().all(thread::JoinHandle::is_finished) {
                later.insert(fs::metadata(path).expect("it is there").modified().expect("a time"));
            }
            let text = fs::read_to_string(path).expect("it is there");
            if text != "precious" {
                assert!(text.starts_with("slabinfo - version"), "{text}");
                assert!(text.contains("\n# irq_works ") && text.ends_with('\n'), "{text}");
                files.insert(fs::metadata(path).expect("it is there").ino());
            }
        }
        assert!(files.len() > 1, "each is another one");
    });
    let setting = format!("{},every=1,signal={}", path.display(), libc::SIGUSR2);
    scenario.env("HAYLOFT_STATS", setting).run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert_eq!(fs::read_dir(&folder.0).expect("the folder is there").count(), 2);
        assert_eq!(fs::read_to_string(&other).expect("it is there"), "precious");
        assert!(fs::symlink_metadata(&path).is_ok_and(|file| file.is_file()));
    });
}

/// A program may close its standard error before it ends, or open another file with that
/// descriptor.
#[test]
fn the_file_of_the_start_is_written_or_none() {
    let closed = || {
        use_the_heap();
        // SAFETY: nothing else here uses the descriptor.
        unsafe { libc::close(2) };
    };
    Scenario::new("closed", closed).env("HAYLOFT_STATS", "stderr").run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("slabinfo - version"), "{}", describe(output));
    });
    let precious = Temporary::new("precious");
    // A daemon closes all descriptors, and its own files get the lowest numbers.
    let replaced = || {
        use_the_heap();
        let path = std::env::var("PRECIOUS").expect("it is set");
        let file = File::create(path).expect("the file can be made");
        // SAFETY: nothing else here uses these descriptors.
        unsafe {
            libc::dup2(file.as_raw_fd(), 2);
            libc::close_range(3, libc::c_uint::MAX, 0);
        }
        std::mem::forget(file);
    };
    let scenario = Scenario::new("replaced", replaced).env("PRECIOUS", &precious.0);
    scenario.env("HAYLOFT_STATS", "stderr").run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert!(precious.0.exists() && precious.text().is_empty(), "{}", precious.text());
    });
}

/// Names in reports are distinct, and each is one word in tables.
#[test]
fn names_are_distinct() {
    let layout = Layout::new::<[u64; 9]>();
    let made = ["cut off after thirty-two letters, one", "cut off after thirty-two letters, two"]
        .map(|name| Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build())
        .map(|cache| cache.expect("a cache can be made"));
    let objects = made.each_ref().map(|cache| cache.alloc().expect("there is memory"));
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
    made.into_iter().for_each(|cache| cache.destroy().expect("nothing is in use"));
}

/// Reports are written on request, in a signal handler, and periodically while the program runs.
#[test]
fn while_the_program_runs() {
    let on_demand = || {
        // SAFETY: the allocator handles this signal, and `_exit` has no preconditions.
        unsafe {
            libc::raise(libc::SIGUSR2);
            libc::_exit(0);
        }
    };
    let asked = Scenario::new("asked", on_demand);
    asked.env("HAYLOFT_STATS", format!("stderr,signal={}", libc::SIGUSR2)).run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("slabinfo - version").count(), 1, "{}", describe(output));
    });
    let path = Temporary::new("every");
    let wait_for_it = || {
        let setting = std::env::var("HAYLOFT_STATS").expect("it is set");
        let path = setting.split(',').next().expect("a path");
        while fs::metadata(path).map_or(0, |file| file.len()) == 0 {
            thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: `_exit` has no preconditions. It skips the report at the end.
        unsafe { libc::_exit(0) };
    };
    let value = format!("{},every=1", path.0.display());
    Scenario::new("every", wait_for_it).env("HAYLOFT_STATS", value).run(|output| {
        assert!(output.status.success(), "{}", describe(output));
        assert!(path.text().starts_with("slabinfo"));
    });
}

/// Returns the path of a process's page, in this process's PID namespace.
fn page_of(process: u32) -> PathBuf {
    let namespace = fs::metadata("/proc/self/ns/pid").expect("/proc is mounted").ino();
    PathBuf::from(format!("/dev/shm/hayloft-{process}-{namespace}"))
}

/// A child process of this program that shows its statistics, holds a thousand objects, and ends
/// when its standard input is closed.
struct Shown(process::Child);

impl Shown {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["be_shown", "--exact", "--ignored", "--nocapture"]);
        command.env("HAYLOFT_STATS_SHM", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program can be started");
        let mut out = child.stdout.take().expect("it is piped");
        let mut said = Vec::new();
        while !said.ends_with(b"ready\n") {
            let mut byte = [0];
            out.read_exact(&mut byte).expect("it says that it is ready");
            said.extend(byte);
        }
        child.stdout = Some(out);
        Self(child)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "run by others of these tests"]
fn be_shown() {
    let mut hoard = Hoard::new(1000);
    hoard.fill_up(LAYOUT);
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    hoard.free_all(LAYOUT);
}

#[test]
fn other_processes_see_it() {
    let mut shown = Shown::start();
    let number = shown.0.id();
    let mut reader = Reader::attach(number).expect("it shows its statistics");
    let snapshot = loop {
        match reader.read() {
            Ok(snapshot) if snapshot.caches.iter().any(|cache| cache.in_use >= 1000) => {
                break snapshot;
            }
            // On a busy machine the process may write so seldom that it counts as silent.
            Ok(_) | Err(AttachError::Silent(..)) => thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(snapshot.stats.held > 1000 * LAYOUT.size() && !snapshot.cpus.is_empty());
    assert!(report::processes().contains(&number));
    let page = page_of(number);
    shown.0.stdin.take();
    assert!(shown.0.wait().expect("it ends").success());
    assert!(!page.exists(), "it takes its page along");
    assert!(matches!(reader.read(), Err(AttachError::Gone(_))));
    assert!(matches!(Reader::attach(number), Err(AttachError::Gone(_))));
}

#[test]
fn processes_that_show_nothing_are_told_apart() {
    let ours = process::id();
    let says = |number: u32, what: &str| {
        let error = Reader::attach(number).expect_err("there is nothing to be read").to_string();
        assert!(error.contains(what) && error.lines().count() == 1, "{error}");
    };
    says(ours, "shows no statistics");
    says(u32::MAX, "there is no process");
    let page = Temporary(page_of(ours));
    // Before its first write a page is empty or all zeros.
    fs::write(&page.0, "").expect("the file can be written");
    says(ours, "shows no statistics");
    fs::write(&page.0, vec![0; 1 << 20]).expect("the file can be written");
    says(ours, "shows no statistics");
    assert!(!report::processes().contains(&ours) && page.0.exists(), "it is not taken away");
    fs::write(&page.0, "garbage").expect("the file can be written");
    says(ours, "no page of statistics");
    fs::write(&page.0, vec![0x55; 1 << 20]).expect("the file can be written");
    says(ours, "no page of statistics");

    let shown = Shown::start();
    let number = shown.0.id();
    let mut bytes = fs::read(page_of(number)).expect("the page can be read");
    bytes[16..20].copy_from_slice(&ours.to_ne_bytes());
    bytes[8..12].copy_from_slice(&77u32.to_ne_bytes());
    fs::write(&page.0, &bytes).expect("the file can be written");
    says(ours, "shows version 77 of the statistics, and this program reads version ");

    // A killed process leaves its page behind, until a listing finds that the page is old.
    drop(shown);
    let left = page_of(number);
    assert!(left.exists());
    assert!(!report::processes().contains(&number));
    // Until then the page could belong to a process in another container that still writes it.
    while left.exists() {
        thread::sleep(Duration::from_millis(100));
        assert!(!report::processes().contains(&number));
    }
}

/// A page of another PID namespace may belong to a live process. It is neither read nor removed.
#[test]
fn pages_of_other_namespaces_are_left_alone() {
    let mut idle = Command::new("sleep").arg("600").spawn().expect("there is such a program");
    let number = idle.id();
    let other = Temporary(PathBuf::from(format!("/dev/shm/hayloft-{number}-1")));
    fs::write(&other.0, "").expect("the file can be written");
    for _ in 0..2 {
        let error = Reader::attach(number).expect_err("it is another's");
        assert!(matches!(error, AttachError::Elsewhere(_)), "{error}");
        assert!(!report::processes().contains(&number) && report::elsewhere() > 0);
        assert!(other.0.exists());
        // Now this namespace has no such process, but the other one may.
        idle.kill().expect("it can be killed");
        idle.wait().expect("it can be waited for");
    }
}

/// A stopped process is found to be silent, wherever it was stopped.
#[test]
fn a_process_that_is_stopped_is_silent() {
    let shown = Shown::start();
    let number = shown.0.id();
    let mut reader = Reader::attach(number).expect("it shows its statistics");
    // SAFETY: the process is a child of this one.
    unsafe { libc::kill(number as libc::pid_t, libc::SIGSTOP) };
    let error = loop {
        match reader.read() {
            Ok(_) => thread::sleep(Duration::from_millis(50)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AttachError::Silent(..)), "{error}");
}

/// Statistics that are gathered while other threads allocate, and create and destroy caches, are
/// plausible.
#[test]
fn amid_others() {
    on_both_backends(|| {
        let (done, is_done) = mpsc::channel::<()>();
        let churn = thread::spawn(move || {
            let mut round = 0;
            while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let name = format!("amid {}", round % 3);
                let layout = Layout::new::<[u64; 20]>();
                let cache = Cache::builder(&name, layout).flags(CacheFlags::NO_MERGE).build();
                let cache = cache.expect("a cache can be made");
                let objects: Vec<_> =
                    (0..100).map(|_| cache.alloc().expect("there is memory")).collect();
                for object in objects {
                    // SAFETY: the object belongs to this cache and is freed once.
                    unsafe { cache.free(object) };
                }
                // SAFETY: the layout is not empty, and the block is freed once, with the same
                // layout.
                unsafe { GLOBAL.dealloc(GLOBAL.alloc(LAYOUT), LAYOUT) };
                cache.destroy().expect("nothing is in use");
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
        churn.join().expect("it ends well");
    });
}
