//! Linux: bare system calls, and C library functions where the library keeps state of its own.
//!
//! | module | holds |
//! |---|---|
//! | `faults` | a handler for invalid accesses to memory |
//! | `signal` | sending, handling and blocking signals |
//! | `thread` | threads of the C library, and hooks for their end |
//! | `memory` `rseq` `affinity` | address space; restartable sequences; CPUs and scheduling |
//! | `environment` | page sizes, the kernel's version, limits |
//! | `file` `futex` `clock` `process` | files; futexes; time; forks and the end of the process |
//! | `system_call` | bare system calls, and `errno` around others |
//!
//! A module imports only from lower rows.

mod affinity;
mod clock;
mod environment;
mod faults;
mod file;
mod futex;
mod memory;
mod process;
mod rseq;
mod signal;
mod system_call;
mod thread;

pub(crate) use affinity::{
    CpuMask, affinity, cpu_numbers, current_cpu, current_cpu_and_node, schedule_as_the_process,
    yield_now,
};
pub(crate) use clock::{milliseconds, nanoseconds, sleep_microseconds, unix_nanoseconds};
#[cfg(target_arch = "aarch64")]
pub(crate) use environment::release;
pub(crate) use environment::{
    auxiliary, data_limit, has_little_address_space, minor_faults, most_threads, page_size,
    system_page_size,
};
pub(crate) use faults::{Fault, explain_faults};
pub(super) use file::CPath;
pub(crate) use file::File;
pub(crate) use file::{lines, list, read, read_bytes, remove, share};
pub(super) use futex::futex_wait_shared;
pub(crate) use futex::{futex_wait, futex_wait_for, futex_wake_all, futex_wake_one};
pub(crate) use memory::{
    PageMap, collapse, commit, copy_memory, copy_readable, decommit, forbid, is_readable, let_read,
    may_reserve, prefer_huge_pages, prefer_node, private_pages, remap, renew, reserve,
    reserve_near, set_dumped, unreserve,
};
pub(crate) use process::{
    at_exit, at_fork, lock_streams, renew_streams, take_place_at_forks, unlock_streams,
};
pub(crate) use rseq::{register_rseq, restart_sections_on, unregister_rseq};
pub(super) use signal::change_bare_mask;
pub(crate) use signal::{
    Signal, admit_signal, alternate_stack, block_signals, has_signals_blocked, signal_thread,
    take_signal,
};
pub(super) use system_call::{SavedErrno, call};
pub(super) use thread::{Thread, name_thread, spawn};
pub(crate) use thread::{ThreadExit, ThreadSlot, is_main_thread, thread_id};
