//! CPUs: which exist, which are online, and how they come and go. (`kernel/cpu.c` of Linux.)
//!
//! Each core that the program may use has a thread that acts as the CPU: pinned to the core, the
//! target of our real-time signal, and the place where [irq work](crate::irq::work) runs. These are
//! the *CPU threads*. They are started when they are first needed: a program that only allocates
//! has none. Even then a CPU gets its thread only when work is queued for it, and there are at most
//! an eighth as many of them as the process may have threads.
//!
//! A CPU that goes offline hands over everything first, in this order; each step undoes one of
//! coming online:
//!
//! 1. its deferred list is closed and emptied, and its sheaves are closed and drained;
//! 2. its thread finishes the items that were queued, and ends;
//! 3. its queues of irq work are closed, and items queued in the meantime are run.
//!
//! From then on a thread that queues work or defers a free on this CPU finds a closed list, and
//! goes to another CPU. So a walk over the online CPUs, under the [read lock](read_lock), sees
//! everything there is. The program's own threads may continue to run on a core whose CPU is
//! offline; they just find no sheaves there.
//!
//! This module belongs to the control plane: it allocates and sleeps.

extern crate std;

use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::irq::thread::{self, MAX_CPUS, Routines};
use crate::irq::work as irq_work;
use crate::path::objects;
use crate::sync::{ControlRwLock, Holders, LockClass, witness};
use crate::{arch, os, rcu};

/// The hotplug lock.
static HOTPLUG: ControlRwLock = ControlRwLock::new();

/// Returns the number of read locks that this thread holds. Not a thread-local of the compiler: a
/// child of a fork reads it, and must not enter the loader.
fn readers() -> &'static AtomicUsize {
    &arch::locals().hotplug_readers
}

/// Whether the main thread has ended by `pthread_exit`. Written under the hotplug lock.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Run by the loader: on the main thread, or on the thread that later loads a library with this
/// allocator.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = expect_end;

static MAIN_EXIT: os::ThreadExit = os::ThreadExit::new(end);

/// Registers [`end`] for a main thread that ends by `pthread_exit`. Such a process must end with
/// the last thread of the program, but the C library counts our threads, too.
extern "C" fn expect_end() {
    if os::is_main_thread() {
        MAIN_EXIT.expect();
    }
}

/// Bitmap of the CPUs that are online. Written under the hotplug lock.
static ONLINE: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];

static ROUTINES: Routines =
    Routines { interrupt: irq_work::run_hard, work: irq_work::run_threaded, help: irq_work::help };

/// Reason why a CPU did not come or go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CpuError {
    /// There is no such CPU.
    NoSuchCpu,
    /// The CPU is online already.
    Online,
    /// The CPU is offline already.
    Offline,
    /// The CPU is the last one online.
    Last,
    /// The calling thread acts as a CPU.
    OwnThread,
    /// The process may not use that core, or cannot have another thread.
    Refused,
    /// The CPU's sheaves cannot be emptied: the kernel has no `membarrier` for restartable
    /// sequences (before 5.10), and this thread may not run on that CPU.
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

/// A guard during whose life CPUs neither come nor go. Not for handlers: taking it allocates, and
/// threads that change CPUs wait for its end.
#[must_use]
pub struct CpusReadGuard {
    /// Belongs to its thread: see [`readers`].
    _not_send: PhantomData<*mut ()>,
}

impl Drop for CpusReadGuard {
    fn drop(&mut self) {
        readers().fetch_sub(1, Ordering::Relaxed);
        witness::released(LockClass::Hotplug);
        HOTPLUG.unlock_read();
    }
}

impl fmt::Debug for CpusReadGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CpusReadGuard").finish_non_exhaustive()
    }
}

/// Keeps CPUs from coming and going, until the guard is dropped. Starts the CPU threads if they are
/// not started. (`cpus_read_lock`.)
pub fn read_lock() -> CpusReadGuard {
    start();
    // A thread that holds this lock may take it again while another waits to change CPUs.
    let reads_already = readers().load(Ordering::Relaxed) > 0;
    if !reads_already {
        witness::waits(LockClass::Hotplug);
    }
    HOTPLUG.read(reads_already);
    witness::acquired(LockClass::Hotplug);
    readers().fetch_add(1, Ordering::Relaxed);
    CpusReadGuard { _not_send: PhantomData }
}

impl CpusReadGuard {
    /// Returns the CPUs that are online, in order.
    pub fn online(&self) -> impl Iterator<Item = usize> {
        online()
    }
}

/// Returns the number of CPUs the kernel may ever have; CPU numbers are below it.
#[must_use]
pub fn possible() -> usize {
    os::possible_cpus().unwrap_or(1).min(MAX_CPUS)
}

/// Returns the CPUs that this process may run on now, by its affinity and its cgroup, in order.
pub fn present() -> impl Iterator<Item = usize> {
    let mask = os::affinity();
    (0..possible()).filter(move |cpu| mask.contains(*cpu))
}

/// Returns the CPUs that are online, in order; none before the CPU threads are started. Without the
/// [read lock](read_lock) they may come and go in the meantime.
pub fn online() -> impl Iterator<Item = usize> {
    (0..MAX_CPUS).filter(|cpu| is_online(*cpu))
}

/// Returns whether a CPU is online.
#[must_use]
pub fn is_online(cpu: usize) -> bool {
    // Relaxed: the answer holds for now; a caller that needs it to last holds the lock.
    ONLINE.get(cpu / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (cpu % 64) & 1 == 1)
}

/// Returns how the hotplug lock is held at the time of the call.
pub(crate) fn lock_state() -> &'static str {
    match HOTPLUG.holders() {
        Holders::Writer => "held to change CPUs",
        Holders::Readers => "held to keep CPUs",
        Holders::Nobody => "free",
    }
}

/// Starts the CPU threads: brings all present CPUs online. Does nothing if that was done. If the
/// process cannot have another thread, no CPU comes online and everything works as before: threads
/// that wait for irq work run it.
pub fn start() {
    if thread::is_started() && online().next().is_some() {
        return;
    }
    // If starting failed before, this thread may hold the read lock, and must not wait for itself.
    if readers().load(Ordering::Relaxed) > 0 {
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
/// If there is no such CPU, it is online, or it cannot have a thread; or if the calling thread acts
/// as a CPU.
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

/// Takes a CPU offline. Everything that it holds goes elsewhere first.
///
/// # Errors
/// If there is no such CPU, it is offline, or the last one online; if the calling thread acts as a
/// CPU; or if the kernel cannot restart sections on that CPU. Then nothing has changed.
pub fn down(cpu: usize) -> Result<(), CpuError> {
    let _hotplug = write_lock(cpu)?;
    if !is_online(cpu) {
        return Err(CpuError::Offline);
    }
    if online().count() == 1 {
        return Err(CpuError::Last);
    }
    let emptied = rcu::setting_aside(|| {
        // SAFETY: the objects have just left an rcu sheaf, so this thread alone holds them.
        objects::offline(cpu, |batch| unsafe { rcu::set_aside(batch) })
    });
    if !emptied {
        objects::online(cpu);
        return Err(CpuError::Unsupported);
    }
    mark(cpu, false);
    thread::offline(cpu);
    irq_work::offline(cpu);
    Ok(())
}

/// Brings the CPUs online that the process may use, and takes those offline that it may no longer
/// use. Call after the affinity or the cgroup of the process changed, or the kernel plugged a core.
/// The last CPU stays online. Until the call nothing is stuck: the kernel lets threads run
/// elsewhere if their core is gone.
///
/// # Errors
/// The first error; the other CPUs were tried nonetheless.
pub fn refresh() -> Result<(), CpuError> {
    start();
    let mut result = Ok(());
    let mut wanted = [false; MAX_CPUS];
    present().for_each(|cpu| wanted[cpu] = true);
    // Up first, so that a CPU that was the only one online can go down.
    for (cpu, _) in wanted.iter().enumerate().filter(|(cpu, wanted)| **wanted && !is_online(*cpu)) {
        result = result.and(up(cpu));
    }
    for (cpu, _) in wanted.iter().enumerate().filter(|(cpu, wanted)| !**wanted && is_online(*cpu)) {
        result = result.and(down(cpu));
    }
    result
}

/// Ends all CPU threads permanently. Everything else continues, as in a process without them.
unsafe extern "C" fn end(_: *mut c_void) {
    // The main thread left the read lock held: it will never release it, and must not wait for
    // itself.
    if readers().load(Ordering::Relaxed) > 0 {
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

/// Resets this module in a fork child, which has only the thread that forked: there are no CPU
/// threads until they are needed.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(crate) unsafe fn in_child() {
    // SAFETY: the caller guarantees that this thread, with its readers, is the only one.
    unsafe { HOTPLUG.reset_in_child(readers().load(Ordering::Relaxed) as u32) };
    ONLINE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    thread::in_child();
    IS_OVER.store(false, Ordering::Relaxed);
    // This is the main thread from now on.
    expect_end();
    // SAFETY: the caller guarantees that this is the child of a fork, with one thread.
    unsafe {
        irq_work::without_cpus();
        objects::without_cpus();
    }
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
