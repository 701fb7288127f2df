//! NUMA nodes: which exist, and which one this thread runs on.
//!
//! The first call reads the topology from sysfs into a table indexed by CPU. After that, asking for
//! the node costs no system call, and with a single node it costs one load. Nodes without CPUs are
//! left out, as no thread runs near them. The other nodes are numbered here without gaps; the
//! kernel's own numbers are kept to ask it for memory of a node. `HAYLOFT_SYSFS` names another tree
//! than `/sys`, for tests.
//!
//! A thread that reads the topology waits for nobody, since it may be in a signal handler that
//! interrupted another read. Concurrent reads write the same values into the table. The first read
//! to finish fixes the number of nodes permanently.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering};

use crate::arch;
use crate::fault::{self, Place};
use crate::os;
use crate::settings::{self, Name};

/// Number of nodes with state of their own. Further nodes share the state of the first ones, modulo
/// this.
pub(crate) const MAX_NODES: usize = if cfg!(miri) { 2 } else { 8 };

/// CPUs in the table: as many as Linux can be configured for.
const MAX_CPUS: usize = 8192;
/// Bits of a mask of nodes as the kernel numbers them: as many as Linux can be configured for.
const MAX_NUMBERS: usize = 1024;

/// Number of nodes, at most [`MAX_NODES`]. 0 until the topology was read.
static NODES: AtomicUsize = AtomicUsize::new(0);
/// The node of each CPU plus one. 0 where the node is unknown, as sysfs lists online CPUs only.
static NODE_OF_CPU: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
/// The kernel's number of each node plus one. 0 where several nodes share one of ours.
static NUMBERS: [AtomicU16; MAX_NODES] = [const { AtomicU16::new(0) }; MAX_NODES];

/// Returns the node of the CPU that this thread runs on, below [`count`].
#[inline]
pub(crate) fn current() -> usize {
    // Relaxed: with one node, nothing else is read.
    match NODES.load(Ordering::Relaxed) {
        1 => 0,
        _ => current_of_many(),
    }
}

#[cold]
fn current_of_many() -> usize {
    let count = count();
    let cpu = arch::cpu().unwrap_or_else(os::current_cpu);
    known(cpu).unwrap_or_else(learn).min(count - 1)
}

/// Returns the node of a CPU, below [`count`].
pub(crate) fn of(cpu: usize) -> usize {
    let count = count();
    known(cpu).unwrap_or(0).min(count - 1)
}

/// Returns the number of nodes: at least 1, at most [`MAX_NODES`], and the same in every call.
#[inline]
pub(crate) fn count() -> usize {
    // Acquire: pairs with the Release in `read`, so that the contents of the tables are visible.
    match NODES.load(Ordering::Acquire) {
        0 => read(),
        count => count,
    }
}

/// Returns the kernel's number of a node. Returns `None` if the node stands for several of the
/// kernel's, or is the only one, whose number is not read.
pub(crate) fn number(node: usize) -> Option<usize> {
    // Relaxed, here and below: `count` orders these accesses.
    NUMBERS.get(node)?.load(Ordering::Relaxed).checked_sub(1).map(usize::from)
}

fn known(cpu: usize) -> Option<usize> {
    NODE_OF_CPU.get(cpu)?.load(Ordering::Relaxed).checked_sub(1).map(usize::from)
}

/// Asks the kernel for the node of this thread's CPU, which came online after the tables were read.
fn learn() -> usize {
    let (cpu, kernels) = os::current_cpu_and_node();
    let node = (0..MAX_NODES).find(|node| number(*node) == Some(kernels)).unwrap_or(0);
    if let Some(of_cpu) = NODE_OF_CPU.get(cpu) {
        of_cpu.store(node as u8 + 1, Ordering::Relaxed);
    }
    node
}

#[cold]
fn read() -> usize {
    let root = settings::text(Name::Sysfs);
    let found = read_tree(root.unwrap_or("/sys"));
    let count = found.unwrap_or(1);
    fault::point(Place::NodesReading);
    // Release: pairs with the Acquire in `count`, and with the Acquire on failure here.
    match NODES.compare_exchange(0, count, Ordering::Release, Ordering::Acquire) {
        Ok(_) => {
            // Only a tree that the user named deserves a warning: the kernel may be built without
            // NUMA, or sysfs may not be mounted.
            if root.is_some() && found.is_none() {
                settings::refuse(Name::Sysfs, format_args!("no tree with nodes"), "one node");
            }
            count
        }
        Err(settled) => settled,
    }
}

/// Fills the tables and returns the number of nodes. Returns `None` if the tree cannot be read or
/// is inconsistent.
fn read_tree(root: &str) -> Option<usize> {
    let mut online = [0u64; MAX_NUMBERS / 64];
    let mut all_fit = true;
    os::list(format_args!("{root}/devices/system/node/online"), |first, last| {
        all_fit &= last < MAX_NUMBERS;
        for number in first..=last.min(MAX_NUMBERS - 1) {
            online[number / 64] |= 1 << (number % 64);
        }
    })?;
    let numbers = (0..MAX_NUMBERS).filter(|number| online[number / 64] >> (number % 64) & 1 == 1);
    // With a single node, a program reads only one file.
    if !all_fit || numbers.clone().nth(1).is_none() {
        return (all_fit && numbers.count() == 1).then_some(1);
    }
    let mut count = 0;
    for number in numbers {
        let node = count % MAX_NODES;
        let mut has_cpus = false;
        os::list(
            format_args!("{root}/devices/system/node/node{number}/cpulist"),
            |first, last| {
                has_cpus = true;
                for of_cpu in NODE_OF_CPU.get(first..=last.min(MAX_CPUS - 1)).unwrap_or(&[]) {
                    of_cpu.store(node as u8 + 1, Ordering::Relaxed);
                }
            },
        )?;
        if has_cpus {
            let shown = if count < MAX_NODES { number as u16 + 1 } else { 0 };
            NUMBERS[node].store(shown, Ordering::Relaxed);
            count += 1;
        }
    }
    (count > 0).then_some(count.min(MAX_NODES))
}
