//! Collapsing: makes huge pages of memory that stays in use.
//!
//! Below the size of a heap from which on all its memory is huge pages from the first touch
//! (`advice`), a program that grows would pay for clearing 2 MiB at once. But a program that has
//! grown, and uses its memory at random, gains by huge pages. So the reclaim thread looks at the
//! end of each decay window which *chunks* of 2 MiB are entirely in use, by slabs and by blocks of
//! less than 8 MiB. It collapses those that stayed so for some windows: the kernel copies their
//! pages into a huge page (`MADV_COLLAPSE`, since Linux 6.1).
//!
//! *What it costs.* Nine tenths of a call are the copy, which takes half a millisecond or more. In
//! that time other threads cannot map, nor fault in the arena. So there is one at a time, with a
//! pause of a slice of a window, and their time is a share of all time. The huge page has memory in
//! place of pages that had none, at most [`LACKING`].
//!
//! Which pages have memory is known to the kernel alone, so it is asked (`/proc/self/pagemap`).
//! Pages that are shared with a child since a fork count as having none, as they would be copied,
//! and so do those in swap.
//!
//! *Mappings.* All of the arena is advised against huge pages, and the kernel collapses no such
//! memory. The chunk is advised for huge pages during the call only, and so the two mappings more
//! that this takes are merged again. (A huge page stays one.)
//!
//! The memory may return to the system on another thread between the look at it and the call. Then
//! up to 2 MiB of free memory become resident, and stay clean: they read as zero.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::advice::{HugePages, LONG};
use super::arena::Arena;
use super::arenas::arenas;
use super::chunks::{CHUNK, Chunks};
use super::decommit::decommit_rest;
use super::descriptor::RunState;
use super::unit::Unit;
use super::units::Units;
use crate::os;
use crate::settings::{self, Name};
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::Context;

/// Bytes of a chunk.
const BYTES: usize = (CHUNK as usize) << UNIT_SHIFT;
/// Bytes of a page, on systems where a huge page is as large as a chunk.
const PAGE: usize = 4096;
/// Most pages of a chunk without memory: 1.4 % of it.
const LACKING: usize = 7;

/// Part of the time, in percent, that collapsing may take.
const PERCENT: i64 = 1;
/// Most doublings of a pause after a refusal.
const MOST_DOUBLINGS: u32 = 10;

/// Chunks collapsed, and those that the kernel refused to collapse.
static COLLAPSED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds of all such calls.
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

// What follows is written by the one thread that collapses, and guards nothing: relaxed everywhere.

/// Nanoseconds that collapsing may still take in this window, or took too many.
static LEFT: AtomicI64 = AtomicI64::new(0);
/// Refusals since the last success.
static IN_A_ROW: AtomicU32 = AtomicU32::new(0);
/// Windows until the next attempt.
static PAUSE: AtomicU32 = AtomicU32::new(0);

/// Returns the number of chunks collapsed so far, of those that the kernel refused to collapse,
/// and the nanoseconds of all such calls. May be called in any context.
pub(crate) fn collapses() -> (u64, u64, u64) {
    let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
    (number(&COLLAPSED), number(&REFUSED), number(&NANOSECONDS))
}

/// Whether chunks are collapsed at all.
static WANTED: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// Returns whether chunks are collapsed at all. `never` in `/sys/kernel/mm/transparent_hugepage`
/// counts here, though not for the call, unless `HAYLOFT_THP=always`.
fn is_wanted() -> bool {
    if WANTED.load(Ordering::Relaxed) == UNKNOWN {
        let is_allowed = || {
            let root = settings::text(Name::Sysfs).unwrap_or("/sys");
            let mut room = [0; 128];
            os::read(format_args!("{root}/kernel/mm/transparent_hugepage/enabled"), &mut room)
                .is_some_and(|modes| !modes.contains("[never]"))
        };
        let is_wanted = os::system_page_size() == PAGE
            && match HugePages::wanted() {
                HugePages::Auto => is_allowed(),
                HugePages::Always => true,
                HugePages::Never => false,
            };
        WANTED.store(if is_wanted { YES } else { NO }, Ordering::Relaxed);
    }
    WANTED.load(Ordering::Relaxed) == YES
}

/// Collapses nothing from now on: the reclaim thread may open no files.
pub(crate) fn collapse_nothing() {
    WANTED.store(NO, Ordering::Relaxed);
}

/// Ends a window, which took `milliseconds`, for all chunks. Returns whether a chunk may be due at
/// the end of the next window. Call on a thread that may open files and wait.
pub(crate) fn end_window_of_chunks(context: Context, milliseconds: u32) -> bool {
    let share = i64::from(milliseconds) * 1_000_000 * PERCENT / 100;
    LEFT.store(LEFT.load(Ordering::Relaxed).min(0) + share, Ordering::Relaxed);
    let pause = PAUSE.load(Ordering::Relaxed);
    if pause > 0 {
        PAUSE.store(pause - 1, Ordering::Relaxed);
        return false;
    }
    is_wanted() && arenas().fold(false, |any, arena| any | arena.end_window_of_chunks(context))
}

/// Collapses a chunk that is due, if there is one. Returns whether there may be others. Call on a
/// thread that may open files and wait.
pub(crate) fn collapse_one() -> bool {
    if LEFT.load(Ordering::Relaxed) <= 0 || PAUSE.load(Ordering::Relaxed) > 0 {
        return false;
    }
    let due = arenas().find_map(|arena| Some((arena, arena.units.chunks.due()?)));
    if let Some((arena, number)) = due {
        arena.collapse(number);
    }
    due.is_some()
}

/// Pauses, as the kernel refused or memory is short: for one window, and for twice as many each
/// time until something is collapsed, up to 2^[`MOST_DOUBLINGS`]. A kernel that never collapses is
/// asked about once in a hundred seconds.
pub(crate) fn pause_collapsing() {
    let before = IN_A_ROW.load(Ordering::Relaxed);
    IN_A_ROW.store(before.saturating_add(1), Ordering::Relaxed);
    PAUSE.store(1 << before.min(MOST_DOUBLINGS), Ordering::Relaxed);
}

/// Records that any huge page may be one no longer, as the process is about to fork: what either
/// side writes then is copied in small pages.
pub(crate) fn doubt_huge_pages() {
    arenas().for_each(|arena| arena.units.chunks.doubt());
}

/// Decommits `len` bytes of a slab, of which `gone` have no memory, and counts them. Returns
/// whether they read as zero afterwards.
///
/// # Safety
/// `address..address + len` lies in a run from [`super::alloc`], on page boundaries, and its
/// contents are dead.
pub(crate) unsafe fn punch(address: NonNull<u8>, len: usize, gone: usize) -> bool {
    // SAFETY: the caller guarantees whole pages of a run, with dead contents.
    let done = unsafe { decommit_rest(address, len, gone) };
    if done && let Some(unit) = Unit::of(address.as_ptr()) {
        let past = address.addr().get() - unit.address().addr();
        let units = (past + len).div_ceil(UNIT) as u32;
        unit.arena.units.note_decommit(unit.index, unit.index + units);
    }
    done
}

impl Arena {
    /// Ends a window for the chunks of the arena.
    fn end_window_of_chunks(&self, context: Context) -> bool {
        let (mut used_to, mut is_worth_more) = (0, false);
        for number in Chunks::numbers() {
            let (start, end) = self.units.units_of(number);
            let Some(free) = self.free_runs.acquire(context) else { break };
            if end > self.units.committed() {
                break;
            }
            // SAFETY: these units are committed, and the lock is held.
            let is_in_use = unsafe { self.units.are_in_use(start, end, &mut used_to) };
            drop(free);
            let is_whole = end - start == CHUNK;
            is_worth_more |= self.units.chunks.end_window(number, is_in_use && is_whole);
        }
        is_worth_more
    }

    /// Collapses a chunk, unless too many of its pages have no memory.
    fn collapse(&self, number: usize) {
        let chunks = &self.units.chunks;
        let (start, _) = self.units.units_of(number);
        let address = self.units.arrays().address(start);
        match os::private_pages(address, BYTES) {
            Some(pages) if pages + LACKING < BYTES / PAGE => chunks.put_back(number),
            // SAFETY: all units of a chunk that is due were in use, so they are committed, and the
            // chunk is one part of the reservation.
            Some(_) if unsafe { collapse(address, HugePages::are_for(0, start)) } => {
                chunks.set_huge(number);
                COLLAPSED.fetch_add(1, Ordering::Relaxed);
                IN_A_ROW.store(0, Ordering::Relaxed);
            }
            _ => {
                chunks.put_back(number);
                REFUSED.fetch_add(1, Ordering::Relaxed);
                pause_collapsing();
            }
        }
    }
}

/// Collapses the chunk at `address`, and advises the kernel for or against `huge` pages there from
/// then on. Returns false if the kernel refuses.
///
/// # Safety
/// All of the chunk is committed and lies in one reservation.
unsafe fn collapse(address: NonNull<u8>, huge: bool) -> bool {
    let start = os::nanoseconds();
    // SAFETY: the caller guarantees a committed range of one reservation.
    let done = unsafe {
        os::prefer_huge_pages(address, BYTES, true);
        let done = os::collapse(address, BYTES);
        os::prefer_huge_pages(address, BYTES, huge);
        done
    };
    let took = os::nanoseconds().wrapping_sub(start);
    NANOSECONDS.fetch_add(took, Ordering::Relaxed);
    LEFT.fetch_sub(took.cast_signed(), Ordering::Relaxed);
    done
}

impl Units {
    /// Returns whether all units from `start` to `end` are in use, by runs that get no huge pages
    /// by their length. `used_to` is the end of the last run below `start` that is in use, and
    /// becomes that of the last run below `end`. The answer is a guess if the lock was released in
    /// between.
    ///
    /// # Safety
    /// The units are committed, and the lock is held.
    unsafe fn are_in_use(&self, start: u32, end: u32, used_to: &mut u32) -> bool {
        let mut is_in_use = true;
        let mut at = start;
        while at < end {
            if *used_to > at {
                at = *used_to;
                continue;
            }
            // SAFETY: the caller guarantees that these units are committed, and the lock is held.
            // No unit but the first of a run in use has this state.
            match unsafe { self.tag(at) } {
                (RunState::Used, len) if len < LONG => *used_to = at + len,
                _ => {
                    is_in_use = false;
                    at += 1;
                }
            }
        }
        is_in_use
    }
}
