//! Statistics: what they say is so, in each format, in any context, and for other processes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alloc_core::cache::{Cache, CacheFlags};
use alloc_core::report::{self, AttachError, Format, Reader};
use alloc_core::stats::{self, CacheStats, NodeStats, Stats};
use serde_json::Value;
use tests::hoard::Hoard;
use tests::routes::Hayloft;
use tests::scenario::{Scenario, describe, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Of a size that nothing else here has.
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
        alloc_core::cache::trim();
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
        large.fill_up(Layout::new::<[u8; 1 << 20]>());
        let stats = stats::gather();
        let sum =
            |of: fn(&CacheStats) -> usize| stats.caches().map(|cache| of(&cache)).sum::<usize>();
        assert_eq!(stats.held, stats.in_slabs + stats.large + stats.unneeded);
        assert!(stats.large >= 10 << 20 && stats.resident > 1000 * LAYOUT.size(), "{stats:?}");
        assert_eq!(stats.in_slabs, sum(CacheStats::bytes));
        // Nothing here allocates: what is counted stays as it is.
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
        alloc_core::cache::trim();
        let trimmed = stats::gather();
        assert!(trimmed.decommitted >= stats.decommitted + (10 << 20), "{trimmed:?}");
        assert!(trimmed.held + (10 << 20) <= stats.held, "{trimmed:?}");
    });
}

/// A file that goes away with it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("hayloft-{name}-{}", process::id())))
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What is written in a format, while a cache is there whose name has to be quoted.
fn written(format: Format) -> String {
    let layout = Layout::new::<[u64; 7]>();
    let name = "of \"quotes\" and \\";
    let cache = Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build();
    let cache = cache.expect("a cache can be made");
    let objects: Vec<_> = (0..3).map(|_| cache.alloc().expect("there is memory")).collect();
    let to = Temporary::new("written");
    let file = File::create(&to.0).expect("the file can be made");
    assert!(report::write(file.as_raw_fd(), format));
    for object in objects {
        // SAFETY: allocated above.
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
        text.contains(r#"hayloft_cache_objects_in_use{cache="of \"quotes\" and \\"} 3"#),
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
    assert!(caches > 5 && totals["held_bytes"] >= totals["free_bytes"], "{text}");
}

#[test]
fn json() {
    let text = written(Format::Json);
    let report: Value = serde_json::from_str(&text).expect("the text is JSON");
    let ours = report["caches"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|cache| cache["name"] == "of \"quotes\" and \\");
    assert_eq!(ours.expect("the cache is there")["in_use"], 3);
    assert!(report["stats"]["held"].as_u64() > report["stats"]["free"].as_u64());
    assert!(!report["cpus"].as_array().expect("a list").is_empty());
    assert!(!report["nodes"].as_array().expect("a list").is_empty());
}

#[test]
fn a_file_that_takes_no_more_is_noticed() {
    let full = File::options().write(true).open("/dev/full").expect("there is such a device");
    for format in [Format::Slabinfo, Format::OpenMetrics, Format::Json] {
        assert!(!report::write(full.as_raw_fd(), format));
        assert!(!report::write(-1, format));
    }
}

/// A report at the end, to the number of a file, standard error or a path, in the format that is asked for.
#[test]
fn at_the_end() {
    let use_the_heap = || drop((0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
    for (value, start) in [
        ("stderr", "slabinfo - version"),
        ("2,openmetrics", "# TYPE hayloft_held_bytes gauge"),
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
        "",
        ",",
        "stderr,yaml",
        "stderr,every=0",
        "stderr,signal=x",
        "stderr,often=1",
        "stderr,json,",
    ] {
        Scenario::new(value, || {}).env("HAYLOFT_STATS", value).run(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_named =
                stderr.starts_with("hayloft: HAYLOFT_STATS is ") && stderr.lines().count() == 1;
            assert!(output.status.success() && is_named, "{}", describe(output));
        });
    }
    for (value, line) in [
        ("/nowhere/at/all", "hayloft: statistics cannot be written to /nowhere/at/all\n"),
        ("/nowhere/%p.txt", "hayloft: statistics cannot be written to /nowhere/%p.txt\n"),
        ("99", "hayloft: statistics cannot be written to file 99\n"),
        ("/dev/null,signal=9", "hayloft: signal 9 is taken, or none\n"),
        ("/dev/null,signal=1000", "hayloft: signal 1000 is taken, or none\n"),
    ] {
        Scenario::new(value, || {}).env("HAYLOFT_STATS", value).run(|output| {
            assert_eq!(String::from_utf8_lossy(&output.stderr), line, "{}", describe(output));
            assert!(output.status.success());
        });
    }
}

/// Each process with `%p` in the path, and otherwise only the one that was started, not its forks.
#[test]
fn forks_write_to_files_of_their_own() {
    let fork_and_end = || {
        // SAFETY: the child only ends; and so does the parent after it.
        unsafe {
            if libc::fork() > 0 {
                libc::wait(std::ptr::null_mut());
            }
        }
    };
    let folder = Temporary::new("forks");
    fs::create_dir(&folder.0).expect("the folder can be made");
    let files = || fs::read_dir(&folder.0).expect("the folder is there").count();
    let path = folder.0.join("%p.txt");
    Scenario::new("apart", fork_and_end).env("HAYLOFT_STATS", path).run(|output| {
        assert_eq!(files(), 2, "{}", describe(output));
    });
    Scenario::new("once", fork_and_end).env("HAYLOFT_STATS", "stderr").run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("slabinfo - version").count(), 1, "{}", describe(output));
    });
    let _ = fs::remove_dir_all(&folder.0);
}

/// On demand, in a handler; and while the program runs.
#[test]
fn while_the_program_runs() {
    let on_demand = || {
        // SAFETY: a signal of this thread, whose handler is the allocator's.
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
        // SAFETY: without the report at the end.
        unsafe { libc::_exit(0) };
    };
    let value = format!("{},every=1", path.0.display());
    Scenario::new("every", wait_for_it).env("HAYLOFT_STATS", value).run(|output| {
        assert!(output.status.success(), "{}", describe(output));
        assert!(path.text().starts_with("slabinfo"));
    });
}

/// A process of this program that shows its statistics, holds a thousand objects, and ends with its standard input.
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
    let mut snapshot = reader.read().expect("it can be read");
    while snapshot.caches.iter().all(|cache| cache.in_use < 1000) {
        thread::sleep(Duration::from_millis(10));
        snapshot = reader.read().expect("it can be read");
    }
    assert!(snapshot.stats.held > 1000 * LAYOUT.size() && !snapshot.cpus.is_empty());
    assert!(report::processes().contains(&number));
    let page = PathBuf::from(format!("/dev/shm/hayloft-{number}"));
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
    let page = Temporary(PathBuf::from(format!("/dev/shm/hayloft-{ours}")));
    fs::write(&page.0, "garbage").expect("the file can be written");
    says(ours, "no page of statistics");
    fs::write(&page.0, vec![0x55; 1 << 20]).expect("the file can be written");
    says(ours, "no page of statistics");

    let shown = Shown::start();
    let number = shown.0.id();
    let mut bytes = fs::read(format!("/dev/shm/hayloft-{number}")).expect("the page can be read");
    bytes[16..20].copy_from_slice(&ours.to_ne_bytes());
    bytes[8..12].copy_from_slice(&77u32.to_ne_bytes());
    fs::write(&page.0, &bytes).expect("the file can be written");
    says(ours, "shows version 77 of the statistics, and this program reads version ");

    // One that was killed leaves its page behind, until somebody looks who finds it old.
    drop(shown);
    let left = PathBuf::from(format!("/dev/shm/hayloft-{number}"));
    assert!(left.exists());
    assert!(!report::processes().contains(&number));
    // Not while it could be that of a process in another container, which writes it.
    while left.exists() {
        thread::sleep(Duration::from_millis(100));
        assert!(!report::processes().contains(&number));
    }
}

/// A process that is stopped is found to be silent, whatever it was at.
#[test]
fn a_process_that_is_stopped_is_silent() {
    let shown = Shown::start();
    let number = shown.0.id();
    let mut reader = Reader::attach(number).expect("it shows its statistics");
    // SAFETY: a process of ours.
    unsafe { libc::kill(number as libc::pid_t, libc::SIGSTOP) };
    let error = loop {
        match reader.read() {
            Ok(_) => thread::sleep(Duration::from_millis(50)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AttachError::Silent(..)), "{error}");
}

/// Who reads while others allocate, and caches come and go, finds numbers that can be.
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
                    // SAFETY: allocated above.
                    unsafe { cache.free(object) };
                }
                // SAFETY: allocated here, freed here.
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
