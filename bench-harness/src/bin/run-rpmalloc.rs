//! The engine that measures rpmalloc.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: rpmalloc::RpMalloc = rpmalloc::RpMalloc;

fn main() -> ExitCode {
    bench_harness::engine::main("rpmalloc", || None)
}
