//! Irq work, queued by handlers, and by irq work itself.

use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::irq_work::IrqWork;

use crate::draw::Rng;
use crate::failure::Role;
use crate::pulse::Pulse;
use crate::visit::Visit;

/// Items that run where `--irq` says, and items that run in the handler wherever there is one.
static ITEMS: [IrqWork; 8] = [const { IrqWork::new(work) }; 8];
static HARD_ITEMS: [IrqWork; 8] = [const { IrqWork::new(work).hard() }; 8];

/// CPUs that items are queued on: more than most machines have, as others take over.
const CPUS: usize = 16;

/// Items run.
pub(crate) static RUN: Pulse = Pulse::new();
static QUEUED: AtomicU64 = AtomicU64::new(0);
static COALESCED: AtomicU64 = AtomicU64::new(0);

/// What became of items so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) queued: u64,
    pub(crate) run: u64,
    /// Asked to be queued while they were queued already.
    pub(crate) coalesced: u64,
}

/// Queues some item on some CPU.
pub(crate) fn queue(rng: &mut Rng) {
    let items = if rng.below(2) == 0 { &ITEMS } else { &HARD_ITEMS };
    let item = &items[rng.below(items.len())];
    let queued = match rng.below(2) {
        0 => item.queue(),
        _ => item.queue_on(rng.below(CPUS)),
    };
    let counter = if queued { &QUEUED } else { &COALESCED };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn work(_: &IrqWork) {
    let mut visit = Visit::new(Role::IrqWork, 0, 0);
    visit.run();
    if visit.rng.below(8) == 0 {
        queue(&mut visit.rng);
    }
    RUN.beat();
}

/// Waits until nothing is queued, while nobody else queues anything. For one thread at a time.
pub(crate) fn settle() {
    let all = || ITEMS.iter().chain(&HARD_ITEMS);
    // An item may queue another that was waited for already.
    loop {
        all().for_each(IrqWork::sync);
        if !all().any(IrqWork::is_busy) {
            break;
        }
    }
}

/// What became of all items so far.
pub(crate) fn counts() -> Counts {
    Counts {
        queued: QUEUED.load(Ordering::Relaxed),
        run: RUN.beats(),
        coalesced: COALESCED.load(Ordering::Relaxed),
    }
}
