//! Counts how often each workload makes CPUs synchronise with each other, under Hayloft.

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;

fn main() -> ExitCode {
    bench_harness::count::main()
}
