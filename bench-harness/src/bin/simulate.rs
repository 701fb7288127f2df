//! Simulates the allocator's paths between CPUs on a machine that has more of them.

use std::process::ExitCode;

fn main() -> ExitCode {
    bench_harness::simulate::main()
}
