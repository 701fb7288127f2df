//! Injected failures of system calls: `HAYLOFT_FAULT=mmap:1/100,madvise:1/3,42`.
//!
//! The setting lists calls, each with the fraction of them that fails, and optionally a seed.
//! Failing calls are chosen at random. The same seed and order of calls give the same failures.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// System calls that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Mmap,
    Munmap,
    Mprotect,
    Madvise,
    Mbind,
    Mremap,
    Membarrier,
    Rseq,
    Tgkill,
    Clone,
}

const NAMES: [(&str, Call); 10] = [
    ("mmap", Call::Mmap),
    ("munmap", Call::Munmap),
    ("mprotect", Call::Mprotect),
    ("madvise", Call::Madvise),
    ("mbind", Call::Mbind),
    ("mremap", Call::Mremap),
    ("membarrier", Call::Membarrier),
    ("rseq", Call::Rseq),
    ("tgkill", Call::Tgkill),
    ("clone", Call::Clone),
];

/// Failing calls of each kind, out of 2^32.
static RATES: [AtomicU32; NAMES.len()] = [const { AtomicU32::new(0) }; NAMES.len()];
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
    let text = super::env(c"HAYLOFT_FAULT").map(core::str::from_utf8);
    let state = match text {
        None => OFF,
        Some(text) if text.ok().and_then(parse).is_some() => ON,
        Some(_) => {
            RATES.iter().for_each(|rate| rate.store(0, Ordering::Relaxed));
            let what = format_args!("no list like mmap:1/100,madvise:1/3,42");
            super::ignored(c"HAYLOFT_FAULT", what);
            OFF
        }
    };
    // Release: pairs with the Acquire in `fails`.
    STATE.store(state, Ordering::Release);
}

fn parse(text: &str) -> Option<()> {
    for part in text.split(',') {
        if let Some((name, share)) = part.split_once(':') {
            let (_, call) = NAMES.iter().find(|(known, _)| *known == name)?;
            let (some, all) = share.split_once('/')?;
            let (some, all): (u32, u32) = (some.parse().ok()?, all.parse().ok()?);
            let rate = (u64::from(some) << 32).checked_div(all.into())?;
            // A fraction of 1 or more saturates just below 1.
            let rate = u32::try_from(rate).unwrap_or(u32::MAX);
            RATES[*call as usize].store(rate, Ordering::Relaxed);
        } else {
            RANDOM.store(part.parse().ok()?, Ordering::Relaxed);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_lists_are_parsed() {
        for wrong in ["", "mmap", "mmap:", "mmap:1", "mmap:1/0", "brk:1/2", "mmap:1/2,x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse("mmap:1/4,clone:3/2,7"), Some(()));
        assert_eq!(RATES[Call::Mmap as usize].load(Ordering::Relaxed), 1 << 30);
        assert_eq!(RATES[Call::Clone as usize].load(Ordering::Relaxed), u32::MAX);
        assert_eq!(RANDOM.load(Ordering::Relaxed), 7);
        RATES.iter().for_each(|rate| rate.store(0, Ordering::Relaxed));
    }
}
