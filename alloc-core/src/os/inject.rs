//! Injected failures of system calls: `HAYLOFT_FAULT=mmap:1/100,madvise:1/3,42`.
//!
//! Failing calls are chosen at random. The same seed and order of calls give the same failures.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) use crate::settings::Call;
use crate::settings::{self, Faults};

/// Failing calls of each kind, out of 2^32.
static RATES: [AtomicU32; Faults::CALLS] = [const { AtomicU32::new(0) }; Faults::CALLS];
static RANDOM: AtomicU64 = AtomicU64::new(0);

static STATE: AtomicU32 = AtomicU32::new(UNREAD);
const UNREAD: u32 = 0;
const OFF: u32 = 1;
const ON: u32 = 2;

/// Returns whether this system call must fail.
#[inline]
pub(super) fn fails(call: Call) -> bool {
    // Acquire: pairs with the Release in `read`.
    STATE.load(Ordering::Acquire) != OFF && fails_by_chance(call)
}

#[cold]
fn fails_by_chance(call: Call) -> bool {
    if STATE.load(Ordering::Relaxed) == UNREAD {
        read();
        return fails(call);
    }
    let rate = RATES[call as usize].load(Ordering::Relaxed);
    // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators").
    let mut word = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) as u32) < rate
}

#[cold]
fn read() {
    let faults = settings::faults();
    if let Some(faults) = faults {
        for (to, rate) in RATES.iter().zip(faults.rates) {
            to.store(rate, Ordering::Relaxed);
        }
        RANDOM.store(faults.seed, Ordering::Relaxed);
    }
    // Release: pairs with the Acquire in `fails`.
    STATE.store(if faults.is_some() { ON } else { OFF }, Ordering::Release);
}
