//! Statistics: the current state, and counts of events so far. (`/proc/slabinfo`.)
//!
//! Nothing is counted on the fast path, since one more store costs it 5 to 7 % of its time. Misses
//! are counted per CPU. The contents of slabs are counted while their lock is held anyway. So all
//! statistics can be read without a lock, in any context, including a signal handler. They are not
//! a consistent snapshot: each number is read separately, so sums may be off by objects in transit.
//!
//! The cost of reading grows with the number of CPUs that the kernel may ever have, even if most do
//! not exist. For each of these CPUs and each class that was ever used, [`gather`] reads one word,
//! and [`Stats::caches`] and [`Stats::cpus`] read seven. With all size classes in use that is a
//! microsecond per CPU, in addition to the file that [`gather`] reads: with hundreds of CPUs this
//! is noticeable in a signal handler. The OpenMetrics text visits all caches once per metric. That
//! takes half a millisecond with two CPUs, mostly to format numbers, and about ten with 512.
//!
//! [`gather`] returns totals. [`Stats::caches`], [`Stats::cpus`], [`Stats::nodes`] and
//! [`Stats::tags`] gather more while they are iterated. There are two text formats:
//! [`Stats::slabinfo`] and [`Stats::open_metrics`]. With the feature `serde` all statistics can be
//! serialised.

#[cfg(test)]
extern crate std;

mod label;
mod sites;
mod text;

use core::fmt::{self, Write as _};

use crate::irq::thread::{self, MAX_CPUS};
use crate::irq::work as irq_work;
use crate::node;
use crate::os;
use crate::page;
use crate::path::objects::{self, Census};
use crate::percpu::{self, Event};
use crate::sampling::{self, tags};
use crate::size_class::{Class, MAX_CLASSES, UNIT};
use crate::slab;

pub(crate) use label::{Label, publish, publish_sharers};
pub use sites::SiteStats;
pub(crate) use sites::top_sites;
pub(crate) use text::Bytes;
pub use text::{OpenMetrics, Slabinfo};

/// Maximum numbers of items from [`Stats::caches`], [`Stats::cpus`], [`Stats::nodes`],
/// [`top_sites`] and [`Stats::tags`].
pub(crate) struct Max {
    pub(crate) caches: usize,
    pub(crate) cpus: usize,
    pub(crate) nodes: usize,
    pub(crate) sites: usize,
    pub(crate) tags: usize,
}

/// The values of [`Max`].
pub(crate) const MAX: Max = Max {
    caches: MAX_CLASSES,
    cpus: MAX_CPUS,
    nodes: node::MAX_NODES,
    sites: sites::MOST,
    // What was allocated without a tag is one more.
    tags: tags::MOST + 1,
};

// Names of tags are kept as a whole.
const _: () = assert!(tags::MOST_BYTES == Name::LEN);

/// Totals of the whole allocator. Counters start with the process, or with the parent that it was
/// forked from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes handed out, or kept for reuse.
    pub held: usize,
    /// Free bytes of `held`: in idle pages, in slabs, and in transit in barns and sheaves.
    pub free: usize,
    /// Bytes of `free` in idle pages, which are returned to the system after a while.
    pub unneeded: usize,
    /// Bytes of slabs, free and in use.
    pub in_slabs: usize,
    /// Bytes of blocks that are too large for slabs.
    pub large: usize,
    /// Resident bytes of the process, including memory outside this allocator; 0 if unreadable.
    pub resident: usize,
    /// Maximum of `held` (`HAYLOFT_LIMIT`); 0 if there is no limit.
    pub limit: usize,
    /// Bytes decommitted so far.
    pub decommitted: u64,
    /// Allocations so far that no sheaf could serve, in contexts that must not wait: signal
    /// handlers, and the `nolock` functions.
    pub nolock_tries: u64,
    /// Number of `nolock_tries` that got no memory.
    pub nolock_failures: u64,
    /// Frees deferred so far, since they were impossible where they were requested.
    pub deferred: u64,
    /// Number of `deferred` frees that are done.
    pub flushed: u64,
    /// Irq works queued so far.
    pub irq_works: u64,
    /// Calls to the system so far that decommitted memory.
    pub decommits: u64,
    /// Nanoseconds so far in calls to the system to decommit memory.
    pub decommit_nanoseconds: u64,
    /// Minor page faults of the process so far, including those outside this allocator; 0 if
    /// unreadable. Memory that is used again after it was decommitted takes one for each page.
    pub faults: u64,
    /// Huge pages so far that were made of memory in use.
    pub collapses: u64,
    /// Huge pages so far that the system refused to make.
    pub collapse_failures: u64,
    /// Nanoseconds so far in calls to the system to make huge pages.
    pub collapse_nanoseconds: u64,
    /// Number of `collapses` that were split, as a part of their memory was decommitted.
    pub collapse_splits: u64,
    /// Blocks so far that were guarded against misuse (`HAYLOFT_GUARD`).
    pub guarded: u64,
    /// Number of `guarded` that are in use.
    pub guarded_in_use: u64,
}

/// Counts of events so far in the sheaves of a class, on one CPU or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct Events {
    /// Objects allocated: exact when nobody allocates.
    pub allocs: u64,
    /// Number of `allocs` that a sheaf served.
    pub hits: u64,
    /// Allocations that found the sheaf empty and refilled it.
    pub refills: u64,
    /// Frees that found the sheaf full and flushed half of it.
    pub flushes: u64,
    /// Refills that found the barn empty and went on to slabs.
    pub barn_empty: u64,
    /// Flushes that found the barn full and went on to slabs.
    pub barn_full: u64,
    /// Slabs created so far.
    pub new_slabs: u64,
}

impl Events {
    /// Returns the fraction of allocations, from 0 to 1, that found an object in the sheaf. Returns
    /// `None` if there were no allocations.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        (self.allocs > 0).then(|| self.hits as f64 / self.allocs as f64)
    }

    /// Returns the counts since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Events) -> Events {
        Events {
            allocs: self.allocs.saturating_sub(earlier.allocs),
            hits: self.hits.saturating_sub(earlier.hits),
            refills: self.refills.saturating_sub(earlier.refills),
            flushes: self.flushes.saturating_sub(earlier.flushes),
            barn_empty: self.barn_empty.saturating_sub(earlier.barn_empty),
            barn_full: self.barn_full.saturating_sub(earlier.barn_full),
            new_slabs: self.new_slabs.saturating_sub(earlier.new_slabs),
        }
    }

    fn add(&mut self, cpu: usize, class: Class) {
        let counted = |event| percpu::counted(cpu, class, event);
        let hits = percpu::hits(cpu, class);
        self.allocs += hits + counted(Event::Beyond);
        self.hits += hits;
        self.refills += counted(Event::Refill);
        self.flushes += counted(Event::Flush);
        self.barn_empty += counted(Event::BarnEmpty);
        self.barn_full += counted(Event::BarnFull);
        self.new_slabs += counted(Event::NewSlab);
    }
}

/// The name of a cache, cut to 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Name([u8; Name::LEN]);

/// The prefix of size classes' names, which no cache's name has.
pub(crate) const SIZE_CLASS: &str = "kmalloc-";

impl Name {
    const LEN: usize = 32;

    /// Copies a name, cut to the room that there is.
    #[must_use]
    pub fn new(name: &str) -> Name {
        let mut bytes = [0; Name::LEN];
        let end = (0..=name.len().min(Name::LEN)).rev().find(|end| name.is_char_boundary(*end));
        let kept = name.as_bytes().get(..end.unwrap_or(0)).unwrap_or_default();
        // A zero byte ends the name.
        let kept = kept.iter().map(|byte| if *byte == 0 { b'?' } else { *byte });
        bytes.iter_mut().zip(kept).for_each(|(to, from)| *to = from);
        Name(bytes)
    }

    /// Returns the name with `mark` at its end, cut to make room for it.
    fn marked(&self, mark: &str) -> Name {
        let name = self.as_str();
        let room = Name::LEN.saturating_sub(mark.len()).min(name.len());
        let end = (0..=room).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        let mut line = os::Line::<{ Name::LEN }>::new();
        // The text fits.
        let _ = write!(line, "{}{mark}", name.get(..end).unwrap_or_default());
        Name(line.into_bytes())
    }

    /// Returns the name as one word: see [`plain`].
    fn plain(&self) -> impl Iterator<Item = char> + '_ {
        plain(self.as_str())
    }

    fn of_size_class(class: Class) -> Name {
        let mut line = os::Line::<{ Name::LEN }>::new();
        // A name that is too long is cut off.
        let _ = write!(line, "{SIZE_CLASS}{}", class.size());
        Name(line.into_bytes())
    }

    /// Returns the name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(Name::LEN);
        core::str::from_utf8(self.0.get(..end).unwrap_or_default()).unwrap_or("?")
    }
}

/// Returns the characters of a name as one word for tables, with `_` for blanks and control
/// characters.
fn plain(name: &str) -> impl Iterator<Item = char> + '_ {
    let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
    name.chars().map(move |letter| if is_odd(letter) { '_' } else { letter })
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(formatter)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(formatter)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Statistics of a cache and of the caches that it shares slabs with, or of a size class, which is
/// named `kmalloc-SIZE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct CacheStats {
    /// Name of the first cache that the slabs were created for. Ends in `~NUMBER` if another name
    /// would look the same.
    pub name: Name,
    /// Bytes of an object.
    pub object_size: usize,
    /// Bytes from one object to the next.
    pub stride: usize,
    /// Objects in a slab.
    pub objects_per_slab: usize,
    /// Bytes of a slab.
    pub slab_size: usize,
    /// Maximum number of objects in a CPU's sheaf.
    pub sheaf_capacity: usize,
    /// Slabs, including full ones.
    pub slabs: usize,
    /// Slabs with free objects.
    pub partial_slabs: usize,
    /// Objects in use: a guess while others allocate and free. Includes objects whose free waits
    /// for readers.
    pub in_use: usize,
    /// Blocks in use that were sampled and lie apart from the slabs.
    pub sampled: usize,
    /// Free objects in the sheaves of CPUs.
    pub in_sheaves: usize,
    /// Free objects in the barns of nodes.
    pub in_barns: usize,
    /// Caches that share these slabs, including this one.
    pub sharers: usize,
    /// Events on all CPUs.
    pub events: Events,
}

impl CacheStats {
    /// Returns the number of objects in all slabs.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.slabs.saturating_mul(self.objects_per_slab)
    }

    /// Returns the number of objects freed: exact when nobody allocates or frees.
    #[must_use]
    pub fn frees(&self) -> u64 {
        self.events.allocs.saturating_sub((self.in_use + self.sampled) as u64)
    }

    /// Returns the bytes of all slabs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slabs.saturating_mul(self.slab_size)
    }
}

/// Estimates of what was allocated in a [tag](crate::tag), from the samples of a heap profile, and
/// their standard errors. The right number lies within one standard error in 68 of 100 cases, and
/// within two in 95.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct TagStats {
    /// Name of the tag; empty for what was allocated without one.
    pub name: Name,
    /// Blocks in use.
    pub live: u64,
    /// Bytes of these.
    pub live_bytes: u64,
    /// Standard error of `live_bytes`.
    pub live_error: u64,
    /// Blocks allocated so far.
    pub allocs: u64,
    /// Bytes of these.
    pub alloc_bytes: u64,
    /// Standard error of `alloc_bytes`.
    pub alloc_error: u64,
}

/// Statistics of a CPU's sheaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct CpuStats {
    /// Number of the CPU.
    pub cpu: usize,
    /// Free objects in its sheaves.
    pub objects: usize,
    /// Bytes of these objects.
    pub bytes: usize,
    /// The kernel's number of the CPU thread; 0 if there is none (see [`cpu`](crate::cpu)).
    pub thread: usize,
    /// Events on the CPU.
    pub events: Events,
}

/// Statistics of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct NodeStats {
    /// The kernel's number of the node.
    pub node: usize,
    /// Slabs, including full ones.
    pub slabs: usize,
    /// Slabs with free objects.
    pub partial_slabs: usize,
    /// Bytes of all slabs.
    pub bytes: usize,
    /// Bytes of free objects in slabs.
    pub free: usize,
    /// Free objects in barns.
    pub in_barns: usize,
}

/// Gathers the totals. May be called in any context.
///
/// ```
/// let stats = hayloft_core::stats::gather();
/// assert!(stats.free <= stats.held);
/// ```
#[must_use]
pub fn gather() -> Stats {
    Stats {
        resident: resident().unwrap_or(0),
        faults: os::minor_faults().unwrap_or(0),
        ..gather_own()
    }
}

/// As [`gather`], without a system call: `resident` is 0.
#[must_use]
pub fn gather_own() -> Stats {
    let (mut free, mut in_slabs) = (0, 0);
    for cache in classes().filter_map(now_of_class) {
        free += cache.objects().saturating_sub(cache.in_use) * cache.stride;
        in_slabs += cache.bytes();
    }
    let (held, unneeded) = (page::charged(), page::dirty());
    let (nolock_tries, nolock_failures) = objects::nolock_counts();
    let (decommits, decommit_nanoseconds) = page::decommits();
    let (collapses, collapse_failures, collapse_nanoseconds) = page::collapses();
    let deferred = objects::deferred_frees();
    let (guarded, guarded_in_use) = sampling::guard_counts();
    Stats {
        held,
        free: (unneeded + free).min(held),
        unneeded,
        in_slabs,
        large: held.saturating_sub(unneeded + in_slabs),
        resident: 0,
        limit: page::limit().unwrap_or(0),
        decommitted: page::decommitted(),
        nolock_tries,
        nolock_failures,
        deferred: deferred.deferred,
        flushed: deferred.flushed,
        irq_works: irq_work::count(),
        decommits,
        decommit_nanoseconds,
        faults: 0,
        collapses,
        collapse_failures,
        collapse_nanoseconds,
        collapse_splits: page::splits(),
        guarded,
        guarded_in_use,
    }
}

/// Returns the resident bytes of the process.
fn resident() -> Option<usize> {
    let mut room = [0; 128];
    let text = os::read(format_args!("/proc/self/statm"), &mut room)?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(os::system_page_size())
}

impl Stats {
    /// Returns the size classes that were ever used, in order of size, and then the caches. They
    /// are gathered during the iteration, in any context. A cache that is being created at that
    /// time may be missing.
    pub fn caches(&self) -> impl Iterator<Item = CacheStats> + use<> {
        all_caches()
    }

    /// Returns the CPUs with objects or events in their sheaves. Gathered as by [`Stats::caches`].
    pub fn cpus(&self) -> impl Iterator<Item = CpuStats> + use<> {
        (0..percpu::regions().min(MAX_CPUS)).map(of_cpu).filter(|stats| {
            stats.objects > 0 || stats.events.allocs > 0 || stats.events.flushes > 0
        })
    }

    /// Returns all nodes. Gathered as by [`Stats::caches`].
    pub fn nodes(&self) -> impl Iterator<Item = NodeStats> + use<> {
        (0..node::count()).map(of_node)
    }

    /// Returns the tags in which sampled blocks were allocated, and what was allocated without one.
    /// There are none if the program never took [profiles](crate::profile). Gathered as by
    /// [`Stats::caches`]. Blocks that were freed just now may count as in use until the sheaf of
    /// their CPU is flushed.
    pub fn tags(&self) -> impl Iterator<Item = TagStats> + use<> {
        let all = tags::all().map(|(name, sums)| TagStats {
            name: Name::new(name),
            live: sums.live,
            live_bytes: sums.live_bytes,
            live_error: sampling::root(sums.live_variance),
            allocs: sums.allocs,
            alloc_bytes: sums.alloc_bytes,
            alloc_error: sampling::root(sums.alloc_variance),
        });
        all.filter(|tag| tag.allocs > 0)
    }

    /// Returns all statistics in the format of `/proc/slabinfo`, version 2.1. Each line ends in
    /// sections for sheaves, barns and slabs, and comments hold the totals. Blanks in names become
    /// `_`.
    #[must_use]
    pub fn slabinfo(&self) -> Slabinfo<'_> {
        Slabinfo(self)
    }

    /// Returns all statistics in the text format of OpenMetrics, which Prometheus reads.
    #[must_use]
    pub fn open_metrics(&self) -> OpenMetrics<'_> {
        OpenMetrics(self)
    }

    /// Returns all statistics as a value that can be serialised.
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn report(&self) -> impl serde::Serialize + '_ {
        /// A list that is iterated when it is serialised.
        struct List<F>(F);

        impl<I: Iterator<Item: serde::Serialize>, F: Fn() -> I> serde::Serialize for List<F> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq((self.0)())
            }
        }

        #[derive(serde::Serialize)]
        struct Report<'a, C, P, N, T>
        where
            C: serde::Serialize,
            P: serde::Serialize,
            N: serde::Serialize,
            T: serde::Serialize,
        {
            stats: &'a Stats,
            caches: C,
            cpus: P,
            nodes: N,
            tags: T,
        }

        Report {
            stats: self,
            caches: List(|| self.caches()),
            cpus: List(|| self.cpus()),
            nodes: List(|| self.nodes()),
            tags: List(|| self.tags()),
        }
    }
}

/// Returns the classes that hold objects or did. The class of objects that wait for readers is left
/// out.
fn classes() -> impl Iterator<Item = Class> {
    let all = (0..MAX_CLASSES).filter_map(Class::any_from_index);
    all.filter(|class| *class != Class::RCU && objects::has_node_classes(*class))
}

fn all_caches() -> impl Iterator<Item = CacheStats> {
    classes().filter_map(of_class).filter(|cache| cache.slabs > 0 || cache.events.allocs > 0)
}

/// Returns the statistics of the object caches that were used. Any context.
pub(crate) fn object_caches() -> impl Iterator<Item = CacheStats> {
    let caches = classes().filter(|class| class.cache_index().is_some());
    caches.filter_map(of_class).filter(|cache| cache.events.allocs > 0)
}

/// Returns the statistics of a class. `None` if the class is unused, or is being set up for a
/// cache.
pub(crate) fn of_class(class: Class) -> Option<CacheStats> {
    let mut stats = now_of_class(class)?;
    (0..percpu::regions()).for_each(|cpu| stats.events.add(cpu, class));
    stats.events.allocs += percpu::allocated_without_region(class);
    Some(stats)
}

/// As [`of_class`], without events.
fn now_of_class(class: Class) -> Option<CacheStats> {
    let label = label_of(class)?;
    let census = objects::census(class);
    let Census { counts, in_sheaves, in_barns } = census;
    Some(CacheStats {
        name: label.name,
        object_size: label.object_size,
        stride: label.stride,
        objects_per_slab: label.objects,
        slab_size: label.units * UNIT,
        sheaf_capacity: percpu::capacity(class),
        slabs: counts.slabs,
        partial_slabs: counts.partial,
        in_use: census.in_use(label.objects),
        sampled: sampling::in_pool(class),
        in_sheaves,
        in_barns,
        sharers: label.sharers,
        events: Events::default(),
    })
}

/// Returns the name of a class and the layout of its slabs.
fn label_of(class: Class) -> Option<Label> {
    if let Some(number) = class.cache_index() {
        return label::read(number);
    }
    let shape = slab::shape(class);
    Some(Label {
        name: Name::of_size_class(class),
        object_size: class.size(),
        stride: shape.stride(),
        objects: shape.objects(),
        units: shape.units as usize,
        sharers: 1,
    })
}

fn of_cpu(cpu: usize) -> CpuStats {
    let mut stats = CpuStats {
        cpu,
        thread: usize::try_from(thread::id(cpu)).unwrap_or(0),
        ..CpuStats::default()
    };
    for class in classes() {
        stats.events.add(cpu, class);
        let held = percpu::held(cpu, class);
        if held > 0 {
            stats.objects += held;
            stats.bytes += held * label_of(class).map_or(0, |label| label.stride);
        }
    }
    stats
}

fn of_node(node: usize) -> NodeStats {
    let mut stats = NodeStats { node: node::number(node).unwrap_or(node), ..NodeStats::default() };
    for class in classes() {
        let Some((counts, in_barn)) = objects::counts_of_node(node, class) else { continue };
        let Some(label) = label_of(class) else { continue };
        stats.slabs += counts.slabs;
        stats.partial_slabs += counts.partial;
        stats.bytes += counts.slabs * label.units * UNIT;
        stats.free += counts.free * label.stride;
        stats.in_barns += in_barn;
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheFlags};
    use core::alloc::Layout;
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn memory_is_counted() {
        let layout = Layout::new::<[u8; 3000]>();
        let objects: Vec<_> = (0..100).map(|_| crate::front::kmalloc::alloc(layout)).collect();
        let stats = gather();
        assert!(stats.held >= stats.free && stats.free >= stats.unneeded, "{stats:?}");
        assert!(stats.held >= 300_000 + stats.unneeded, "{stats:?}");
        assert_eq!(stats.held, stats.in_slabs + stats.large + stats.unneeded);
        for object in objects {
            // SAFETY: the object was allocated above with this layout, and is freed once.
            unsafe { crate::front::kmalloc::free(object, layout) };
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(Name::new("packets").as_str(), "packets");
        assert_eq!(Name::new(&"x".repeat(40)).as_str(), "x".repeat(32));
        assert_eq!(Name::new(&("x".repeat(31) + "é")).as_str(), "x".repeat(31));
        assert_eq!(Name::new("a\0b").as_str(), "a?b");
        assert_eq!(
            Name::new(&("x".repeat(28) + "éx")).marked("~17").as_str(),
            "x".repeat(28) + "~17"
        );
        assert_eq!(Name::new("a b\tc").plain().collect::<std::string::String>(), "a_b_c");
        let largest = Class::from_index(crate::size_class::CLASSES - 1).unwrap();
        assert_eq!(Name::of_size_class(largest).to_string(), "kmalloc-1048576");
    }

    #[test]
    fn caches_with_objects_are_listed_by_name() {
        let layout = Layout::new::<[u8; 500]>();
        let cache = Cache::builder("found", layout).flags(CacheFlags::NO_MERGE).build().unwrap();
        let found = || gather().caches().find(|cache| cache.name.as_str() == "found");
        assert_eq!(found(), None, "a cache without objects is listed");
        let objects: Vec<_> = (0..50).map(|_| cache.alloc().unwrap()).collect();
        let stats = found().unwrap();
        assert_eq!((stats.in_use, stats.sharers), (50, 1));
        assert_eq!(stats.objects(), stats.slabs * stats.objects_per_slab);
        assert!(stats.partial_slabs <= stats.slabs && stats.events.refills > 0);
        assert_eq!(stats.events.new_slabs as usize, stats.slabs);
        for object in objects {
            // SAFETY: the object was allocated above from this cache, and is freed once.
            unsafe { cache.free(object) };
        }
        assert_eq!(found().unwrap().in_use, 0);
        cache.destroy().unwrap();
        assert_eq!(found(), None);
    }
}
