//! Runs a test's body in a child process.
//!
//! A *scenario* is a part of a test that needs a process of its own: the backend is decided once
//! per process, and some scenarios abort, exit or run out of memory. The parent runs its own
//! executable, filtered to the current test, and names the scenario in an environment variable. In
//! the child the test reaches the same scenario, runs its body and exits.
//!
//! In a child no decay window ends unless the scenario asks for it: by [`with_decay`], by
//! `HAYLOFT_DECAY_MS`, or by `hayloft_core::heap::end_window`, which ends one at once.
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

use crate::process::{Limit, refuse_system_call, this_thread, wait_until_asleep};

/// Environment variable that names, in a child, the scenario to run: test and label.
const CHILD: &str = "TEST_SCENARIO";

/// Environment variable that forces a backend.
const BACKEND: &str = "HAYLOFT_BACKEND";

/// The backends, as the values of that variable.
pub const BACKENDS: [&str; 2] = ["rseq", "fallback"];

/// Environment variable for how long memory may stay idle. A slow machine may take several decay
/// windows for a step that takes a fast one no time, and no test may depend on that. In children
/// the value is therefore an hour, unless the scenario sets it.
const DECAY: &str = "HAYLOFT_DECAY_MS";
const NO_DECAY: &str = "3600000";
/// The users' default.
const DEFAULT_DECAY: &str = "300";

/// Environment variable for which programs have the background thread that purges. With 1 even
/// programs of one thread have it.
const BACKGROUND: &str = "HAYLOFT_BACKGROUND";

/// Environment variable that disables that thread in scenarios, if it is 0. Sanitizers cannot
/// follow a thread that the C library did not start (`.ci/sanitizers`).
const HAS_BACKGROUND: &str = "TEST_BACKGROUND";

/// Environment variable that restricts scenarios to one backend. Scenarios on the other one are
/// skipped.
const ONLY: &str = "TEST_BACKEND";

/// Environment variable for how irq work runs, and its values.
const IRQ: &str = "HAYLOFT_IRQ";
const IRQ_MODES: [&str; 3] = ["hard", "threaded", "none"];

/// Environment variable that makes pages larger than the system's, and its values.
const PAGE_SIZE: &str = "HAYLOFT_PAGE_SIZE";
const PAGE_SIZES: [&str; 2] = ["16384", "65536"];

/// Seconds after which a hung child is killed, so that a deadlock is a failure.
pub const CHILD_TIMEOUT: libc::c_uint = 600;

/// A test body to run in a child process.
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
    /// Returns a scenario whose label distinguishes it from other scenarios of the same test.
    ///
    /// `body` must be a closure written in the test function, since its type yields the test's
    /// name.
    pub fn new(label: impl Into<String>, body: F) -> Self {
        Self { label: label.into(), body, env: Vec::new(), limits: Vec::new(), refused: Vec::new() }
    }

    /// Sets an environment variable of the child.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Sets a limit on the child before it starts.
    pub fn limit(mut self, limit: Limit, most: usize) -> Self {
        self.limits.push((limit, most));
        self
    }

    /// Makes a system call fail in the child as if the kernel did not have it.
    pub fn refuse_system_call(mut self, number: libc::c_long) -> Self {
        self.refused.push(number);
        self
    }

    /// In the parent, runs the child and passes its output to `check`. In the child, runs the body
    /// and exits if this is the requested scenario, and otherwise does nothing.
    ///
    /// # Panics
    ///
    /// If the child cannot be started, or never reaches the scenario.
    pub fn run(self, check: impl FnOnce(&Output)) {
        if let Some(running) = self.start() {
            check(&running.output());
        }
    }

    /// Runs the child, which must exit with code 0.
    ///
    /// # Panics
    ///
    /// If the exit code differs.
    pub fn succeeds(self) {
        if let Some(running) = self.start() {
            running.succeeds();
        }
    }

    /// In the parent, starts the child without waiting for it, or returns `None` if [`ONLY`]
    /// excludes the scenario. In the child, runs the body and exits if this is the requested
    /// scenario, and otherwise returns `None`.
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
        // Where memory is short, std hangs while it prints a backtrace, and the message is lost.
        command.env("RUST_BACKTRACE", "0");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let (limits, refused) = (self.limits.clone(), self.refused.clone());
        // SAFETY: the closure makes only system calls that are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                Limit::Core.set(0)?;
                limits.iter().try_for_each(|(limit, most)| limit.set(*most))?;
                refused.iter().try_for_each(|number| refuse_system_call(*number))
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("this program can be run again")
    }
}

/// A running child.
#[derive(Debug)]
struct Running {
    child: Child,
    scenario: String,
}

impl Running {
    /// Waits for the child, which must have reached its scenario.
    fn output(self) -> Output {
        let output = self.child.wait_with_output().expect("the child can be waited for");
        // With a filter that selects no test, the child would do nothing and succeed.
        let entered = String::from_utf8_lossy(&output.stdout).contains(&entry(&self.scenario));
        assert!(entered, "the child never reached {}: {}", self.scenario, describe(&output));
        output
    }

    /// Waits for the child, which must exit with code 0.
    fn succeeds(self) {
        let scenario = self.scenario.clone();
        let output = self.output();
        assert!(output.status.success(), "{scenario}: {}", describe(&output));
    }
}

/// Runs `body` in two child processes, one per backend. Both must exit with code 0.
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

/// Runs `body` as [`on_both_backends`] does, with `settings` added to the children's environment.
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

/// Runs `body` as [`on_both_backends`] does, while idle memory decays.
///
/// # Panics
///
/// If a child fails.
pub fn with_decay<F: Fn()>(body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| {
            scenario.env(DECAY, DEFAULT_DECAY).env(BACKGROUND, background())
        });
    }
}

/// Runs `body` in concurrent child processes, one for each pair of a backend and a mode of irq
/// work, while idle memory decays. Each must exit with code 0.
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

/// Runs `body` as [`on_both_backends`] does, with the children's address space limited to `bytes`.
///
/// # Panics
///
/// If a child fails.
pub fn on_both_backends_within<F: Fn()>(bytes: usize, body: F) {
    for backend in BACKENDS {
        on_backend(backend, &body, |scenario| scenario.limit(Limit::AddressSpace, bytes));
    }
}

/// Runs `body` in concurrent child processes on each backend, with pages of 16 KiB and of 64 KiB,
/// while idle memory decays. If `within` is some number of bytes, it limits the children's address
/// space.
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

/// Returns the value of [`BACKGROUND`] for scenarios amid decay.
fn background() -> String {
    env::var(HAS_BACKGROUND).unwrap_or_else(|_| "1".into())
}

fn on_backend<'a, F: Fn()>(
    backend: &str,
    body: &'a F,
    configure: impl FnOnce(Scenario<&'a F>) -> Scenario<&'a F>,
) {
    configure(Scenario::new(backend, body).env(BACKEND, backend)).succeeds();
}

/// Formats everything known about a failed child: its status and output.
#[must_use]
pub fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

/// Returns whether this is the child of a scenario. It leaves by [`process::exit`], so what its
/// test created before the scenario is never dropped.
#[must_use]
pub fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Returns the line that a child prints when it reaches its scenario.
fn entry(scenario: &str) -> String {
    format!("scenario {scenario}\n")
}

/// In the child: runs the scenario's body and exits normally, exit handlers included.
fn enter(scenario: &str, body: impl FnOnce()) -> ! {
    print!("\n{}", entry(scenario));
    let first = process::id() as libc::pid_t;
    // The harness's main thread allocates until it waits for this one. It would finish deferred
    // work that the scenario expects to be pending.
    if first != this_thread() {
        wait_until_asleep(first);
    }
    // SAFETY: `alarm` has no preconditions.
    unsafe { libc::alarm(CHILD_TIMEOUT) };
    body();
    process::exit(0)
}

/// Returns the harness's name of the function in which closure `F` is written.
fn test_name<F>() -> &'static str {
    let path = any::type_name::<F>().trim_start_matches('&');
    let function = path.split("::{{closure}}").next().unwrap_or(path);
    function.split_once("::").map_or(function, |(_program, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_type_yields_the_test_name() {
        fn name<F: Fn()>(_: &F) -> &'static str {
            test_name::<&F>()
        }
        assert_eq!(name(&|| {}), "scenario::tests::closure_type_yields_the_test_name");
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
