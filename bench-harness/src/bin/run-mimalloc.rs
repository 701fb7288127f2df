//! The engine that measures mimalloc 3.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bench_harness::engine::main("mimalloc", || Some(version()))
}

/// Returns the version that the allocator reports: 30302 becomes 3.3.2.
fn version() -> String {
    let version = GLOBAL.version();
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
