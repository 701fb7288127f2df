//! The regions of all CPUs: reserved at once, each committed at its CPU's first use.
//!
//! The reservation has room for every CPU number that the kernel can represent, and all of it is
//! readable. A region that is not committed reads as zero, so all its sheaves are closed. A
//! committed region stays committed for the life of the process: a pointer to it never dangles.
//!
//! [`CLOSING`] serialises commits with closers of sheaves.

use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::layout::{REGION, SHEAVES_OFFSET, state_word};
use crate::arch::{self, OPEN};
use crate::os;
use crate::sync::{Context, Lock, LockClass};
use crate::watch;

/// Closed regions in front of CPU 0's, for the CPU numbers -1 and -2.
const CLOSED_REGIONS: usize = 2;
/// Highest number of CPUs that Linux can be configured for.
const MAX_CPUS: usize = 8192;
/// Number of CPUs that have room for regions in any case, unless address space is limited: 64 MiB.
const MANY_CPUS: usize = 256;

/// Address of CPU 0's region, and the number of CPUs that have room for one.
static REGIONS: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// Bitmap of the CPUs whose regions are committed, and one more than the highest of their numbers.
static COMMITTED: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Serialises closing of sheaves of other CPUs, and commits of regions.
pub(super) static CLOSING: Lock<()> = Lock::new(LockClass::Closing, ());

/// Returns the CPU that this thread runs on at the time of the call.
#[inline]
pub(crate) fn cpu() -> usize {
    arch::cpu().unwrap_or_else(os::current_cpu)
}

/// Reserves the regions. Returns the address of CPU 0's region, or `None` if there is no address
/// space for them.
pub(super) fn reserve() -> Option<NonNull<u8>> {
    // Regions exist already if a fork interrupted another thread's selection.
    let regions = NonNull::new(REGIONS.load(Ordering::Relaxed)).or_else(|| {
        // Reserve for every CPU number that the kernel can represent, whatever /sys says, so that
        // no number points beyond the regions. The kernel reports the length of its CPU mask, which
        // is fixed as long as it runs.
        let cpus = match os::cpu_numbers() {
            0 => MAX_CPUS,
            numbers if os::has_little_address_space() => numbers,
            // The process may be moved to a larger machine.
            numbers => numbers.max(MANY_CPUS),
        };
        let cpus = cpus.max(os::possible_cpus().unwrap_or(0)).min(MAX_CPUS);
        let regions = reserve_regions(cpus);
        CPUS.store(if regions.is_some() { cpus } else { 0 }, Ordering::Relaxed);
        // Release: pairs with the Acquire in `commit_region`.
        REGIONS.store(regions.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Release);
        regions
    });
    if regions.is_none() {
        no_memory();
    }
    regions
}

/// Reserves `cpus` readable regions, all of their sheaves closed, behind [`CLOSED_REGIONS`] others.
/// Returns the address of the first one behind these.
fn reserve_regions(cpus: usize) -> Option<NonNull<u8>> {
    let bytes = (cpus + CLOSED_REGIONS) * REGION;
    let regions = os::reserve(bytes)?;
    // SAFETY: `regions` is a whole reservation of `bytes` bytes, and the result lies inside it.
    unsafe {
        if !os::let_read(regions, bytes) {
            os::unreserve(regions, bytes);
            return None;
        }
        // No huge pages: little of each region is touched, and by its own CPU only.
        os::prefer_huge_pages(regions, bytes, false);
        Some(regions.add(CLOSED_REGIONS * REGION))
    }
}

/// Returns the addresses of all regions.
pub(crate) fn own_memory() -> Range<usize> {
    // Acquire: pairs with the Release in `reserve`, so that `CPUS` is visible.
    let start = REGIONS.load(Ordering::Acquire).addr();
    let before = start.min(CLOSED_REGIONS * REGION);
    start - before..start + CPUS.load(Ordering::Relaxed) * REGION
}

/// Returns whether a CPU has a region. Commits one if it has none and there is memory.
#[inline]
pub(super) fn has_region(cpu: usize) -> bool {
    #[cold]
    fn get_region(cpu: usize) -> bool {
        CLOSING.acquire(Context::TRYING).is_some_and(|_closing| commit_region(cpu, OPEN))
    }
    region_of(cpu).is_some() || get_region(cpu)
}

/// Commits the region of a CPU in state `state`, unless it is committed already. Returns false if
/// there is no memory, or no room for that CPU. The caller holds [`CLOSING`].
pub(super) fn commit_region(cpu: usize, state: usize) -> bool {
    /// Attempts left to skip since the last one that failed.
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    /// Attempts to skip after one that failed.
    const RETRY: u32 = 1000;

    if region_of(cpu).is_some() {
        return true;
    }
    // Acquire: pairs with the Release in `reserve`, so that `CPUS` is visible.
    let Some(regions) = NonNull::new(REGIONS.load(Ordering::Acquire)) else { return false };
    if cpu >= CPUS.load(Ordering::Relaxed) {
        return false;
    }
    let skipped = SKIPPED.load(Ordering::Relaxed);
    if skipped > 0 {
        SKIPPED.store(skipped - 1, Ordering::Relaxed);
        return false;
    }
    // SAFETY: the region lies in the reservation. Its state word is only accessed as an atomic, or
    // by sections.
    unsafe {
        let region = regions.add(cpu * REGION);
        if !os::commit(region, REGION) {
            SKIPPED.store(RETRY, Ordering::Relaxed);
            no_memory();
            return false;
        }
        watch::hide(region.add(SHEAVES_OFFSET).as_ptr(), REGION - SHEAVES_OFFSET);
        state_word(region.as_ptr()).store(state, Ordering::Release);
    }
    HIGHEST.fetch_max(cpu + 1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `region_of`, so that the region is writable.
    COMMITTED[cpu / 64].fetch_or(1 << (cpu % 64), Ordering::Release);
    true
}

/// Warns once per process that a CPU has no sheaves.
#[cold]
fn no_memory() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        os::warn(format_args!("no memory for sheaves of some CPU: allocations are slow there"));
    }
}

/// Returns the region of a CPU, if it has one.
#[inline]
pub(super) fn region_of(cpu: usize) -> Option<*mut u8> {
    // Acquire: pairs with the Release in `commit_region`.
    let committed = COMMITTED.get(cpu / 64)?.load(Ordering::Acquire) >> (cpu % 64) & 1 == 1;
    // SAFETY: a committed region lies in the reservation.
    committed.then(|| unsafe { REGIONS.load(Ordering::Relaxed).add(cpu * REGION) })
}

/// Returns an upper bound of the CPUs that have sheaves: one more than the highest of their
/// numbers.
pub(crate) fn regions() -> usize {
    HIGHEST.load(Ordering::Relaxed)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::backend;
    use super::super::layout::header_halves;
    use super::*;
    use crate::size_class::Class;

    /// A CPU has no memory before its first use, and every number that a kernel may have can be
    /// looked up.
    #[test]
    fn only_cpus_in_use_have_regions() {
        Context::enter(backend);
        let numbers = CPUS.load(Ordering::Relaxed);
        assert!(numbers >= os::cpu_numbers().min(MAX_CPUS) && numbers > cpu());
        assert!(region_of(numbers - 1).is_none() && region_of(usize::MAX).is_none());
        let last = REGIONS.load(Ordering::Relaxed).wrapping_add((numbers - 1) * REGION);
        // SAFETY: `last` lies in the reservation, which is readable.
        let [top, end] = unsafe { header_halves(last, Class::RCU) };
        assert_eq!((top.load(Ordering::Relaxed), end.load(Ordering::Relaxed)), (0, 0));
        assert!(has_region(cpu()) && regions() > cpu());
    }
}
