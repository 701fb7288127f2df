//! What the tests of the library share: how it is built, how programs are compiled, and run with it.
//!
//! The library is never linked into a test: it is built in the profile in which it is used, and preloaded.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The package.
pub(crate) const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");
/// Where tests may leave files.
pub(crate) const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");

/// The backends that are forced in turn.
pub(crate) const BACKENDS: [&str; 2] = ["rseq", "fallback"];

/// Runs a command that must succeed; its output.
pub(crate) fn output_of(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command that must succeed writes, as text.
pub(crate) fn text_of(command: &mut Command) -> String {
    String::from_utf8(output_of(command).stdout).expect("the output is text")
}

/// Builds the library; the folder in which `libhayloft.so` and `libhayloft.a` are.
pub(crate) fn libraries() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| build("preload", ""))
}

/// Builds the library with features, in a folder `name`; where it is.
pub(crate) fn build(name: &str, features: &str) -> PathBuf {
    let target = format!("{FOLDER}/{name}");
    output_of(
        Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--package", "preload"])
            .args(["--features", features, "--target-dir", &target])
            .current_dir(PACKAGE)
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("RUSTFLAGS"),
    );
    Path::new(&target).join("release")
}

/// Whether there is such a program; says so if there is none, for what is left out then.
pub(crate) fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skipped(&format!("what takes {program}"), "it is not installed");
    }
    there
}

/// Says what is not tested here, and why: past what captures the output of a test, so that everybody sees it.
pub(crate) fn skipped(what: &str, why: &str) {
    // Who sees nothing of it misses nothing else.
    let _ = writeln!(io::stderr(), "skipped: {what}: {why}");
}

/// Compiles `tests/c/SOURCE` to an executable of the name `name`.
pub(crate) fn compile<I: AsRef<OsStr>>(
    compiler: &str,
    source: &str,
    name: &str,
    arguments: impl IntoIterator<Item = I>,
) -> PathBuf {
    let program = PathBuf::from(format!("{FOLDER}/{name}"));
    output_of(
        Command::new(compiler)
            // What the compiler knows of `malloc` it shall not use to leave calls out.
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-pthread"])
            .args(["-I".as_ref(), Path::new(PACKAGE).join("include").as_os_str()])
            .arg(Path::new(PACKAGE).join("tests/c").join(source))
            .args(["-o".as_ref(), program.as_os_str()])
            .args(arguments),
    );
    program
}

/// A command that runs a program with the library preloaded, on a backend.
pub(crate) fn preloaded(program: impl AsRef<OsStr>, backend: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", libraries().join("libhayloft.so")).env("HAYLOFT_BACKEND", backend);
    command
}
