//! The kernel's figures on this process, and limits on it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Returns a figure of `/proc/self/status`, such as `VmRSS`, in bytes.
///
/// # Panics
///
/// If the file has no such figure.
#[must_use]
pub fn status_bytes(name: &str) -> usize {
    bytes_in("/proc/self/status", name)
}

/// Returns a figure of `/proc/meminfo`, such as `CommitLimit`, in bytes.
///
/// # Panics
///
/// If the file has no such figure.
#[must_use]
pub fn meminfo_bytes(name: &str) -> usize {
    bytes_in("/proc/meminfo", name)
}

/// Returns the bytes of this process's memory in huge pages.
///
/// # Panics
///
/// If `/proc` is not mounted.
#[must_use]
pub fn huge_page_bytes() -> usize {
    bytes_in("/proc/self/smaps_rollup", "AnonHugePages")
}

fn bytes_in(file: &str, name: &str) -> usize {
    let figures = fs::read_to_string(file).expect("/proc is mounted");
    let kib = figures
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|figure| figure.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.unwrap_or_else(|| panic!("no figure {name} in {file}")) << 10
}

/// Returns the kernel's thread ID of the calling thread.
#[must_use]
pub fn this_thread() -> libc::pid_t {
    // Not `libc::gettid`: std refers to it weakly, so a static program with musl lacks it after
    // link-time optimisation.
    //
    // SAFETY: `gettid` has no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}

/// Returns the path of the shared page of a process in this process's PID namespace.
///
/// # Panics
///
/// If `/proc` is not mounted.
#[must_use]
pub fn shared_page_of(process: u32) -> PathBuf {
    let namespace = fs::metadata("/proc/self/ns/pid").expect("/proc is mounted").ino();
    PathBuf::from(format!("/dev/shm/hayloft-{process}-{namespace}"))
}

/// Blocks until a thread of this process sleeps in the kernel.
///
/// # Panics
///
/// If the process has no such thread.
pub fn wait_until_asleep(thread: libc::pid_t) {
    loop {
        let path = format!("/proc/self/task/{thread}/stat");
        let stat = fs::read_to_string(path).expect("the thread exists");
        // The state is the first word after the parenthesised name, which may contain anything.
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S')) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A resource of `setrlimit`.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of private writable memory.
    Data,
    /// Bytes of a core file.
    Core,
    /// Signals queued for the user.
    PendingSignals,
    /// Threads of the user. Does not bind root.
    Threads,
}

impl Limit {
    /// Sets this process's soft limit to `most`. Async-signal-safe.
    ///
    /// # Errors
    ///
    /// Those of `getrlimit` and `setrlimit`.
    pub fn set(self, most: usize) -> io::Result<()> {
        self.change(|limit| limit.rlim_cur = most as libc::rlim_t)
    }

    /// Raises this process's soft limit to the hard limit.
    ///
    /// # Errors
    ///
    /// Those of `getrlimit` and `setrlimit`.
    pub fn raise(self) -> io::Result<()> {
        self.change(|limit| limit.rlim_cur = limit.rlim_max)
    }

    fn change(self, change: impl FnOnce(&mut libc::rlimit)) -> io::Result<()> {
        let resource = match self {
            Self::AddressSpace => libc::RLIMIT_AS,
            Self::Data => libc::RLIMIT_DATA,
            Self::Core => libc::RLIMIT_CORE,
            Self::PendingSignals => libc::RLIMIT_SIGPENDING,
            Self::Threads => libc::RLIMIT_NPROC,
        };
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is valid for a write of one `rlimit`.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        change(&mut limit);
        // SAFETY: the pointer is valid for a read of one `rlimit`.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Returns whether the kernel has restartable sequences.
#[must_use]
pub fn has_rseq() -> bool {
    // SAFETY: without an area the call registers nothing.
    let result = unsafe { libc::syscall(libc::SYS_rseq, 0, 0, 0, 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Makes a system call fail with `ENOSYS` from now on, in this process and its children.
/// Async-signal-safe.
///
/// # Errors
///
/// Those of `prctl`.
pub fn refuse_system_call(number: libc::c_long) -> io::Result<()> {
    const NUMBER_OFFSET: u32 = 0;
    let step = |code: u32, skip: u8, value: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: skip,
        k: value,
    };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER_OFFSET),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `filter` and `program` outlive both calls.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
