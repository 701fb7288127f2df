//! Helpers of the library's tests: building the library, compiling programs, and running them with
//! it.
//!
//! The library is never linked into a test. It is built in the release profile, as for use, and
//! preloaded into or linked with the programs.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder of the package.
pub(crate) const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");
/// The folder for files of the tests.
pub(crate) const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");

/// The backends to force in turn.
pub(crate) const BACKENDS: [&str; 2] = ["rseq", "fallback"];

/// Runs a command, which must succeed, and returns its output.
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

/// Runs a command, which must succeed, and returns its standard output as text.
pub(crate) fn text_of(command: &mut Command) -> String {
    String::from_utf8(output_of(command).stdout).expect("the output is text")
}

/// Builds the library once, and returns the folder with `libhayloft.so` and `libhayloft.a`.
pub(crate) fn libraries() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| build("preload", ""))
}

/// Builds the library with `features` in the target folder `name`, and returns the folder with the
/// library.
pub(crate) fn build(name: &str, features: &str) -> PathBuf {
    let target = format!("{FOLDER}/{name}");
    output_of(
        Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--package", "libhayloft"])
            .args(["--features", features, "--target-dir", &target])
            .current_dir(PACKAGE)
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("RUSTFLAGS"),
    );
    Path::new(&target).join("release")
}

/// Returns whether `program` is installed. If not, reports that the tests with it are skipped.
pub(crate) fn is_installed(program: &str) -> bool {
    let is_installed = Command::new(program).arg("--version").output().is_ok();
    if !is_installed {
        skipped(&format!("tests with {program}"), "it is not installed");
    }
    is_installed
}

/// Reports that `what` is not tested, and why. Writes past the capture of test output, so that the
/// report is always visible.
pub(crate) fn skipped(what: &str, why: &str) {
    // If standard error is closed, only this report is lost.
    let _ = writeln!(io::stderr(), "skipped: {what}: {why}");
}

/// Compiles `tests/c/SOURCE` to an executable named `name`, and returns its path.
pub(crate) fn compile<I: AsRef<OsStr>>(
    compiler: &str,
    source: &str,
    name: &str,
    arguments: impl IntoIterator<Item = I>,
) -> PathBuf {
    let program = PathBuf::from(format!("{FOLDER}/{name}"));
    output_of(
        Command::new(compiler)
            // Builtins would let the compiler remove calls of `malloc`.
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-pthread"])
            .args(["-I".as_ref(), Path::new(PACKAGE).join("include").as_os_str()])
            .arg(Path::new(PACKAGE).join("tests/c").join(source))
            .args(["-o".as_ref(), program.as_os_str()])
            .args(arguments),
    );
    program
}

/// Returns a command that runs `program` on `backend`, with the library preloaded.
pub(crate) fn preloaded(program: impl AsRef<OsStr>, backend: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", libraries().join("libhayloft.so")).env("HAYLOFT_BACKEND", backend);
    command
}
