//! CPUs: which one this thread runs on, which ones it may run on, and its scheduling.

use core::ffi::c_int;

use super::super::vdso;
use super::system_call::{call, word};
use crate::text::process_id;

/// A set of CPUs, one bit each. It has as many bits as the mask of any kernel, since a kernel
/// refuses a shorter mask than its own.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct CpuMask([u64; 128]);

impl CpuMask {
    /// The empty set.
    pub(crate) const NONE: CpuMask = CpuMask([0; 128]);

    /// Returns the set of one CPU; the empty set if the number is too high.
    pub(crate) fn one(cpu: usize) -> CpuMask {
        let mut mask = CpuMask::NONE;
        if let Some(word) = mask.0.get_mut(cpu / 64) {
            *word = 1 << (cpu % 64);
        }
        mask
    }

    /// Returns whether the set contains a CPU.
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }
}

/// Returns the CPU that this thread runs on at the moment of the call. Takes no system call if the
/// vDSO has `getcpu`.
pub(crate) fn current_cpu() -> usize {
    current_cpu_and_node().0
}

/// Returns the CPU that this thread runs on at the moment of the call, and the CPU's node.
pub(crate) fn current_cpu_and_node() -> (usize, usize) {
    let (mut cpu, mut node) = (0u32, 0u32);
    if !vdso::current_cpu(&mut cpu, &mut node) {
        let (cpu, node) = (&raw mut cpu, &raw mut node);
        let arguments = [cpu.expose_provenance(), node.expose_provenance(), 0];
        // SAFETY: both pointers are to local words that the kernel may write.
        let _ = unsafe { call(libc::SYS_getcpu, arguments) };
    }
    (cpu as usize, node as usize)
}

/// Returns the number of CPUs that the kernel's CPU masks have bits for; 0 if the kernel does not
/// report it.
#[cold]
#[inline(never)]
pub(crate) fn cpu_numbers() -> usize {
    const THIS_THREAD: usize = 0;
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [THIS_THREAD, size_of::<CpuMask>(), to];
    // SAFETY: the mask is writable for its length. The call returns the length of the kernel's mask
    // in bytes.
    unsafe { call(libc::SYS_sched_getaffinity, arguments) }.map_or(0, |bytes| bytes * 8)
}

/// Returns the CPUs that the main thread may run on.
pub(crate) fn affinity() -> CpuMask {
    let mut mask = CpuMask::NONE;
    let to = (&raw mut mask).expose_provenance();
    let arguments = [word(process_id()), size_of::<CpuMask>(), to];
    // SAFETY: the mask is writable for its length.
    let _ = unsafe { call(libc::SYS_sched_getaffinity, arguments) };
    mask
}

/// Resets this thread to ordinary scheduling and to the CPUs of the main thread: its creator may be
/// pinned, or a real-time thread.
pub(crate) fn schedule_as_the_process() {
    const THIS_THREAD: usize = 0;
    let parameter = 0 as c_int;
    let mut mask = affinity();
    let (parameter, to) =
        ((&raw const parameter).expose_provenance(), (&raw mut mask).expose_provenance());
    // SAFETY: the kernel only reads the number and the mask. Its refusal is ignored.
    unsafe {
        let ordinary = [THIS_THREAD, word(libc::SCHED_OTHER), parameter];
        let _ = call(libc::SYS_sched_setscheduler, ordinary);
        let _ = call(libc::SYS_sched_setaffinity, [THIS_THREAD, size_of::<CpuMask>(), to]);
    }
}

/// Yields the CPU to other threads.
pub(crate) fn yield_now() {
    // SAFETY: `sched_yield` takes no arguments.
    let _ = unsafe { call(libc::SYS_sched_yield, []) };
}
