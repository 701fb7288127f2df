//! The machine that measured, as far as it affects the numbers.

use std::fs;
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

/// The facts about a machine that a reader needs to judge a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor, by the name that it reports.
    pub cpu: String,
    /// Number of CPUs that this process may use.
    pub cpus: usize,
    /// Governor of their frequency, such as `performance` or `schedutil`; `unknown` in most virtual
    /// machines.
    pub governor: String,
    /// Release of the kernel, without the suffix of its distributor.
    pub kernel: String,
    /// Installed memory, in MiB.
    pub memory_mib: u64,
    /// The kernel's use of huge pages: `always`, `madvise` or `never`.
    pub transparent_hugepages: String,
    /// Version of the compiler.
    pub rustc: String,
}

impl Machine {
    /// Returns the facts about this machine.
    pub fn detect() -> Self {
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .unwrap_or_else(unknown),
            kernel: read("/proc/sys/kernel/osrelease")
                .map_or_else(unknown, |release| version(&release).to_owned()),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .and_then(|size| size.trim_end_matches(" kB").parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            transparent_hugepages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|modes| bracketed(&modes))
                .unwrap_or_else(unknown),
            rustc: rustc_version().unwrap_or_else(unknown),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Returns the value of the first line `name: value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = read(path)?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Returns the version in a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> &str {
    release.split('-').next().unwrap_or(release)
}

/// Returns the chosen entry in a list such as `always [madvise] never`.
fn bracketed(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

fn rustc_version() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_cut_from_the_kernel_release() {
        assert_eq!(version("6.1.0-18-amd64"), "6.1.0");
        assert_eq!(version("6.18.44"), "6.18.44");
    }

    #[test]
    fn bracketed_mode_is_extracted() {
        assert_eq!(bracketed("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(bracketed("nothing chosen"), None);
    }
}
