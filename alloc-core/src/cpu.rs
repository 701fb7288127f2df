//! CPUs: which there are, which take part, and how they come and go. (`kernel/cpu.c` of Linux.)
//!
//! Each core that the program may use has a thread that acts as the CPU: pinned to it, the target of our real-time signal,
//! the place where [irq work](crate::irq_work) runs. Together they are *the machine*, which is started when something first
//! needs it: a program that only allocates has no such threads.
//!
//! A CPU that goes offline hands on everything first. Its steps are taken in this order, each undoing one of coming online:
//!
//! 1. its deferred list is closed and emptied, and its sheaves are closed and drained;
//! 2. its thread finishes what was queued, and ends;
//! 3. its queues of irq work are closed, and what was queued meanwhile is run.
//!
//! From then on whoever queues work or defers a free on it finds a closed list, and goes to another CPU. So a walk over the
//! online CPUs, under the [read lock](read_lock), sees all there is. The program's own threads may go on running on a core
//! whose CPU is offline; they just find no sheaves there.
//!
//! This file may touch `rcu`, `objects`, `irq_work`, `thread`, `sync` and `os`. It is of the control plane: it allocates and sleeps.

extern crate std;

use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};
use std::cell::Cell;
use std::collections::BTreeMap;

use parking_lot::{RwLock, RwLockWriteGuard};

use crate::sync::{LockClass, Renewable, witness};
use crate::thread::{self, MAX_CPUS, Routines};
use crate::{irq_work, objects, os, rcu};

type Threads = BTreeMap<usize, os::Thread>;

/// The hotplug lock, and the threads of the CPUs that are online.
static HOTPLUG: Renewable<RwLock<Threads>> = Renewable::new(|| RwLock::new(Threads::new()));

std::thread_local! {
    /// Read locks that this thread has.
    static READERS: Cell<usize> = const { Cell::new(0) };
}

/// A bit per CPU that is online. Written under the hotplug lock.
static ONLINE: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];

static ROUTINES: Routines =
    Routines { interrupt: irq_work::run_hard, work: irq_work::run_threaded };

/// Why a CPU did not come or go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CpuError {
    /// There is no such CPU.
    NoSuchCpu,
    /// It is online already.
    Online,
    /// It is offline already.
    Offline,
    /// It is the last one online.
    Last,
    /// The call was made by the thread that acts as a CPU.
    OwnThread,
    /// The process may not use that core, or can have no more threads.
    Refused,
    /// Sheaves cannot be taken from that CPU: the kernel has no `membarrier` for restartable sequences (before 5.10), and this
    /// thread may not run there.
    Unsupported,
}

impl fmt::Display for CpuError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            CpuError::NoSuchCpu => "there is no such CPU",
            CpuError::Online => "the CPU is online already",
            CpuError::Offline => "the CPU is offline already",
            CpuError::Last => "the last CPU cannot go offline",
            CpuError::OwnThread => "a CPU cannot come or go by its own doing",
            CpuError::Refused => "the process cannot have a thread on that core",
            CpuError::Unsupported => "the kernel cannot restart sequences on another CPU",
        })
    }
}

impl core::error::Error for CpuError {}

/// CPUs stay as they are while this exists. Not for handlers: it allocates, and whoever wants to change CPUs waits.
#[must_use]
pub struct CpusReadGuard {
    /// Of this thread: see [`READERS`].
    _not_send: PhantomData<*mut ()>,
}

impl Drop for CpusReadGuard {
    fn drop(&mut self) {
        READERS.set(READERS.get() - 1);
        witness::released(LockClass::Hotplug);
        // SAFETY: `read_lock` took it and kept it; or `forget` did, in the child of a fork.
        unsafe { HOTPLUG.force_unlock_read() };
    }
}

impl fmt::Debug for CpusReadGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CpusReadGuard").finish_non_exhaustive()
    }
}

/// Keeps CPUs from coming and going; starts the machine if that was not done. (`cpus_read_lock`.)
pub fn read_lock() -> CpusReadGuard {
    start();
    // Recursively: a thread that has this lock may need it again while another waits to change CPUs.
    if READERS.get() == 0 {
        witness::waits(LockClass::Hotplug);
    }
    mem::forget(HOTPLUG.read_recursive());
    witness::acquired(LockClass::Hotplug);
    READERS.set(READERS.get() + 1);
    CpusReadGuard { _not_send: PhantomData }
}

impl CpusReadGuard {
    /// The CPUs that are online, in order.
    pub fn online(&self) -> impl Iterator<Item = usize> {
        online()
    }
}

/// How many CPUs the kernel may ever have; their numbers are below that.
#[must_use]
pub fn possible() -> usize {
    os::possible_cpus().unwrap_or(1).min(MAX_CPUS)
}

/// The CPUs that this process may run on now, by its affinity and its cgroup, in order.
pub fn present() -> impl Iterator<Item = usize> {
    let mask = os::affinity();
    (0..possible())
        .filter(move |cpu| mask.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1))
}

/// The CPUs that take part, in order; none before the machine was started. Without the [read lock](read_lock) they may
/// come and go meanwhile.
pub fn online() -> impl Iterator<Item = usize> {
    (0..MAX_CPUS).filter(|cpu| is_online(*cpu))
}

/// Whether a CPU takes part.
#[must_use]
pub fn is_online(cpu: usize) -> bool {
    // Relaxed: an answer for now; who needs it to last has the lock.
    ONLINE.get(cpu / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (cpu % 64) & 1 == 1)
}

/// How the hotplug lock is held, at the time of asking.
pub(crate) fn lock_state() -> &'static str {
    match &*HOTPLUG {
        lock if lock.is_locked_exclusive() => "held to change CPUs",
        lock if lock.is_locked() => "held to keep CPUs",
        _ => "free",
    }
}

/// Starts the machine: brings all present CPUs online. Does nothing if that was done. Where the process can have no thread for
/// any of them, none is online, and all goes on as before: who waits for irq work runs it.
pub fn start() {
    if thread::is_started() && online().next().is_some() {
        return;
    }
    witness::waits(LockClass::Hotplug);
    let mut threads = HOTPLUG.write();
    if threads.is_empty() {
        thread::start();
        for cpu in present() {
            // Some may do without others.
            let _ = bring_up(&mut threads, cpu);
        }
        if threads.is_empty() {
            thread::forget();
        }
    }
}

/// Brings a CPU online.
///
/// # Errors
/// If there is no such CPU, it is online, or it cannot have a thread; or if this is the thread of a CPU.
pub fn up(cpu: usize) -> Result<(), CpuError> {
    let mut threads = write_lock(cpu)?;
    if is_online(cpu) {
        return Err(CpuError::Online);
    }
    bring_up(&mut threads, cpu)
}

/// Takes a CPU offline; all it had goes elsewhere first.
///
/// # Errors
/// If there is no such CPU, it is offline, or the last one; or if this is the thread of a CPU, or the kernel cannot help.
/// Then nothing has changed.
pub fn down(cpu: usize) -> Result<(), CpuError> {
    let mut threads = write_lock(cpu)?;
    if !is_online(cpu) {
        return Err(CpuError::Offline);
    }
    if online().count() == 1 {
        return Err(CpuError::Last);
    }
    if !rcu::setting_aside(|| objects::offline(cpu, rcu::set_aside)) {
        objects::online(cpu);
        return Err(CpuError::Unsupported);
    }
    mark(cpu, false);
    if let Some(thread) = threads.remove(&cpu) {
        thread::stop(cpu, thread);
    }
    irq_work::offline(cpu);
    Ok(())
}

/// Brings those CPUs online that the process may use, and takes those offline that it may not any more: after its affinity
/// or its cgroup changed, or the kernel plugged a core. The last one stays. Until then nothing is stuck: the kernel lets
/// threads run elsewhere whose core has gone.
///
/// # Errors
/// The first of what went wrong; the others were tried.
pub fn refresh() -> Result<(), CpuError> {
    start();
    let mut result = Ok(());
    let mut wanted = [false; MAX_CPUS];
    present().for_each(|cpu| wanted[cpu] = true);
    // First up, so that the last one can go.
    for (cpu, _) in wanted.iter().enumerate().filter(|(cpu, wanted)| **wanted && !is_online(*cpu)) {
        result = result.and(up(cpu));
    }
    for (cpu, _) in wanted.iter().enumerate().filter(|(cpu, wanted)| !**wanted && is_online(*cpu)) {
        result = result.and(down(cpu));
    }
    result
}

/// In the child of a fork, which has only the thread that forked: there is no machine until something needs one.
pub(crate) fn forget() {
    // SAFETY: there is no other thread. What the old lock held is forgotten: threads that are not here.
    unsafe { HOTPLUG.renew() };
    for _ in 0..READERS.get() {
        mem::forget(HOTPLUG.read_recursive());
    }
    ONLINE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    thread::forget();
    irq_work::forget_cpus();
    objects::forget_cpus();
}

fn write_lock(cpu: usize) -> Result<RwLockWriteGuard<'static, Threads>, CpuError> {
    if thread::acts_as().is_some() {
        return Err(CpuError::OwnThread);
    }
    if cpu >= possible() {
        return Err(CpuError::NoSuchCpu);
    }
    start();
    witness::waits(LockClass::Hotplug);
    Ok(HOTPLUG.write())
}

fn bring_up(threads: &mut Threads, cpu: usize) -> Result<(), CpuError> {
    threads.insert(cpu, thread::spawn(cpu, &ROUTINES).ok_or(CpuError::Refused)?);
    irq_work::online(cpu);
    objects::online(cpu);
    mark(cpu, true);
    Ok(())
}

fn mark(cpu: usize, online: bool) {
    if let Some(word) = ONLINE.get(cpu / 64) {
        let bit = 1 << (cpu % 64);
        // Relaxed: as in `is_online`.
        if online {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}
