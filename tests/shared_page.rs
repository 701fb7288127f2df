//! The shared page: other processes read the statistics of a process while it runs.

use std::alloc::Layout;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use hayloft_core::report::{self, AttachError, Reader};
use tests::hoard::Hoard;
use tests::process::shared_page_of;
use tests::routes::Hayloft;
use tests::temporary::Temporary;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A layout whose class nothing else in this program uses.
const LAYOUT: Layout = Layout::new::<[u8; 3072]>();

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
    let page = shared_page_of(number);
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
    let page = Temporary(shared_page_of(ours));
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
    let mut bytes = fs::read(shared_page_of(number)).expect("the page can be read");
    bytes[16..20].copy_from_slice(&ours.to_ne_bytes());
    bytes[8..12].copy_from_slice(&77u32.to_ne_bytes());
    fs::write(&page.0, &bytes).expect("the file can be written");
    says(ours, "shows version 77 of the statistics, and this program reads version ");

    // A killed process leaves its page behind, until a listing finds that the page is old.
    drop(shown);
    let left = shared_page_of(number);
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
