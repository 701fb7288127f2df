//! This test again, in a child process.
//!
//! A scenario is a part of a test that needs a process of its own: the backend is settled once per
//! process, and some scenarios abort, exit or run out of memory. The parent runs its own executable
//! with the filter of this one test and the name of the scenario in a variable; in the child the
//! test comes to the same scenario, does it and exits.
//!
//! In a child no window of decay ends unless the scenario asks for that: by [`amid_decay`], by
//! `HAYLOFT_DECAY_MS`, or by `alloc_core::cache::end_window`, which ends one at once.
//!
//! ```no_run
//! # use tests::scenario::Scenario;
//! fn aborts() {
//!     Scenario::new("abort", || std::process::abort())
//!         .env("HAYLOFT_BACKEND", "fallback")
//!         .run(|output| assert!(!output.status.success()));
//! }
//! ```

use std::any;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::{self, Child, Command, Output, Stdio};

use crate::process::{Limit, refuse, this_thread, wait_until_asleep};

/// Names, in a child, the scenario it is to run: test and label.
const CHILD: &str = "TEST_SCENARIO";

/// The variable that forces a backend, and its values.
const BACKEND: &str = "HAYLOFT_BACKEND";
const BACKENDS: [&str; 2] = ["rseq", "fallback"];

/// The variable that says how long memory may stay unneeded. A test must not depend on how much of it a slow machine takes for
/// what a fast one does at once, so in children that is an hour, unless the scenario says otherwise.
const DECAY: &str = "HAYLOFT_DECAY_MS";
const NO_DECAY: &str = "3600000";
/// As it is for users.
const DEFAULT_DECAY: &str = "300";

/// The variable that says which programs have a thread that gives memory back: with 1, those of one thread, too.
const BACKGROUND: &str = "HAYLOFT_BACKGROUND";

/// Has scenarios do without that thread, if it is 0: ThreadSanitizer cannot follow one that the C library does not know.
const HAS_BACKGROUND: &str = "TEST_BACKGROUND";

/// Names the backend to which scenarios are restricted: those on the other one are left out.
const ONLY: &str = "TEST_BACKEND";

/// The variable that says how irq work runs, and its values.
const IRQ: &str = "HAYLOFT_IRQ";
const IRQ_MODES: [&str; 3] = ["hard", "threaded", "none"];

/// The variable by which pages are larger than the system's, and its values.
const PAGE_SIZE: &str = "HAYLOFT_PAGE_SIZE";
const PAGE_SIZES: [&str; 2] = ["16384", "65536"];

/// A child that hangs is killed after this many seconds, so that a deadlock is a failure.
pub const HANGS_AFTER: libc::c_uint = 600;

/// A test body to be run in a child process.
#[derive(Debug)]
#[must_use]
pub struct Scenario<F> {
    label: String,
    body: F,
    env: Vec<(OsString, OsString)>,
    limits: Vec<(Limit, usize)>,
    refused: Vec<libc::c_long>,
}

impl<F: FnOnce()> Scenario<F> {
    /// A scenario. The label tells it from the other scenarios of the same test.
    ///
    /// `body` must be a closure written in the test function: its type tells the name of the test.
    pub fn new(label: impl Into<String>, body: F) -> Self {
        Self { label: label.into(), body, env: Vec::new(), limits: Vec::new(), refused: Vec::new() }
    }

    /// Sets an environment variable of the child.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Puts the child under a limit before it starts.
    pub fn limit(mut self, limit: Limit, most: usize) -> Self {
        self.limits.push((limit, most));
        self
    }

    /// Has the kernel refuse a system call to the child, as if it had none such.
    pub fn refuse(mut self, number: libc::c_long) -> Self {
        self.refused.push(number);
        self
    }

    /// In the parent: runs the child and gives `judge` what came of it. In the child: runs the body
    /// and exits if this is the scenario asked for, otherwise does nothing.
    ///
    /// # Panics
    ///
    /// If the child cannot be started, or never comes to the scenario.
    pub fn run(self, judge: impl FnOnce(&Output)) {
        if let Some(running) = self.start() {
            judge(&running.output());
        }
    }

    /// Runs the child, which must exit with code 0.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn succeeds(self) {
        if let Some(running) = self.start() {
            running.succeeds();
        }
    }

    /// As [`Scenario::run`], but does not wait for the child. There is one in the parent only, and unless it is left out.
    fn start(self) -> Option<Running> {
        let test = test_name::<F>();
        let scenario = format!("{test}/{}", self.label);
        match env::var(CHILD) {
            Ok(wanted) if wanted == scenario => enter(&scenario, self.body),
            Err(_) if !self.is_left_out() => {
                Some(Running { child: self.spawn(test, &scenario), scenario })
            }
            _ => None,
        }
    }

    fn is_left_out(&self) -> bool {
        let only = env::var_os(ONLY);
        only.is_some_and(|only| {
            self.env.iter().any(|(name, value)| name == BACKEND && *value != only)
        })
    }

    fn spawn(&self, test: &str, scenario: &str) -> Child {
        let executable = env::current_exe().expect("this program has a path");
        let mut command = Command::new(executable);
        command.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, scenario).env(DECAY, NO_DECAY);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let (limits, refused) = (self.limits.clone(), self.refused.clone());
        // SAFETY: the closure only makes system calls that are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                Limit::Core.set(0)?;
                limits.iter().try_for_each(|(limit, most)| limit.set(*most))?;
                refused.iter().try_for_each(|number| refuse(*number))
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("this program can be run again")
    }
}

/// A child on its way.
#[derive(Debug)]
struct Running {
    child: Child,
    scenario: String,
}

impl Running {
    /// Waits for the child, which must have come to its scenario.
    fn output(self) -> Output {
        let output = self.child.wait_with_output().expect("the child can be waited for");
        // A filter that selects no test would make a child that does nothing, and well.
        let entered = String::from_utf8_lossy(&output.stdout).contains(&entry(&self.scenario));
        assert!(entered, "never came to {}: {}", self.scenario, describe(&output));
        output
    }

    /// Waits for the child, which must exit with code 0.
    fn succeeds(self) {
        let scenario = self.scenario.clone();
        let output = self.output();
        assert!(output.status.success(), "{scenario}: {}", describe(&output));
    }
}

/// Runs `body` in two child processes, one per backend; both must exit with code 0.
///
/// `body` must be a closure written in the test function.
///
/// # Panics
///
/// If a child fails.
pub fn on_both_backends<F: Fn()>(body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| scenario);
    }
}

/// As [`on_both_backends`], with some more variables in the environment of the children.
///
/// # Panics
///
/// If a child fails.
pub fn on_both_backends_with<F: Fn()>(settings: &[(&str, &str)], body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| {
            settings.iter().fold(scenario, |scenario, (name, value)| scenario.env(name, value))
        });
    }
}

/// As [`on_both_backends`], while memory that is unneeded goes back by itself.
///
/// # Panics
///
/// If a child fails.
pub fn amid_decay<F: Fn()>(body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| {
            scenario.env(DECAY, DEFAULT_DECAY).env(BACKGROUND, background())
        });
    }
}

/// Runs `body` in child processes, one for each backend and each way in which irq work can run, all at once, while memory that
/// is unneeded goes back by itself; each must exit with code 0.
///
/// `body` must be a closure written in the test function.
///
/// # Panics
///
/// If a child fails.
pub fn in_every_mode<F: Fn()>(body: F) {
    let modes = BACKENDS.iter().flat_map(|backend| IRQ_MODES.map(|irq| (backend, irq)));
    let start = |(backend, irq)| {
        Scenario::new(format!("{backend}-{irq}"), &body)
            .env(BACKEND, backend)
            .env(IRQ, irq)
            .env(DECAY, DEFAULT_DECAY)
            .env(BACKGROUND, background())
            .start()
    };
    let running: Vec<_> = modes.filter_map(start).collect();
    running.into_iter().for_each(Running::succeeds);
}

/// As [`on_both_backends`], with the address space of the children limited to `bytes`.
///
/// # Panics
///
/// If a child fails.
pub fn on_both_backends_within<F: Fn()>(bytes: usize, body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| scenario.limit(Limit::AddressSpace, bytes));
    }
}

/// As [`amid_decay`], as on systems with pages of 16 KiB and of 64 KiB, with the address space of the children limited if
/// `within` says so; all at once.
///
/// # Panics
///
/// If a child fails.
pub fn with_larger_pages<F: Fn()>(within: Option<usize>, body: F) {
    let modes = BACKENDS.iter().flat_map(|backend| PAGE_SIZES.map(|size| (backend, size)));
    let start = |(backend, size)| {
        let scenario = Scenario::new(format!("{backend}-{size}"), &body);
        let scenario = scenario.env(BACKEND, backend).env(PAGE_SIZE, size);
        let scenario = scenario.env(DECAY, DEFAULT_DECAY).env(BACKGROUND, background());
        within.into_iter().fold(scenario, |all, most| all.limit(Limit::AddressSpace, most)).start()
    };
    let running: Vec<_> = modes.filter_map(start).collect();
    running.into_iter().for_each(Running::succeeds);
}

/// The value of [`BACKGROUND`] in scenarios amid decay.
fn background() -> String {
    env::var(HAS_BACKGROUND).unwrap_or_else(|_| "1".into())
}

fn on_backend<'a, F: Fn()>(
    backend: &str,
    body: &'a F,
    equip: impl FnOnce(Scenario<&'a F>) -> Scenario<&'a F>,
) {
    equip(Scenario::new(backend, body).env(BACKEND, backend)).succeeds();
}

/// All there is to say about a child that did not do what it should.
#[must_use]
pub fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

/// Whether this is the child of a scenario, which leaves by [`process::exit`] what its test made before.
#[must_use]
pub fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// The line by which a child says that it has come to its scenario.
fn entry(scenario: &str) -> String {
    format!("scenario {scenario}\n")
}

/// In the child: does the scenario, and exits as a program does, exit handlers included.
fn enter(scenario: &str, body: impl FnOnce()) -> ! {
    print!("\n{}", entry(scenario));
    let first = process::id() as libc::pid_t;
    // The harness's own thread allocates until it waits for this one, and would finish deferred work
    // that the scenario looks for.
    if first != this_thread() {
        wait_until_asleep(first);
    }
    // SAFETY: `alarm` has no preconditions.
    unsafe { libc::alarm(HANGS_AFTER) };
    body();
    process::exit(0)
}

/// The name under which the test harness knows the function that closure `F` is written in.
fn test_name<F>() -> &'static str {
    let path = any::type_name::<F>().trim_start_matches('&');
    let function = path.split("::{{closure}}").next().unwrap_or(path);
    function.split_once("::").map_or(function, |(_program, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_tells_its_test() {
        fn name<F: Fn()>(_: &F) -> &'static str {
            test_name::<&F>()
        }
        assert_eq!(name(&|| {}), "scenario::tests::a_closure_tells_its_test");
    }

    #[test]
    fn scenarios_run_in_children_one_at_a_time() {
        Scenario::new("first", || println!("hello")).run(|output| {
            assert!(output.status.success(), "{}", describe(output));
            assert!(String::from_utf8_lossy(&output.stdout).contains("hello"));
        });
        Scenario::new("second", || process::exit(7)).env("A", "b").run(|output| {
            assert_eq!(output.status.code(), Some(7), "{}", describe(output));
            assert!(!String::from_utf8_lossy(&output.stdout).contains("hello"));
        });
    }
}
