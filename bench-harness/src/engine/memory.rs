//! How much memory this process has resident, as the kernel counts it.
//!
//! Not `getrusage`: its `ru_maxrss` starts at the peak of the process that called `exec`, which is `compare`.

/// The most this process ever had resident since it was executed, in KiB.
pub(super) fn peak_resident_kib() -> u64 {
    status_kib("VmHWM:")
}

/// What this process has resident now, in KiB.
pub(super) fn resident_kib() -> u64 {
    status_kib("VmRSS:")
}

/// A field of `/proc/self/status` that is a size. Zero where there is no such file.
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let size = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    size.unwrap_or(0)
}
