//! Sites: the stacks from which sampled blocks were allocated, and the tags that the threads were
//! in, each with its sums.
//!
//! A site is kept for the life of the process, so that blocks can name it by a number. The sites
//! with one hash form a chain. They lie side by side in memory that is committed as they come. All
//! operations work in any context: a site is linked by one exchange once it is complete.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::{ptr, slice};

use super::chains::{self, Chains};
use super::gaps::FRACTION;
use super::reserved::Reserved;
use super::sums::{Balance, bytes_for};
use super::{tags, threads};

/// Frames of a stack that are kept.
pub(super) const MOST_FRAMES: usize = 64;
/// Chains.
const CHAINS: usize = if cfg!(miri) { 1 << 6 } else { 1 << 14 };
/// Bytes of all sites: 100 000 stacks of 30 frames.
const BYTES: usize = if cfg!(miri) { 1 << 16 } else { 32 << 20 };
/// Bytes of the unit in which sites are numbered.
const UNIT: usize = 16;

/// Sums over the samples of a site, each multiplied by its weight.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sums {
    /// Blocks allocated so far.
    pub allocs: i64,
    /// Bytes of these.
    pub alloc_bytes: i64,
    /// Blocks in use.
    pub live: i64,
    /// Bytes of these.
    pub live_bytes: i64,
    /// Blocks that were in use when all sites together had the most bytes.
    pub peak: i64,
    /// Bytes of these.
    pub peak_bytes: i64,
    /// Milliseconds that the freed blocks lived, all together.
    pub lifetimes: i64,
    /// Variance of `alloc_bytes`, estimated from the samples.
    pub alloc_variance: f64,
    /// Variance of `live_bytes`. Variances of several sites add up.
    pub live_variance: f64,
}

/// What a site stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Return addresses, the innermost first.
    pub frames: &'static [usize],
    /// Name of the tag; empty without one.
    pub tag: &'static str,
}

/// A stack with a tag, and the sums. The frames follow.
#[repr(C)]
struct Site {
    /// Number of the next site of the chain; 0 at its end.
    next: AtomicU32,
    frames: AtomicU32,
    hash: AtomicU64,
    tag: AtomicU32,
    balance: Balance,
    peak: AtomicU64,
    peak_bytes: AtomicU64,
    lifetimes: AtomicU64,
    /// Bytes allocated until the last [`for_each_recent`], and recently in a second.
    noted: AtomicU64,
    rate: AtomicU64,
}

/// All sites, by the hashes of their stacks and tags.
static ALL: Chains<CHAINS> = Chains::new();
/// Memory of the sites.
static MEMORY: Reserved<u8> = Reserved::new();
/// Bytes in use. The first unit is none, as 0 is no number.
static USED: AtomicUsize = AtomicUsize::new(UNIT);

/// Reserves the memory of sites; once is enough. Returns false if there is none.
pub(super) fn prepare() -> bool {
    MEMORY.prepare_all(BYTES)
}

/// Returns the site of a number, and its frames.
///
/// # Safety
/// The number is of a complete site.
unsafe fn at(number: u32) -> (&'static Site, &'static [usize]) {
    // SAFETY: the caller guarantees a site, which is never unmapped. Its frames do not change.
    unsafe {
        let site = MEMORY.get().unwrap_unchecked().add(number as usize * UNIT).cast::<Site>();
        let frames = site.as_ref().frames.load(Ordering::Relaxed) as usize;
        (site.as_ref(), slice::from_raw_parts(site.add(1).cast().as_ptr(), frames))
    }
}

/// Returns the number of the site with this stack and tag. Makes one if there is none; `None`
/// without memory.
pub(super) fn find(frames: &[usize], tag: u32) -> Option<u32> {
    let frames = frames.get(..MOST_FRAMES).unwrap_or(frames);
    let start = frames.len() as u64 | u64::from(tag) << 32;
    let hash = chains::hash(start, frames.iter().map(|frame| *frame as u64));
    let is_same = |number| {
        // SAFETY: linked sites are complete.
        let (site, of_site) = unsafe { at(number) };
        site.hash.load(Ordering::Relaxed) == hash
            && site.tag.load(Ordering::Relaxed) == tag
            && of_site == frames
    };
    // A site that was made in vain stays unused.
    ALL.find(hash, link, is_same, || make(frames, tag, hash)).map(|found| found.number)
}

/// Returns the link of a site, by the number that [`make`] returned.
fn link(number: u32) -> &'static AtomicU32 {
    // SAFETY: `make` completed the site.
    &unsafe { at(number) }.0.next
}

/// Makes a site that is not linked yet.
fn make(frames: &[usize], tag: u32, hash: u64) -> Option<u32> {
    let memory = MEMORY.get()?;
    let bytes = (size_of::<Site>() + size_of_val(frames)).next_multiple_of(UNIT);
    let grown = |used: usize| used.checked_add(bytes).filter(|used| *used <= BYTES);
    let start = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).ok()?;
    // SAFETY: these bytes are this caller's. Zeroed memory is a site without sums.
    unsafe {
        let site = memory.add(start).cast::<Site>();
        site.as_ref().frames.store(frames.len() as u32, Ordering::Relaxed);
        site.as_ref().hash.store(hash, Ordering::Relaxed);
        site.as_ref().tag.store(tag, Ordering::Relaxed);
        ptr::copy_nonoverlapping(frames.as_ptr(), site.add(1).cast().as_ptr(), frames.len());
    }
    Some((start / UNIT) as u32)
}

/// Estimated bytes of all blocks in use, and the most so far.
static LIVE: AtomicU64 = AtomicU64::new(0);
static MOST_LIVE: AtomicU64 = AtomicU64::new(0);

/// Adds a sampled block to its site, and to the sums of this thread.
pub(super) fn allocated(number: u32, size: usize, weight: u64) {
    let bytes = bytes_for(size, weight);
    // SAFETY: the number comes from `find`.
    let (site, _) = unsafe { at(number) };
    site.for_both(|balance| balance.allocated(size, weight));
    threads::allocated(size, weight);
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
    // The peak is noted at each twentieth, since that visits all sites.
    let most = MOST_LIVE.load(Ordering::Relaxed);
    if live as i64 > (most + most / 20) as i64
        && MOST_LIVE.compare_exchange(most, live, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        note_peak();
    }
}

/// Subtracts a sampled block that was freed from its site. Adds it to the frees of this thread.
pub(super) fn freed(number: u32, size: usize, weight: u64, lifetime: u64) {
    let bytes = bytes_for(size, weight);
    // SAFETY: the number comes from `find`.
    let (site, _) = unsafe { at(number) };
    site.for_both(|balance| balance.freed(size, weight));
    threads::freed(size, weight);
    let lifetimes = (u128::from(lifetime) * u128::from(weight)) >> FRACTION;
    site.lifetimes.fetch_add(lifetimes as u64, Ordering::Relaxed);
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

/// Notes that a sampled block grew or shrank.
pub(super) fn resized(number: u32, old: usize, new: usize, weight: u64) {
    // SAFETY: the number comes from `find`.
    let (site, _) = unsafe { at(number) };
    site.for_both(|balance| balance.resized(old, new, weight));
    threads::resized(old, new, weight);
    let more = bytes_for(new, weight).wrapping_sub(bytes_for(old, weight));
    LIVE.fetch_add(more, Ordering::Relaxed);
}

/// Copies the sums of live blocks of all sites into those of the peak.
fn note_peak() {
    for_each_site(|_, site, _| {
        let sums = site.sums();
        site.peak.store(sums.live as u64, Ordering::Relaxed);
        site.peak_bytes.store(sums.live_bytes as u64, Ordering::Relaxed);
    });
}

impl Site {
    /// Calls `change` with the sums of the site, and with those of its tag.
    fn for_both(&self, change: impl Fn(&Balance)) {
        change(&self.balance);
        change(tags::sums(self.tag.load(Ordering::Relaxed)));
    }

    fn place(&self, frames: &'static [usize]) -> Place {
        Place { frames, tag: tags::name(self.tag.load(Ordering::Relaxed)) }
    }

    fn sums(&self) -> Sums {
        let numbers = self.balance.read();
        Sums {
            allocs: numbers.allocs as i64,
            alloc_bytes: numbers.alloc_bytes as i64,
            live: numbers.live as i64,
            live_bytes: numbers.live_bytes as i64,
            peak: self.peak.load(Ordering::Relaxed) as i64,
            peak_bytes: self.peak_bytes.load(Ordering::Relaxed) as i64,
            lifetimes: self.lifetimes.load(Ordering::Relaxed) as i64,
            alloc_variance: numbers.alloc_variance,
            live_variance: numbers.live_variance,
        }
    }
}

/// Calls `visit` with every site, its number and its frames.
fn for_each_site(mut visit: impl FnMut(u32, &'static Site, &'static [usize])) {
    for number in ALL.all(link) {
        // SAFETY: linked sites are complete.
        let (site, frames) = unsafe { at(number) };
        visit(number, site, frames);
    }
}

/// Returns a number above those of all sites.
pub(crate) fn bound() -> usize {
    USED.load(Ordering::Relaxed) / UNIT
}

/// Calls `visit` with the number of each site.
pub(crate) fn for_each_number(mut visit: impl FnMut(u32, Place)) {
    for_each_site(|number, site, frames| visit(number, site.place(frames)));
}

/// Returns what the site of a number from [`find`] stands for.
pub(super) fn place(number: u32) -> Place {
    // SAFETY: `find` returns complete sites.
    let (site, frames) = unsafe { at(number) };
    site.place(frames)
}

/// A site with its sums, now and recently.
#[derive(Clone, Copy)]
pub(crate) struct Recent {
    /// Identifies the site.
    pub(crate) number: u32,
    pub(crate) place: Place,
    pub(crate) sums: Sums,
    /// Bytes allocated in a second, averaged over some of the last calls of [`for_each_recent`].
    pub(crate) rate: u64,
}

/// Brings the rates of all sites up to date, and calls `visit` with each. `milliseconds` is the
/// time since the last call; 0 if there was none. One thread calls it at a time.
pub(crate) fn for_each_recent(milliseconds: u64, mut visit: impl FnMut(Recent)) {
    /// The last calls that a rate averages over, each with less weight than the next one.
    const CALLS: u64 = 4;
    for_each_site(|number, site, frames| {
        let sums = site.sums();
        let bytes = sums.alloc_bytes as u64;
        let new = bytes.saturating_sub(site.noted.swap(bytes, Ordering::Relaxed));
        let mut rate = site.rate.load(Ordering::Relaxed);
        if let Some(now) = new.saturating_mul(1000).checked_div(milliseconds) {
            rate = rate - rate.div_ceil(CALLS) + now / CALLS;
            site.rate.store(rate, Ordering::Relaxed);
        }
        visit(Recent { number, place: site.place(frames), sums, rate });
    });
}

/// Calls `visit` with each site and its sums.
pub(crate) fn for_each(mut visit: impl FnMut(Place, Sums)) {
    for_each_site(|_, site, frames| visit(site.place(frames), site.sums()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stacks that no other test has.
    fn sums_of(frames: &[usize]) -> Sums {
        let mut found = Sums::default();
        for_each(|place, sums| {
            if place.frames == frames {
                found = sums;
            }
        });
        found
    }

    #[test]
    fn stacks_have_one_site_each() {
        assert!(prepare() && prepare());
        let count = if cfg!(miri) { 20 } else { 5000 };
        let stack = |number: usize| [7, number, number * number];
        let numbers: std::vec::Vec<_> =
            (0..count).map(|one| find(&stack(one), 0).unwrap()).collect();
        for (one, number) in numbers.iter().enumerate() {
            assert_eq!(find(&stack(one), 0), Some(*number));
        }
        let other = find(&stack(1)[..2], 0).unwrap();
        assert!(!numbers.contains(&other));
        let tagged = find(&stack(1), tags::intern("of a site")).unwrap();
        assert!(!numbers.contains(&tagged));
        assert_eq!(find(&[9; MOST_FRAMES], 0), find(&[9; MOST_FRAMES + 5], 0));
    }

    #[test]
    fn sums_follow_allocations_and_frees() {
        assert!(prepare());
        let frames = [1_000_001, 2];
        let number = find(&frames, 0).unwrap();
        let weight = 5 << FRACTION;
        allocated(number, 100, weight);
        allocated(number, 100, weight);
        freed(number, 100, weight, 8);
        resized(number, 100, 300, weight);
        let sums = sums_of(&frames);
        assert_eq!((sums.allocs, sums.alloc_bytes), (10, 2000));
        assert_eq!((sums.live, sums.live_bytes), (5, 1500));
        assert_eq!(sums.lifetimes, 40);
        assert!(sums.peak_bytes <= 1000 && sums.peak * 100 == sums.peak_bytes);
        resized(number, 300, 100, weight);
        assert_eq!(sums_of(&frames).live_bytes, 500);
    }

    #[test]
    fn rates_are_of_the_last_calls() {
        assert!(prepare());
        let number = find(&[2_000_001, 2], 0).unwrap();
        let rate = |milliseconds| {
            let mut found = 0;
            for_each_recent(milliseconds, |recent| {
                if recent.number == number {
                    found = recent.rate;
                }
            });
            found
        };
        allocated(number, 1 << 20, 1 << FRACTION);
        assert_eq!(rate(0), 0, "the first call has nothing to compare with");
        let mut steady = 0;
        for _ in 0..40 {
            allocated(number, 1 << 20, 1 << FRACTION);
            steady = rate(250);
        }
        // 1 MiB in a quarter of a second.
        assert!((3 << 20..5 << 20).contains(&steady), "{steady}");
        for _ in 0..100 {
            let _ = rate(250);
        }
        assert_eq!(rate(250), 0);
    }

    #[test]
    fn threads_that_find_one_stack_get_one_site() {
        assert!(prepare());
        let count = if cfg!(miri) { 5 } else { 2000 };
        let find_all = || (0..count).map(|one| find(&[3, one, 5], 0).unwrap()).collect();
        let all: std::vec::Vec<std::vec::Vec<u32>> = std::thread::scope(|scope| {
            let threads: std::vec::Vec<_> = (0..3).map(|_| scope.spawn(find_all)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|numbers| *numbers == all[0]));
    }
}
