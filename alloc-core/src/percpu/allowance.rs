//! The allowance of a CPU: bytes of middle sizes that may enter its sheaves before these are
//! checked.
//!
//! An object that enters a sheaf spends its size, and one that leaves refunds it. `objects` checks
//! the sheaves of a CPU that has used up its allowance, and sets the next allowance. The word lies
//! in the region of its CPU. All accesses are Relaxed, as it only suggests when to check.

use core::sync::atomic::{AtomicU64, Ordering};

use super::layout::ALLOWANCE_OFFSET;
use super::region::{cpu, region_of};
use crate::arch;

/// Takes `bytes`, the size of an object that entered a sheaf, from this CPU's allowance for middle
/// sizes. Returns whether the allowance is used up.
#[inline(always)]
pub(crate) fn spend(bytes: usize) -> bool {
    allowance_of(cpu()).is_some_and(|word| {
        arch::add(word, (bytes as u64).wrapping_neg());
        // A guess if the thread has moved to another CPU.
        word.load(Ordering::Relaxed).cast_signed() < 0
    })
}

/// Returns `bytes`, the size of an object that left a sheaf, to this CPU's allowance.
#[inline(always)]
pub(crate) fn refund(bytes: usize) {
    if let Some(word) = allowance_of(cpu()) {
        arch::add(word, bytes as u64);
    }
}

/// Sets the allowance of a CPU, in bytes.
pub(crate) fn set_allowance(cpu: usize, bytes: usize) {
    if let Some(word) = allowance_of(cpu) {
        word.store(bytes as u64, Ordering::Relaxed);
    }
}

/// Returns the word with a CPU's allowance, if the CPU has sheaves.
#[inline(always)]
fn allowance_of(cpu: usize) -> Option<&'static AtomicU64> {
    // SAFETY: the word lies in the CPU's region and is only accessed as an atomic.
    region_of(cpu).map(|base| unsafe { &*base.add(ALLOWANCE_OFFSET).cast::<AtomicU64>() })
}
