//! Producer and consumer: one thread allocates, another frees.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use crate::blocks::Fixed;
use crate::run::Run;

/// Blocks in a batch.
pub(super) const BATCH: usize = 1000;
/// Batches that the channel can hold.
const DEPTH: usize = 64;

/// The blocks that the producer sends at once.
pub(super) type Batch = Vec<Fixed<64>>;

/// The end of the channel that a thread holds.
pub(super) enum Role {
    /// Allocates and sends.
    Producer(SyncSender<Batch>),
    /// Receives and frees.
    Consumer(Receiver<Batch>),
}

/// Both roles, for two threads to take.
pub(super) struct Roles(Mutex<Vec<Role>>);

impl Roles {
    /// Creates a channel and holds both of its ends.
    pub(super) fn new() -> Self {
        let (sender, receiver) = sync_channel(DEPTH);
        Self(Mutex::new(vec![Role::Producer(sender), Role::Consumer(receiver)]))
    }

    /// Takes a role, and pins the calling thread to the core with index `index`.
    pub(super) fn take(&self, index: usize) -> Role {
        if let Some(core) = core_affinity::get_core_ids().and_then(|ids| ids.get(index).copied()) {
            // If the system refuses, the thread stays where it is: slower, not wrong.
            core_affinity::set_for_current(core);
        }
        self.0.lock().pop().expect("two threads, two roles")
    }
}

/// Sends batches of a thousand blocks from one core to the other.
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
