//! The engine that measures rusty_alloc, the other allocator written in Rust.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: rusty_alloc_api::RustyAlloc = rusty_alloc_api::RustyAlloc;

fn main() -> ExitCode {
    bench_harness::engine::main("rusty_alloc", || Some(rusty_alloc_api::VERSION.to_owned()))
}
