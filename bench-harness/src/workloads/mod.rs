//! The workloads: a table, and one file per family.
//!
//! A workload chooses its amount of work by scale, sets up its untimed state, and passes the rest
//! to [`Run`] for timing. Its description defines the operation that is counted. In the first
//! groups that is one allocation with its free, unless the description says otherwise.
//!
//! | module | holds |
//! |---|---|
//! | `latency` | single operations of `churn` and `handoff`, each timed by itself |
//! | `batches` `churn` `pairs` `phases` `sizes` | small blocks, in one thread or in many alike |
//! | `exchange` `handoff` `survivors` `trees` | blocks that other threads free; trees of nodes |
//! | `aligned` `grow` `large` `middle` `zeroed` | blocks that are larger, or special |
//! | `collections` `interpreter` `json` `regexes` `server` | parts of real programs |
//! | `curves` `resident` | memory over time; memory that a process keeps |

mod aligned;
mod batches;
mod churn;
mod collections;
mod curves;
mod exchange;
mod grow;
mod handoff;
mod interpreter;
mod json;
mod large;

mod latency;
mod middle;
mod pairs;
mod phases;
mod regexes;
mod resident;
mod server;
mod sizes;
mod survivors;
mod trees;
mod zeroed;

use crate::run::Run;

/// The property of an allocator that a workload measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Speed of the allocator: allocation dominates.
    Allocation,
    /// Growth to a gigabyte in one piece, or blocks of many megabytes: the cost of growth and of
    /// page faults. Separate from `Allocation`, since the kernel does most of the work.
    Huge,
    /// Speed of real work, as Rust programs do it: the share of the allocator's speed that a
    /// program notices.
    Program,
    /// Duration of single operations, in the worst case too.
    Latency,
    /// Resident memory of the process. Not timed.
    Memory,
    /// Memory over time beside the live bytes. Watched for a while, and run only on request.
    Curve,
}

/// The number that represents a workload's memory use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// The peak of the whole run.
    Peak,
    /// The memory left at the end of the workload.
    Final,
}

/// A workload that can be measured.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Name in arguments and tables.
    pub name: &'static str,
    /// Description of one line.
    pub about: &'static str,
    /// Property that the workload measures.
    pub kind: Kind,
    /// Number that represents its memory use.
    pub resident: Resident,
    /// Function that runs the workload.
    pub body: fn(&mut Run),
}

/// Returns an entry of the table, with the peak as its memory use.
const fn workload(
    name: &'static str,
    kind: Kind,
    body: fn(&mut Run),
    about: &'static str,
) -> Workload {
    Workload { name, about, kind, resident: Resident::Peak, body }
}

use Kind::{Allocation, Curve, Huge, Latency, Memory, Program};

/// All workloads, in the order of the tables.
#[rustfmt::skip]
pub static ALL: &[Workload] = &[
    workload("pair-const", Allocation, pairs::constant, "allocate and free 64 B, the layout known at compile time"),
    workload("pair-hidden", Allocation, pairs::hidden, "allocate and free 64 B, the layout hidden from the compiler"),
    workload("batch-lifo", Allocation, batches::lifo, "allocate 10 000 × 64 B, free the last first"),
    workload("batch-fifo", Allocation, batches::fifo, "allocate 10 000 × 64 B, free the first first"),
    workload("churn-10k", Allocation, churn::ten_thousand, "replace a random one of 10 000 blocks of 1 to 1000 B"),
    workload("churn-1m", Allocation, churn::million, "replace a random one of 1 000 000 blocks of 1 to 256 B"),
    workload("threads-2", Allocation, churn::two_threads, "churn of 5000 blocks per thread, 2 threads"),
    workload("threads-16", Allocation, churn::sixteen_threads, "churn of 5000 blocks per thread, 16 threads"),
    workload("threads-64", Allocation, churn::sixty_four_threads, "churn of 5000 blocks per thread, 64 threads"),
    workload("handoff", Allocation, handoff::run, "one thread allocates 64 B, another frees it, each on its core"),
    workload("exchange", Allocation, exchange::run, "4 threads swap blocks through shared slots, free each other's"),
    workload("survivors", Allocation, survivors::run, "threads that die leave half their blocks to the next to free"),
    workload("trees", Allocation, trees::run, "build, walk and drop binary trees of 16 B nodes; one operation is a node"),
    workload("sizes", Allocation, sizes::run, "64 blocks of each size from 1 B to 32 KiB, in steps of a fifth"),
    workload("phases", Allocation, phases::run, "fill 64 MB with one size, free 99 %, then the next size"),
    workload("grow-vec", Allocation, grow::vectors, "push to 1000 vectors in turn; one operation is a push"),
    workload("grow-bytes", Allocation, grow::bytes, "extend 4 buffers to 8 MB in turn; one operation is 4 KiB appended"),
    workload("aligned", Allocation, aligned::run, "churn of 1000 blocks aligned to 64 to 4096 B"),
    workload("zeroed", Allocation, zeroed::run, "churn of 500 zeroed blocks of 16 B to 64 KiB"),
    workload("large-pairs", Allocation, large::pairs, "32 KiB to 4 MiB, every page touched, freed at once"),
    workload("large-churn", Allocation, large::churn, "replace a random one of 32 such blocks"),
    workload("middle-2", Allocation, middle::two_threads, "replace a random one of 64 blocks of 33 to 512 KiB per thread, 4 KiB written, 2 threads"),
    workload("middle-16", Allocation, middle::sixteen_threads, "the same, 16 threads"),
    workload("middle-64", Allocation, middle::sixty_four_threads, "the same, 64 threads"),
    workload("middle-pass", Allocation, middle::pass, "one thread allocates buffers of 64 KiB to 1 MiB, another frees them"),
    workload("middle-pool", Allocation, middle::pool, "4 threads swap buffers of 16 to 256 KiB through a pool, free each other's"),
    workload("columns", Allocation, middle::columns, "16 columns grow by pages and are cut; one operation is a page appended"),
    workload("middle-survivors", Allocation, middle::survivors, "blocks of 40 KiB, every page touched; every twentieth stays"),
    workload("sparse", Allocation, middle::sparse, "tables of zeros of 1 to 16 MiB, one page in sixteen written"),
    workload("images", Huge, middle::images, "blocks of 4 to 20 MiB, every page touched, each freed when the next is there"),
    workload("vec-1g", Huge, grow::push_one, "push to a Vec<u8> up to 1 GiB; one operation is a push"),
    workload("extend-1g", Huge, grow::extend_one, "extend a Vec<u8> to 1 GiB; one operation is 4 KiB appended"),
    workload("large-touch", Huge, large::touch, "1 to 64 MiB, every page touched, freed at once"),
    workload("large-touch-4", Huge, large::touch_four, "replace a random one of 4 such blocks"),
    workload("json", Program, json::run, "parse, clone, change, print and drop a JSON document; one operation is a value"),
    workload("hash-map", Program, collections::hash_map, "insert, extend, look up and remove in a HashMap<String, Vec<u32>>"),
    workload("btree-map", Program, collections::btree_map, "insert, range over and remove in a BTreeMap<String, Vec<u8>>"),
    workload("strings", Program, collections::strings, "format, split, map and join strings"),
    workload("server", Program, server::run, "a tokio key-value server on loopback; one operation is a request"),
    workload("interpreter", Program, interpreter::run, "a tree-walking interpreter; one operation is a call"),
    workload("regex", Program, regexes::run, "compile 50 patterns and match; one operation is a pattern"),
    workload("latency-churn", Latency, latency::churn, "each free and each allocation of churn-10k timed by itself"),
    workload("latency-handoff", Latency, latency::handoff, "each operation of handoff timed by itself"),
    workload("latency-hour", Latency, curves::hour_latency, "each operation of a tenth of hour timed by itself, the first write included"),
    workload("idle", Memory, resident::idle, "a process that does nothing"),
    Workload {
        resident: Resident::Final,
        ..workload("give-back", Memory, resident::give_back, "256 MB of 64 B blocks, freed a second ago: what is left")
    },
    workload("burst-idle", Curve, curves::burst_idle, "1 GiB of small blocks, freed, then idle for five seconds"),
    workload("sawtooth", Curve, curves::sawtooth, "from 16 to 256 MiB and back, each time with other sizes"),
    workload("survivors-5", Curve, curves::survivors, "1 GiB of small blocks, all but 5 % freed at random, then other sizes"),
    workload("phases-sizes", Curve, curves::phases, "a server: start, warm-up, service, a batch job, fewer sessions"),
    workload("pipelines", Curve, curves::pipelines, "two rows of three threads, each frees what the one before allocated"),
    workload("hour", Curve, curves::hour, "a simulated hour of a service: lifetimes up to an hour, sizes that drift"),
];

/// Returns the workload called `name`.
pub fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

/// Returns the workload called `name`.
///
/// # Errors
///
/// Lists the known names if `name` is not among them.
pub fn parse(name: &str) -> Result<&'static Workload, String> {
    find(name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|workload| workload.name).collect();
        format!("no workload is called {name}; there are: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Scale;

    #[test]
    fn every_workload_runs() {
        for workload in ALL {
            // Identifies the culprit of a failure: libtest shows the output of a failed test.
            println!("{}", workload.name);
            (workload.body)(&mut Run::new(Scale::Tiny));
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|workload| workload.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
