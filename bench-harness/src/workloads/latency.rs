//! The duration of single operations. Each operation is timed by itself, so the times include one
//! reading of the clock.

use parking_lot::Mutex;

use super::churn::Churn;
use super::handoff::{BATCH, Role, Roles};
use crate::blocks::{Block, Fixed};
use crate::run::{LatencyRecorder, Run};

/// Times the frees and allocations of `churn-10k`.
pub(super) fn churn(run: &mut Run) {
    let count: u64 = run.pick(1_000_000, 100_000, 1000);
    let mut churn = Churn::new(42, run.pick(10_000, 10_000, 100), 1000);
    let mut recorder = LatencyRecorder::new();
    churn.replace(count);
    run.time(count, || {
        for _ in 0..count {
            let (slot, size) = churn.next();
            let new = recorder.time(|| Block::new(size));
            let old = churn.swap(slot, new);
            recorder.time(|| drop(old));
        }
    });
    run.report_latency(&recorder);
}

/// Times the allocations of one thread and the frees of the other in `handoff`.
pub(super) fn handoff(run: &mut Run) {
    let batches = run.pick(1000, 100, 2);
    let roles = Roles::new();
    let total = Mutex::new(LatencyRecorder::new());
    let body = |(role, recorder): &mut (Role, LatencyRecorder)| {
        recorder.clear();
        for _ in 0..batches {
            match role {
                Role::Producer(sender) => {
                    let batch = (0..BATCH).map(|_| recorder.time(Fixed::touched)).collect();
                    sender.send(batch).expect("the consumer waits for it");
                }
                Role::Consumer(receiver) => {
                    for block in receiver.recv().expect("the producer sends it") {
                        recorder.time(|| drop(block));
                    }
                }
            }
        }
        total.lock().merge(recorder);
    };
    let setup = |index| (roles.take(index), LatencyRecorder::new());
    run.time_threads(2, (batches * BATCH) as u64, setup, body);
    let total = total.into_inner();
    run.report_latency(&total);
}
