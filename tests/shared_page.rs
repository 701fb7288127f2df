//! The shared page: other processes read the statistics of a process while it runs.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use hayloft_core::report::{self, AttachError, Reader};
use tests::block_stack::BlockStack;
use tests::entry_points::Hayloft;
use tests::process::shared_page_of;
use tests::sizes::RARE;
use tests::temporary::Temporary;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A child process of this program that publishes its statistics, holds a thousand objects, and
/// ends when its standard input is closed.
struct Publisher(process::Child);

impl Publisher {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["publish_statistics", "--exact", "--ignored", "--nocapture"]);
        command.env("HAYLOFT_STATS_SHM", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program can be started");
        let mut out = child.stdout.take().expect("the output is piped");
        let mut printed = Vec::new();
        while !printed.ends_with(b"ready\n") {
            let mut byte = [0];
            out.read_exact(&mut byte).expect("the child prints that it is ready");
            printed.extend(byte);
        }
        child.stdout = Some(out);
        Self(child)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "run as a child by the other tests"]
fn publish_statistics() {
    let mut stack = BlockStack::new(1000);
    stack.fill(RARE);
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    stack.free_all(RARE);
}

#[test]
fn other_processes_can_read_the_page() {
    let mut publisher = Publisher::start();
    let number = publisher.0.id();
    let mut reader = Reader::attach(number).expect("the child publishes its statistics");
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
    assert!(snapshot.stats.held > 1000 * RARE.size() && !snapshot.cpus.is_empty());
    assert!(report::processes().contains(&number));
    let page = shared_page_of(number);
    publisher.0.stdin.take();
    assert!(publisher.0.wait().expect("the child can be waited for").success());
    assert!(!page.exists(), "the child left its page behind");
    assert!(matches!(reader.read(), Err(AttachError::Gone(_))));
    assert!(matches!(Reader::attach(number), Err(AttachError::Gone(_))));
}

#[test]
fn attach_errors_state_the_reason() {
    let own = process::id();
    let assert_error = |number: u32, reason: &str| {
        let error = Reader::attach(number).expect_err("there are no statistics").to_string();
        assert!(error.contains(reason) && error.lines().count() == 1, "{error}");
    };
    assert_error(own, "shows no statistics");
    assert_error(u32::MAX, "there is no process");
    let page = Temporary(shared_page_of(own));
    // Before its first write a page is empty or all zeros.
    fs::write(&page.0, "").expect("the file can be written");
    assert_error(own, "shows no statistics");
    fs::write(&page.0, vec![0; 1 << 20]).expect("the file can be written");
    assert_error(own, "shows no statistics");
    assert!(
        !report::processes().contains(&own) && page.0.exists(),
        "a page that may be new was removed"
    );
    fs::write(&page.0, "garbage").expect("the file can be written");
    assert_error(own, "no page of statistics");
    fs::write(&page.0, vec![0x55; 1 << 20]).expect("the file can be written");
    assert_error(own, "no page of statistics");

    let publisher = Publisher::start();
    let number = publisher.0.id();
    let mut bytes = fs::read(shared_page_of(number)).expect("the page can be read");
    bytes[16..20].copy_from_slice(&own.to_ne_bytes());
    bytes[8..12].copy_from_slice(&77u32.to_ne_bytes());
    fs::write(&page.0, &bytes).expect("the file can be written");
    assert_error(own, "shows version 77 of the statistics, and this program reads version ");

    // A killed process leaves its page behind, until a listing finds that the page is old.
    drop(publisher);
    let left = shared_page_of(number);
    assert!(left.exists(), "the page of a killed process is gone at once");
    assert!(!report::processes().contains(&number), "a killed process is listed");
    // Until then the page could belong to a process in another container that still writes it.
    while left.exists() {
        thread::sleep(Duration::from_millis(100));
        assert!(!report::processes().contains(&number), "a killed process is listed");
    }
}

/// A page of another PID namespace may belong to a live process. It is neither read nor removed.
#[test]
fn pages_of_other_pid_namespaces_are_neither_read_nor_removed() {
    let mut idle = Command::new("sleep").arg("600").spawn().expect("sleep can be started");
    let number = idle.id();
    let other = Temporary(PathBuf::from(format!("/dev/shm/hayloft-{number}-1")));
    fs::write(&other.0, "").expect("the file can be written");
    for _ in 0..2 {
        let error = Reader::attach(number).expect_err("the page is of another namespace");
        assert!(matches!(error, AttachError::Elsewhere(_)), "{error}");
        assert!(!report::processes().contains(&number) && report::elsewhere() > 0);
        assert!(other.0.exists(), "the page of another namespace was removed");
        // Now this namespace has no such process, but the other one may.
        idle.kill().expect("the process can be killed");
        idle.wait().expect("the process can be waited for");
    }
}

/// A stopped process is found to be silent, wherever it was stopped.
#[test]
fn stopped_process_is_reported_as_silent() {
    let publisher = Publisher::start();
    let number = publisher.0.id();
    let mut reader = Reader::attach(number).expect("the child publishes its statistics");
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
