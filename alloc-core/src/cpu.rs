//! CPUs: which there are, which take part, and how they come and go. (`kernel/cpu.c` of Linux.)
//!
//! Each core that the program may use has a thread that acts as the CPU: pinned to it, the target
//! of our real-time signal, the place where [irq work](crate::irq_work) runs. Together they are
//! *the machine*, which is started when something first needs it: a program that only allocates has
//! no such threads. Even then a CPU has its thread only when something was queued for it, and the
//! process does not have more of them than an eighth of the threads that it may have.
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

use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::cell::Cell;

use crate::sync::{ControlRwLock, Holders, LockClass, witness};
use crate::thread::{self, MAX_CPUS, Routines};
use crate::{irq_work, objects, os, rcu};

/// The hotplug lock.
static HOTPLUG: ControlRwLock = ControlRwLock::new();

std::thread_local! {
    /// Read locks that this thread has.
    static READERS: Cell<usize> = const { Cell::new(0) };
}

/// The main thread has ended by `pthread_exit`. Written under the hotplug lock.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Run by the loader, on the main thread, or where a library with this allocator is loaded later.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = expect_end;

static MAIN_EXIT: os::ThreadExit = os::ThreadExit::new(end);

/// Has the machine end with the main thread, where that ends by `pthread_exit`: then the process is
/// to end when the last thread of the program does, and the C library counts ours.
extern "C" fn expect_end() {
    if os::is_main_thread() {
        MAIN_EXIT.expect();
    }
}

/// A bit per CPU that is online. Written under the hotplug lock.
static ONLINE: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];

static ROUTINES: Routines =
    Routines { interrupt: irq_work::run_hard, work: irq_work::run_threaded, help: irq_work::help };

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
        HOTPLUG.unlock_read();
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
    // A thread that has this lock may need it again while another waits to change CPUs.
    let reads_already = READERS.get() > 0;
    if !reads_already {
        witness::waits(LockClass::Hotplug);
    }
    HOTPLUG.read(reads_already);
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
    (0..possible()).filter(move |cpu| mask.contains(*cpu))
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
    match HOTPLUG.holders() {
        Holders::Writer => "held to change CPUs",
        Holders::Readers => "held to keep CPUs",
        Holders::Nobody => "free",
    }
}

/// Starts the machine: brings all present CPUs online. Does nothing if that was done. Where the
/// process can have no thread, none is online, and all goes on as before: who waits for irq work
/// runs it.
pub fn start() {
    if thread::is_started() && online().next().is_some() {
        return;
    }
    // Where there was no thread to be had, this one may keep CPUs from coming, and must not wait
    // for itself.
    if READERS.get() > 0 {
        return;
    }
    let _hotplug = WriteGuard::lock();
    if !IS_OVER.load(Ordering::Relaxed) && !thread::is_started() && thread::start(&ROUTINES) {
        present().for_each(bring_up);
    }
}

/// Brings a CPU online.
///
/// # Errors
/// If there is no such CPU, it is online, or it cannot have a thread; or if this is the thread of a CPU.
pub fn up(cpu: usize) -> Result<(), CpuError> {
    let _hotplug = write_lock(cpu)?;
    if is_online(cpu) {
        return Err(CpuError::Online);
    }
    if !thread::is_started() || !present().any(|present| present == cpu) {
        return Err(CpuError::Refused);
    }
    bring_up(cpu);
    Ok(())
}

/// Takes a CPU offline; all it had goes elsewhere first.
///
/// # Errors
/// If there is no such CPU, it is offline, or the last one; or if this is the thread of a CPU, or the kernel cannot help.
/// Then nothing has changed.
pub fn down(cpu: usize) -> Result<(), CpuError> {
    let _hotplug = write_lock(cpu)?;
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
    thread::offline(cpu);
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

/// Ends the machine for good, and all its threads. All goes on as where there can be none.
unsafe extern "C" fn end(_: *mut c_void) {
    // Who left the lock held will not have it any more, and may not wait for itself.
    if READERS.get() > 0 {
        return;
    }
    let _hotplug = WriteGuard::lock();
    IS_OVER.store(true, Ordering::Relaxed);
    if !thread::is_started() {
        return;
    }
    online().for_each(thread::offline);
    thread::stop();
    irq_work::end();
    objects::end_cpus();
    ONLINE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// In the child of a fork, which has only the thread that forked: there is no machine until something needs one.
pub(crate) fn in_child() {
    HOTPLUG.reset_in_child(READERS.get() as u32);
    ONLINE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    thread::in_child();
    IS_OVER.store(false, Ordering::Relaxed);
    // This is the main thread from now on.
    expect_end();
    irq_work::without_cpus();
    objects::without_cpus();
}

/// The hotplug lock, held to change CPUs.
struct WriteGuard;

impl WriteGuard {
    fn lock() -> WriteGuard {
        witness::waits(LockClass::Hotplug);
        HOTPLUG.write();
        WriteGuard
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        HOTPLUG.unlock_write();
    }
}

fn write_lock(cpu: usize) -> Result<WriteGuard, CpuError> {
    if thread::acts_as().is_some() {
        return Err(CpuError::OwnThread);
    }
    if cpu >= possible() {
        return Err(CpuError::NoSuchCpu);
    }
    start();
    Ok(WriteGuard::lock())
}

fn bring_up(cpu: usize) {
    thread::online(cpu);
    irq_work::online(cpu);
    objects::online(cpu);
    mark(cpu, true);
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
