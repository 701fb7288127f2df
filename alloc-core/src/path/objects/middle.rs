//! Middle sizes: the bound on their bytes in sheaves, and the record of which objects are in use.
//!
//! Objects of middle sizes are large, so one bound in bytes covers all of them in the sheaves of a
//! CPU. A fast path that pushes such an object spends from the CPU's allowance. When the allowance
//! is used up, the slow path bounds the sheaves and sets the next allowance.
//!
//! The metadata of a unit records which of the objects that start there the program holds.

use super::check::misused;
use super::lookup::find_in;
use crate::batch::{Batch, MAX_BATCH};
use crate::page::{self, Unit};
use crate::percpu::{self, Backend};
use crate::reclaim;
use crate::sampling;
use crate::size_class::{Class, MIDDLE_CLASSES};
use crate::slab::{Misuse, Slab};

/// Bytes of middle sizes that the sheaves of a CPU may always hold. Memory that serves one size
/// only is cold: with 1 MiB, a program that has one block of 32 KiB to 4 MiB at a time takes 1.1 to
/// 1.7 times as long.
const LEAST_MIDDLE: usize = 64 << 10;
/// Size of the largest object that the bound spares while its class is in use. A program that
/// allocates and frees one block in turns then stays on the fast path: 10 instead of 340 ns, the
/// time in which 100 KiB are written. Sparing larger ones, too, makes the program above as slow as
/// with 1 MiB.
const MOST_SPARED: usize = 256 << 10;
/// The divisor of the heap in programs of one thread: the sheaves of all CPUs together may hold a
/// quarter of the heap in middle sizes. If each page of a block is touched, a miss costs little
/// beside that, and memory that serves one size only is cold.
const MIDDLE_PART: usize = 4;
/// The divisor in programs of several threads, where a miss takes a lock. Two threads that replace
/// blocks of 33 to 512 KiB at random and touch one page of each do 26 million operations a second
/// with half of the heap, and 10 million with a quarter.
const MIDDLE_PART_OF_THREADS: usize = 2;

/// Bounds the bytes of middle sizes in this CPU's sheaves. If they hold more, drains a little more
/// than the excess, so that the next call is some way off, and passes it to `flush`, which empties
/// the batch into slabs. Drains the class that holds the most bytes first, since memory is used
/// least often there.
///
/// One object of `class`, the class that the program uses now, neither counts nor leaves, unless it
/// is longer than [`MOST_SPARED`].
///
/// Also sets the allowance, the number of bytes that the sheaves may grow by before the next call.
pub(super) fn bound(backend: Backend, class: Class, mut flush: impl FnMut(Class, &mut Batch)) {
    let cpu = percpu::cpu();
    let part = if reclaim::has_several_threads() { MIDDLE_PART_OF_THREADS } else { MIDDLE_PART };
    // Idle memory is no part of the heap: after a burst the sheaves would keep a share of it.
    let heap = page::charged().saturating_sub(page::dirty());
    let most = LEAST_MIDDLE.max(heap / (part * percpu::regions().max(1)));
    let mut held = [0; MIDDLE_CLASSES];
    for (bytes, other) in held.iter_mut().zip(Class::middle()) {
        let spared = usize::from(other == class && class.size() <= MOST_SPARED);
        *bytes = percpu::held(cpu, other).saturating_sub(spared) * other.size();
    }
    let mut all: usize = held.iter().sum();
    if all > most {
        let few = most - most / 16;
        // At most one flush per class: another thread may push on this CPU meanwhile, or this
        // thread may migrate. The next call continues then.
        for _ in 0..MIDDLE_CLASSES {
            let Some(excess) = all.checked_sub(few + 1) else { break };
            let classes = held.iter_mut().zip(Class::middle());
            let Some((bytes, largest)) = classes.max_by_key(|(bytes, _)| **bytes) else { break };
            let mut batch = Batch::new();
            let objects = (1 + excess / largest.size()).min(*bytes / largest.size());
            backend.drain(largest, &mut batch, objects.min(MAX_BATCH));
            let drained = batch.len() * largest.size();
            if drained == 0 {
                break;
            }
            *bytes = bytes.saturating_sub(drained);
            all = all.saturating_sub(drained);
            flush(largest, &mut batch);
        }
    }
    percpu::set_allowance(cpu, most.saturating_sub(all).max(most / 16));
}

/// Records that the program receives an object of a middle size. Returns whether the object reads
/// as zero.
#[inline(always)]
pub(crate) fn middle_out(object: *mut u8) -> bool {
    // SAFETY: the metadata belongs to the unit of an object that was just allocated.
    page::meta_at(object).is_some_and(|meta| unsafe { Slab::middle_out(meta.cast(), object) })
}

/// Marks an object of a middle size for which [`middle_out`] was just called as a sample, if it is
/// one.
#[cold]
pub(crate) fn middle_sampled(object: *mut u8) {
    if sampling::is_recorded(object)
        && let Some(meta) = page::meta_at(object)
    {
        // SAFETY: the metadata belongs to the unit of an object that was just allocated.
        unsafe { Slab::sample_middle(meta.cast(), object) };
    }
}

/// Records that the program frees the block at `address`, and returns its class, if it is an object
/// of a middle size in the arena that was made first. Pass any other to [`middle_in_unit`].
#[inline(always)]
pub(crate) fn middle_in(address: *mut u8) -> Option<Class> {
    let meta = page::meta_in_first(address)?;
    // SAFETY: `meta_in_first` returns committed metadata of the address's unit.
    unsafe { Slab::middle_in(meta.cast(), address) }
}

/// As [`middle_in`], for an address in `unit`, in any arena. Ends the process if `address` lies in
/// a slab of objects of a middle size but is not the start of one that the program holds.
#[inline(always)]
pub(crate) fn middle_in_unit(unit: Unit, address: *mut u8) -> Option<Class> {
    // SAFETY: committed metadata of the address's unit.
    let found = || unsafe { Slab::middle_in(unit.meta().cast(), address) };
    unit.is_committed().then(found)?.or_else(|| no_middle(unit, address))
}

/// Does the work of [`middle_in_unit`] for a sample. Ends the process if `address`, in `unit`, lies
/// in a slab of objects of a middle size otherwise.
#[cold]
#[inline(never)]
fn no_middle(unit: Unit, address: *mut u8) -> Option<Class> {
    // SAFETY: metadata of a committed unit, in which the address lies.
    if let Some(class) = unsafe { Slab::middle_sample(unit.meta().cast(), address) } {
        // SAFETY: the program held the object, and frees it.
        unsafe { Slab::release_middle(unit.meta().cast(), address) };
        sampling::forget(address);
        return Some(class);
    }
    match find_in(unit, address).filter(|(class, _)| class.is_middle())? {
        (class, true) => misused(address, class, Misuse::DoubleFree),
        (class, false) => misused(address, class, Misuse::Foreign),
    }
}

/// Ends the process if `object`, of `class`, is of a middle size and the program does not hold it.
pub(crate) fn check_middle(object: *mut u8, class: Class) {
    if !class.is_middle() {
        return;
    }
    // SAFETY: `meta_at` returns committed metadata of the object's unit.
    let held = page::meta_at(object).and_then(|meta| unsafe {
        let meta = meta.cast();
        Slab::middle_held(meta, object).or_else(|| Slab::middle_sample(meta, object))
    });
    if held.is_none() {
        misused(object, class, Misuse::DoubleFree);
    }
}
