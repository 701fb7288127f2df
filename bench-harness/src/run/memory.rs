//! Resident memory of this process, as the kernel counts it.
//!
//! This module does not use `getrusage`: its `ru_maxrss` starts at the peak of the process that
//! called `exec`, which is `compare`.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The file in `/proc` with the memory counts of this process. Reading it does not allocate, so it
/// can be read beside a workload.
pub(super) struct Status(Option<File>);

impl Status {
    /// Opens the file of this process.
    pub(super) fn open() -> Self {
        Self(File::open("/proc/self/status").ok())
    }

    /// Returns the peak of resident memory since `exec`, in KiB.
    pub(super) fn peak_resident_kib(&self) -> u64 {
        self.size_kib("VmHWM:")
    }

    /// Returns the memory that is resident now, in KiB.
    pub(super) fn resident_kib(&self) -> u64 {
        self.size_kib("VmRSS:")
    }

    /// Returns the size in the line that starts with `field`, in KiB. Returns zero if there is no
    /// such file or line.
    fn size_kib(&self, field: &str) -> u64 {
        // The file is about 1500 bytes long.
        let mut text = [0; 4096];
        let length = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = str::from_utf8(&text[..length.unwrap_or(0)]).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let size = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        size.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reports_resident_memory() {
        let status = Status::open();
        let resident = status.resident_kib();
        assert!(resident > 100, "{resident}");
        assert!(status.peak_resident_kib() > 100);
        assert_eq!(status.size_kib("VmNone:"), 0);
    }
}
