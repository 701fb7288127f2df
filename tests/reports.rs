//! Reports: written at the end, on request, on a signal and periodically, to a file descriptor or a
//! path, in children of forks, too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::report::Reader;
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::process::shared_page_of;
use tests::scenario::{Scenario, describe, is_child};
use tests::sizes::RARE;
use tests::temporary::Temporary;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A report at the end goes to a file descriptor, to standard error or to a path, in the requested
/// format.
#[test]
fn report_is_written_at_exit() {
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

/// Runs `work` deeper on the stack, and then overwrites what it left there.
#[inline(never)]
fn without_traces(work: fn()) {
    #[inline(never)]
    fn below(work: fn()) {
        let room = black_box([0_u8; 1 << 13]);
        work();
        black_box(room);
    }
    #[inline(never)]
    fn scrub() {
        black_box(&[0_u8; 1 << 16]);
    }
    below(work);
    scrub();
}

/// What a program in Rust has in use or has lost at its end is listed, exactly, also where the
/// kernel refuses to copy memory.
#[test]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), ignore = "no stacks")]
fn leaks_are_listed_at_exit() {
    // The harness has no blocks of this size, whose addresses might be left in its frames.
    #[inline(never)]
    fn lose() {
        (0..7).for_each(|_| std::mem::forget(black_box(vec![1_u8; 20_000])));
    }
    static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let body = || {
        HELD.lock().expect("nobody panics").extend((0..5).map(|_| vec![1_u8; 5000]));
        without_traces(lose);
    };
    for backend in ["rseq", "fallback"] {
        let scenario = |label: &str| Scenario::new(format!("{label}-{backend}"), body);
        let scenario = |label| scenario(label).env("HAYLOFT_BACKEND", backend);
        let check = |output: &process::Output, has: &[&str], has_not: &str| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_right =
                has.iter().all(|line| stderr.contains(line)) && !stderr.contains(has_not);
            assert!(output.status.success() && is_right, "{}", describe(output));
        };
        let [lost, held] = ["143360 byte(s) in 7 object(s)", "25600 byte(s) in 5 object(s)"];
        scenario("in-use").env("HAYLOFT_LEAKS", "1,mean=1").run(|output| {
            check(output, &[&format!("\nIn use: {lost}"), &format!("\nIn use: {held}")], "leak of");
        });
        let setting = ("HAYLOFT_LEAKS", "1,mean=1,reachable=1");
        let lost = format!("\nDirect leak of {lost}");
        scenario("lost").env(setting.0, setting.1).run(|output| check(output, &[&lost], held));
        scenario("refused")
            .env(setting.0, setting.1)
            .refuse_system_call(libc::SYS_process_vm_readv)
            .run(|output| check(output, &[&lost], held));
    }
}

#[test]
fn malformed_settings_are_reported() {
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
            let is_reported = stderr.contains(&format!("]: HAYLOFT_STATS={value}: "));
            let is_reported = is_reported && stderr.lines().count() == 1;
            assert!(output.status.success() && is_reported, "{}", describe(output));
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
            let is_one_line = stderr.lines().count() == 1;
            assert!(output.status.success() && is_one_line, "{}", describe(output));
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
fn unusable_signals_are_rejected() {
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
            let why =
                format!("]: HAYLOFT_STATS={value}: signal {signal} is taken, of a fault, or none");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let all = describe(output);
            assert!(
                stderr.contains(&why) && stderr.ends_with("; used instead: no signal\n"),
                "{all}"
            );
            assert_eq!(stderr.lines().count(), 1, "{all}");
            assert!(output.status.success(), "{all}");
        });
    }
}

/// With `%p` in the path, each process writes a report. Otherwise only the process that was started
/// does, not its forks.
#[test]
fn forked_children_write_their_own_files() {
    let fork_and_exit = || {
        // SAFETY: the child does nothing but end, and so does the parent after it.
        unsafe {
            if libc::fork() > 0 {
                libc::wait(std::ptr::null_mut());
            }
        }
    };
    let folder = Temporary::folder("forks");
    let files = || fs::read_dir(&folder.0).expect("the folder can be read").count();
    let path = folder.0.join("%p.txt");
    Scenario::new("per-process", fork_and_exit).env("HAYLOFT_STATS", path).run(|output| {
        assert_eq!(files(), 2, "{}", describe(output));
    });
    Scenario::new("shared", fork_and_exit).env("HAYLOFT_STATS", "stderr").run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("slabinfo - version").count(), 1, "{}", describe(output));
    });
}

/// Forks. The child raises a signal that requests a report, uses the heap for a while, and ends by
/// `exit`.
fn fork_child_that_requests_reports() {
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
    let mut stack = BlockStack::new(1000);
    stack.fill(RARE);
    stack.free_all(RARE);
}

/// The child writes no report on a signal, periodically, or at its end.
#[test]
fn forked_child_does_not_overwrite_its_parents_file() {
    let folder = Temporary::folder("parents");
    let path = folder.0.join("file");
    let scenario = Scenario::new("", || {
        fork_child_that_requests_reports();
        // SAFETY: `_exit` has no preconditions. It skips the report at the end.
        unsafe { libc::_exit(0) };
    });
    // The period is so long that the parent writes nothing either.
    let setting = format!("{},every=100,signal={}", path.display(), libc::SIGUSR2);
    scenario.env("HAYLOFT_STATS", setting).run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert_eq!(fs::read_dir(&folder.0).expect("the folder can be read").count(), 0);
    });
}

/// The child of a fork that stays alive, as a daemon does, writes its own file periodically and at
/// its end.
#[test]
fn long_lived_child_writes_its_own_reports() {
    let folder = Temporary::folder("daemon");
    let setting = folder.0.join("%p,every=1");
    let scenario = Scenario::new("", || {
        // SAFETY: the child relies only on what the allocator promises for it, and ends here.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let setting = std::env::var("HAYLOFT_STATS").expect("the variable is set");
                let path = setting.replace("%p,every=1", &process::id().to_string());
                let is_shown =
                    || Reader::attach(process::id()).is_ok_and(|mut to| to.read().is_ok());
                while !Path::new(&path).exists() || !is_shown() {
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
        assert_eq!(fs::read_dir(&folder.0).expect("the folder can be read").count(), 2);
        let text = String::from_utf8_lossy(&output.stdout);
        let number = text
            .lines()
            .find_map(|line| line.strip_prefix("page "))
            .expect("the child prints its number");
        assert!(
            !shared_page_of(number.parse().expect("a number")).exists(),
            "the child left its shared page behind"
        );
    });
}

/// A file that is being rewritten always reads as a whole report, and no other files remain in the
/// folder. A symbolic link at the path is replaced, not followed.
#[test]
fn report_files_are_replaced_atomically() {
    let folder = Temporary::folder("whole");
    let (path, other) = (folder.0.join("file"), folder.0.join("other"));
    if !is_child() {
        fs::write(&other, "precious").expect("the file can be written");
        symlink(&other, &path).expect("the link can be created");
    }
    let scenario = Scenario::new("", || {
        let setting = std::env::var("HAYLOFT_STATS").expect("the variable is set");
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
                later.insert(
                    fs::metadata(path).expect("the file can be read").modified().expect("a time"),
                );
            }
            let text = fs::read_to_string(path).expect("the file can be read");
            if text != "precious" {
                assert!(text.starts_with("slabinfo - version"), "{text}");
                assert!(text.contains("\n# irq_works ") && text.ends_with('\n'), "{text}");
                files.insert(fs::metadata(path).expect("the file can be read").ino());
            }
        }
        assert!(files.len() > 1, "the file was rewritten in place");
    });
    let setting = format!("{},every=1,signal={}", path.display(), libc::SIGUSR2);
    scenario.env("HAYLOFT_STATS", setting).run(|output| {
        assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(output));
        assert_eq!(fs::read_dir(&folder.0).expect("the folder can be read").count(), 2);
        assert_eq!(fs::read_to_string(&other).expect("the file can be read"), "precious");
        assert!(fs::symlink_metadata(&path).is_ok_and(|file| file.is_file()));
    });
}

/// A program may close its standard error before it ends, or open another file with that
/// descriptor.
#[test]
fn report_at_exit_is_written_to_the_original_file_only() {
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
        let path = std::env::var("PRECIOUS").expect("the variable is set");
        let file = File::create(path).expect("the file can be created");
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
fn reports_are_written_on_a_signal_and_periodically() {
    let raise_and_exit = || {
        // SAFETY: the allocator handles this signal, and `_exit` has no preconditions.
        unsafe {
            libc::raise(libc::SIGUSR2);
            libc::_exit(0);
        }
    };
    let on_signal = Scenario::new("on-signal", raise_and_exit);
    on_signal.env("HAYLOFT_STATS", format!("stderr,signal={}", libc::SIGUSR2)).run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("slabinfo - version").count(), 1, "{}", describe(output));
    });
    let path = Temporary::new("every");
    let wait_for_report = || {
        let setting = std::env::var("HAYLOFT_STATS").expect("the variable is set");
        let path = setting.split(',').next().expect("a path");
        while fs::metadata(path).map_or(0, |file| file.len()) == 0 {
            thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: `_exit` has no preconditions. It skips the report at the end.
        unsafe { libc::_exit(0) };
    };
    let value = format!("{},every=1", path.0.display());
    Scenario::new("periodic", wait_for_report).env("HAYLOFT_STATS", value).run(|output| {
        assert!(output.status.success(), "{}", describe(output));
        assert!(path.text().starts_with("slabinfo"));
    });
}
