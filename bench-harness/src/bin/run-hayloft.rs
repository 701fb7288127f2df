//! The engine that measures Hayloft.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

fn main() -> ExitCode {
    bench_harness::engine::main("hayloft", || Some(env!("CARGO_PKG_VERSION").to_owned()))
}
