//! The grammar of `HAYLOFT_FAULT`: a list of system calls, each with the fraction of them that
//! fails, and optionally a seed, as `mmap:1/100,madvise:1/3,42`.

use crate::variants::enumerated;

enumerated! {
    /// System calls that can be made to fail.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Call {
        Mmap => "mmap",
        Munmap => "munmap",
        Mprotect => "mprotect",
        Madvise => "madvise",
        Mbind => "mbind",
        Mremap => "mremap",
        Membarrier => "membarrier",
        Rseq => "rseq",
        Tgkill => "tgkill",
        Clone => "clone",
    }
}

/// The value of `HAYLOFT_FAULT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Faults {
    /// Failing calls of each kind, out of 2^32.
    pub(crate) rates: [u32; Faults::CALLS],
    pub(crate) seed: u64,
}

impl Faults {
    /// Number of calls.
    pub(crate) const CALLS: usize = Call::ALL.len();

    /// Parses a list. Returns `None` if it is invalid.
    pub(super) fn parse(text: &str) -> Option<Faults> {
        let mut faults = Faults { rates: [0; Faults::CALLS], seed: 0 };
        for part in text.split(',') {
            if let Some((name, share)) = part.split_once(':') {
                let call = Call::ALL.into_iter().find(|call| call.name() == name)?;
                let (some, all) = share.split_once('/')?;
                let (some, all): (u32, u32) = (some.parse().ok()?, all.parse().ok()?);
                let rate = (u64::from(some) << 32).checked_div(all.into())?;
                // A fraction of 1 or more saturates just below 1.
                faults.rates[call as usize] = u32::try_from(rate).unwrap_or(u32::MAX);
            } else {
                faults.seed = part.parse().ok()?;
            }
        }
        Some(faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_lists_are_parsed() {
        let parse = Faults::parse;
        for wrong in ["", "mmap", "mmap:", "mmap:1", "mmap:1/0", "brk:1/2", "mmap:1/2,x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let faults = parse("mmap:1/4,clone:3/2,7").unwrap();
        assert_eq!(faults.rates[Call::Mmap as usize], 1 << 30);
        assert_eq!(faults.rates[Call::Clone as usize], u32::MAX);
        assert_eq!(faults.rates.iter().filter(|rate| **rate > 0).count(), 2);
        assert_eq!(faults.seed, 7);
    }
}
