//! Restartable sequences: registering a thread's `struct rseq`, and restarting the critical section
//! that another CPU is running.

use core::ffi::{c_int, c_ulong};

use super::super::inject::{Call, fails};
use super::system_call::call;
use crate::arch::{RseqArea, SIGNATURE};
use crate::fault::{self, Place};

/// Registers this thread's `struct rseq`. Returns false if the kernel refuses. If a signal handler
/// has registered it in the meantime, that counts as success.
///
/// # Safety
/// The area stays valid until [`unregister_rseq`] or the end of the thread.
pub(crate) unsafe fn register_rseq(area: *mut RseqArea) -> bool {
    const REGISTER: usize = 0;
    // SAFETY: the caller guarantees that the area stays valid.
    !fails(Call::Rseq) && matches!(unsafe { rseq(area, REGISTER) }, Ok(_) | Err(libc::EBUSY))
}

/// Reverts [`register_rseq`].
///
/// # Safety
/// The area is the registered one, and this is the thread that registered it.
pub(crate) unsafe fn unregister_rseq(area: *mut RseqArea) {
    const UNREGISTER: usize = 1;
    // SAFETY: the caller guarantees that this thread registered the area.
    let _ = unsafe { rseq(area, UNREGISTER) };
}

/// # Safety
/// As [`register_rseq`].
unsafe fn rseq(area: *mut RseqArea, flags: usize) -> Result<usize, c_int> {
    // SAFETY: `getauxval` takes and returns only numbers.
    let [size, align] = [AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN]
        .map(|which| unsafe { libc::getauxval(which) } as usize);
    let arguments = [area.expose_provenance(), rseq_len(size, align), flags, SIGNATURE as usize];
    // SAFETY: the caller guarantees that the area stays valid while it is registered.
    unsafe { call(libc::SYS_rseq, arguments) }
}

/// Keys of the auxiliary vector, since Linux 6.3: the bytes of `struct rseq` that the kernel knows,
/// and its alignment.
const AT_RSEQ_FEATURE_SIZE: c_ulong = 27;
const AT_RSEQ_ALIGN: c_ulong = 28;

/// Returns the length in bytes to register an area with, for the feature size and alignment that
/// the kernel reports. If the area has room for every feature, that is the kernel's size, and the
/// kernel takes the area for one of the interface's second version. Otherwise it is the length of
/// the first version.
fn rseq_len(size: usize, align: usize) -> usize {
    const FIRST: usize = 32;
    let len = size.next_multiple_of(align.max(1));
    let fits = align <= align_of::<RseqArea>() && len <= size_of::<RseqArea>();
    if fits { len.max(FIRST) } else { FIRST }
}

/// Restarts the critical section that is running on `cpu`, if there is one. Sections that start
/// later see all stores made before this call. Returns false if the kernel cannot do it and this
/// thread may not run on `cpu` either.
pub(crate) fn restart_sections_on(cpu: usize) -> bool {
    restart_by_membarrier(cpu) || restart_by_visit(cpu)
}

/// Restarts the section by a system call of Linux 5.10 and later.
fn restart_by_membarrier(cpu: usize) -> bool {
    const FLAG_CPU: usize = 1;
    const EXPEDITED_RSEQ: usize = 1 << 7;
    const REGISTER_EXPEDITED_RSEQ: usize = 1 << 8;
    // SAFETY: the call takes only numbers. Registering again changes nothing.
    !fails(Call::Membarrier)
        && unsafe {
            call(libc::SYS_membarrier, [REGISTER_EXPEDITED_RSEQ, 0, 0]).is_ok()
                && call(libc::SYS_membarrier, [EXPEDITED_RSEQ, FLAG_CPU, cpu]).is_ok()
        }
}

/// Restarts the section by running this thread on `cpu`. Meanwhile no other thread runs there, and
/// a section preempted by this one restarts. For kernels before 5.10, and filters that refuse
/// `membarrier`.
///
/// The thread's affinity is changed for this and then restored, unless another thread has changed
/// it in the meantime. (A change between the check and the restoring call is overwritten; the
/// kernel has no call that does both.) The restored affinity is what the thread's cpuset allowed.
/// Since 6.2 the kernel treats it as the thread's own wish from then on, so a cpuset that grows
/// later adds no CPUs to it.
#[cold]
#[inline(never)]
fn restart_by_visit(cpu: usize) -> bool {
    // Long masks are for kernels that refuse short ones. The short ones come first, since this may
    // run on a small stack.
    visit::<16>(cpu) || visit::<128>(cpu)
}

/// Runs this thread on a CPU for a moment. Returns false if the thread may not run there, or if the
/// kernel's masks are longer than `WORDS` words.
#[inline(never)]
fn visit<const WORDS: usize>(cpu: usize) -> bool {
    const THIS_THREAD: usize = 0;
    let (mut before, mut there) = ([0u64; WORDS], [0u64; WORDS]);
    let Some(word) = there.get_mut(cpu / 64) else { return false };
    *word = 1 << (cpu % 64);
    let arguments = |mask: *mut [u64; WORDS]| {
        [THIS_THREAD, size_of::<[u64; WORDS]>(), mask.expose_provenance()]
    };
    // SAFETY: both masks are local and have the length that is passed.
    unsafe {
        let visited = call(libc::SYS_sched_getaffinity, arguments(&raw mut before)).is_ok()
            && call(libc::SYS_sched_setaffinity, arguments(&raw mut there)).is_ok();
        if visited {
            fault::point(Place::CpuVisiting);
        }
        let is_mine = visited
            && call(libc::SYS_sched_getaffinity, arguments(&raw mut there)).is_ok()
            && there.iter().map(|word| word.count_ones()).sum::<u32>() == 1
            && there.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1);
        if is_mine {
            // If this fails, the thread stays on that CPU, which costs only speed.
            let _ = call(libc::SYS_sched_setaffinity, arguments(&raw mut before));
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::rseq_len;

    #[test]
    fn rseq_area_is_as_long_as_the_kernel_demands() {
        // Kernels before 6.3, one that reports only the first fields, 6.3, 7.0, and one that knows
        // more than the area has room for.
        for ((size, align), len) in
            [((0, 0), 32), ((20, 32), 32), ((28, 32), 32), ((33, 64), 64), ((80, 128), 32)]
        {
            assert_eq!(rseq_len(size, align), len, "size {size}, alignment {align}");
        }
    }
}
