//! Records the requests that a workload makes to its allocator.

use std::process::ExitCode;

use bench_harness::simulate::record::{self, Recorder};

#[global_allocator]
static GLOBAL: Recorder = Recorder;

fn main() -> ExitCode {
    record::main()
}
