//! Statistics as text: a table for people, the format of `/proc/slabinfo`, and the OpenMetrics
//! format.
//!
//! All are written piece by piece, without allocating, so that a signal handler can write them.
//! That is why no library is used.

use core::fmt::{self, Display, Formatter, Write as _};

use super::{CacheStats, CpuStats, NodeStats, Stats, TagStats, plain};
use crate::os;
use crate::sampling::tags;

/// Number of caches with a row of their own in the table: those with the most memory.
const ROWS: usize = 10;

/// A table for people, as `HAYLOFT_STATS=stderr,table` writes it: totals, and the caches with the
/// most memory, which are gathered while the table is written. The last line has no newline.
///
/// ```
/// use hayloft_core::{kmalloc, stats};
/// use std::alloc::Layout;
///
/// kmalloc::alloc(Layout::new::<[u8; 100]>());
/// let report = stats::gather().to_string();
/// println!("{report}");
/// assert!(report.contains(" in use, ") && report.contains("\nkmalloc-"));
/// ```
impl Display for Stats {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let [held, free, unneeded, large] =
            [self.held, self.free, self.unneeded, self.large].map(Bytes);
        let in_use = Bytes(self.held.saturating_sub(self.free));
        write!(to, "{held} held: {in_use} in use, {free} free, of which {unneeded} unneeded")?;
        write!(to, "; {large} in large blocks")?;
        if self.limit > 0 {
            write!(to, "; limit {}", Bytes(self.limit))?;
        }
        if self.resident > 0 {
            write!(to, "; {} resident", Bytes(self.resident))?;
        }
        write!(to, "; {} given back so far", Bytes(self.decommitted as usize))?;
        if self.collapses > 0 {
            write!(to, "; {} huge pages made, {} split", self.collapses, self.collapse_splits)?;
        }
        let caches = self.caches().filter(|cache| cache.slabs > 0);
        let (rows, others, of_others) = largest(caches, CacheStats::bytes);
        if let Some(Some(_)) = rows.first() {
            let [name, size, uses, total, memory, allocs] =
                ["CACHE", "SIZE", "IN USE", "TOTAL", "MEMORY", "ALLOCS"];
            write!(to, "\n{name:<24} {size:>6} {uses:>10} {total:>10} {memory:>9} {allocs:>12}")?;
        }
        for cache in rows.iter().flatten() {
            write!(
                to,
                "\n{:<24} {:>6} {:>10} {:>10} {:>9} {:>12}",
                Word(cache.name.as_str()),
                cache.object_size,
                cache.in_use,
                cache.objects(),
                Bytes(cache.bytes()),
                cache.events.allocs,
            )?;
        }
        if others > 0 {
            write!(to, "\n{others:>3} others {:>53}", Bytes(of_others))?;
        }
        let (rows, others, of_others) = largest(self.tags(), |tag| tag.live_bytes as usize);
        if let Some(Some(_)) = rows.first() {
            let [name, live, memory, error, allocs, bytes] =
                ["TAG", "IN USE", "MEMORY", "ERROR", "ALLOCS", "ALLOCATED"];
            write!(to, "\n{name:<24} {live:>10} {memory:>9} {error:>7} {allocs:>12} {bytes:>12}")?;
        }
        for tag in rows.iter().flatten() {
            let name = if tag.name.as_str().is_empty() { "(none)" } else { tag.name.as_str() };
            // In tenths of a percent.
            let error = tag.live_error.saturating_mul(1000) / tag.live_bytes.max(1);
            write!(
                to,
                "\n{:<24} {:>10} {:>9} {:>4}.{} % {:>11} {:>12}",
                Word(name),
                tag.live,
                Bytes(tag.live_bytes as usize),
                error / 10,
                error % 10,
                tag.allocs,
                Bytes(tag.alloc_bytes as usize),
            )?;
        }
        if others > 0 {
            write!(to, "\n{others:>3} others {:>34}", Bytes(of_others))?;
        }
        if tags::lost() > 0 {
            write!(to, "\n{} uses of names beyond {} tags", tags::lost(), tags::MOST)?;
        }
        Ok(())
    }
}

/// Returns the [`ROWS`] items with the most bytes, the largest first, and the number of others and
/// their bytes.
fn largest<T>(
    items: impl Iterator<Item = T>,
    bytes_of: impl Fn(&T) -> usize,
) -> ([Option<T>; ROWS], usize, usize) {
    let mut rows = [const { None::<T> }; ROWS];
    let (mut others, mut of_others) = (0, 0);
    let bytes = |item: &Option<T>| item.as_ref().map_or(0, &bytes_of);
    for item in items {
        // An item replaces the first row with less memory, whose item moves on to the next row. The
        // last item that is replaced has no row.
        let mut left = Some(item);
        for row in &mut rows {
            if row.is_none() || bytes(&left) > bytes(row) {
                core::mem::swap(&mut left, row);
            }
        }
        if left.is_some() {
            others += 1;
            of_others += bytes(&left);
        }
    }
    (rows, others, of_others)
}

/// A number of bytes for people: in the largest unit that fits at least once, with one decimal
/// below 100.
pub(crate) struct Bytes(pub(crate) usize);

impl Display for Bytes {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Bytes(bytes) = *self;
        let (unit, shift) = match bytes {
            0..0x400 => ("B", 0),
            0x400..0x10_0000 => ("KiB", 10),
            0x10_0000..0x4000_0000 => ("MiB", 20),
            _ => ("GiB", 30),
        };
        let (whole, tenth) = (bytes >> shift, ((bytes & ((1 << shift) - 1)) * 10) >> shift);
        let width = to.width().unwrap_or(0).saturating_sub(unit.len() + 1);
        if shift == 0 || whole >= 100 {
            write!(to, "{whole:>width$} {unit}")
        } else {
            write!(to, "{whole:>width$}.{tenth} {unit}", width = width.saturating_sub(2))
        }
    }
}

/// The format of `/proc/slabinfo`: see [`Stats::slabinfo`].
#[derive(Clone, Copy, Debug)]
pub struct Slabinfo<'a>(pub(super) &'a Stats);

impl Display for Slabinfo<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Slabinfo(stats) = self;
        writeln!(to, "slabinfo - version: 2.1 (statistics)")?;
        writeln!(
            to,
            "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> \
             <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail> : sheafstat <held> <hits> <refills> <flushes> \
             : barnstat <held> <empty> <full> : slabstat <partial> <new>"
        )?;
        let page = os::system_page_size();
        for cache in stats.caches() {
            let events = &cache.events;
            writeln!(
                to,
                "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4} : tunables {:>4} {:>4} {:>4} : slabdata {:>6} {:>6} {:>6} : sheafstat {} {} {} \
                 {} : barnstat {} {} {} : slabstat {} {}",
                Word(cache.name.as_str()),
                cache.in_use,
                cache.objects(),
                cache.object_size,
                cache.objects_per_slab,
                cache.slab_size / page,
                cache.sheaf_capacity,
                cache.sheaf_capacity / 2,
                0,
                cache.slabs,
                cache.slabs,
                0,
                cache.in_sheaves,
                events.hits,
                events.refills,
                events.flushes,
                cache.in_barns,
                events.barn_empty,
                events.barn_full,
                cache.partial_slabs,
                events.new_slabs,
            )?;
        }
        for metric in &METRICS {
            writeln!(to, "# {} {}", metric.name, (metric.of)(stats))?;
        }
        Ok(())
    }
}

/// A name as a single word, for lines that are split at blanks.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let mut len = 0;
        for letter in plain(self.0) {
            to.write_char(letter)?;
            len += 1;
        }
        let padding = to.width().unwrap_or(0).saturating_sub(len);
        (0..padding).try_for_each(|_| to.write_char(' '))
    }
}

/// A numeric statistic of a `T`.
struct Metric<T> {
    name: &'static str,
    /// Whether it is a counter, which only grows.
    counts: bool,
    help: &'static str,
    of: fn(&T) -> u64,
}

const fn gauge<T>(name: &'static str, help: &'static str, of: fn(&T) -> u64) -> Metric<T> {
    Metric { name, counts: false, help, of }
}

const fn counter<T>(name: &'static str, help: &'static str, of: fn(&T) -> u64) -> Metric<T> {
    Metric { name, counts: true, help, of }
}

/// Metrics of the whole allocator.
static METRICS: [Metric<Stats>; 22] = [
    gauge("held_bytes", "Handed out, or kept for what may come.", |stats| stats.held as u64),
    gauge("free_bytes", "Of held_bytes, free.", |stats| stats.free as u64),
    gauge("unneeded_bytes", "Of held_bytes, on the way back to the system.", |stats| {
        stats.unneeded as u64
    }),
    gauge("slab_bytes", "Of held_bytes, in slabs.", |stats| stats.in_slabs as u64),
    gauge("large_bytes", "Of held_bytes, blocks too large for slabs.", |stats| stats.large as u64),
    gauge("resident_bytes", "What the process has in memory.", |stats| stats.resident as u64),
    gauge("limit_bytes", "What held_bytes may come to; 0 without a limit.", |stats| {
        stats.limit as u64
    }),
    counter("decommitted_bytes", "Given back to the system.", |stats| stats.decommitted),
    counter("nolock_tries", "Allocations beyond sheaves that might not wait.", |stats| {
        stats.nolock_tries
    }),
    counter("nolock_failures", "Of nolock_tries, without memory.", |stats| stats.nolock_failures),
    counter("deferred_frees", "Frees put off.", |stats| stats.deferred),
    counter("flushed_frees", "Of deferred_frees, done.", |stats| stats.flushed),
    counter("irq_works", "Irq works queued.", |stats| stats.irq_works),
    counter("decommits", "Calls to the system that decommitted memory.", |stats| stats.decommits),
    counter("decommit_nanoseconds", "Time in calls to decommit memory.", |stats| {
        stats.decommit_nanoseconds
    }),
    counter("minor_faults", "Page faults of the process without a file or device.", |stats| {
        stats.faults
    }),
    counter("collapses", "Huge pages made of memory in use.", |stats| stats.collapses),
    counter("collapse_failures", "Huge pages that the system refused to make.", |stats| {
        stats.collapse_failures
    }),
    counter("collapse_nanoseconds", "Time in calls to make huge pages.", |stats| {
        stats.collapse_nanoseconds
    }),
    counter("collapse_splits", "Of collapses, split by decommitting a part.", |stats| {
        stats.collapse_splits
    }),
    counter("guarded", "Blocks that were guarded against misuse.", |stats| stats.guarded),
    gauge("guarded_in_use", "Of guarded, in use.", |stats| stats.guarded_in_use),
];

/// Metrics of each cache.
static CACHE_METRICS: [Metric<CacheStats>; 15] = [
    gauge("cache_object_bytes", "Bytes of an object.", |cache| cache.object_size as u64),
    gauge("cache_objects_in_use", "Objects that the program has.", |cache| cache.in_use as u64),
    gauge("cache_objects", "Objects of all slabs.", |cache| cache.objects() as u64),
    gauge("cache_objects_in_sheaves", "Free objects that CPUs keep.", |cache| {
        cache.in_sheaves as u64
    }),
    gauge("cache_objects_in_barns", "Free objects that nodes keep.", |cache| cache.in_barns as u64),
    gauge("cache_slabs", "Slabs.", |cache| cache.slabs as u64),
    gauge("cache_partial_slabs", "Slabs with free objects.", |cache| cache.partial_slabs as u64),
    counter("cache_allocs", "Allocations.", |cache| cache.events.allocs),
    counter("cache_frees", "Frees.", CacheStats::frees),
    counter("cache_hits", "Allocations from a sheaf.", |cache| cache.events.hits),
    counter("cache_refills", "Allocations that found the sheaf empty.", |cache| {
        cache.events.refills
    }),
    counter("cache_flushes", "Frees that found the sheaf full.", |cache| cache.events.flushes),
    counter("cache_barn_empty", "Refills that the barn had nothing for.", |cache| {
        cache.events.barn_empty
    }),
    counter("cache_barn_full", "Flushes that the barn had no room for.", |cache| {
        cache.events.barn_full
    }),
    counter("cache_new_slabs", "Slabs made.", |cache| cache.events.new_slabs),
];

/// Metrics of each tag. The errors are standard errors.
static TAG_METRICS: [Metric<TagStats>; 6] = [
    gauge("tag_blocks", "Blocks in use that were allocated in the tag, estimated.", |tag| tag.live),
    gauge("tag_bytes", "Bytes of tag_blocks.", |tag| tag.live_bytes),
    gauge("tag_error_bytes", "Standard error of tag_bytes.", |tag| tag.live_error),
    counter("tag_allocs", "Blocks allocated in the tag, estimated.", |tag| tag.allocs),
    counter("tag_alloc_bytes", "Bytes of tag_allocs.", |tag| tag.alloc_bytes),
    gauge("tag_alloc_error_bytes", "Standard error of tag_alloc_bytes.", |tag| tag.alloc_error),
];

/// Metrics of each CPU.
static CPU_METRICS: [Metric<CpuStats>; 6] = [
    gauge("cpu_objects", "Free objects in the sheaves of the CPU.", |cpu| cpu.objects as u64),
    gauge("cpu_bytes", "Bytes of cpu_objects.", |cpu| cpu.bytes as u64),
    counter("cpu_allocs", "Allocations on the CPU.", |cpu| cpu.events.allocs),
    counter("cpu_hits", "Allocations from its sheaves.", |cpu| cpu.events.hits),
    counter("cpu_refills", "Allocations that found a sheaf empty.", |cpu| cpu.events.refills),
    counter("cpu_flushes", "Frees that found a sheaf full.", |cpu| cpu.events.flushes),
];

/// Metrics of each node.
static NODE_METRICS: [Metric<NodeStats>; 5] = [
    gauge("node_slabs", "Slabs of the node.", |node| node.slabs as u64),
    gauge("node_partial_slabs", "Slabs with free objects.", |node| node.partial_slabs as u64),
    gauge("node_slab_bytes", "Bytes of its slabs.", |node| node.bytes as u64),
    gauge("node_free_bytes", "Bytes of free objects in its slabs.", |node| node.free as u64),
    gauge("node_objects_in_barns", "Free objects in its barns.", |node| node.in_barns as u64),
];

/// The text format of OpenMetrics: see [`Stats::open_metrics`].
#[derive(Clone, Copy, Debug)]
pub struct OpenMetrics<'a>(pub(super) &'a Stats);

impl Display for OpenMetrics<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let OpenMetrics(stats) = self;
        family(to, &METRICS, |sample| sample(&"", stats))?;
        family(to, &CACHE_METRICS, |sample| {
            stats.caches().try_for_each(|cache| {
                sample(&Labelled("cache", Escaped(cache.name.as_str())), &cache)
            })
        })?;
        family(to, &CPU_METRICS, |sample| {
            stats.cpus().try_for_each(|cpu| sample(&Labelled("cpu", cpu.cpu), &cpu))
        })?;
        family(to, &NODE_METRICS, |sample| {
            stats.nodes().try_for_each(|node| sample(&Labelled("node", node.node), &node))
        })?;
        if stats.tags().next().is_some() {
            family(to, &TAG_METRICS, |sample| {
                stats
                    .tags()
                    .try_for_each(|tag| sample(&Labelled("tag", Escaped(tag.name.as_str())), &tag))
            })?;
        }
        to.write_str("# EOF\n")
    }
}

/// Writes metrics, each with all its samples. `each` calls its argument with the labels and the
/// subject of every sample.
fn family<T>(
    to: &mut Formatter<'_>,
    metrics: &[Metric<T>],
    each: impl Fn(&mut dyn FnMut(&dyn Display, &T) -> fmt::Result) -> fmt::Result,
) -> fmt::Result {
    for Metric { name, counts, help, of } in metrics {
        let (kind, suffix) = if *counts { ("counter", "_total") } else { ("gauge", "") };
        writeln!(to, "# TYPE hayloft_{name} {kind}")?;
        if name.ends_with("_bytes") {
            writeln!(to, "# UNIT hayloft_{name} bytes")?;
        }
        writeln!(to, "# HELP hayloft_{name} {help}")?;
        each(&mut |labels, subject| {
            writeln!(to, "hayloft_{name}{suffix}{labels} {}", of(subject))
        })?;
    }
    Ok(())
}

/// A label in braces.
struct Labelled<T>(&'static str, T);

impl<T: Display> Display for Labelled<T> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "{{{}=\"{}\"}}", self.0, self.1)
    }
}

/// The value of a label, with quotes, backslashes and newlines escaped by a backslash.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '\n' => to.write_str("\\n"),
            '"' | '\\' => write!(to, "\\{letter}"),
            letter => to.write_char(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;
    use std::format;

    #[test]
    fn byte_counts_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_399, "99.9 KiB"),
            (102_400, "100 KiB"),
            (5 << 19, "2.5 MiB"),
            (usize::MAX, "17179869183 GiB"),
        ] {
            assert_eq!(format!("{}", Bytes(bytes)), text);
            assert_eq!(format!("{:>16}", Bytes(bytes)), format!("{text:>16}"));
        }
    }
}
