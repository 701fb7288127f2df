//! The engine that measures the allocator of the C library.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() -> ExitCode {
    bench_harness::engine::main("system", bench_harness::engine::libc_version)
}
