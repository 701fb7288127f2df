//! Counts of the work done.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use hayloft_core::heap::DeferredFrees;

use crate::draw;

/// Counts of one worker, or the sum of many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) operations: u64,
    pub(crate) allocs: u64,
    pub(crate) zeroed: u64,
    pub(crate) grown: u64,
    pub(crate) shrunk: u64,
    pub(crate) frees: u64,
    pub(crate) checks: u64,
    pub(crate) batches: u64,
    pub(crate) hand_overs: u64,
    /// Blocks freed by another thread than the one that allocated them.
    pub(crate) foreign_frees: u64,
    /// Requests answered with null.
    pub(crate) refused: u64,
    /// Bytes requested.
    pub(crate) bytes: u64,
    /// Sum over the decisions of each worker. Equal decisions give an equal sum.
    pub(crate) digest: u64,
}

impl Totals {
    /// Folds a decision into the digest.
    pub(crate) fn note(&mut self, decision: u64) {
        self.digest = draw::mix(self.digest.wrapping_add(draw::GOLDEN) ^ decision);
    }

    /// Returns the number of blocks allocated and not freed, modulo 2⁶⁴.
    pub(crate) fn live_blocks(&self) -> u64 {
        (self.allocs + self.zeroed).wrapping_sub(self.frees)
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.allocs += other.allocs;
        self.zeroed += other.zeroed;
        self.grown += other.grown;
        self.shrunk += other.shrunk;
        self.frees += other.frees;
        self.checks += other.checks;
        self.batches += other.batches;
        self.hand_overs += other.hand_overs;
        self.foreign_frees += other.foreign_frees;
        self.refused += other.refused;
        self.bytes += other.bytes;
        // Workers end in any order, and the sum must not depend on it.
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Counts of irq work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IrqCounts {
    pub(crate) queued: u64,
    pub(crate) run: u64,
    /// Requests to queue an item that was queued already.
    pub(crate) coalesced: u64,
}

/// Counts of the activities beside the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    /// Operations done by signal handlers.
    pub(crate) handler_operations: u64,
    pub(crate) handlers: u64,
    pub(crate) irq: IrqCounts,
    pub(crate) deferred: DeferredFrees,
    pub(crate) hotplug_cycles: u64,
    pub(crate) forks: u64,
    pub(crate) destroys: u64,
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) totals: Totals,
    pub(crate) events: Events,
    pub(crate) threads: u64,
    pub(crate) elapsed: Duration,
    /// Whether the digest can be compared with that of another run.
    pub(crate) repeatable: bool,
}

impl Outcome {
    /// Returns the consistency checks that failed.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &'static str> {
        let Events { irq, deferred, .. } = self.events;
        let faults = [
            (
                self.totals.live_blocks() != 0,
                "blocks were lost, or freed twice, by the program itself",
            ),
            (
                deferred.deferred != deferred.flushed,
                "deferred frees are not flushed after a barrier",
            ),
            (irq.queued != irq.run, "irq work did not run as often as it was queued"),
        ];
        faults.into_iter().filter_map(|(is_so, fault)| is_so.then_some(fault))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { operations, allocs, zeroed, grown, shrunk, frees, .. } = self.totals;
        let Totals { checks, batches, hand_overs, foreign_frees, refused, .. } = self.totals;
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "totals")?;
        writeln!(f, "  operations       {operations:>14}")?;
        writeln!(f, "  alloc            {allocs:>14}")?;
        writeln!(f, "  alloc_zeroed     {zeroed:>14}")?;
        writeln!(f, "  realloc          {:>14}  ({grown} up, {shrunk} down)", grown + shrunk)?;
        writeln!(f, "  dealloc          {frees:>14}  ({foreign_frees} from other threads)")?;
        writeln!(f, "  checks           {checks:>14}")?;
        writeln!(f, "  batches          {batches:>14}")?;
        writeln!(f, "  hand-overs       {hand_overs:>14}")?;
        writeln!(f, "  refused          {refused:>14}")?;
        writeln!(f, "  threads spawned  {:>14}", self.threads)?;
        writeln!(f, "  MiB requested    {:>14}", self.totals.bytes >> 20)?;
        writeln!(f, "  peak RSS, MiB    {:>14}", peak_rss_kib() >> 10)?;
        writeln!(f, "  operations/s     {:>14.0}", operations as f64 / seconds)?;
        if self.repeatable {
            writeln!(f, "  digest         {:>016x}", self.totals.digest)?;
        }
        let Events { handler_operations, handlers, irq, deferred, hotplug_cycles, forks, destroys } =
            self.events;
        let IrqCounts { queued, run, coalesced } = irq;
        let DeferredFrees { deferred, flushed, .. } = deferred;
        writeln!(f, "  handler ops      {handler_operations:>14}  ({handlers} signals)")?;
        writeln!(f, "  deferred frees   {deferred:>14}  ({flushed} flushed)")?;
        writeln!(f, "  irq work         {queued:>14}  ({run} run, {coalesced} coalesced)")?;
        writeln!(f, "  hotplug cycles   {hotplug_cycles:>14}")?;
        writeln!(f, "  forks            {forks:>14}")?;
        writeln!(f, "  caches destroyed {destroys:>14}")?;
        writeln!(f, "  leaks            {:>14}", self.totals.live_blocks())?;
        write!(f, "  mismatches       {:>14}", 0)
    }
}

/// Returns the peak resident memory of this process so far, in KiB.
fn peak_rss_kib() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for a write of one `rusage`.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage knows RUSAGE_SELF");
    // SAFETY: a zeroed `rusage` is valid, and the call has filled it in.
    unsafe { usage.assume_init() }.ru_maxrss as u64
}
