//! Sampling of allocations: which blocks are sampled, where they were allocated, and for how many
//! others they stand.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | this one | switching the sampler on and off; a sampled block from its allocation to its free |
//! | `pool` `records` `sites` | memory of small samples; what is known of each; sums by stack |
//! | `tags` `threads` | names for parts of the program; sums by name, and by thread |
//! | `sums` | sums of weights, with their variances |
//! | `guard` | blocks with inaccessible memory around them |
//! | `gaps` `chains` | random gaps, weights; hash chains |
//! | `numbers` `reserved` | free numbers; memory reserved once |
//!
//! *Which.* `percpu` counts pops in the headers of sheaves, and asks for the next count here: the
//! random [`gap`] to the next sample of the class. Every other allocation is [hit](is_hit) or not
//! by itself. So the sampler costs nothing but two instructions of the count.
//!
//! *Where.* A sampled block of a small size comes from a pool that its address tells apart. A block
//! of a middle size and a large one stay where they would be; a mark beside their metadata says
//! that there is a record.
//!
//! Everything here works in any context, without a lock and without a heap. If memory for a record
//! is short, the block is not sampled, which [`missed`] counts.
//!
//! *Who looks.* Besides profiles, tracers: each sample fires a [probe](crate::arch::probes), and so
//! does its free. A tracer that attaches to them switches the sampler on: [`heed_tracer`].

mod chains;
mod gaps;
mod guard;
mod numbers;
mod pool;
mod records;
mod reserved;
mod sites;
mod sums;
pub(crate) mod tags;
pub(crate) mod threads;

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::arch::{lowest, probes};
use crate::batch::Batch;
use crate::os;
use crate::size_class::{CLASSES, Class, REDZONE, small_class_of};
use crate::stack::capture;
pub(crate) use gaps::random;
pub(crate) use guard::counts as guard_counts;
pub(crate) use pool::may_own;
use records::Sample;
pub use sites::{Place, Sums};
pub(crate) use sites::{Recent, bound as sites, for_each, for_each_number, for_each_recent};
pub(crate) use sums::root;
use sums::{bytes_for, whole};

/// The mean in force.
static MEAN: Mean = Mean::new();
/// Whether the sampler was ever on: there may be records.
static WAS_ON: AtomicBool = AtomicBool::new(false);
/// Samples without a record.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Number of [`mark`]s. Relaxed: a thread that knows of a mark has seen this number or a larger
/// one.
static MARKS: AtomicU32 = AtomicU32::new(0);
/// Blocks of each class that are apart from slabs.
static IN_POOL: [AtomicU32; CLASSES] = [const { AtomicU32::new(0) }; CLASSES];

/// The largest mean: beyond it, weights would overflow.
const MOST_MEAN: usize = 1 << 40;

/// Mean bytes between samples of a profile that was requested without any, and for a tracer.
pub(crate) const DEFAULT_MEAN: usize = 512 << 10;

/// Mean bytes between samples, as the bits of an `f64`; 0 while the sampler is off. The lowest bit
/// says that only a tracer wants samples. No mean has that bit itself, as each is a whole number.
/// Relaxed: the number guards nothing.
struct Mean(AtomicU64);

impl Mean {
    const TRACER: u64 = (DEFAULT_MEAN as f64).to_bits() | 1;

    const fn new() -> Mean {
        Mean(AtomicU64::new(0))
    }

    #[inline]
    fn get(&self) -> Option<f64> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            bits => Some(f64::from_bits(bits & !1)),
        }
    }

    /// Sets the mean of a profile, or with `None` that of the tracer, if there is one.
    fn set(&self, mean: Option<usize>, is_traced: bool) {
        let without = if is_traced { Mean::TRACER } else { 0 };
        let bits = mean.map_or(without, |mean| (mean.clamp(1, MOST_MEAN) as f64).to_bits());
        self.0.store(bits, Ordering::Relaxed);
    }

    /// Notes that a tracer came or left. Returns whether that switched the sampler on.
    fn trace(&self, is_traced: bool) -> bool {
        let (from, to) = if is_traced { (0, Mean::TRACER) } else { (Mean::TRACER, 0) };
        let was = self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        was.is_ok() && is_traced
    }
}

/// Switches the sampler on, with a mean from 1 to [`MOST_MEAN`] bytes. Counts that sheaves were
/// granted before stay in force: see [`percpu`](crate::percpu). `arena` is an address in an arena.
/// Returns false if there is no memory for records.
pub(crate) fn start(mean: usize, arena: usize) -> bool {
    let is_prepared = prepare(arena);
    if is_prepared {
        MEAN.set(Some(mean), false);
    }
    is_prepared
}

/// Prepares the memory of the sampler. Returns false if there is none.
fn prepare(arena: usize) -> bool {
    let is_prepared = records::prepare() && sites::prepare() && pool::prepare(arena);
    if is_prepared {
        WAS_ON.store(true, Ordering::Relaxed);
    }
    is_prepared
}

/// Switches the sampler off, unless a tracer is attached. Blocks that were sampled are accounted
/// for until they are freed.
pub(crate) fn stop() {
    MEAN.set(None, HEEDED.load(Ordering::Relaxed));
}

/// Returns the mean bytes between samples, or `None` while the sampler is off.
#[inline]
pub(crate) fn mean() -> Option<f64> {
    MEAN.get()
}

/// Whether a tracer was attached when that was last acted on. Relaxed: it guards nothing.
static HEEDED: AtomicBool = AtomicBool::new(false);

/// Returns whether a tracer came or left since [`heed_tracer`]. For slow paths.
#[inline]
pub(crate) fn tracer_changed() -> bool {
    probes::is_traced() != HEEDED.load(Ordering::Relaxed)
}

/// Switches the sampler on for a tracer that attached to the probes, with [`DEFAULT_MEAN`], or off
/// if the last one left, unless a profile has it on. Without memory for records it stays off until
/// another tracer comes. Returns whether it was switched on. Any context.
pub(crate) fn heed_tracer(arena: usize) -> bool {
    let is_traced = probes::is_traced();
    let is_new = HEEDED.swap(is_traced, Ordering::Relaxed) != is_traced;
    is_new && (!is_traced || prepare(arena)) && MEAN.trace(is_traced)
}

/// Returns whether there may be sampled blocks.
#[inline]
pub(crate) fn was_on() -> bool {
    WAS_ON.load(Ordering::Relaxed)
}

/// Returns whether there may be blocks apart from slabs: sampled or guarded ones.
#[inline]
pub(crate) fn has_apart() -> bool {
    lowest().load(Ordering::Relaxed) > 1
}

/// Returns the number of samples that were lost for want of memory.
pub(crate) fn missed() -> u64 {
    MISSED.load(Ordering::Relaxed)
}

/// Marks this moment: returns a number that is in the records of later samples, or one above it.
pub(crate) fn mark() -> u32 {
    MARKS.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// Blocks and bytes for which samples stand.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum {
    /// With [`FRACTION`](gaps::FRACTION) bits behind the point.
    weight: u64,
    bytes: u64,
}

impl Sum {
    pub(crate) fn blocks(self) -> i64 {
        whole(self.weight) as i64
    }

    pub(crate) fn bytes(self) -> i64 {
        self.bytes as i64
    }

    /// Returns whether each of these samples stands for itself alone.
    pub(crate) fn is_exact(self, samples: i64) -> bool {
        self.weight == (samples as u64) << gaps::FRACTION
    }

    pub(crate) fn add(&mut self, other: Sum) {
        self.weight += other.weight;
        self.bytes += other.bytes;
    }
}

/// Adds the samples of blocks in use that were allocated after a mark to the sums of their sites,
/// by the numbers of these. A site that is not in `sums` is left out.
pub(crate) fn add_since(mark: u32, sums: &mut [Sum]) {
    records::for_each(|sample| {
        if sample.mark >= mark
            && let Some(sum) = sums.get_mut(sample.site as usize)
        {
            let bytes = bytes_for(sample.size, sample.weight);
            sum.add(Sum { weight: sample.weight, bytes });
        }
    });
}

/// A number of allocations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) count: u32,
    /// The allocation behind these.
    pub(crate) end: End,
}

/// The allocation behind a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum End {
    /// One like the others.
    Plain,
    /// A sample.
    Sample,
    /// One to be guarded.
    Guarded,
}

/// Returns a random number of allocations of `class`, at most `most`, before the next one that is a
/// sample or to be guarded.
pub(crate) fn gap(class: Class, most: u32, random: impl Fn() -> u64) -> Gap {
    let mut gap = Gap { count: most, end: End::Plain };
    let mut may_end = |count: u32, end| {
        if count < gap.count {
            gap = Gap { count, end };
        }
    };
    if class.cache_index().is_none() {
        if let Some(mean) = mean() {
            // A conversion to an integer saturates.
            let count = gaps::distance(mean, random()) / class.size() as f64;
            may_end(count as u32, End::Sample);
        }
        if let Some(mean) = guard::mean(class) {
            may_end(gaps::uniform(mean, random()), End::Guarded);
        }
    }
    gap
}

/// Returns at random whether an allocation of `size` bytes that no gap covers is a sample.
#[inline]
pub(crate) fn is_hit(size: usize, random: impl FnOnce() -> u64) -> bool {
    mean().is_some_and(|mean| gaps::distance(mean, random()) < size as f64)
}

/// Allocates a sampled block of `class`, a small size class. Returns `None` if the block cannot be
/// sampled.
pub(crate) fn alloc(class: Class) -> Option<NonNull<u8>> {
    let Some(block) = pool::take(class.size()) else {
        MISSED.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    if !record(block.as_ptr(), class.size()) {
        // SAFETY: the slot was taken above.
        unsafe { pool::put(block.as_ptr()) };
        return None;
    }
    count_apart(class, 1);
    Some(block)
}

/// Adds to the number of blocks of a class that are apart from slabs.
fn count_apart(class: Class, change: i32) {
    if let Some(in_pool) = IN_POOL.get(class.index()) {
        in_pool.fetch_add(change as u32, Ordering::Relaxed);
    }
}

/// Returns whether to guard an allocation that no sheaf counts.
pub(crate) fn is_to_be_guarded(class: Class) -> bool {
    guard::is_hit(class)
}

/// Returns whether an allocation may be guarded now.
pub(crate) fn may_guard() -> bool {
    guard::is_due()
}

/// Allocates a guarded block for `layout`, which `class` serves, a small size class. It may be a
/// sample as well. Returns `None` if there is no room for it. `arena` is an address in an arena.
#[cold]
pub(crate) fn alloc_guarded(
    class: Class,
    layout: Layout,
    random: impl Fn() -> u64,
    arena: usize,
) -> Option<NonNull<u8>> {
    let (block, end) = guard::alloc(class, layout, random(), arena)?;
    // Relaxed: a thread that holds the block has seen the slots. `fetch_max`, as the pool may lie
    // higher.
    lowest().fetch_max(end, Ordering::Relaxed);
    if is_hit(class.size(), random) {
        record(block.as_ptr(), class.size());
    }
    count_apart(class, 1);
    Some(block)
}

/// Records a block that is a sample, with the stack of the caller and the tag of the thread.
/// Returns false if that is impossible.
#[cold]
pub(crate) fn record(block: *mut u8, size: usize) -> bool {
    // The sampler may have been switched off since the gap was drawn.
    let Some(mean) = mean() else { return false };
    let mut frames = [0; sites::MOST_FRAMES];
    let depth = capture(&mut frames);
    let keep = || {
        let frames = frames.get(..depth).unwrap_or_default();
        let Some(site) = sites::find(frames, tags::current()) else { return false };
        let weight = gaps::weight(size, mean);
        let address = block.addr();
        let (born, mark) = (os::milliseconds(), MARKS.load(Ordering::Relaxed));
        let sample = Sample { address, site, size, weight, born, mark };
        if !records::insert(&sample) {
            return false;
        }
        sites::allocated(site, size, weight);
        probes::alloc(address, size, bytes_for(size, weight));
        true
    };
    let recorded = keep();
    if !recorded {
        MISSED.fetch_add(1, Ordering::Relaxed);
    }
    recorded
}

/// Returns whether there is a record of the block at `address`.
pub(crate) fn is_recorded(address: *mut u8) -> bool {
    records::has(address.addr())
}

/// Removes the record of a block that is freed, if there is one. Returns the bytes that it had when
/// it was recorded or last resized.
#[cold]
pub(crate) fn forget(block: *mut u8) -> Option<usize> {
    let sample = records::remove(block.addr())?;
    probes::free(sample.address);
    let lifetime = os::milliseconds().saturating_sub(sample.born);
    sites::freed(sample.site, sample.size, sample.weight, lifetime);
    Some(sample.size)
}

/// A sampled block in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) address: usize,
    pub(crate) size: usize,
    /// Number of its site.
    pub(crate) site: u32,
    weight: u64,
}

impl Live {
    /// Returns the blocks for which it stands.
    pub(crate) fn sum(&self) -> Sum {
        Sum { weight: self.weight, bytes: bytes_for(self.size, self.weight) }
    }

    /// Returns the stack that allocated it, and its tag.
    pub(crate) fn place(&self) -> Place {
        sites::place(self.site)
    }
}

/// Returns a number of sampled blocks in use that there are at most.
pub(crate) fn most_live() -> usize {
    records::count()
}

/// Calls `visit` with each sampled block in use. Those that come or go meanwhile may be missing.
pub(crate) fn for_each_live(mut visit: impl FnMut(Live)) {
    records::for_each(|&Sample { address, size, site, weight, .. }| {
        visit(Live { address, size, site, weight });
    });
}

/// Returns the addresses of the sampler's memory that has addresses of blocks in it: records, and
/// the pool with freed blocks.
pub(crate) fn own_memory() -> [Range<usize>; 2] {
    [records::range(), pool::range()]
}

/// The sample of a block that is being resized and may move.
pub(crate) struct Resized(Sample);

/// Takes the record of a block that is about to be resized, if there is one. Another block may be
/// recorded at its address as soon as it has moved. For tracers, a resize is a free and an
/// allocation.
#[cold]
pub(crate) fn resize(block: *mut u8) -> Option<Resized> {
    let sample = records::remove(block.addr())?;
    probes::free(sample.address);
    Some(Resized(sample))
}

/// Records a resized block anew: at `block`, with `size` bytes. Nobody else uses the block yet.
#[cold]
pub(crate) fn resized(Resized(sample): Resized, block: *mut u8, size: usize) {
    sites::resized(sample.site, sample.size, size, sample.weight);
    let sample = Sample { address: block.addr(), size, ..sample };
    if records::insert(&sample) {
        probes::alloc(sample.address, size, bytes_for(size, sample.weight));
    } else {
        sites::freed(sample.site, size, sample.weight, 0);
        MISSED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gives up address space that samples do not need, if the process has more than `most` bytes of
/// address space. There is room for fewer samples afterwards.
pub(crate) fn limit_address_space(most: usize) {
    if was_on() && os::address_space().is_some_and(|size| size > most) {
        pool::give_up();
    }
}

/// Returns whether `block` lies apart from slabs, where sampled and guarded blocks do.
pub(crate) fn owns(block: *mut u8) -> bool {
    pool::may_own(block) && (pool::owns(block) || guard::owns(block))
}

/// Returns the class of the block in use apart from slabs that starts at `block`. `None` if none
/// does.
pub(crate) fn class_of(block: *mut u8) -> Option<Class> {
    if guard::owns(block) {
        guard::class_of(block)
    } else if pool::owns(block) {
        class_of_size(records::size(block.addr())?)
    } else {
        None
    }
}

/// Returns the bytes of the block in use apart from slabs that starts at `block`: those of its
/// class, or of a guarded block those that were requested. `None` if no block starts there; ends
/// the process with a report if that was a guarded one.
pub(crate) fn size_of_block(block: *mut u8) -> Option<usize> {
    if guard::owns(block) {
        Some(guard::size(block).unwrap_or_else(|| guard::not_in_use(block)))
    } else if pool::owns(block) {
        records::size(block.addr())
    } else {
        None
    }
}

/// Returns the bytes of a guarded block in use, which are fewer than those of its class.
#[inline]
pub(crate) fn guarded_size(block: *mut u8) -> Option<usize> {
    if pool::may_own(block) { guard::size(block) } else { None }
}

/// Returns the class of a block of the pool, by its bytes: exactly those of a class.
fn class_of_size(size: usize) -> Option<Class> {
    // The lookup adds the redzone, which a class's size includes.
    small_class_of(Layout::from_size_align(size.checked_sub(REDZONE)?, 1).ok()?)
}

/// Frees a block apart from slabs. Returns false if no sampled block in use starts there, or if
/// another thread is freeing it. Ends the process with a report if no guarded one does.
///
/// # Safety
/// Nobody uses the block.
pub(crate) unsafe fn free(block: *mut u8) -> bool {
    let class = class_of(block);
    if guard::owns(block) {
        forget(block);
        // SAFETY: the caller guarantees that nobody uses the block.
        unsafe { guard::free(block) };
    } else if pool::owns(block) && forget(block).is_some() {
        // SAFETY: the block had a record, which this thread removed, so its slot is this thread's.
        unsafe { pool::put(block) };
    } else {
        return false;
    }
    if let Some(class) = class {
        count_apart(class, -1);
    }
    true
}

/// Removes the sampled blocks from a batch that has just left a sheaf, and frees them. Ends the
/// process if one of them is free already.
pub(crate) fn free_among(batch: &mut Batch) {
    batch.retain(|block| {
        if !owns(block) {
            return true;
        }
        // SAFETY: a block in a sheaf is one that the program freed, and nobody uses it.
        if !unsafe { free(block) } {
            os::abort(format_args!("double free of {block:p}, which was sampled"));
        }
        false
    });
}

/// Returns the number of blocks of a class that are apart from slabs.
pub(crate) fn in_pool(class: Class) -> usize {
    IN_POOL.get(class.index()).map_or(0, |in_pool| in_pool.load(Ordering::Relaxed) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracers_and_profiles_share_the_sampler() {
        let mean = Mean::new();
        assert!(mean.trace(true));
        assert_eq!(mean.get(), Some(DEFAULT_MEAN as f64));
        // A profile counts more than a tracer.
        mean.set(Some(7), true);
        assert_eq!(mean.get(), Some(7.0));
        assert!(!mean.trace(false) && !mean.trace(true));
        assert_eq!(mean.get(), Some(7.0));
        mean.set(None, true);
        assert_eq!(mean.get(), Some(DEFAULT_MEAN as f64));
        assert!(!mean.trace(false));
        assert_eq!(mean.get(), None);
        mean.set(Some(DEFAULT_MEAN), false);
        assert!(!mean.trace(false));
        mean.set(None, false);
        assert_eq!(mean.get(), None);
    }
}
