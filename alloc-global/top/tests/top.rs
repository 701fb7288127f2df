//! Tests `hayloft-top` on a process of its own that has a cache of a thousand objects, in a pipe
//! and in a terminal (`tmux`, where it is installed).

use std::alloc::Layout;
use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use hayloft::cache::{Cache, CacheFlags};

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const TOP: &str = env!("CARGO_BIN_EXE_hayloft-top");

/// Environment variable that enables [`run_as_target`].
const TARGET: &str = "TOP_TARGET";

#[test]
#[ignore = "run as a child by the other tests"]
fn run_as_target() {
    if env::var_os(TARGET).is_none() {
        return;
    }
    let layout = Layout::new::<[u8; 504]>();
    let cache = Cache::builder("packets", layout).flags(CacheFlags::NO_MERGE).build().unwrap();
    let objects: Vec<_> = (0..1000).map(|_| cache.alloc().unwrap()).collect();
    assert!(hayloft::profile::start(1));
    let in_index = hayloft::tag::enter("index");
    let index = holds_index();
    drop(in_index);
    println!("ready");
    // Waits until the other end is closed.
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(index);
    for object in objects {
        // SAFETY: `cache` allocated the object above, and this is its only free.
        unsafe { cache.free(object) };
    }
}

/// Allocates three blocks of a megabyte.
#[inline(never)]
fn holds_index() -> Vec<Vec<u8>> {
    (0..3).map(|_| std::hint::black_box(Vec::with_capacity(1_000_000))).collect()
}

/// A process that runs [`run_as_target`].
struct Target(Child);

impl Target {
    fn start() -> Target {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "run_as_target", "--ignored", "--nocapture"])
            .env(TARGET, "1")
            .env("HAYLOFT_STATS_SHM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")));
        // The rest of the output need not be read: it fits into the pipe, which is kept open.
        thread::spawn(move || lines.count());
        let target = Target(child);
        wait_until("the target publishes its cache", || {
            let all = target.csv(&["--once", "--delay", "0"]);
            all.iter().any(|line| line["name"] == "packets" && line["in_use"] == "1000")
        });
        target
    }

    fn number(&self) -> String {
        self.0.id().to_string()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
        assert!(!fs::exists(page(self.0.id())).unwrap(), "the target left its page behind");
    }

    /// Returns the lines that `--csv` prints about the process, as maps from column names to
    /// values.
    fn csv(&self, arguments: &[&str]) -> Vec<Line> {
        let output = top_of_busy(&[arguments, &["--csv", &self.number()]].concat());
        assert!(output.status.success(), "{output:?}");
        lines(&output.stdout)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // No harm if the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_file(page(self.0.id()));
    }
}

type Line = std::collections::HashMap<String, String>;

fn lines(csv: &[u8]) -> Vec<Line> {
    csv::Reader::from_reader(csv).deserialize().map(Result::unwrap).collect()
}

fn page(process: u32) -> String {
    let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    format!("/dev/shm/hayloft-{process}-{namespace}")
}

/// Waits until `condition` returns true, for minutes if necessary.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1800 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("waited in vain: {what}");
}

fn top(arguments: &[&str]) -> Output {
    Command::new(TOP).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Does the same as [`top`] for a process that is not stopped. Repeats the call where the machine
/// is so busy that the process rarely gets to write.
fn top_of_busy(arguments: &[&str]) -> Output {
    let mut output = top(arguments);
    wait_until("the process writes its page", || {
        let error = String::from_utf8_lossy(&output.stderr);
        let has_answer = !error.contains("has been silent for") && !error.contains("to an end");
        if !has_answer {
            output = top(arguments);
        }
        has_answer
    });
    output
}

/// Returns the one line with which the call fails.
fn error_of(arguments: &[&str]) -> String {
    let output = top(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.strip_prefix("hayloft-top: ").unwrap().trim_end().to_string()
}

#[test]
fn once_prints_one_table() {
    let target = Target::start();
    let output = top_of_busy(&["--once", "--delay", "0.3", "--sort", "name", &target.number()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.contains(&format!("({}), up 0:0", target.0.id())), "{text}");
    for wanted in ["resident ", "held ", "misses ", "nolock 0 (0/s), 0 failed"] {
        assert!(text.contains(wanted), "{text}");
    }
    let words = |line: &'static str| {
        let line =
            text.lines().find(|other| other.starts_with(line)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(words("CACHE")[..5], ["CACHE", "SIZE", "IN", "USE", "TOTAL"]);
    assert_eq!(words("packets")[..3], ["packets", "504", "1000"]);
    let names: Vec<_> =
        text.lines().skip_while(|line| !line.starts_with("CACHE")).skip(1).collect();
    let names: Vec<_> = names.iter().take_while(|line| !line.is_empty()).collect();
    assert!(names.len() > 2 && names.is_sorted(), "{names:?}");
    target.end();
}

#[test]
fn csv_has_a_line_per_entry_and_iteration() {
    let target = Target::start();
    let all = target.csv(&["--iterations", "3", "--delay", "0.3"]);
    let mut times: Vec<u64> = all.iter().map(|line| line["time_ms"].parse().unwrap()).collect();
    assert!(times.is_sorted());
    times.dedup();
    assert_eq!(times.len(), 3);
    for line in all.iter().filter(|line| line["name"] == "packets") {
        assert_eq!(line["pid"], target.number());
        assert_eq!((&*line["object_size"], &*line["in_use"]), ("504", "1000"));
        assert_eq!(line["refills"], "0.0000", "an idle cache is refilled");
        let (memory, slabs) = (&line["memory"], &line["slabs"]);
        assert!(memory.parse::<u64>().unwrap() >= 1000 * 504 && slabs.parse::<u64>().unwrap() > 0);
    }
    let at_once = target.csv(&["--once", "--delay", "0", "--view", "nodes"]);
    assert_eq!(at_once[0]["node"], "0");
    assert_eq!(at_once[0]["growth"], "", "a single snapshot has growth");
    let cpus = target.csv(&["--once", "--view", "cpus", "--sort", "memory"]);
    assert!(!cpus.is_empty() && cpus.iter().all(|line| line.contains_key("cpu")));
    target.end();
}

/// Sites of samples are shown by the functions of the process that allocate.
#[test]
fn sites_are_shown_by_function() {
    let target = Target::start();
    let mut line = Line::new();
    wait_until("the target publishes its samples", || {
        let all = target.csv(&["--once", "--delay", "0", "--view", "sites"]);
        let found =
            all.into_iter().find(|line| line["name"].starts_with("[index] top::holds_index"));
        found.map(|found| line = found).is_some()
    });
    assert!(line["name"].contains("top::run_as_target"), "{line:?}");
    let memory: u64 = line["memory"].parse().unwrap();
    assert!((3_000_000..4_000_000).contains(&memory), "{line:?}");
    assert_eq!((&*line["in_use"], &*line["allocs"]), ("3", "3"));
    let own: Vec<_> = target.csv(&["--once", "--delay", "0", "--view", "sites"]);
    let is_allocator = |line: &Line| line["name"].starts_with("hayloft_core::path::");
    assert!(!own.iter().any(is_allocator), "{own:?}");
    target.end();
}

/// Tags are shown with what was allocated in them.
#[test]
fn tags_are_shown() {
    let target = Target::start();
    wait_until("the target publishes its samples", || {
        let all = target.csv(&["--once", "--delay", "0", "--view", "tags"]);
        let found = all.into_iter().find(|line| line["name"] == "index");
        found.is_some_and(|line| {
            let memory: u64 = line["memory"].parse().unwrap();
            assert!((3_000_000..4_000_000).contains(&memory), "{line:?}");
            // The list of the blocks is one, too.
            assert_eq!(line["in_use"], "4", "{line:?}");
            true
        })
    });
    target.end();
}

#[test]
fn end_of_the_process_is_not_a_failure() {
    let target = Target::start();
    let mut command = Command::new(TOP);
    command.args(["--csv", "--delay", "0.3", &target.number()]);
    let mut top = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().take(3).count() == 3);
    target.end();
    lines.for_each(|line| assert!(line.unwrap().contains(',')));
    assert!(top.wait().unwrap().success());
}

#[test]
fn closed_output_is_not_a_failure() {
    let target = Target::start();
    let mut command = Command::new(TOP);
    command.args(["--csv", "--delay", "0.3", &target.number()]);
    let mut top = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(top.stdout.take());
    let output = top.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn several_processes_are_listed() {
    let (one, other) = (Target::start(), Target::start());
    let output = top(&["--once"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let is_listed =
        |target: &Target| text.lines().any(|line| line.trim_start().starts_with(&target.number()));
    assert!(is_listed(&one) && is_listed(&other), "{text}");
}

#[test]
fn wrong_arguments_are_rejected() {
    for arguments in [
        &["--once", "--sort", "colour"][..],
        &["--once", "--sort", "node"],
        &["--csv", "--delay", "0"],
        &["--once", "--delay", "-1"],
        &["x"],
    ] {
        assert_eq!(top(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(error_of(&["1"]).contains("no terminal"));
}

/// Nothing is sent to a terminal that cannot be drawn on.
#[test]
fn dumb_terminal_is_rejected() {
    let command = format!("TERM=dumb {TOP}");
    let Some(tmux) = Tmux::start("dumb", &command) else { return };
    tmux.shows("hayloft-top: a terminal with TERM=dumb has no screen: use --once or --csv");
    tmux.shows("code 1");
}

#[test]
fn missing_process_is_reported() {
    assert_eq!(error_of(&["--once", "4294967295"]), "there is no process 4294967295");
}

/// Returns the error for an idle process whose page has the content returned by `page_of`.
fn error_with_page(page_of: impl FnOnce(u32) -> Option<Vec<u8>>) -> String {
    let mut idle = Command::new("sleep").arg("600").spawn().unwrap();
    let process = idle.id();
    if let Some(bytes) = page_of(process) {
        fs::write(page(process), bytes).unwrap();
    }
    let text = error_of(&["--once", &process.to_string()]);
    let _ = fs::remove_file(page(process));
    idle.kill().unwrap();
    idle.wait().unwrap();
    text.replace(&process.to_string(), "N")
}

#[test]
fn invalid_pages_are_reported() {
    let nothing = "process N shows no statistics: is Hayloft its allocator, and was it started with HAYLOFT_STATS_SHM=1?";
    assert_eq!(error_with_page(|_| None), nothing);
    let foreign = &page(0).replace("-0-", "-N-");
    let foreign = &format!("{foreign} is no page of statistics for this machine");
    assert_eq!(error_with_page(|_| Some(Vec::new())), nothing, "an empty page may be a new one");
    assert_eq!(&error_with_page(|_| Some(b"HAYLOFT\0".to_vec())), foreign);
    assert_eq!(&error_with_page(|_| Some(vec![b'x'; 200_000])), foreign);
    let mut later = vec![0; 200_000];
    later[..8].copy_from_slice(b"HAYLOFT\0");
    later[8..12].copy_from_slice(&77_u32.to_ne_bytes());
    let text = error_with_page(|_| Some(later.clone()));
    assert!(text.starts_with("process N shows version 77 of the statistics"), "{text}");

    // The page was left by a process whose number this one has now.
    let target = Target::start();
    let mut left = fs::read(page(target.0.id())).unwrap();
    let text = error_with_page(|process| {
        left[16..20].copy_from_slice(&process.to_ne_bytes());
        Some(left.clone())
    });
    assert_eq!(text, nothing);
}

#[test]
fn page_of_another_pid_namespace_is_kept() {
    let mut idle = Command::new("sleep").arg("600").spawn().unwrap();
    let number = idle.id().to_string();
    let other = format!("/dev/shm/hayloft-{number}-1");
    fs::write(&other, "").unwrap();
    let text = error_of(&["--once", &number]);
    assert!(fs::exists(&other).unwrap(), "the page of another namespace was removed");
    let _ = fs::remove_file(&other);
    idle.kill().unwrap();
    idle.wait().unwrap();
    assert!(text.contains("is of another PID namespace"), "{text}");
}

#[test]
fn stopped_process_is_reported_as_silent() {
    let target = Target::start();
    target.signal(libc::SIGSTOP);
    let mut text = String::new();
    wait_until("the stopped process counts as silent", || {
        let output = top(&["--once", "--delay", "0", &target.number()]);
        text = String::from_utf8(output.stderr).unwrap();
        // The process may be stopped while it writes.
        !output.status.success() && !text.contains("does not come to an end")
    });
    assert!(text.contains("has been silent for"), "{text}");
    target.signal(libc::SIGCONT);
    wait_until("the continued process writes its page", || {
        top(&["--once", "--delay", "0", &target.number()]).status.success()
    });
    target.end();
}

#[test]
fn page_of_a_killed_process_is_removed() {
    let mut target = Target::start();
    target.0.kill().unwrap();
    // Also looks before the process is waited for, while its number still exists.
    let mut text = String::new();
    wait_until("the killed process is missing", || {
        let output = top(&["--once", "--delay", "0", &target.number()]);
        text = String::from_utf8(output.stderr).unwrap();
        !output.status.success()
    });
    assert!(text.contains("there is no process"), "{text}");
    target.0.wait().unwrap();
    wait_until("the page of the killed process is removed", || {
        top(&["--once", "--delay", "0"]);
        !fs::exists(page(target.0.id())).unwrap()
    });
}

/// A terminal that runs a command.
struct Tmux {
    socket: String,
}

impl Tmux {
    /// Starts a terminal, or returns `None` without `tmux`.
    fn start(name: &str, command: &str) -> Option<Tmux> {
        let tmux = Tmux { socket: format!("hayloft-{name}-{}", std::process::id()) };
        let size = ["new-session", "-d", "-x", "100", "-y", "30"];
        let command = format!("echo before; {command}; echo code $?; cat");
        match tmux.command().args(size).args(["sh", "-c", &command]).status() {
            Ok(status) => assert!(status.success()),
            Err(_) => {
                // Bypasses the capture of a test's output.
                let _ = writeln!(
                    io::stderr(),
                    "skipped: hayloft-top in a terminal: tmux is not installed"
                );
                return None;
            }
        }
        Some(tmux)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-u", "-L", &self.socket, "-f", "/dev/null"]).env_remove("TMUX");
        command
    }

    fn run(&self, arguments: &[&str]) {
        assert!(self.command().args(arguments).status().unwrap().success());
    }

    /// Returns the number of the process in the terminal, a child of the shell.
    fn process(&self) -> i32 {
        let show = ["display-message", "-p", "#{pane_pid}"];
        let shell = String::from_utf8(self.command().args(show).output().unwrap().stdout).unwrap();
        let shell = shell.trim();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        let output = self.command().args(["capture-pane", "-p"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn shows(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen"), || self.screen().contains(text));
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.screen());
        }
        // The server may already have ended.
        let _ = self.command().arg("kill-server").output();
    }
}

#[test]
fn keys_work_in_a_terminal() {
    let target = Target::start();
    let Some(tmux) = Tmux::start("keys", &format!("{TOP} -d 0.3 {}", target.number())) else {
        return;
    };
    tmux.shows("by MEMORY");
    tmux.shows("packets");
    let screen = tmux.screen();
    assert!(screen.lines().next().unwrap().contains("every 0.3 s"), "{screen}");
    tmux.press(&["2"]);
    tmux.shows("THREAD");
    tmux.press(&["Tab"]);
    tmux.shows("by NODE");
    tmux.press(&["Tab"]);
    tmux.shows("holds_index");
    tmux.press(&["s", "r"]);
    tmux.shows("by BYTES/s");
    tmux.press(&["Tab"]);
    tmux.shows("TAG");
    tmux.press(&["Tab", "/", "pack", "Enter"]);
    tmux.shows("with \"pack\"");
    tmux.shows("1-1 of 1, by MEMORY");
    assert!(!tmux.screen().contains("kmalloc"));
    tmux.press(&["s", "i", "R"]);
    tmux.shows("by IN USE, reversed");
    tmux.press(&["d", "0.2", "Enter", "p"]);
    tmux.shows("paused");
    tmux.press(&["p"]);
    tmux.shows("every 0.2 s");
    tmux.press(&["h"]);
    tmux.shows("order by a column");
    tmux.press(&["x"]);
    tmux.run(&["resize-window", "-x", "40", "-y", "10"]);
    tmux.shows("in slabs");
    tmux.shows("packets");
    tmux.run(&["resize-window", "-x", "100", "-y", "30"]);
    target.signal(libc::SIGSTOP);
    tmux.shows("has been silent for");
    target.signal(libc::SIGCONT);
    tmux.shows("h help");
    target.end();
    tmux.shows("has ended; this is the last of it");
    tmux.shows("packets");
    tmux.press(&["q"]);
    tmux.shows("code 0");
    tmux.shows("before");
}

#[test]
fn signal_restores_the_terminal() {
    let target = Target::start();
    let number = target.number();
    let Some(tmux) = Tmux::start("signal", &format!("{TOP} {number}")) else { return };
    tmux.shows("packets");
    let top = tmux.process();
    // SAFETY: the process exists until this signal ends it.
    assert_eq!(unsafe { libc::kill(top, libc::SIGTERM) }, 0);
    tmux.shows("code 0");
    let screen = tmux.screen();
    assert!(screen.contains("before") && !screen.contains("packets"), "{screen}");
    // The terminal echoes input again.
    tmux.press(&["seen"]);
    tmux.shows("seen");
}

#[test]
fn hayloft_top_ends_with_its_terminal() {
    let target = Target::start();
    let Some(tmux) = Tmux::start("end", &format!("{TOP} {}", target.number())) else { return };
    tmux.shows("packets");
    let top = tmux.process();
    tmux.run(&["kill-server"]);
    wait_until("hayloft-top ends", || {
        let state = fs::read_to_string(format!("/proc/{top}/stat"));
        state.is_err() || state.unwrap().contains(") Z ")
    });
}

#[test]
fn process_can_be_chosen_from_a_list() {
    let (one, other) = (Target::start(), Target::start());
    let Some(tmux) = Tmux::start("choice", TOP) else { return };
    tmux.shows("Processes that show their statistics");
    tmux.shows(&one.number());
    tmux.shows(&other.number());
    tmux.press(&["Down", "Enter"]);
    tmux.shows("by MEMORY");
    tmux.press(&["q"]);
    tmux.shows("code 0");
}
