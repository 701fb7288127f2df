//! Producer and consumer: one thread allocates, another frees.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use crate::blocks::Fixed;
use crate::engine::Run;

/// Blocks sent at once.
pub(super) const BATCH: usize = 1000;
/// Batches that may be on their way.
const DEPTH: usize = 64;

/// A batch on its way.
pub(super) type Batch = Vec<Fixed<64>>;

/// Which end of the channel a thread holds.
pub(super) enum Role {
    /// Allocates and sends.
    Producer(SyncSender<Batch>),
    /// Receives and frees.
    Consumer(Receiver<Batch>),
}

/// Both roles, to be taken by two threads.
pub(super) struct Roles(Mutex<Vec<Role>>);

impl Roles {
    /// The two ends of a new channel.
    pub(super) fn new() -> Self {
        let (sender, receiver) = sync_channel(DEPTH);
        Self(Mutex::new(vec![Role::Producer(sender), Role::Consumer(receiver)]))
    }

    /// Takes one, and pins the calling thread to the core of that index.
    pub(super) fn take(&self, index: usize) -> Role {
        if let Some(core) = core_affinity::get_core_ids().and_then(|ids| ids.get(index).copied()) {
            // A refusal leaves the thread where it is: slower, not wrong.
            core_affinity::set_for_current(core);
        }
        self.0.lock().pop().expect("two threads, two roles")
    }
}

/// Batches of a thousand blocks go from one core to the other.
pub(super) fn run(run: &mut Run) {
    let batches = run.pick(4000, 400, 2);
    let roles = Roles::new();
    let body = |role: &mut Role| match role {
        Role::Producer(sender) => {
            for _ in 0..batches {
                let batch = (0..BATCH).map(|_| Fixed::touched()).collect();
                sender.send(batch).expect("the consumer waits for it");
            }
        }
        Role::Consumer(receiver) => {
            for _ in 0..batches {
                drop(receiver.recv().expect("the producer sends it"));
            }
        }
    };
    run.time_threads(2, (batches * BATCH) as u64, |index| roles.take(index), body);
}
