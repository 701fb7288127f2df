//! Statistics: what there is, and what happened so far. (`/proc/slabinfo`.)
//!
//! Nothing is counted on the fast path, since one more store costs it 5 to 7 % of its time. Misses are counted for each CPU, what
//! slabs hold where their lock is held anyway. So all of it can be read without a lock, in any context, a signal handler included.
//! What is read was so at some time, one number after the other: sums may be off by what is on its way.
//!
//! What it costs grows with the CPUs that the kernel may ever have, whether there are so many or not: for each of them and each class
//! that was ever used, [`gather`] reads one word, and [`Stats::caches`] and [`Stats::cpus`] read seven. With all size classes in use
//! that is a microsecond for each CPU, beside the file that [`gather`] reads: with hundreds of CPUs it is no small matter in a handler.
//! The text of OpenMetrics goes through all caches once for each number: half a millisecond where there are two CPUs, most of it for
//! writing numbers, and about ten where there are 512.
//!
//! [`gather`] has the numbers of the whole; [`Stats::caches`], [`Stats::cpus`] and [`Stats::nodes`] gather more while they are gone
//! through. There are two texts: [`Stats::slabinfo`] and [`Stats::open_metrics`]. With the feature `serde` all of it can be
//! serialised.
//!
//! This file may touch `objects`, `percpu`, `slab`, `page`, `node`, `irq_work`, `thread`, `size_class`, `sync` and `os`.

#[cfg(test)]
extern crate std;

mod label;
mod text;

use core::fmt::{self, Write as _};

use crate::irq_work;
use crate::node;
use crate::objects::{self, Census};
use crate::os;
use crate::page;
use crate::percpu::{self, Event};
use crate::size_class::{Class, MAX_CLASSES, UNIT};
use crate::slab;
use crate::thread::{self, MAX_CPUS};

pub(crate) use label::{Label, publish, publish_sharers};
pub use text::{OpenMetrics, Slabinfo};

/// Most items that [`Stats::caches`], [`Stats::cpus`] and [`Stats::nodes`] have.
pub(crate) struct Max {
    pub(crate) caches: usize,
    pub(crate) cpus: usize,
    pub(crate) nodes: usize,
}

/// As [`Max`] says.
pub(crate) const MAX: Max = Max { caches: MAX_CLASSES, cpus: MAX_CPUS, nodes: node::MAX_NODES };

/// Numbers of the whole allocator. Those that grow only count from the start of the process, or of the parent that it was forked
/// from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes handed out, or kept for what may come.
    pub held: usize,
    /// Of these, free: in pages that nobody needs, in slabs, and on their way in barns and sheaves.
    pub free: usize,
    /// Of these, in pages that nobody needs, which go back to the system after a while.
    pub unneeded: usize,
    /// Bytes of slabs, free and in use.
    pub in_slabs: usize,
    /// Bytes of blocks that are too large for slabs.
    pub large: usize,
    /// Bytes that the process has in memory, whoever they belong to; 0 where that cannot be read.
    pub resident: usize,
    /// Bytes that `held` may come to (`HAYLOFT_LIMIT`); 0 if there is no limit.
    pub limit: usize,
    /// Bytes given back to the system so far.
    pub decommitted: u64,
    /// Allocations so far that no sheaf could serve, in a context that may not wait: handlers, and the `nolock` functions.
    pub nolock_tries: u64,
    /// Of these, those that got no memory.
    pub nolock_failures: u64,
    /// Frees put off so far, as they could not be done where they were asked for.
    pub deferred: u64,
    /// Of these, those that are done.
    pub flushed: u64,
    /// Irq works queued so far.
    pub irq_works: u64,
}

/// What happened so far to the sheaves of a class, on one CPU or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct Events {
    /// Objects that were allocated from a sheaf. Counted with the feature `counters` only, and 0 without it.
    pub hits: u64,
    /// Allocations that found the sheaf empty, whereupon it was filled.
    pub refills: u64,
    /// Frees that found the sheaf full, whereupon half of it was emptied.
    pub flushes: u64,
    /// Refills for which the barn had nothing, and slabs were asked.
    pub barn_empty: u64,
    /// Flushes for which the barn had no room, and which went to slabs.
    pub barn_full: u64,
    /// Slabs made so far.
    pub new_slabs: u64,
}

impl Events {
    /// Of how many allocations from a sheaf one found it filled, from 0 to 1; `None` where hits are not counted, or there were
    /// none.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        (self.hits > 0).then(|| self.hits as f64 / (self.hits + self.refills) as f64)
    }

    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Events) -> Events {
        Events {
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
        self.hits += counted(Event::Hit);
        self.refills += counted(Event::Refill);
        self.flushes += counted(Event::Flush);
        self.barn_empty += counted(Event::BarnEmpty);
        self.barn_full += counted(Event::BarnFull);
        self.new_slabs += counted(Event::NewSlab);
    }
}

/// The name of a cache, as far as there is room for it: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Name([u8; Name::LEN]);

/// What names of size classes begin with, and no cache's does.
pub(crate) const SIZE_CLASS: &str = "kmalloc-";

impl Name {
    const LEN: usize = 32;

    /// As much of a name as there is room for.
    #[must_use]
    pub fn new(name: &str) -> Name {
        let mut bytes = [0; Name::LEN];
        let end = (0..=name.len().min(Name::LEN)).rev().find(|end| name.is_char_boundary(*end));
        let kept = name.as_bytes().get(..end.unwrap_or(0)).unwrap_or_default();
        // Zero is what comes after the name.
        let kept = kept.iter().map(|byte| if *byte == 0 { b'?' } else { *byte });
        bytes.iter_mut().zip(kept).for_each(|(to, from)| *to = from);
        Name(bytes)
    }

    /// With `mark` at its end, for which it makes room.
    fn marked(&self, mark: &str) -> Name {
        let name = self.as_str();
        let room = Name::LEN.saturating_sub(mark.len()).min(name.len());
        let end = (0..=room).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        let mut line = os::Line::<{ Name::LEN }>::new();
        // It fits.
        let _ = write!(line, "{}{mark}", name.get(..end).unwrap_or_default());
        Name(line.into_bytes())
    }

    /// Its letters as one word for tables: `_` for blanks and what is no letter.
    fn plain(&self) -> impl Iterator<Item = char> + '_ {
        let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
        self.as_str().chars().map(move |letter| if is_odd(letter) { '_' } else { letter })
    }

    fn of_size_class(class: Class) -> Name {
        let mut line = os::Line::<{ Name::LEN }>::new();
        // What does not fit is cut off.
        let _ = write!(line, "{SIZE_CLASS}{}", class.size());
        Name(line.into_bytes())
    }

    /// As a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(Name::LEN);
        core::str::from_utf8(self.0.get(..end).unwrap_or_default()).unwrap_or("?")
    }
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

/// What there is of a cache and those that it shares its slabs with, or of a size class, which is named `kmalloc-SIZE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct CacheStats {
    /// The name of the cache for which the slabs were first made; with `~NUMBER` at its end where another would look the same.
    pub name: Name,
    /// Bytes of an object.
    pub object_size: usize,
    /// Bytes from one object to the next.
    pub stride: usize,
    /// Objects of a slab.
    pub objects_per_slab: usize,
    /// Bytes of a slab.
    pub slab_size: usize,
    /// Most objects that a CPU keeps.
    pub sheaf_capacity: usize,
    /// Slabs, full ones included.
    pub slabs: usize,
    /// Slabs with free objects.
    pub partial_slabs: usize,
    /// Objects in use; a guess while others allocate and free. Those that wait for readers count, but for those that are
    /// still on their way (in sheaves of their own).
    pub in_use: usize,
    /// Free objects that CPUs keep.
    pub in_sheaves: usize,
    /// Free objects that nodes keep for CPUs.
    pub in_barns: usize,
    /// Caches that share these slabs, this one included.
    pub sharers: usize,
    /// What happened on all CPUs.
    pub events: Events,
}

impl CacheStats {
    /// Objects of all slabs.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.slabs.saturating_mul(self.objects_per_slab)
    }

    /// Bytes of all slabs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slabs.saturating_mul(self.slab_size)
    }
}

/// What a CPU has in its sheaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct CpuStats {
    /// Its number.
    pub cpu: usize,
    /// Free objects in its sheaves.
    pub objects: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// The thread that acts as this CPU, by its number for the kernel; 0 if there is none (see [`cpu`](crate::cpu)).
    pub thread: usize,
    /// What happened there.
    pub events: Events,
}

/// What a node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct NodeStats {
    /// Its number for the kernel.
    pub node: usize,
    /// Slabs, full ones included.
    pub slabs: usize,
    /// Slabs with free objects.
    pub partial_slabs: usize,
    /// Bytes of all slabs.
    pub bytes: usize,
    /// Bytes of the free objects in slabs.
    pub free: usize,
    /// Free objects in barns.
    pub in_barns: usize,
}

/// Gathers the numbers of the whole. In any context.
///
/// ```
/// let stats = alloc_core::stats::gather();
/// assert!(stats.free <= stats.held);
/// ```
#[must_use]
pub fn gather() -> Stats {
    Stats { resident: resident().unwrap_or(0), ..gather_own() }
}

/// As [`gather`], but for what the kernel has to be asked: `resident` is 0. There is no system call.
#[must_use]
pub fn gather_own() -> Stats {
    let (mut free, mut in_slabs) = (0, 0);
    for cache in classes().filter_map(now_of_class) {
        free += cache.objects().saturating_sub(cache.in_use) * cache.stride;
        in_slabs += cache.bytes();
    }
    let (held, unneeded) = (page::charged(), page::dirty());
    let (nolock_tries, nolock_failures) = objects::nolock_counts();
    let deferred = objects::deferred_frees();
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
    }
}

/// Bytes that the process has in memory.
fn resident() -> Option<usize> {
    let mut room = [0; 128];
    let text = os::read(format_args!("/proc/self/statm"), &mut room)?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(os::system_page_size())
}

impl Stats {
    /// Size classes that were ever used, by size, and then caches. They are gathered while one goes through them, in any
    /// context; a cache that is being made at that time may be missing.
    pub fn caches(&self) -> impl Iterator<Item = CacheStats> + use<> {
        all_caches()
    }

    /// CPUs that have something in their sheaves, or something happened there. Gathered as by [`Stats::caches`].
    pub fn cpus(&self) -> impl Iterator<Item = CpuStats> + use<> {
        (0..percpu::regions().min(MAX_CPUS)).map(of_cpu).filter(|stats| {
            stats.objects > 0 || stats.events.refills > 0 || stats.events.flushes > 0
        })
    }

    /// All nodes. Gathered as by [`Stats::caches`].
    pub fn nodes(&self) -> impl Iterator<Item = NodeStats> + use<> {
        (0..node::count()).map(of_node)
    }

    /// All of it in the format of `/proc/slabinfo`, version 2.1, with a section for sheaves and barns at the end of each line, and
    /// numbers of the whole in comments. Blanks in names are `_`.
    #[must_use]
    pub fn slabinfo(&self) -> Slabinfo<'_> {
        Slabinfo(self)
    }

    /// All of it in the text format of OpenMetrics, as Prometheus reads it.
    #[must_use]
    pub fn open_metrics(&self) -> OpenMetrics<'_> {
        OpenMetrics(self)
    }

    /// All of it, to be serialised.
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn report(&self) -> impl serde::Serialize + '_ {
        /// A list that is gone through when it is serialised.
        struct List<F>(F);

        impl<I: Iterator<Item: serde::Serialize>, F: Fn() -> I> serde::Serialize for List<F> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq((self.0)())
            }
        }

        #[derive(serde::Serialize)]
        struct Report<'a, C: serde::Serialize, P: serde::Serialize, N: serde::Serialize> {
            stats: &'a Stats,
            caches: C,
            cpus: P,
            nodes: N,
        }

        Report {
            stats: self,
            caches: List(|| self.caches()),
            cpus: List(|| self.cpus()),
            nodes: List(|| self.nodes()),
        }
    }
}

/// Classes that may hold objects, or did; there are none in that of objects that wait for readers.
fn classes() -> impl Iterator<Item = Class> {
    let all = (0..MAX_CLASSES).filter_map(Class::any_from_index);
    all.filter(|class| *class != Class::RCU && objects::has_depots(*class))
}

fn all_caches() -> impl Iterator<Item = CacheStats> {
    classes().filter_map(of_class).filter(|cache| cache.slabs > 0 || cache.events.refills > 0)
}

/// What there is of a class; `None` for one that is no cache's, or is becoming one's.
pub(crate) fn of_class(class: Class) -> Option<CacheStats> {
    let mut stats = now_of_class(class)?;
    (0..percpu::regions()).for_each(|cpu| stats.events.add(cpu, class));
    Some(stats)
}

/// As [`of_class`], without what happened before.
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
        in_sheaves,
        in_barns,
        sharers: label.sharers,
        events: Events::default(),
    })
}

/// What a class is called and how its slabs are cut.
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
        let objects: Vec<_> = (0..100).map(|_| crate::kmalloc::alloc(layout)).collect();
        let stats = gather();
        assert!(stats.held >= stats.free && stats.free >= stats.unneeded, "{stats:?}");
        assert!(stats.held >= 300_000 + stats.unneeded, "{stats:?}");
        assert_eq!(stats.held, stats.in_slabs + stats.large + stats.unneeded);
        for object in objects {
            // SAFETY: allocated above.
            unsafe { crate::kmalloc::free(object, layout) };
        }
    }

    #[test]
    fn names_are_cut_between_letters() {
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
    fn caches_are_found_by_their_names() {
        let layout = Layout::new::<[u8; 500]>();
        let cache = Cache::builder("found", layout).flags(CacheFlags::NO_MERGE).build().unwrap();
        let found = || gather().caches().find(|cache| cache.name.as_str() == "found");
        assert_eq!(found(), None, "nothing was allocated from it");
        let objects: Vec<_> = (0..50).map(|_| cache.alloc().unwrap()).collect();
        let stats = found().unwrap();
        assert_eq!((stats.in_use, stats.sharers), (50, 1));
        assert_eq!(stats.objects(), stats.slabs * stats.objects_per_slab);
        assert!(stats.partial_slabs <= stats.slabs && stats.events.refills > 0);
        assert_eq!(stats.events.new_slabs as usize, stats.slabs);
        for object in objects {
            // SAFETY: allocated above.
            unsafe { cache.free(object) };
        }
        assert_eq!(found().unwrap().in_use, 0);
        cache.destroy().unwrap();
        assert_eq!(found(), None);
    }
}
