//! The command line, and the plan of a run that follows from it.

use std::fmt;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};

/// Stresses Hayloft: random sizes and alignments, every byte checked, threads that come and go.
#[derive(Debug, Parser)]
#[command(name = "stress", version)]
pub(crate) struct Options {
    /// How long to run.
    #[arg(long, default_value_t = 30, conflicts_with = "operations")]
    seconds: u64,

    /// Run this many operations per thread instead of for a time: a run that can be repeated
    /// exactly.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    operations: Option<u64>,

    /// Worker threads alive at any time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: u32,

    /// Seed of all randomness.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Largest block in bytes (lowered if `--live-mb` and `--threads` leave no room for it).
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20,
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    max_size: u64,

    /// Bound on live data, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    live_mb: u64,

    /// A run of three seconds, for continuous integration; of ten with any of the following.
    #[arg(long, conflicts_with_all = ["seconds", "operations"])]
    quick: bool,

    #[command(flatten)]
    modes: Modes,

    /// All of the above at once.
    #[arg(long)]
    all: bool,

    /// Where irq work runs, instead of where `HAYLOFT_IRQ` says.
    #[arg(long)]
    irq: Option<Irq>,
}

/// Activities beside the workers' own sequences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Args)]
pub(crate) struct Modes {
    /// Interrupt all threads by signals, whose handlers allocate, free, and queue irq work.
    #[arg(long)]
    pub(crate) signals: bool,

    /// Take CPUs offline and bring them back.
    #[arg(long)]
    pub(crate) hotplug: bool,

    /// Fork; the children allocate, too.
    #[arg(long)]
    pub(crate) fork: bool,

    /// Make, use and destroy object caches.
    #[arg(long)]
    pub(crate) caches: bool,
}

impl Modes {
    const ALL: Modes = Modes { signals: true, hotplug: true, fork: true, caches: true };

    fn any(self) -> bool {
        self != Modes::default()
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Modes { signals, hotplug, fork, caches } = *self;
        let modes =
            [(signals, "signals"), (hotplug, "hotplug"), (fork, "fork"), (caches, "caches")];
        modes.into_iter().filter(|(on, _)| *on).try_for_each(|(_, name)| write!(f, ", {name}"))
    }
}

/// Where irq work runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Irq {
    /// In the signal handlers of the CPU threads.
    Hard,
    /// In the loops of the CPU threads, except items that require the handler.
    Threaded,
    /// In the loops of the CPU threads, without any signal.
    None,
}

impl Irq {
    /// Returns the value of `HAYLOFT_IRQ`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Irq::Hard => "hard",
            Irq::Threaded => "threaded",
            Irq::None => "none",
        }
    }
}

/// The end of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// After a time.
    Time(Duration),
    /// After this many operations in each thread.
    Operations(u64),
}

/// Everything that determines a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) threads: u32,
    pub(crate) length: Length,
    /// Size of the largest block, in bytes.
    pub(crate) max_size: usize,
    /// Bound on the bytes that one worker keeps.
    pub(crate) worker_bytes: usize,
    /// Number of exchange slots.
    pub(crate) slots: usize,
    /// Bound on the bytes in one exchange slot.
    pub(crate) slot_bytes: usize,
    pub(crate) modes: Modes,
    pub(crate) irq: Option<Irq>,
}

impl Options {
    /// Returns the plan of the run. Splits the bound on live data: half goes to the workers and a
    /// quarter to the exchange slots. The rest is for blocks on their way from a slot to the thread
    /// that frees them.
    pub(crate) fn plan(&self) -> Plan {
        let threads = self.threads as usize;
        let slots = 2 * threads;
        let live = (self.live_mb as usize) << 20;
        let worker_bytes = live / 2 / threads;
        let modes = if self.all { Modes::ALL } else { self.modes };
        Plan {
            seed: self.seed,
            threads: self.threads,
            length: match self.operations {
                Some(operations) => Length::Operations(operations),
                None if self.quick && modes.any() => Length::Time(Duration::from_secs(10)),
                None if self.quick => Length::Time(Duration::from_secs(3)),
                None => Length::Time(Duration::from_secs(self.seconds)),
            },
            max_size: (self.max_size as usize).min(worker_bytes / 4).max(1),
            worker_bytes,
            slots,
            slot_bytes: live / 4 / slots,
            modes,
            irq: self.irq,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stress: seed {}, {} threads, ", self.seed, self.threads)?;
        match self.length {
            Length::Time(time) => write!(f, "{} s, ", time.as_secs())?,
            Length::Operations(operations) => write!(f, "{operations} operations each, ")?,
        }
        let live = (self.worker_bytes * self.threads as usize + self.slot_bytes * self.slots) >> 20;
        write!(f, "blocks up to {} bytes, at most {live} MiB at rest", self.max_size)?;
        self.modes.fmt(f)?;
        self.irq.map_or(Ok(()), |irq| write!(f, ", irq work {}", irq.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn modes_combine() {
        let modes = |arguments: &[&str]| Options::parse_from(arguments).plan().modes;
        assert!(!modes(&["stress"]).any());
        let two = modes(&["stress", "--fork", "--signals"]);
        assert_eq!(two.to_string(), ", signals, fork");
        assert_eq!(modes(&["stress", "--all", "--fork"]), Modes::ALL);
    }

    #[test]
    fn many_threads_lower_the_largest_block() {
        let options = Options::parse_from(["stress", "--threads", "64", "--live-mb", "64"]);
        let plan = options.plan();
        assert_eq!(plan.worker_bytes, 512 << 10);
        assert_eq!(plan.max_size, 128 << 10);
    }
}
