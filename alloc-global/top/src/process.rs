//! Processes that show their statistics, and their names.

use std::fmt;
use std::time::Duration;

use hayloft::report;
use procfs::{Current as _, Uptime};

/// A process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) number: u32,
    /// Name, as far as the kernel keeps it.
    pub(crate) name: String,
    /// Command with all arguments.
    command: String,
}

impl Process {
    /// Returns the process with a number. Its names are empty if it has ended.
    pub(crate) fn of(number: u32) -> Process {
        let found =
            i32::try_from(number).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
        let name = found.as_ref().and_then(|found| found.stat().ok()).map(|stat| stat.comm);
        let command = found.and_then(|found| found.cmdline().ok()).map(|words| words.join(" "));
        Process {
            number,
            name: printable(&name.unwrap_or_default()),
            command: printable(&command.unwrap_or_default()),
        }
    }

    /// Returns the age of the process, or `None` if it has ended.
    pub(crate) fn age(&self) -> Option<Duration> {
        let found = procfs::process::Process::new(i32::try_from(self.number).ok()?).ok()?;
        let began = found.stat().ok()?.starttime as f64 / procfs::ticks_per_second() as f64;
        Duration::try_from_secs_f64(Uptime::current().ok()?.uptime - began).ok()
    }
}

impl fmt::Display for Process {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = if self.command.is_empty() { &self.name } else { &self.command };
        write!(to, "{:>8}  {command}", self.number)
    }
}

/// Returns all processes that show their statistics, except this one.
pub(crate) fn all() -> Vec<Process> {
    let others = |number: &u32| *number != std::process::id();
    report::processes().into_iter().filter(others).map(Process::of).collect()
}

/// Replaces control characters, which could affect a terminal: processes choose their own names.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_has_a_name_and_an_age() {
        let process = Process::of(std::process::id());
        assert!(process.name.starts_with("hayloft_top"), "{process:?}");
        assert!(process.to_string().contains("hayloft_top-"), "{process}");
        assert!(process.age().is_some());
        assert_eq!(Process::of(u32::MAX).age(), None);
        assert_eq!(Process::of(u32::MAX).name, "");
    }

    #[test]
    fn control_characters_in_names_are_replaced() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}é"), "a?[2Jb?é");
    }
}
