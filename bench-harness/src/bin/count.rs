//! Counts how often each workload makes CPUs synchronise with each other, under Hayloft.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

fn main() -> ExitCode {
    bench_harness::count::main()
}
