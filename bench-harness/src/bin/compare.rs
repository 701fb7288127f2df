//! Measures Hayloft against mimalloc, the system allocator and other peers. See `compare --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bench_harness::compare::main()
}
