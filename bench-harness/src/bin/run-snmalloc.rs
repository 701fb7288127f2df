//! The engine that measures snmalloc.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

fn main() -> ExitCode {
    bench_harness::engine::main("snmalloc", || None)
}
