//! The operating system: memory, futexes, threads, signals, files, CPU numbers.
//!
//! Every function here may be called anywhere in the allocator. None changes `errno`, and none
//! allocates unless its doc says so.
//!
//! `linux` is the real implementation. `hosted` replaces it under Miri, which has neither
//! `mprotect` nor page tables, and takes memory from the standard allocator. `inject` makes calls
//! fail on demand. `service` starts the allocator's own threads, and `bare` the one among them that
//! is unknown to the C library. `files` writes files that other programs read. `pin` keeps a shared
//! library with this allocator loaded. `vdso` finds the functions that the kernel maps into each
//! process. The calls that messages need are in `text`.

#[cfg(not(miri))]
mod linux;
#[cfg(not(miri))]
use linux as imp;

#[cfg(miri)]
mod hosted;
#[cfg(miri)]
use hosted as imp;

#[cfg(not(miri))]
pub(crate) mod bare;
#[cfg(not(miri))]
mod files;
#[cfg(not(miri))]
mod inject;
#[cfg_attr(miri, allow(dead_code, reason = "the stand-in has no files"))]
mod list;
mod maps;
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
mod pin;
mod service;
#[cfg(not(miri))]
mod vdso;

pub(crate) use crate::text::{Line, abort, process_id, warn, write_all};

/// Outcome of [`remap`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(miri, allow(dead_code, reason = "the stand-in refuses"))]
pub(crate) enum Remapped {
    /// The pages were moved.
    Moved,
    /// The kernel cannot move the pages: it is older than 5.7, or short of mappings or memory. Both
    /// ranges are committed.
    Refused,
    /// As [`Remapped::Refused`], but the range at `to` no longer belongs to the allocator and must
    /// not be touched.
    Lost,
}

/// Outcome of [`renew`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(miri, allow(dead_code, reason = "the stand-in keeps the pages"))]
pub(crate) enum Renewed {
    /// The pages were mapped anew and read as zero.
    Anew,
    /// The kernel cannot map the pages anew, and they are as before, except for their contents.
    Kept,
    /// The range no longer belongs to the allocator and must not be touched.
    Lost,
}

/// Functions to call at each fork.
pub(crate) struct ForkHooks {
    /// Called before the fork.
    pub(crate) prepare: fn(),
    /// Called after the fork, in the parent.
    pub(crate) in_parent: fn(),
    /// Called after the fork, in the child.
    pub(crate) in_child: fn(),
}

#[cfg(not(miri))]
pub(crate) use files::{Identity, close, duplicate, identity, pid_namespace, replace};
#[cfg(miri)]
pub(crate) use imp::bare;
#[cfg(all(target_arch = "aarch64", not(miri)))]
pub(crate) use imp::release;
pub(crate) use imp::{
    CpuMask, Fault, PageMap, Signal, ThreadExit, ThreadSlot, admit_signal, affinity, at_exit,
    at_fork, auxiliary, block_signals, collapse, commit, copy_memory, cpu_numbers, current_cpu,
    current_cpu_and_node, data_limit, decommit, explain_faults, forbid, futex_wait, futex_wait_for,
    futex_wake_all, futex_wake_one, has_little_address_space, has_signals_blocked, is_main_thread,
    let_read, lines, list, lock_streams, may_reserve, milliseconds, minor_faults, most_threads,
    nanoseconds, page_size, prefer_huge_pages, prefer_node, private_pages, read, read_bytes,
    register_rseq, remap, remove, renew, renew_streams, reserve, reserve_near, restart_sections_on,
    set_dumped, share, signal_thread, sleep_microseconds, system_page_size, take_place_at_forks,
    take_signal, thread_id, unix_nanoseconds, unlock_streams, unregister_rseq, unreserve,
    yield_now,
};
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
pub(crate) use imp::{File, alternate_stack, copy_readable, is_readable};
#[cfg(miri)]
pub(crate) use imp::{Identity, close, duplicate, identity, pid_namespace, replace};
pub(crate) use maps::{MapsLine, number_in};
pub(crate) use service::{Scheduling, Service, is_service_thread, spawn, spawn_bare};

/// Returns the bytes of address space in use by the process. `None` if the system does not report
/// them.
pub(crate) fn address_space() -> Option<usize> {
    let mut text = [0; 128];
    let pages = read(format_args!("/proc/self/statm"), &mut text)?.split(' ').next()?;
    pages.parse::<usize>().ok()?.checked_mul(system_page_size())
}

/// Returns the number of CPUs that the kernel may ever have: one more than the highest CPU number.
/// `None` if the kernel does not report it.
pub(crate) fn possible_cpus() -> Option<usize> {
    let mut count = 0;
    list(format_args!("/sys/devices/system/cpu/possible"), |_, last| {
        count = last.saturating_add(1)
    })?;
    Some(count).filter(|count| *count > 0)
}
