//! The table of all settings. How values are checked, what warnings say, and the names that exist
//! come from it. A test compares the documentation with it.

use super::parse;
use crate::variants::enumerated;

/// A setting.
#[derive(Debug)]
pub struct Setting {
    /// Name of its environment variable.
    pub name: &'static str,
    /// Phrase that says what it is for.
    pub meaning: &'static str,
    /// What is in force without it.
    pub default: &'static str,
    /// Values that it accepts.
    pub accepted: &'static str,
    /// How its values are parsed.
    pub(super) kind: Kind,
}

enumerated! {
    /// The position of a setting in [`TABLE`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Name {
        Backend,
        Background,
        DecayMs,
        Fault,
        Guard,
        Irq,
        IrqSignal,
        Leaks,
        Limit,
        PageSize,
        Pressure,
        Profile,
        Stats,
        StatsShm,
        Sysfs,
        Thp,
        Verbose,
    }
}

/// The prefix of the name of every variable.
pub(super) const PREFIX: &str = "HAYLOFT_";

/// Maximum bytes of a name.
pub(super) const LONGEST_NAME: usize = 24;

/// Default of `HAYLOFT_DECAY_MS`. No measured workload takes more time than with 1000, and `git gc`
/// needs a tenth less memory.
pub(crate) const DEFAULT_DECAY_MS: u32 = match parse::number(Name::DecayMs.setting().default) {
    Some(number) => number as u32,
    None => panic!("the default is a number"),
};

/// The settings, sorted by name.
pub static TABLE: [Setting; Name::ALL.len()] = [
    Setting {
        name: "HAYLOFT_BACKEND",
        meaning: "how sheaves are operated",
        default: "rseq, where the kernel has it",
        accepted: "rseq, fallback",
        kind: Kind::Words(&["rseq", "fallback"]),
    },
    Setting {
        name: "HAYLOFT_BACKGROUND",
        meaning: "which programs have a thread that decommits idle memory",
        default: "those with several threads or 256 MiB",
        accepted: "0, 1",
        kind: Kind::Words(&["0", "1"]),
    },
    Setting {
        name: "HAYLOFT_DECAY_MS",
        meaning: "milliseconds that memory may stay idle before it returns to the system",
        default: "300",
        accepted: "0 to 3600000",
        kind: Kind::Number { least: 0, most: 60 * 60 * 1000 },
    },
    Setting {
        name: "HAYLOFT_FAULT",
        meaning: "for tests: system calls to fail",
        default: "none",
        accepted: "as mmap:1/100,madvise:1/3,42: of mmap, munmap, mprotect, madvise, mbind, mremap, \
                   membarrier, rseq, tgkill, clone; the last number is a seed",
        kind: Kind::Faults,
    },
    Setting {
        name: "HAYLOFT_GUARD",
        meaning: "one allocation in this many is guarded against overflows and use after free",
        default: "0, none",
        accepted: "0 to 1000000000",
        kind: Kind::Number { least: 0, most: 1_000_000_000 },
    },
    Setting {
        name: "HAYLOFT_IRQ",
        meaning: "how the CPU's thread runs work that was queued for a CPU",
        default: "hard",
        accepted: "hard, threaded, none",
        kind: Kind::Words(&["hard", "threaded", "none"]),
    },
    Setting {
        name: "HAYLOFT_IRQ_SIGNAL",
        meaning: "the signal for irq work",
        default: "the highest that is free",
        accepted: "a real-time signal: 34 to 64 with glibc, 35 to 64 with musl",
        kind: Kind::RealtimeSignal,
    },
    Setting {
        name: "HAYLOFT_LEAKS",
        meaning: "what is still in use when the program ends",
        default: "none",
        accepted: "stderr or 1, stdout, fd:NUMBER for an open file, or a path with %p for the \
                   process id; then ,mean=BYTES between samples, 512K by default; ,reachable=1; \
                   ,suppress=FILE",
        kind: Kind::Leaks,
    },
    Setting {
        name: "HAYLOFT_LIMIT",
        meaning: "the most memory to hold",
        default: "none",
        accepted: "[SOFT:]HARD, in bytes or with K, M, G, T, as 512M, 512MiB (the same) or \
                   400M:512M; HARD from 1M on; SOFT is 7/8 of HARD by default",
        kind: Kind::Limit,
    },
    Setting {
        name: "HAYLOFT_PAGE_SIZE",
        meaning: "for tests: pretend that pages have this size",
        default: "the system's",
        accepted: "a power of two from the system's to 65536",
        kind: Kind::PageSize,
    },
    Setting {
        name: "HAYLOFT_PRESSURE",
        meaning: "whether all idle memory returns when memory is short",
        default: "1",
        accepted: "0, 1, an absolute path",
        kind: Kind::FlagOrPath,
    },
    Setting {
        name: "HAYLOFT_PROFILE",
        meaning: "heap profiles when the program ends, at intervals, or at a signal",
        default: "none",
        accepted: "a path with %p for the process id, stdout, or fd:NUMBER for an open file; then \
                   ,mean=BYTES between samples, 512K by default; ,growth; ,every=SECONDS; \
                   ,signal=NUMBER",
        kind: Kind::Profile,
    },
    Setting {
        name: "HAYLOFT_STATS",
        meaning: "statistics when the program ends, at intervals, or at a signal",
        default: "none",
        accepted: "stderr or 1, stdout, fd:NUMBER for an open file, or a path with %p for the \
                   process id; then ,slabinfo, ,table, ,openmetrics or ,json; ,every=SECONDS; \
                   ,signal=NUMBER",
        kind: Kind::Reports,
    },
    Setting {
        name: "HAYLOFT_STATS_SHM",
        meaning: "show statistics to hayloft-top",
        default: "0",
        accepted: "0, 1",
        kind: Kind::Words(&["0", "1"]),
    },
    Setting {
        name: "HAYLOFT_SYSFS",
        meaning: "for tests: the directory that the nodes are read from",
        default: "/sys",
        accepted: "a directory",
        kind: Kind::Directory,
    },
    Setting {
        name: "HAYLOFT_THP",
        meaning: "when to request huge pages",
        default: "auto",
        accepted: "auto, always, never",
        kind: Kind::Words(&["auto", "always", "never"]),
    },
    Setting {
        name: "HAYLOFT_VERBOSE",
        meaning: "at the start, a line with the version, the backend, the limit and the settings",
        default: "0",
        accepted: "0, 1",
        kind: Kind::Words(&["0", "1"]),
    },
];

/// What a program decides for itself: whether variables of its environment count. There is no such
/// variable, so it has no row in the table.
pub(super) static ENVIRONMENT: Setting = Setting {
    name: "HAYLOFT_ENVIRONMENT",
    meaning: "whether the variables of the environment count",
    default: "1",
    accepted: "0, 1",
    kind: Kind::Words(&["0", "1"]),
};

/// How the values of a setting are parsed.
#[derive(Debug)]
pub(super) enum Kind {
    Words(&'static [&'static str]),
    Number {
        least: u64,
        most: u64,
    },
    RealtimeSignal,
    Limit,
    PageSize,
    FlagOrPath,
    /// Any text: only reading the directory shows whether it is right.
    Directory,
    Reports,
    Profile,
    Leaks,
    Faults,
}

impl Name {
    /// Returns the row of the table.
    pub(super) const fn setting(self) -> &'static Setting {
        &TABLE[self as usize]
    }
}

impl Setting {
    /// Returns whether a program sets it by `name`: the name of the variable without the prefix, in
    /// lower case.
    pub(super) const fn has_own_name(&self, name: &[u8]) -> bool {
        let (mut name, mut known) = (name, self.name.as_bytes().split_at(PREFIX.len()).1);
        while let ([first, rest @ ..], [letter, known_rest @ ..]) = (name, known) {
            if *first != letter.to_ascii_lowercase() {
                return false;
            }
            (name, known) = (rest, known_rest);
        }
        name.is_empty() && known.is_empty()
    }

    /// Returns the setting that a program sets by `name`.
    pub(super) const fn of_own_name(name: &[u8]) -> Option<&'static Setting> {
        if ENVIRONMENT.has_own_name(name) {
            return Some(&ENVIRONMENT);
        }
        let mut settings: &[Setting] = &TABLE;
        while let [setting, rest @ ..] = settings {
            if setting.has_own_name(name) {
                return Some(setting);
            }
            settings = rest;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    #[test]
    fn names_are_sorted_and_short() {
        assert!(TABLE.is_sorted_by_key(|setting| setting.name));
        assert!(TABLE.iter().all(|setting| setting.name.starts_with(PREFIX)));
        assert!(TABLE.iter().all(|setting| setting.name.len() <= LONGEST_NAME));
    }

    #[test]
    fn positions_match_the_table() {
        for name in Name::ALL {
            let mut expected = String::from("HAYLOFT");
            for letter in format!("{name:?}").chars() {
                expected.extend(letter.is_uppercase().then_some('_'));
                expected.push(letter.to_ascii_uppercase());
            }
            assert_eq!(name.setting().name, expected);
        }
    }

    #[test]
    fn programs_use_lower_case() {
        for setting in TABLE.iter().chain([&ENVIRONMENT]) {
            let name = setting.name.trim_start_matches(PREFIX).to_ascii_lowercase();
            assert!(
                Setting::of_own_name(name.as_bytes())
                    .is_some_and(|found| found.name == setting.name)
            );
        }
        for unknown in [&b""[..], b"limi", b"limits", b"LIMIT", b"HAYLOFT_LIMIT", b"stats_"] {
            assert!(Setting::of_own_name(unknown).is_none(), "{unknown:?}");
        }
    }
}
