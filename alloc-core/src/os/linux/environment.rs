//! What the system reports about itself and this process: sizes of pages, the kernel's version,
//! limits of address space and of threads, page faults.

#[cfg(target_arch = "aarch64")]
use core::ffi::CStr;
use core::ffi::c_ulong;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::file::read;
use super::system_call::{SavedErrno, call, word};
use crate::settings::{self, Name};

/// Returns the bytes of a page: the kernel's page size, or a larger one that a test asks for
/// (`HAYLOFT_PAGE_SIZE`).
pub(crate) fn page_size() -> usize {
    /// 0 before the first call.
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the number never changes once it is not 0, and guards no other memory.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            let size = settings::number(Name::PageSize).unwrap_or_else(system_page_size);
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// Returns the bytes of a page of the kernel.
pub(crate) fn system_page_size() -> usize {
    // SAFETY: `getauxval` returns only a number, which the kernel passes to each process.
    unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
}

/// Returns an entry of the auxiliary vector, such as `AT_PHDR`; 0 if there is none.
pub(crate) fn auxiliary(kind: c_ulong) -> usize {
    // The function reports an absent entry by `errno`.
    let _errno = SavedErrno::new();
    // SAFETY: `getauxval` takes and returns only numbers.
    unsafe { libc::getauxval(kind) as usize }
}

/// Returns the kernel's version, such as `6.18.5-generic`, cut to the length of `room`.
#[cfg(target_arch = "aarch64")]
pub(crate) fn release(room: &mut [u8; 65]) -> &[u8] {
    // SAFETY: zeros are a valid `utsname`.
    let mut names: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a local struct that the kernel may write.
    let _ = unsafe { call(libc::SYS_uname, [(&raw mut names).expose_provenance()]) };
    for (to, from) in room.iter_mut().zip(names.release) {
        *to = from as u8;
    }
    CStr::from_bytes_until_nul(room).unwrap_or_default().to_bytes()
}

/// Returns whether the address space of the process is limited.
pub(crate) fn has_little_address_space() -> bool {
    soft_limit(libc::RLIMIT_AS as usize).is_some()
}

/// Returns the most bytes of private writable memory that the process may have, or `None` if there
/// is no limit.
pub(crate) fn data_limit() -> Option<usize> {
    soft_limit(libc::RLIMIT_DATA as usize)
}

/// Returns the soft limit on a resource, or `None` if there is no limit.
fn soft_limit(resource: usize) -> Option<usize> {
    const THIS_PROCESS: usize = 0;
    let mut limit = [u64::MAX; 2];
    let to = (&raw mut limit).expose_provenance();
    // SAFETY: the kernel writes two 64-bit numbers to the local array.
    let known = unsafe { call(libc::SYS_prlimit64, [THIS_PROCESS, resource, 0, to]) }.is_ok();
    (known && limit[0] != u64::MAX).then_some(limit[0] as usize)
}

/// Returns the number of threads that this process may have, shared with other processes of its
/// user and its cgroup. Returns `usize::MAX` if there is no limit.
pub(crate) fn most_threads() -> usize {
    let mut most = soft_limit(libc::RLIMIT_NPROC as usize).unwrap_or(usize::MAX);
    let mut at = |path: fmt::Arguments<'_>| {
        let mut room = [0; 32];
        let number = read(path, &mut room).and_then(|text| text.trim().parse().ok());
        most = most.min(number.unwrap_or(usize::MAX));
    };
    let mut room = [0; 512];
    // A container sees its own cgroup there, in the unified hierarchy or in the old one. The paths
    // below are for a service.
    at(format_args!("/sys/fs/cgroup/pids.max"));
    at(format_args!("/sys/fs/cgroup/pids/pids.max"));
    if let Some(text) = read(format_args!("/proc/self/cgroup"), &mut room) {
        for line in text.lines() {
            match line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) {
                Some(("", cgroup)) => at(format_args!("/sys/fs/cgroup{cgroup}/pids.max")),
                Some(("pids", cgroup)) => at(format_args!("/sys/fs/cgroup/pids{cgroup}/pids.max")),
                _ => {}
            }
        }
    }
    most
}

/// Returns the page faults of this process that needed no file or device.
pub(crate) fn minor_faults() -> Option<u64> {
    // SAFETY: zero is a valid `rusage`, and the kernel writes only the local struct.
    unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        let to = (&raw mut usage).expose_provenance();
        call(libc::SYS_getrusage, [word(libc::RUSAGE_SELF), to]).ok()?;
        Some(usage.ru_minflt as u64)
    }
}
