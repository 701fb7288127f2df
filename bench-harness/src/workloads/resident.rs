//! Workloads that are not timed: how much memory a process keeps.

use std::thread;
use std::time::Duration;

use crate::blocks::Fixed;
use crate::engine::Run;

/// What an allocator costs a program that hardly allocates.
pub(super) fn idle(_: &mut Run) {}

/// Memory that was used once and freed: is it given back to the system while the process sleeps?
pub(super) fn give_back(run: &mut Run) {
    let bytes: usize = run.pick(256_000_000, 64_000_000, 64_000);
    let pause = run.pick(1000, 100, 0);
    let burst: Vec<Fixed<64>> = (0..bytes / 64).map(|_| Fixed::touched()).collect();
    drop(burst);
    thread::sleep(Duration::from_millis(pause));
}
