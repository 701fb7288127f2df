//! What was done, counted.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

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
    /// A sum over what each worker decided: the same for the same decisions.
    pub(crate) digest: u64,
}

impl Totals {
    /// Folds a decision into the digest.
    pub(crate) fn note(&mut self, decision: u64) {
        self.digest = draw::mix(self.digest.wrapping_add(draw::GOLDEN) ^ decision);
    }

    /// Blocks allocated and not freed, modulo 2⁶⁴.
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
        // Workers end in any order, so the sum must not depend on it.
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) totals: Totals,
    pub(crate) threads: u64,
    pub(crate) elapsed: Duration,
    /// Whether the digest can be compared with that of another run.
    pub(crate) repeatable: bool,
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
        writeln!(f, "  live blocks      {:>14}", self.totals.live_blocks())?;
        write!(f, "  mismatches       {:>14}", 0)
    }
}

/// The largest resident set of this process so far, in KiB.
fn peak_rss_kib() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for a write of one `rusage`.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage knows RUSAGE_SELF");
    // SAFETY: zeroed is a valid `rusage`, and the call has filled it in.
    unsafe { usage.assume_init() }.ru_maxrss as u64
}
