//! Irq work, queued by signal handlers and by irq work itself.

use std::sync::atomic::{AtomicU64, Ordering};

use hayloft_core::irq_work::IrqWork;

use crate::draw::Rng;
use crate::failure::Role;
use crate::pulse::Pulse;
use crate::totals::IrqCounts;
use crate::visit::Visit;

/// Items that run where `--irq` selects, and items that always run in the handler where there is
/// one.
static ITEMS: [IrqWork; 8] = [const { IrqWork::new(work) }; 8];
static HARD_ITEMS: [IrqWork; 8] = [const { IrqWork::new(work).hard() }; 8];

/// CPU numbers that items are queued on. Most machines have fewer CPUs; other CPUs take over the
/// items of the missing ones.
const CPUS: usize = 16;

/// Items that have run.
pub(crate) static RUN: Pulse = Pulse::new();
static QUEUED: AtomicU64 = AtomicU64::new(0);
static COALESCED: AtomicU64 = AtomicU64::new(0);

/// Queues a random item on a random CPU.
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

/// Waits until no item is queued. Nothing else may queue items meanwhile, and only one thread may
/// wait.
pub(crate) fn settle() {
    let all = || ITEMS.iter().chain(&HARD_ITEMS);
    // An item may queue another one that this loop has already waited for.
    loop {
        all().for_each(IrqWork::sync);
        if !all().any(IrqWork::is_busy) {
            break;
        }
    }
}

/// Returns the counts of items so far.
pub(crate) fn counts() -> IrqCounts {
    IrqCounts {
        queued: QUEUED.load(Ordering::Relaxed),
        run: RUN.beats(),
        coalesced: COALESCED.load(Ordering::Relaxed),
    }
}
