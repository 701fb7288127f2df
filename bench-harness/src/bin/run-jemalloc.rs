//! The engine that measures jemalloc.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    bench_harness::engine::main("jemalloc", version)
}

/// Returns the version that the allocator reports, without the commit: "5.3.1-0-g81034ce" becomes
/// 5.3.1.
fn version() -> Option<String> {
    let version = tikv_jemalloc_ctl::version::read().ok()?;
    version.split('-').next().map(str::to_owned)
}
