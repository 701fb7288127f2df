//! Reports: written at the end, on request, on a signal and periodically, to a file descriptor or a
//! path, in children of forks, too.

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::report::Reader;
use tests::hoard::Hoard;
use tests::process::shared_page_of;
use tests::routes::Hayloft;
use tests::scenario::{Scenario, describe, is_child};
use tests::temporary::Temporary;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A layout whose class nothing else in this program uses.
const LAYOUT: Layout = Layout::new::<[u8; 3072]>();

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
        assert!(
            !shared_page_of(number.parse().expect("a number")).exists(),
            "it takes its page along"
        );
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
