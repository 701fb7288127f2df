//! The engine: runs one workload under the allocator that its executable installed, and prints the
//! measurement.

use std::process::ExitCode;

use crate::run::{Run, Scale};
use crate::workloads;

/// Runs an engine: the body of its `main`.
///
/// The command line is `run-<allocator> <workload> <scale>`. Prints a
/// [`Measurement`](crate::measurement::Measurement) as one line of JSON. `version` returns the
/// version of the allocator, if the allocator reports one.
pub fn main(allocator: &str, version: impl FnOnce() -> Option<String>) -> ExitCode {
    run_one(allocator, std::env::args().skip(1), version)
}

/// Does the same as [`main`], with only the workload and the scale as `arguments`. Its caller may
/// have taken others from the command line before.
pub(crate) fn run_one(
    allocator: &str,
    arguments: impl Iterator<Item = String>,
    version: impl FnOnce() -> Option<String>,
) -> ExitCode {
    let arguments: Vec<String> = arguments.collect();
    let [workload, scale] = arguments.as_slice() else {
        eprintln!("usage: run-{allocator} WORKLOAD (full | short | quick | tiny)");
        return ExitCode::from(2);
    };
    let Some(workload) = workloads::find(workload) else {
        eprintln!("no workload is called {workload}: `compare --list` lists them");
        return ExitCode::from(2);
    };
    let Some(scale) = Scale::from_name(scale) else {
        eprintln!("{scale} is not a scale: full, short, quick or tiny");
        return ExitCode::from(2);
    };

    let mut run = Run::new(scale);
    (workload.body)(&mut run);
    let measurement = run.finish(allocator, workload.name, version);
    println!("{}", serde_json::to_string(&measurement).expect("a measurement is plain data"));
    ExitCode::SUCCESS
}

/// Returns the version of the C library, for the engine that measures its allocator.
pub fn libc_version() -> Option<String> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the function returns a pointer to a constant, NUL-terminated string.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        Some(format!("glibc {}", version.to_string_lossy()))
    }
    #[cfg(not(target_env = "gnu"))]
    None
}
