//! Workloads that are not timed: they measure the memory that a process keeps.

use std::thread;
use std::time::Duration;

use crate::blocks::Fixed;
use crate::run::Run;

/// Does nothing: shows the cost of an allocator to a program that hardly allocates.
pub(super) fn idle(_: &mut Run) {}

/// Uses memory once and frees it. Does it return to the system while the process sleeps?
pub(super) fn give_back(run: &mut Run) {
    let bytes: usize = run.pick(256_000_000, 64_000_000, 64_000);
    let pause = run.pick(1000, 100, 0);
    let burst: Vec<Fixed<64>> = (0..bytes / 64).map(|_| Fixed::touched()).collect();
    drop(burst);
    thread::sleep(Duration::from_millis(pause));
}
