//! An hour of a long-running service in simulated time: blocks with lifetimes from less than a
//! second to an hour, whose sizes drift. It shows how much memory fragmentation costs.

use std::ptr::NonNull;

use super::herd::{Chain, Link};
use super::mix::{BUFFERS, Mix, RECORDS, SMALL};
use crate::prng::Prng;
use crate::run::{LatencyRecorder, Run};

/// Lifetimes in simulated seconds, with the percentage of blocks in each range. Within a range
/// every octave is equally likely; 0 means freed within the same second.
const LIVES: [(usize, (usize, usize)); 5] =
    [(60, (0, 0)), (25, (1, 8)), (10, (8, 64)), (4, (64, 1024)), (1, (1024, 4096))];

/// The kinds of blocks, with the percentage of blocks of each: 840 B on average.
const KINDS: [(usize, &Mix); 3] = [(94, &SMALL), (5, &RECORDS), (1, &BUFFERS)];

/// Sizes relative to those of the mixes, in percent, for equal parts of the hour. Holes that blocks
/// of one part leave fit no blocks of the next.
const DRIFT: [usize; 6] = [100, 130, 80, 160, 90, 120];

/// The blocks of the service, by the simulated second in which they die.
struct Hour {
    calendar: Vec<Chain>,
    prng: Prng,
}

impl Hour {
    fn new(seconds: usize) -> Self {
        Self { calendar: (0..seconds).map(|_| Chain::default()).collect(), prng: Prng::new(73) }
    }

    /// Simulates the hour with `rate` allocations per second. Blocks that outlive it stay.
    fn pass(
        &mut self,
        rate: usize,
        mut allocate: impl FnMut(usize) -> NonNull<Link>,
        mut free: impl FnMut(NonNull<Link>),
    ) {
        let seconds = self.calendar.len();
        for now in 0..seconds {
            let drift = DRIFT[now * DRIFT.len() / seconds];
            for _ in 0..rate {
                let size = (self.size() * drift / 100).next_multiple_of(8).max(16);
                let dies = now + self.life();
                let link = allocate(size);
                // The last second's chain takes the survivors, and is not freed.
                self.calendar[dies.min(seconds - 1)].link(link);
            }
            while now + 1 < seconds
                && let Some(link) = self.calendar[now].unlink()
            {
                free(link);
            }
        }
    }

    /// Frees all blocks that are left.
    fn end(&mut self, mut free: impl FnMut(NonNull<Link>)) {
        for chain in &mut self.calendar {
            while let Some(link) = chain.unlink() {
                free(link);
            }
        }
    }

    fn size(&mut self) -> usize {
        self.prng.weighted(KINDS).size(&mut self.prng)
    }

    fn life(&mut self) -> usize {
        match self.prng.weighted(LIVES) {
            (_, 0) => 0,
            (shortest, longest) => self.prng.geometric(shortest, longest),
        }
    }
}

/// Returns the simulated seconds, and the allocations in each.
fn extent(run: &Run) -> (usize, usize) {
    run.pick((3600, 6000), (3600, 600), (60, 10))
}

/// Watches the memory of the hour. The end is reached with all survivors live.
pub(in super::super) fn memory(run: &mut Run) {
    let (seconds, rate) = extent(run);
    run.watch(|gauge| {
        let mut hour = Hour::new(seconds);
        let free = |link| {
            // SAFETY: `allocate` made the block, and it was just unlinked.
            gauge.shrank(unsafe { Link::free(link) });
        };
        let allocate = |size| {
            gauge.grew(size);
            Link::allocate(size)
        };
        hour.pass(rate, allocate, free);
        gauge.mark_end();
        hour.end(free);
    });
}

/// Times the operations of the hour one by one. An allocation includes writing the block, since
/// that is when the kernel provides its pages.
pub(in super::super) fn latency(run: &mut Run) {
    let (seconds, rate) = extent(run);
    let rate = rate / 10;
    let recorder = std::cell::RefCell::new(LatencyRecorder::new());
    let mut hour = Hour::new(seconds);
    let free = |link| {
        // SAFETY: `allocate` made the block, and it was just unlinked.
        recorder.borrow_mut().time(|| unsafe { Link::free(link) });
    };
    let allocate = |size| recorder.borrow_mut().time(|| Link::allocate(size));
    run.time_once((seconds * rate) as u64, || hour.pass(rate, allocate, free));
    hour.end(free);
    run.report_latency(&recorder.into_inner());
}
