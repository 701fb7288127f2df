//! The tables of caches, CPUs, nodes, sites and tags: their columns, the values in these, and the
//! order of lines.

use std::cmp::Ordering;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use hayloft::stats::{CacheStats, CpuStats, NodeStats, SiteStats, TagStats};

use crate::history::{History, Line, Subject};
use crate::{number, process};

/// The value in one column of a line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    Text(String),
    /// An identifying number, such as that of a CPU.
    Number(u64),
    Count(u64),
    Bytes(u64),
    /// Events per second.
    Rate(Option<f64>),
    /// Bytes per second.
    Growth(Option<f64>),
    /// A share from 0 to 1.
    Share(Option<f64>),
}

impl Value {
    /// Formats the value in few letters. An unknown value is `-`.
    pub(crate) fn short(&self) -> String {
        let known = |number: &Option<f64>, text: fn(f64) -> String| number.map(text);
        let text = match self {
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Count(count) => Some(number::count(*count)),
            Value::Bytes(bytes) => Some(number::bytes(*bytes)),
            Value::Rate(rate) => known(rate, number::rate),
            Value::Growth(growth) => known(growth, number::growth),
            Value::Share(share) => known(share, number::percent),
        };
        text.unwrap_or_else(|| "-".into())
    }

    /// Formats the value for other programs. An unknown value is empty.
    pub(crate) fn exact(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Number(number) | Value::Count(number) | Value::Bytes(number) => {
                number.to_string()
            }
            Value::Rate(number) | Value::Growth(number) | Value::Share(number) => {
                number.map(|number| format!("{number:.4}")).unwrap_or_default()
            }
        }
    }

    /// Compares by the order of lines, where less means further up. The largest numbers come first
    /// and unknown values last; texts and identifying numbers are in ascending order.
    fn order(&self, other: &Value) -> Ordering {
        let number = |value: &Value| match value {
            Value::Text(_) => 0.0,
            Value::Number(number) => -(*number as f64),
            Value::Count(number) | Value::Bytes(number) => *number as f64,
            Value::Rate(number) | Value::Growth(number) | Value::Share(number) => {
                number.unwrap_or(f64::NEG_INFINITY)
            }
        };
        match (self, other) {
            (Value::Text(this), Value::Text(other)) => this.cmp(other),
            _ => number(other).total_cmp(&number(self)),
        }
    }
}

/// A column.
#[derive(Debug)]
pub(crate) struct Column {
    /// Name for programs: in `--csv` and `--sort`.
    pub(crate) name: &'static str,
    /// Title above the column on the screen.
    pub(crate) title: &'static str,
    /// Key that selects the column on the screen.
    pub(crate) letter: char,
    /// Width in letters.
    pub(crate) width: u16,
    /// Rank: columns of higher ranks are omitted first where there is little room.
    pub(crate) rank: u8,
    /// Description for the help.
    pub(crate) help: &'static str,
}

type Of<T> = fn(&Line<'_, T>) -> Value;

const fn column(
    name: &'static str,
    title: &'static str,
    letter: char,
    width: u16,
    rank: u8,
    help: &'static str,
) -> Column {
    Column { name, title, letter, width, rank, help }
}

/// Width for the names of caches. Longer names get more.
const NAME: u16 = 13;

static CACHES: [(Column, Of<CacheStats>); 19] = [
    (column("name", "CACHE", 'n', NAME, 0, "the cache, or size class"), |line| {
        Value::Text(process::printable(line.now.name.as_str()))
    }),
    (column("object_size", "SIZE", 'o', 5, 2, "bytes of an object"), |line| {
        Value::Count(line.now.object_size as u64)
    }),
    (column("in_use", "IN USE", 'i', 6, 1, "objects that the program has"), |line| {
        Value::Count(line.now.in_use as u64)
    }),
    (column("objects", "TOTAL", 't', 6, 4, "objects of all slabs"), |line| {
        Value::Count(line.now.objects() as u64)
    }),
    (column("use", "USE%", 'u', 4, 3, "objects in use, of all"), |line| {
        let (in_use, objects) = (line.now.in_use as f64, line.now.objects() as f64);
        Value::Share((objects > 0.0).then(|| in_use / objects))
    }),
    (column("slabs", "SLABS", 's', 5, 6, "slabs"), |line| Value::Count(line.now.slabs as u64)),
    (column("partial", "PART", 'p', 5, 9, "slabs with free objects"), |line| {
        Value::Count(line.now.partial_slabs as u64)
    }),
    (column("memory", "MEMORY", 'm', 6, 0, "bytes of all slabs"), |line| {
        Value::Bytes(line.now.bytes() as u64)
    }),
    (column("growth", "GROWTH/s", 'g', 8, 1, "of memory, over ten looks"), |line| {
        Value::Growth(line.growth(|cache| cache.bytes() as u64))
    }),
    (column("allocs", "ALLOC/s", 'a', 7, 5, "allocations"), |line| {
        Value::Rate(line.rate(|cache| cache.events.allocs))
    }),
    (column("frees", "FREE/s", 'e', 6, 6, "frees"), |line| {
        Value::Rate(line.rate(CacheStats::frees))
    }),
    (column("refills", "MISS/s", 'r', 6, 3, "allocations that found a sheaf empty"), |line| {
        Value::Rate(line.rate(|cache| cache.events.refills))
    }),
    (column("flushes", "FLUSH/s", 'f', 7, 7, "frees that found a sheaf full"), |line| {
        Value::Rate(line.rate(|cache| cache.events.flushes))
    }),
    (column("hit_rate", "HIT%", 'h', 5, 7, "allocations that a sheaf could serve"), |line| {
        Value::Share(hit_rate(line, |cache| cache.events.hits, |cache| cache.events.allocs))
    }),
    (column("in_sheaves", "SHEAF", 'c', 5, 8, "free objects that CPUs keep"), |line| {
        Value::Count(line.now.in_sheaves as u64)
    }),
    (column("in_barns", "BARN", 'b', 5, 8, "free objects that nodes keep"), |line| {
        Value::Count(line.now.in_barns as u64)
    }),
    (column("barn_empty", "DRY/s", 'd', 5, 10, "misses that the barn had nothing for"), |line| {
        Value::Rate(line.rate(|cache| cache.events.barn_empty))
    }),
    (column("barn_full", "OVER/s", 'v', 6, 11, "flushes that the barn had no room for"), |line| {
        Value::Rate(line.rate(|cache| cache.events.barn_full))
    }),
    (column("new_slabs", "SLAB/s", 'l', 6, 12, "slabs made"), |line| {
        Value::Rate(line.rate(|cache| cache.events.new_slabs))
    }),
];

static CPUS: [(Column, Of<CpuStats>); 11] = [
    (column("cpu", "CPU", 'n', 4, 0, "its number"), |line| Value::Number(line.now.cpu as u64)),
    (column("objects", "OBJECTS", 'o', 7, 2, "free objects in its sheaves"), |line| {
        Value::Count(line.now.objects as u64)
    }),
    (column("memory", "MEMORY", 'm', 6, 0, "bytes of these"), |line| {
        Value::Bytes(line.now.bytes as u64)
    }),
    (column("allocs", "ALLOC/s", 'a', 7, 1, "allocations"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.allocs))
    }),
    (column("refills", "MISS/s", 'r', 6, 1, "allocations that found a sheaf empty"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.refills))
    }),
    (column("flushes", "FLUSH/s", 'f', 7, 1, "frees that found a sheaf full"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.flushes))
    }),
    (column("hit_rate", "HIT%", 'h', 5, 3, "allocations that a sheaf could serve"), |line| {
        Value::Share(hit_rate(line, |cpu| cpu.events.hits, |cpu| cpu.events.allocs))
    }),
    (column("barn_empty", "DRY/s", 'd', 5, 4, "misses that the barn had nothing for"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.barn_empty))
    }),
    (column("barn_full", "OVER/s", 'v', 6, 4, "flushes that the barn had no room for"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.barn_full))
    }),
    (column("new_slabs", "SLAB/s", 'l', 6, 4, "slabs made"), |line| {
        Value::Rate(line.rate(|cpu| cpu.events.new_slabs))
    }),
    (column("thread", "THREAD", 't', 7, 6, "what acts as this CPU; 0 for none"), |line| {
        Value::Number(line.now.thread as u64)
    }),
];

static NODES: [(Column, Of<NodeStats>); 8] = [
    (column("node", "NODE", 'n', 4, 0, "its number"), |line| Value::Number(line.now.node as u64)),
    (column("slabs", "SLABS", 's', 5, 2, "slabs"), |line| Value::Count(line.now.slabs as u64)),
    (column("partial", "PART", 'p', 5, 3, "slabs with free objects"), |line| {
        Value::Count(line.now.partial_slabs as u64)
    }),
    (column("memory", "MEMORY", 'm', 6, 0, "bytes of all slabs"), |line| {
        Value::Bytes(line.now.bytes as u64)
    }),
    (column("growth", "GROWTH/s", 'g', 8, 1, "of memory, over ten looks"), |line| {
        Value::Growth(line.growth(|node| node.bytes as u64))
    }),
    (column("free", "FREE", 'f', 6, 1, "bytes of free objects in slabs"), |line| {
        Value::Bytes(line.now.free as u64)
    }),
    (column("use", "USE%", 'u', 4, 2, "bytes not free in slabs, of all"), |line| {
        let (free, bytes) = (line.now.free as f64, line.now.bytes as f64);
        Value::Share((bytes > 0.0).then(|| 1.0 - free / bytes))
    }),
    (column("in_barns", "BARN", 'b', 6, 2, "free objects in its barns"), |line| {
        Value::Count(line.now.in_barns as u64)
    }),
];

static SITES: [(Column, Of<SiteStats>); 8] = [
    (column("name", "FUNCTION", 'n', NAME, 0, "what allocates, and its callers"), |line| {
        Value::Text(line.history.symbols.name(line.now).to_string())
    }),
    (column("memory", "MEMORY", 'm', 6, 0, "bytes in use, estimated from samples"), |line| {
        Value::Bytes(line.now.live_bytes)
    }),
    (column("error", "ERR%", 'e', 4, 3, "standard error of memory"), |line| {
        let (error, bytes) = (line.now.live_error as f64, line.now.live_bytes as f64);
        Value::Share((bytes > 0.0).then(|| error / bytes))
    }),
    (column("in_use", "BLOCKS", 'i', 6, 2, "blocks in use"), |line| Value::Count(line.now.live)),
    (column("rate", "BYTES/s", 'r', 7, 1, "bytes allocated lately"), |line| {
        Value::Bytes(line.now.alloc_rate)
    }),
    (column("allocated", "TOTAL", 't', 6, 4, "bytes allocated so far"), |line| {
        Value::Bytes(line.now.alloc_bytes)
    }),
    (column("allocs", "ALLOCS", 'a', 6, 6, "blocks allocated so far"), |line| {
        Value::Count(line.now.allocs)
    }),
    (column("site", "SITE", 's', 6, 20, "its number"), |line| Value::Number(line.now.number)),
];

static TAGS: [(Column, Of<TagStats>); 7] = [
    (column("name", "TAG", 'n', NAME, 0, "what the program calls a part of itself"), |line| {
        let name = line.now.name.as_str();
        Value::Text(process::printable(if name.is_empty() { "(none)" } else { name }))
    }),
    (column("memory", "MEMORY", 'm', 6, 0, "bytes in use, estimated from samples"), |line| {
        Value::Bytes(line.now.live_bytes)
    }),
    (column("error", "ERR%", 'e', 4, 3, "standard error of memory"), |line| {
        let (error, bytes) = (line.now.live_error as f64, line.now.live_bytes as f64);
        Value::Share((bytes > 0.0).then(|| error / bytes))
    }),
    (column("growth", "GROWTH", 'g', 7, 1, "growth of memory lately, per second"), |line| {
        Value::Growth(line.growth(|tag| tag.live_bytes))
    }),
    (column("in_use", "BLOCKS", 'i', 6, 2, "blocks in use"), |line| Value::Count(line.now.live)),
    (column("allocated", "TOTAL", 't', 6, 4, "bytes allocated so far"), |line| {
        Value::Bytes(line.now.alloc_bytes)
    }),
    (column("allocs", "ALLOCS", 'a', 6, 6, "blocks allocated so far"), |line| {
        Value::Count(line.now.allocs)
    }),
];

/// Returns the share of allocations since the last look that a sheaf served, or of all allocations
/// at the first look. Returns `None` if there were none.
fn hit_rate<T: Subject>(
    line: &Line<'_, T>,
    hits: fn(&T) -> u64,
    allocs: fn(&T) -> u64,
) -> Option<f64> {
    let (hits, allocs) = match (line.rate(hits), line.rate(allocs)) {
        (Some(hits), Some(allocs)) => (hits, allocs),
        _ => (hits(line.now) as f64, allocs(line.now) as f64),
    };
    (allocs > 0.0).then(|| hits / allocs)
}

/// A line of a table.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Values in the order of the columns.
    pub(crate) values: Vec<Value>,
    /// Memory over time; for a CPU, its misses over time.
    pub(crate) course: Vec<u64>,
}

/// The kind of line in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum View {
    Caches,
    Cpus,
    Nodes,
    Sites,
    Tags,
}

impl View {
    pub(crate) const ALL: [View; 5] =
        [View::Caches, View::Cpus, View::Nodes, View::Sites, View::Tags];

    pub(crate) fn title(self) -> &'static str {
        match self {
            View::Caches => "Caches",
            View::Cpus => "CPUs",
            View::Nodes => "Nodes",
            View::Sites => "Sites",
            View::Tags => "Tags",
        }
    }

    pub(crate) fn columns(self) -> impl Iterator<Item = &'static Column> {
        fn of<T>(table: &'static [(Column, Of<T>)]) -> Vec<&'static Column> {
            table.iter().map(|(column, _)| column).collect()
        }
        let columns = match self {
            View::Caches => of(&CACHES),
            View::Cpus => of(&CPUS),
            View::Nodes => of(&NODES),
            View::Sites => of(&SITES),
            View::Tags => of(&TAGS),
        };
        columns.into_iter()
    }

    /// Returns a parser for the column names of all views.
    pub(crate) fn names() -> PossibleValuesParser {
        let mut names: Vec<_> =
            View::ALL.into_iter().flat_map(View::columns).map(|column| column.name).collect();
        names.sort_unstable();
        names.dedup();
        PossibleValuesParser::new(names)
    }

    /// Returns whether lines have names, which a filter selects.
    pub(crate) fn has_names(self) -> bool {
        self.columns().next().is_some_and(|column| column.name == "name")
    }

    /// Returns the part of the screen's width that names may take: one in this number.
    pub(crate) fn part_of_names(self) -> u16 {
        if self == View::Sites { 2 } else { 4 }
    }

    /// Says why there may be no lines.
    pub(crate) fn if_empty(self) -> &'static str {
        match self {
            View::Sites | View::Tags => "no samples: start the process with HAYLOFT_PROFILE too",
            _ => "none",
        }
    }

    /// Describes the values over time at the end of a line.
    pub(crate) fn course(self) -> &'static str {
        match self {
            View::Caches | View::Nodes | View::Sites | View::Tags => "memory over time",
            View::Cpus => "misses over time",
        }
    }

    /// Returns the lines, in order.
    pub(crate) fn entries(self, history: &History, sort: Sort) -> Vec<Entry> {
        fn of<T: Subject>(
            history: &History,
            table: &[(Column, Of<T>)],
            course: fn(&Line<'_, T>) -> Vec<u64>,
        ) -> Vec<Entry> {
            let entry = |line: Line<'_, T>| Entry {
                values: table.iter().map(|(_, value)| value(&line)).collect(),
                course: course(&line),
            };
            Line::all(history).map(entry).collect()
        }
        let mut entries = match self {
            View::Caches => of(history, &CACHES, |line| line.course(|cache| cache.bytes() as u64)),
            View::Cpus => of(history, &CPUS, |line| line.rates(|cpu| cpu.events.refills)),
            View::Nodes => of(history, &NODES, |line| line.course(|node| node.bytes as u64)),
            View::Sites => of(history, &SITES, |line| line.course(|site| site.live_bytes)),
            View::Tags => of(history, &TAGS, |line| line.course(|tag| tag.live_bytes)),
        };
        entries.sort_by(|this, other| {
            let order = this.values[sort.column].order(&other.values[sort.column]);
            if sort.is_reversed { order.reverse() } else { order }
        });
        entries
    }
}

/// The order of lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sort {
    /// Index of the column to sort by.
    pub(crate) column: usize,
    pub(crate) is_reversed: bool,
}

impl Sort {
    /// Returns the default order of a view: by memory, or CPUs and nodes by number.
    pub(crate) fn of(view: View) -> Sort {
        match view {
            View::Caches | View::Sites | View::Tags => {
                Sort::by_name(view, "memory").expect("one of its columns")
            }
            View::Cpus | View::Nodes => Sort::by(0),
        }
    }

    fn by(column: usize) -> Sort {
        Sort { column, is_reversed: false }
    }

    pub(crate) fn by_name(view: View, name: &str) -> Option<Sort> {
        view.columns().position(|column| column.name == name).map(Sort::by)
    }

    pub(crate) fn by_letter(view: View, letter: char) -> Option<Sort> {
        view.columns().position(|column| column.letter == letter).map(Sort::by)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::history::tests::{cache, history, snapshot};

    fn names(history: &History, sort: Sort) -> Vec<String> {
        let entries = View::Caches.entries(history, sort);
        entries.iter().map(|entry| entry.values[0].short()).collect()
    }

    #[test]
    fn names_and_letters_are_unique() {
        for view in View::ALL {
            for other in view.columns() {
                let same =
                    |column: &&Column| column.name == other.name || column.letter == other.letter;
                assert_eq!(view.columns().filter(same).count(), 1, "{view:?} {}", other.name);
                assert!(other.title.len() <= usize::from(other.width), "{}", other.title);
                assert!(other.name == "name" || other.width >= 4);
            }
        }
    }

    #[test]
    fn entries_are_sorted_by_a_column() {
        let first = [cache("b", 2, 10, 100), cache("a", 5, 10, 0), cache("c", 2, 64, 50)];
        let second = [cache("b", 2, 10, 100), cache("a", 6, 10, 7), cache("c", 1, 64, 350)];
        let history = history([snapshot(1000, &first), snapshot(2000, &second)]);
        let by = |name| Sort::by_name(View::Caches, name).unwrap();
        assert_eq!(
            names(&history, Sort::of(View::Caches)),
            ["a", "b", "c"],
            "the default order is not by memory"
        );
        assert_eq!(names(&history, by("name")), ["a", "b", "c"]);
        assert_eq!(names(&history, by("growth")), ["a", "b", "c"]);
        assert_eq!(names(&history, by("refills")), ["c", "a", "b"]);
        let reversed = Sort { is_reversed: true, ..by("refills") };
        assert_eq!(names(&history, reversed), ["b", "a", "c"]);
        assert_eq!(Sort::by_letter(View::Caches, 'r'), Some(by("refills")));
        assert_eq!(Sort::by_letter(View::Caches, '?'), None);
    }

    #[test]
    fn unknown_values_are_sorted_last() {
        let history = history([snapshot(1000, &[cache("a", 1, 0, 0), cache("b", 2, 0, 0)])]);
        let by = |name| Sort::by_name(View::Caches, name).unwrap();
        assert_eq!(names(&history, by("refills")), ["a", "b"]);
        let entries = View::Caches.entries(&history, by("memory"));
        let place = by("refills").column;
        assert_eq!(entries[0].values[place], Value::Rate(None));
        assert_eq!(entries[0].values[place].short(), "-");
        assert_eq!(entries[0].values[place].exact(), "");
        assert!(Value::Share(Some(0.1)).order(&Value::Share(None)).is_lt());
    }

    #[test]
    fn hit_rate_covers_the_last_interval() {
        let with_hits = |hits, misses| {
            let mut cache = cache("a", 1, 0, misses);
            cache.events.hits = hits;
            cache.events.allocs = hits + misses;
            cache
        };
        let mut history = history([snapshot(1000, &[with_hits(90, 10)])]);
        let share = |history: &History| {
            let place = Sort::by_name(View::Caches, "hit_rate").unwrap().column;
            let mut entries = View::Caches.entries(history, Sort::of(View::Caches));
            entries.remove(0).values.remove(place)
        };
        assert_eq!(share(&history), Value::Share(Some(0.9)));
        history.push(snapshot(2000, &[with_hits(390, 110)]));
        assert_eq!(share(&history), Value::Share(Some(0.75)));
        history.push(snapshot(3000, &[with_hits(390, 110)]));
        assert_eq!(
            share(&history),
            Value::Share(None),
            "an interval without allocations has a hit rate"
        );
    }
}
