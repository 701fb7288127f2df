//! Pages: address space reserved in *arenas*, cut into *runs* of 64 KiB units.
//!
//! An arena is one reservation: descriptors of runs, then metadata that the slab layer keeps per unit, then the units.
//! All three are parallel arrays, so pointer → unit → descriptor is arithmetic and "is it ours" a range check. Nearly
//! always there is one arena for each node, of 256 GiB; more are made where a limit on address space made the first one small.
//!
//! FreeRuns are committed from the bottom up. A free run is *clean* (never touched since its pages were last given back:
//! it reads as zero and costs no memory) or *dirty*; the two are not merged with each other, and dirty ones are
//! preferred; a long run may be of a dirty one and the clean one behind it. Free runs are kept in bins by length, eight to an
//! octave, and merge with their neighbours by boundary tags: the descriptors of a run's first and last unit both name its length
//! and state.
//!
//! Dirty runs go back to the system by a low-water mark: what nobody needed during a whole window is given back at its end.
//! (The working-set estimate of FreeBSD's UMA, for pages.) `reclaim` says when windows end, and how long they are. Whole pages of
//! metadata go with the runs that they describe.
//!
//! All of this is under the arena's lock; committing and purging, which take time, are not. The last part of an arena is its *reserve*, which needs none: it serves
//! contexts that cannot wait for the lock, and everybody when nothing else is left.
//!
//! An arena is of a NUMA node, and the kernel is asked to take its memory from there: pages are touched first by whoever has the
//! run first, but runs are used again, and shall stay near those who get them. What a node's arenas do not have is taken from
//! those of others before it is refused.
//!
//! Beyond the first [`HUGE_FROM`] units, and for runs of [`LONG`] ones, transparent huge pages are asked for
//! (`HAYLOFT_THP=auto|always|never`); elsewhere there are to be none.
//!
//! This folder may touch `arch`, `os`, `sync`, `node`, `fault` and the unit of `size_class`.

mod bins;
mod dumped;
mod give_up;
mod limit;
mod make;
mod purge;
mod reserve;

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::{fmt, mem};

use crate::arch::FIRST;
use crate::fault::{self, Place};
use crate::node;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Lock, LockClass, RawLock};
use crate::watch;
use bins::Bins;
use dumped::LeftOut;
pub(crate) use give_up::limit_address_space;
use make::make_arena;
pub(crate) use purge::{
    Purging, alloc_after_trim, decay, in_child, lock as purging_lock, trim, trim_to,
};
use reserve::Reserve;

/// Metadata per unit for the slab layer, in bytes.
pub(crate) const META_SIZE: usize = if cfg!(debug_assertions) { 1088 } else { 576 };

/// FreeRuns of a huge page.
const HUGE_PAGE: u32 = (2 << 20) / UNIT as u32;

/// From this many committed units on, huge pages are asked for. There the rest of those that are half used is a small part of
/// what the program has; below, programs took up to 10 % more memory with them, and no less time: a heap that grows to 340 MB in
/// phases took 1 % less, Perl with 90 MB 5 % more, SQLite with 530 MB 10 %. (On a virtual machine, whose host has to find 2 MiB, too.)
const HUGE_FROM: u32 = (1 << 30) / UNIT as u32;

/// For a run of this many units that is not there yet, huge pages are asked for in any heap: it will be used from end to end. A
/// block that grows to a gigabyte takes 0.77 of the time so, blocks of up to 64 MB that come and go 0.6.
const LONG: u32 = (8 << 20) / UNIT as u32;

/// The least that is committed at once, in units.
const GROWTH: u32 = 16;
/// The most that is committed at once beyond the need, in units.
const MAX_GROWTH: u32 = 1024;

/// FreeRuns of a block of the reserve: the longest slab.
const BLOCK: u32 = 4;
/// No run. Unit 0 of an arena is never part of one, so that zeroed memory is an empty set of bins.
const NONE: u32 = 0;

/// What a descriptor says of the run that starts or ends at its unit. That of a unit between these may say anything but `Used`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum RunState {
    /// Nothing: as in zeroed memory, and on the last unit of a run that is not free.
    Silent,
    /// A run in use starts here.
    Used,
    /// A run starts here that is not free, as it is about to be given back to the system.
    Leaving,
    Dirty,
    Clean,
}

/// Descriptor of a unit; meaningful on the first unit of a run, and on the last of a free one.
#[repr(C)]
struct Run {
    /// FreeRuns of the run.
    len: u32,
    state: RunState,
    /// Neighbours in the bin, by their first unit; on the first unit of a free run only. On that of a run in use, `next` is what
    /// [`set_used_bytes`] was told, in [`PIECES`].
    next: u32,
    previous: u32,
    /// On the first unit of a run in use: [`SPARSE`], [`MOVED`].
    marks: u32,
}

/// Bytes of which a run in use is said to be used so many.
const PIECES: usize = 4096;

/// No huge pages are to be used for a run.
const SPARSE: u32 = 1;
/// The pages of a run were moved to it, so that it is a mapping of its own.
const MOVED: u32 = 2;

/// What an arena is made of, by their first elements; written once, before the arena is published.
#[cfg_attr(test, derive(Debug))]
struct Arrays {
    base: *mut u8,
    runs: *mut Run,
    meta: *mut u8,
    /// The first unit of the reserve, and the one behind its last.
    reserve: u32,
    units: u32,
    node: usize,
}

impl Arrays {
    /// Address of a unit, if the arena has that.
    fn address(&self, index: u32) -> NonNull<u8> {
        let address = self.base.wrapping_add((index as usize) << UNIT_SHIFT);
        NonNull::new(address).unwrap_or(NonNull::dangling())
    }

    /// Number of the arena's first unit among those of the address space, as far as it matters for alignment.
    #[inline(always)]
    fn base_unit(&self) -> u32 {
        (self.base.addr() >> UNIT_SHIFT) as u32
    }

    /// Makes units and what belongs to them readable and writable.
    fn commit(&self, from: u32, to: u32) -> bool {
        let (from, to) = (from as usize, to as usize);
        // Metadata is committed in whole units too, so a part may be committed a second time; that changes nothing.
        let meta = |base: *mut u8, size: usize| {
            let start = (from * size) & !(UNIT - 1);
            let end = (to * size).next_multiple_of(UNIT);
            // SAFETY: both ends lie in the array that starts at `base`, which is as long as the arena has units.
            let done = unsafe { os::commit(NonNull::new_unchecked(base.add(start)), end - start) };
            watch::hide(base.wrapping_add(start), end - start);
            done
        };
        let (first, len) = (self.address(from as u32), (to - from) << UNIT_SHIFT);
        let done = meta(self.runs.cast(), size_of::<Run>())
            && meta(self.meta, META_SIZE)
            // SAFETY: units of this arena that nobody uses.
            && unsafe { os::commit(first, len) };
        watch::make_noaccess(first.as_ptr(), len);
        done
    }

    /// Commits at least `room` units from `committed` on, where nothing is yet, up to `end`: how many.
    fn commit_more(&self, committed: u32, end: u32, room: u32) -> Option<u32> {
        let rest = end - committed;
        let wish = room.max(GROWTH).max((committed / 8).min(MAX_GROWTH));
        // Up to the end of a huge page, so that none is committed in parts.
        let past = committed.saturating_add(wish).wrapping_add(self.base_unit()) % HUGE_PAGE;
        let wish = wish.saturating_add((HUGE_PAGE - past) % HUGE_PAGE).min(rest);
        let commit =
            |more: &u32| (room..=rest).contains(more) && self.commit(committed, committed + more);
        let more = [wish, room].into_iter().find(commit)?;
        if HugePages::are_for(room, committed) {
            let bytes = (more as usize) << UNIT_SHIFT;
            // SAFETY: units of this arena, committed above.
            unsafe { os::prefer_huge_pages(self.address(committed), bytes, true) };
        }
        Some(more)
    }
}

struct Arena {
    /// Bytes of all units, or of those in front of what was given up; 0 before the arena is published. Release then, pairs with the Acquire of whoever looks.
    bytes: AtomicUsize,
    arrays: UnsafeCell<Arrays>,
    /// FreeRuns from the bottom that are readable and writable. Written under both locks.
    committed: AtomicU32,
    /// Where units end that may be committed: at the reserve, unless address space was given up. Written under the lock on committing.
    end: AtomicU32,
    /// Where the reserve ends: with the arena, unless address space was given up.
    behind: AtomicU32,
    /// FreeRuns in dirty free runs. Written under the lock.
    dirty: AtomicU32,
    state: Lock<FreeRuns>,
    /// Held by who commits more units, without the lock above: others allocate what there is meanwhile.
    committing: Lock<()>,
    reserve: Reserve,
    left_out: LeftOut,
}

// SAFETY: `arrays` is written by whoever claimed the arena, before `bytes` publishes it, and only read after; the rest
// is atomic or under the lock.
unsafe impl Sync for Arena {}

const MAX_ARENAS: usize = 64;
static ARENAS: [Arena; MAX_ARENAS] = [const { Arena::new() }; MAX_ARENAS];
/// Arenas claimed by those who make them.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// The arenas that can be used.
fn arenas() -> impl Iterator<Item = &'static Arena> {
    // Relaxed: a hint; what is read of an arena is behind its `bytes`.
    let claimed = CLAIMED.load(Ordering::Relaxed);
    // SAFETY: no more are claimed than there are. By pointers, for Miri looks at all of what a reference is made to.
    let arena = |index| unsafe { &*(&raw const ARENAS).cast::<Arena>().add(index) };
    // Acquire: pairs with the Release in `make_arena`.
    (0..claimed).map(arena).filter(|arena: &&Arena| arena.bytes.load(Ordering::Acquire) > 0)
}

/// The arenas of a node that can be used.
fn arenas_of(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.arrays().node == node)
}

/// The arenas of other nodes that can be used.
fn arenas_beside(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.arrays().node != node)
}

/// A run handed out.
pub(crate) struct Allocation {
    pub(crate) address: NonNull<u8>,
    /// The run reads as zero.
    pub(crate) zeroed: bool,
    /// FreeRuns at its start that may hold anything; the others read as zero, and take no memory yet.
    pub(crate) dirty: usize,
}

/// A unit that one of our arenas holds, found by an address in it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    arena: &'static Arena,
    index: u32,
}

impl Unit {
    /// The unit that holds `address`, or `None` for a foreign one.
    #[inline]
    pub(crate) fn of(address: *mut u8) -> Option<Unit> {
        arenas().find_map(|arena| {
            let offset = address.addr().wrapping_sub(arena.arrays().base.addr());
            let index = (offset >> UNIT_SHIFT) as u32;
            let is_here = offset < arena.bytes.load(Ordering::Relaxed)
                || arena.is_of_reserve(offset >> UNIT_SHIFT);
            is_here.then_some(Unit { arena, index })
        })
    }

    /// Returns the unit that starts at `address`, which is below this one, or its own, and in the same run.
    #[inline]
    pub(crate) fn at(self, address: *mut u8) -> Unit {
        let below = (self.address().addr() - address.addr()) >> UNIT_SHIFT;
        Unit { arena: self.arena, index: self.index - below as u32 }
    }

    /// The node of the arena.
    pub(crate) fn node(self) -> usize {
        self.arena.arrays().node
    }

    /// Address of the unit.
    #[inline]
    pub(crate) fn address(self) -> *mut u8 {
        // SAFETY: the index lies in the arena.
        unsafe { self.arena.arrays().base.add((self.index as usize) << UNIT_SHIFT) }
    }

    /// The metadata of the unit: [`META_SIZE`] bytes, zero until somebody writes them, on a cache line. Committed as
    /// long as a run holds the unit.
    #[inline]
    pub(crate) fn meta(self) -> *mut u8 {
        // SAFETY: the index lies in the arena.
        unsafe { self.arena.arrays().meta.add(self.index as usize * META_SIZE) }
    }

    /// Whether the unit was ever handed out, so that its metadata can be read.
    pub(crate) fn is_committed(self) -> bool {
        // Acquire: pairs with the Release in `FreeRuns::commit`.
        self.index < self.arena.committed.load(Ordering::Acquire)
            || self
                .arena
                .reserved_block(self.index)
                .is_some_and(|block| self.arena.reserve.has(block))
    }

    /// FreeRuns of the used run that starts here, or `None` if none does. The answer means something to the owner of the
    /// run only: nobody else changes its descriptor.
    pub(crate) fn run_len(self) -> Option<usize> {
        if !self.is_committed() {
            return None;
        }
        // SAFETY: committed.
        unsafe { self.arena.used_len(self.index) }.map(|len| len as usize)
    }

    /// Why no block in use starts at an address in this unit, for a message.
    #[cold]
    pub(crate) fn misplaced(self) -> Misplaced {
        Context::enter(|context| self.arena.misplaced(context, self.index))
    }
}

/// Returns the metadata of the unit that holds an address, if that was ever handed out.
#[inline(always)]
pub(crate) fn meta_at(address: *mut u8) -> Option<*mut u8> {
    // Nearly all are of the arena that was made first. Acquire: pairs with the Release in `fill`.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    // SAFETY: there is an arena 0. By a pointer, for Miri looks at all of what a reference is made to.
    let committed = unsafe { &(*(&raw const ARENAS).cast::<Arena>()).committed };
    // Acquire: as in `Unit::is_committed`.
    if offset < bytes && (offset >> UNIT_SHIFT) < committed.load(Ordering::Acquire) as usize {
        let meta = FIRST.meta.load(Ordering::Relaxed);
        return Some(meta.wrapping_add((offset >> UNIT_SHIFT) * META_SIZE));
    }
    elsewhere(address)
}

/// As [`meta_at`], for any arena.
#[cold]
#[inline(never)]
fn elsewhere(address: *mut u8) -> Option<*mut u8> {
    Unit::of(address).filter(|unit| unit.is_committed()).map(Unit::meta)
}

/// Why no block in use starts at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Misplaced {
    /// It lies in free memory, of so many bytes.
    Free(usize),
    /// It lies in a run in use that starts there, and has so many bytes.
    Within(*mut u8, usize),
    /// Nobody had memory there so far, or it cannot be told.
    Unknown,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Misplaced::Free(bytes) => write!(formatter, "double free, among {bytes} free bytes"),
            Misplaced::Within(start, bytes) => {
                write!(formatter, "in the midst of a block of {bytes} bytes at {start:p}")
            }
            Misplaced::Unknown => formatter.write_str("no block starts there"),
        }
    }
}

/// Hands out a run of `units`, its address a multiple of `align` units, a power of two; of memory of the node if that has some.
/// `None` when out of memory.
pub(crate) fn alloc(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let run = alloc_without_trim(context, node, units, align)?;
    if run.zeroed {
        keep_limit(context);
    }
    Some(run)
}

/// As [`alloc`], and nothing goes back to the system beyond the soft limit.
fn alloc_without_trim(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    let align = u32::try_from(align).ok()?;
    let need = len.checked_add(align)?;
    let mut has_made = false;
    loop {
        let claimed = CLAIMED.load(Ordering::Relaxed);
        let mut found = arenas_of(node).find_map(|arena| arena.alloc(context, len, align));
        // Another arena of this node comes before those of others.
        if found.is_none()
            && !has_made
            && node::count() > 1
            && !limit::forbids(len)
            && make::may_succeed(need)
            && !arenas_of(node).any(|arena| arena.has_room(need))
            && let Some(made) = make_arena(context, node, need, claimed)
        {
            has_made = made;
            continue;
        }
        let mut with_reserves = arenas_of(node).chain(arenas_beside(node));
        found = found
            .or_else(|| arenas_beside(node).find_map(|arena| arena.alloc(context, len, align)))
            .or_else(|| with_reserves.find_map(|arena| arena.alloc_reserved(len, align)));
        if found.is_some() {
            return found;
        }
        // Where there is address space, another arena is no help: there is no memory, or none within the limit.
        let is_in_vain = |arena: &Arena| arena.has_room(need) && arena.may_be_had(context);
        if has_made || limit::forbids(len) || arenas().any(is_in_vain) {
            return None;
        }
        has_made = make_arena(context, node, need, claimed)?;
    }
}

/// As [`alloc`], for a run that is longer than it has to be: only if an arena of the node has that.
pub(crate) fn alloc_room(context: Context, node: usize, units: usize) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    arenas_of(node).find_map(|arena| arena.alloc(context, len, 1))
}

/// Takes a run back; false where that had to be waited for, and the run is still the caller's.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and nobody uses the run any more.
#[must_use]
pub(crate) unsafe fn free(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller's promise.
    unsafe { unit.arena.free(context, unit.index, RunState::Dirty) }
}

/// As [`free`], for a run whose pages read as zero.
///
/// # Safety
/// As [`free`], and the run was not touched since its pages were last given back or moved away.
#[must_use]
pub(crate) unsafe fn free_clean(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller's promise.
    unsafe { unit.arena.free(context, unit.index, RunState::Clean) }
}

/// Has a run read as zero by giving its memory back to the system, unless it is `zeroed` already; false where that refuses. It gets
/// no huge pages, so that it takes memory only where it is written.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and its contents are dead.
pub(crate) unsafe fn clear(unit: Unit, zeroed: bool) -> bool {
    // SAFETY: the caller's promise.
    unsafe { unit.arena.clear(unit.index, zeroed) }
}

/// Runs in use whose pages were moved there.
static MOVES: AtomicU32 = AtomicU32::new(0);

/// How many runs in use have pages that were moved there.
pub(crate) fn moves() -> u32 {
    MOVES.load(Ordering::Relaxed)
}

/// To be called when pages were moved to a run.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], which is the caller's.
pub(crate) unsafe fn note_move(unit: Unit) {
    // SAFETY: the caller's promise; nobody else looks at the marks of a run.
    unsafe { (*unit.arena.run(unit.index)).marks |= MOVED };
    // Relaxed: a number that guards nothing.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// Bytes of free memory that the system still counts as ours; a guess while others allocate and free.
pub(crate) fn dirty() -> usize {
    arenas().map(|arena| arena.dirty.load(Ordering::Relaxed) as usize * UNIT).sum()
}

/// Whether a run of so many units that was refused might be allocated if everything that nobody uses were given back. What the
/// system does not commit now it does not commit then.
pub(crate) fn may_have(units: usize) -> bool {
    let is_limited = u32::try_from(units).is_ok_and(limit::forbids);
    let is_committed = |arena: &Arena| arena.committed() as usize > units;
    units <= limit::hard() && (is_limited || arenas().any(is_committed))
}

/// Bytes of memory in use, and of free memory that the system still counts as ours.
pub(crate) fn charged() -> usize {
    limit::charged() << UNIT_SHIFT
}

/// Bytes that went back to the system so far.
static DECOMMITTED: AtomicU64 = AtomicU64::new(0);

/// Counts memory that went back to the system.
pub(crate) fn note_decommitted(bytes: usize) {
    // Relaxed: a number that is looked at, and guards nothing.
    DECOMMITTED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Bytes that went back to the system so far. In any context.
pub(crate) fn decommitted() -> u64 {
    DECOMMITTED.load(Ordering::Relaxed)
}

/// Bytes that there may be of [`charged`], if that is limited.
pub(crate) fn limit() -> Option<usize> {
    limit::hard().checked_mul(UNIT)
}

/// To be called after frees: beyond the soft limit, what is free goes back at once, unless the context may not wait.
#[inline]
pub(crate) fn keep_limit(context: Context) {
    if limit::is_soft_exceeded() {
        trim(context);
    }
}

/// Whether there is anything to give back, also by what is freed at this moment. What the system refused to take is not to be
/// asked for again before something else is freed.
pub(crate) fn is_dirty(context: Context) -> bool {
    arenas().any(|arena| {
        let units = arena.state.acquire(context);
        units.is_some_and(|units| arena.dirty() > 0 && !units.was_refused)
    })
}

/// Calls `visit` with every unit that was ever handed out.
pub(crate) fn for_each_unit(visit: &mut dyn FnMut(Unit)) {
    for arena in arenas() {
        let arrays = arena.arrays();
        // Unit 0 is nobody's.
        for index in
            (1..arena.committed.load(Ordering::Acquire)).chain(arrays.reserve..arrays.units)
        {
            let unit = Unit { arena, index };
            if unit.is_committed() {
                visit(unit);
            }
        }
    }
}

/// Every lock of this layer but [`purging_lock`], which comes before those of slabs.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::ArenaMaking, make::lock());
    arenas().for_each(|arena| {
        visit(LockClass::Committing, arena.committing.raw());
        visit(LockClass::Arena, arena.state.raw());
    });
}

/// Notes how many bytes of a run are used, at least one; the others are room to grow. Whoever makes it longer or shorter uses all of it.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], which is the caller's, and at least as long.
pub(crate) unsafe fn set_used_bytes(unit: Unit, bytes: usize) {
    let pieces = u32::try_from(bytes.div_ceil(PIECES)).unwrap_or(NONE);
    // SAFETY: the caller's promise; nobody else looks at this word of a run in use.
    unsafe { (*unit.arena.run(unit.index)).next = pieces };
}

/// Returns how many bytes of a run are used: all, unless [`set_used_bytes`] was told otherwise.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], which is the caller's.
pub(crate) unsafe fn used_bytes(unit: Unit) -> usize {
    // SAFETY: the caller's promise.
    let (len, pieces) = unsafe {
        let run = unit.arena.run(unit.index);
        ((*run).len, (*run).next)
    };
    if pieces == NONE { (len as usize) << UNIT_SHIFT } else { pieces as usize * PIECES }
}

/// Makes a run at least as long as this without moving it; false if that cannot be done. FreeRuns added may hold anything.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`].
pub(crate) unsafe fn grow(context: Context, unit: Unit, units: usize) -> bool {
    // SAFETY: the caller's promise.
    u32::try_from(units).is_ok_and(|len| unsafe { unit.arena.grow(context, unit.index, len) })
}

/// Makes a run as short as this, at least one unit, without moving it; it stays longer where that had to be waited for.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that is at least as long; units cut off are not used any more.
pub(crate) unsafe fn shrink(context: Context, unit: Unit, units: usize) {
    // SAFETY: the caller's promise; it bounds `units` by a length that fits.
    unsafe { unit.arena.shrink(context, unit.index, units as u32) };
}

/// When huge pages are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum HugePages {
    /// From [`HUGE_FROM`] on, and for [`LONG`] runs.
    Auto = 1,
    Always,
    Never,
}

impl HugePages {
    /// What `HAYLOFT_THP` says.
    fn wanted() -> HugePages {
        /// The answer; 0 before it was looked up.
        static WANTED: AtomicU8 = AtomicU8::new(0);
        const AUTO: u8 = HugePages::Auto as u8;
        const ALWAYS: u8 = HugePages::Always as u8;
        const NEVER: u8 = HugePages::Never as u8;
        // Relaxed: a number that never changes once it is not 0, and guards nothing.
        match WANTED.load(Ordering::Relaxed) {
            AUTO => return HugePages::Auto,
            ALWAYS => return HugePages::Always,
            NEVER => return HugePages::Never,
            _ => {}
        }
        let wanted = match os::env(c"HAYLOFT_THP") {
            None | Some(b"auto") => HugePages::Auto,
            Some(b"always") => HugePages::Always,
            Some(b"never") => HugePages::Never,
            Some(_) => {
                os::ignored(c"HAYLOFT_THP", format_args!("none of auto, always and never"));
                HugePages::Auto
            }
        };
        WANTED.store(wanted as u8, Ordering::Relaxed);
        wanted
    }

    /// Whether to ask for them where a run of `room` units is wanted of an arena with so many committed ones.
    fn are_for(room: u32, committed: u32) -> bool {
        match HugePages::wanted() {
            HugePages::Auto => room >= LONG || committed >= HUGE_FROM,
            HugePages::Always => true,
            HugePages::Never => false,
        }
    }
}

impl Arena {
    const fn new() -> Arena {
        Arena {
            bytes: AtomicUsize::new(0),
            arrays: UnsafeCell::new(Arrays {
                base: ptr::null_mut(),
                runs: ptr::null_mut(),
                meta: ptr::null_mut(),
                reserve: 0,
                units: 0,
                node: 0,
            }),
            committed: AtomicU32::new(0),
            end: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            dirty: AtomicU32::new(0),
            state: Lock::new(LockClass::Arena, FreeRuns::new()),
            committing: Lock::new(LockClass::Committing, ()),
            reserve: Reserve::new(),
            left_out: LeftOut::new(),
        }
    }

    #[inline(always)]
    fn arrays(&self) -> &Arrays {
        // SAFETY: arenas are reached when they are published, after which the arrays are not written any more.
        unsafe { &*self.arrays.get() }
    }

    /// Whether so many units could be committed, by its length. A guess while others commit some.
    fn has_room(&self, units: u32) -> bool {
        self.end() - self.committed() > units
    }

    /// Whether there is a unit of this number in the reserve.
    #[inline]
    fn is_of_reserve(&self, index: usize) -> bool {
        let behind = self.behind.load(Ordering::Relaxed) as usize;
        (self.arrays().reserve as usize..behind).contains(&index)
    }

    /// Where units end that may be committed.
    fn end(&self) -> u32 {
        self.end.load(Ordering::Relaxed)
    }

    /// Whether its locks could be taken; a guess in a context that may not wait for them.
    fn may_be_had(&self, context: Context) -> bool {
        let is_free =
            |lock: &RawLock| if context.may_wait() { !lock.is_abandoned() } else { lock.is_free() };
        is_free(self.state.raw()) && is_free(self.committing.raw())
    }

    /// Descriptor of a unit, if the arena has that; to be used under the lock.
    #[inline]
    fn run(&self, index: u32) -> *mut Run {
        self.arrays().runs.wrapping_add(index as usize)
    }

    /// Returns the boundary tag of a unit: the state and the length of a run that starts or ends
    /// there. Not its marks, which the owner of a run in use changes without the lock.
    ///
    /// # Safety
    /// The unit is committed, and the lock held, or the run the caller's.
    unsafe fn tag(&self, index: u32) -> (RunState, u32) {
        // SAFETY: the caller's promise.
        unsafe { ((*self.run(index)).state, (*self.run(index)).len) }
    }

    /// FreeRuns of the run in use that starts at a unit, if one does.
    ///
    /// # Safety
    /// The unit is committed.
    unsafe fn used_len(&self, index: u32) -> Option<u32> {
        // SAFETY: the caller's promise.
        let (state, len) = unsafe { self.tag(index) };
        (state == RunState::Used).then_some(len)
    }

    /// FreeRuns of a run, by its first.
    ///
    /// # Safety
    /// The first unit of a run that is in a bin or on the way there; the lock is held.
    unsafe fn len(&self, start: u32) -> u32 {
        // SAFETY: the caller's promise: it is committed.
        unsafe { (*self.run(start)).len }
    }

    /// The first unit from `start` on whose address is a multiple of `align` units.
    fn aligned(&self, start: u32, align: u32) -> u32 {
        start + (start.wrapping_add(self.arrays().base_unit()).wrapping_neg() & (align - 1))
    }

    /// A run that leaves the arena, the first `dirty` units of which may hold anything.
    fn handed_out(&self, start: u32, len: u32, dirty: u32) -> Allocation {
        let (address, zeroed) = (self.arrays().address(start), dirty == 0);
        watch::make_accessible(address.as_ptr(), (len as usize) << UNIT_SHIFT, zeroed);
        Allocation { address, zeroed, dirty: dirty as usize }
    }

    fn alloc(&self, context: Context, len: u32, align: u32) -> Option<Allocation> {
        let mut may_commit = true;
        let (mut units, found) = loop {
            let mut units = self.state.acquire(context)?;
            fault::point(Place::ArenaAllocating);
            match units.find(self, len, align, may_commit) {
                Ok(found) => break (units, found),
                Err(_) if !may_commit => return None,
                Err(more) => {
                    let committed = self.committed();
                    drop(units);
                    may_commit = self.commit_more(context, committed, more);
                }
            }
        };
        let start = self.aligned(found.start, align);
        let end = start + len;
        let clean = found.clean.clamp(start, end);
        if !limit::charge(end - clean) {
            return None;
        }
        units.remove_all(self, found.start, found.end);
        units.insert_parts(self, found.start, start, found.clean);
        units.insert_parts(self, end, found.end, found.clean);
        units.note_least(self);
        // SAFETY: units in our hands; the lock is held, or they are of the reserve.
        unsafe { self.set_used(start, len) };
        // SAFETY: the first unit of the run, which is ours.
        unsafe { (*self.run(start)).marks = 0 };
        drop(units);
        self.left_out.take_in(self.arrays(), clean, end);
        Some(self.handed_out(start, len, clean - start))
    }

    /// # Safety
    /// As [`free`].
    unsafe fn free(&self, context: Context, start: u32, state: RunState) -> bool {
        // SAFETY: the first unit of a used run, by the caller's promise; nobody else changes its descriptor.
        let Some(len) = (unsafe { self.used_len(start) }) else { self.misused(context, start) };
        watch::make_noaccess(self.arrays().address(start).as_ptr(), (len as usize) << UNIT_SHIFT);
        // SAFETY: as above.
        let marks = unsafe { mem::take(&mut (*self.run(start)).marks) };
        // SAFETY: as above, and the contents are dead.
        let Some(state) = (unsafe { self.unmark(marks, start, len, state) }) else {
            // It stays in use, so that nobody gets it.
            return true;
        };
        if marks & MOVED != 0 {
            MOVES.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(block) = self.reserved_block(start) {
            // SAFETY: the caller's promise.
            unsafe {
                (*self.run(start)).state = RunState::Silent;
                self.decommit(start, len);
            }
            self.reserve.give(block, len.div_ceil(BLOCK) as usize);
            limit::uncharge(len);
            return true;
        }
        let Some(mut units) = self.state.acquire(context) else { return false };
        fault::point(Place::ArenaFreeing);
        // Whoever breaks the promise may have freed it on two threads at once.
        // SAFETY: as above.
        let Some(len) = (unsafe { self.used_len(start) }) else {
            drop(units);
            self.misused(context, start);
        };
        units.give(self, start, len, state);
        if state == RunState::Clean {
            limit::uncharge(len);
        }
        true
    }

    /// Ends the process, as no run in use starts at a unit that was given back.
    #[cold]
    fn misused(&self, context: Context, index: u32) -> ! {
        let (address, misplaced) = (self.arrays().address(index), self.misplaced(context, index));
        os::abort(format_args!("free of {address:p}: {misplaced}"))
    }

    /// See [`Unit::misplaced`].
    fn misplaced(&self, context: Context, index: u32) -> Misplaced {
        let Some(_units) = self.state.acquire(context) else { return Misplaced::Unknown };
        let (mut at, end) = match self.reserved_block(index) {
            Some(_) => (self.arrays().reserve, self.arrays().units),
            None => (1, self.committed()),
        };
        while at <= index && at < end {
            // What the reserve has is in whole blocks, or in none.
            let is_run = self.reserved_block(at).is_none_or(|block| self.reserve.has(block));
            // SAFETY: the first unit of a run, committed; the lock is held.
            let run = is_run.then(|| unsafe { self.tag(at) });
            let (len, state) = match (run, self.reserved_block(at)) {
                (Some((state, len)), None) => (len, state),
                (Some((state, len)), Some(_)) => (len.next_multiple_of(BLOCK), state),
                (None, _) => (BLOCK, RunState::Silent),
            };
            if index - at < len {
                let bytes = (len as usize) << UNIT_SHIFT;
                return match state {
                    RunState::Used => Misplaced::Within(self.arrays().address(at).as_ptr(), bytes),
                    RunState::Dirty | RunState::Clean | RunState::Leaving => Misplaced::Free(bytes),
                    RunState::Silent => Misplaced::Unknown,
                };
            }
            at += len.max(1);
        }
        Misplaced::Unknown
    }

    /// Gives back the memory of a run, which reads as zero from now on, and of the whole pages of metadata that describe it.
    /// False where the kernel refused.
    ///
    /// # Safety
    /// The run is the caller's alone, and its contents and metadata are dead.
    unsafe fn decommit(&self, start: u32, len: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.decommit_metadata(start, len) };
        let bytes = (len as usize) << UNIT_SHIFT;
        // SAFETY: the caller's promise.
        let is_clean = unsafe { os::decommit(self.arrays().address(start), bytes) };
        note_decommitted(if is_clean { bytes } else { 0 });
        is_clean
    }

    /// # Safety
    /// As [`clear`], for the run that starts here.
    unsafe fn clear(&self, start: u32, zeroed: bool) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let (address, run) = (self.arrays().address(start), self.run(start));
            let bytes = ((*run).len as usize) << UNIT_SHIFT;
            if HugePages::wanted() != HugePages::Always {
                (*run).marks |= SPARSE;
                os::prefer_huge_pages(address, bytes, false);
            }
            let is_decommitted = !zeroed && os::decommit(address, bytes);
            note_decommitted(if is_decommitted { bytes } else { 0 });
            zeroed || is_decommitted
        }
    }

    /// Makes the memory of a run with `marks`, or of a part of it, such as that of others; what it is then. `None` where the system
    /// took it away.
    ///
    /// # Safety
    /// The run is the caller's, and the contents of the part are dead.
    unsafe fn unmark(&self, marks: u32, start: u32, len: u32, state: RunState) -> Option<RunState> {
        let (address, bytes) = (self.arrays().address(start), (len as usize) << UNIT_SHIFT);
        let mut state = state;
        if marks & MOVED != 0 {
            // SAFETY: the caller's promise.
            if !unsafe { os::renew(address, bytes) } {
                return None;
            }
            make::prefer_node(address, bytes, self.arrays().node);
            state = RunState::Clean;
        }
        // SAFETY: the caller's promise.
        if marks & SPARSE != 0 && unsafe { os::decommit(address, bytes) } {
            // What was written here and there would be in the way of huge pages.
            state = RunState::Clean;
        }
        if marks != 0 {
            // SAFETY: units of this arena.
            unsafe { os::prefer_huge_pages(address, bytes, HugePages::are_for(len, start)) };
        }
        Some(state)
    }

    /// Gives back the whole pages of metadata that describe a run.
    ///
    /// # Safety
    /// The run is the caller's alone, and its metadata is dead.
    unsafe fn decommit_metadata(&self, start: u32, len: u32) {
        let meta = self.arrays().meta;
        let page = os::page_size();
        let first = (meta.addr() + start as usize * META_SIZE).next_multiple_of(page);
        let end = (meta.addr() + (start + len) as usize * META_SIZE) & !(page - 1);
        // SAFETY: the caller's promise, and pages between those that describe other units too.
        unsafe {
            if first < end {
                let first = NonNull::new_unchecked(meta.add(first - meta.addr()));
                os::decommit(first, end - first.addr().get());
            }
        }
    }

    /// As [`Arena::alloc`], from the reserve, without a lock. The run may hold anything.
    fn alloc_reserved(&self, len: u32, align: u32) -> Option<Allocation> {
        let arrays = self.arrays();
        let (count, align) = (len.div_ceil(BLOCK) as usize, align.div_ceil(BLOCK) as usize);
        let room = (arrays.units - arrays.reserve) / BLOCK;
        let past = (arrays.reserve.wrapping_add(self.arrays().base_unit()) / BLOCK) as usize;
        if !limit::charge(len) {
            return None;
        }
        let taken = self.reserve.take(count, align, past, room as usize);
        let Some(block) = taken else {
            limit::uncharge(len);
            return None;
        };
        let start = arrays.reserve + block as u32 * BLOCK;
        // Whole blocks, so that metadata is committed for all units of a block, or none.
        if !arrays.commit(start, start + count as u32 * BLOCK) {
            self.reserve.give(block, count);
            limit::uncharge(len);
            return None;
        }
        self.reserve.set_committed(block, count);
        // SAFETY: units in our hands; the lock is held, or they are of the reserve.
        unsafe { self.set_used(start, len) };
        // SAFETY: as above.
        unsafe { (*self.run(start)).marks = 0 };
        Some(self.handed_out(start, len, len))
    }

    /// The block of the reserve that a unit lies in, if it does.
    #[inline]
    fn reserved_block(&self, index: u32) -> Option<usize> {
        let arrays = self.arrays();
        (arrays.reserve..arrays.units)
            .contains(&index)
            .then(|| ((index - arrays.reserve) / BLOCK) as usize)
    }

    /// # Safety
    /// As [`grow`].
    unsafe fn grow(&self, context: Context, start: u32, len: u32) -> bool {
        // SAFETY: the first unit of a used run, by the caller's promise; nobody else changes its descriptor.
        let old = unsafe { (*self.run(start)).len };
        if len <= old {
            // SAFETY: as above. All of it is used from now on.
            unsafe { (*self.run(start)).next = NONE };
            return true;
        }
        if self.reserved_block(start).is_some() {
            return false;
        }
        let (next, end) = (start + old, start + len);
        // Free runs of both kinds may follow each other.
        let (mut units, free_end, last, fresh) = loop {
            let Some(units) = self.state.acquire(context) else { return false };
            fault::point(Place::ArenaGrowing);
            let (mut at, mut last, mut fresh) = (next, RunState::Silent, 0);
            while at < end && at < self.committed() {
                // SAFETY: the first unit of a run, committed.
                let (state, len) = unsafe { self.tag(at) };
                match state {
                    RunState::Silent | RunState::Used | RunState::Leaving => return false,
                    RunState::Dirty => {}
                    RunState::Clean => fresh += len.min(end - at),
                }
                at += len;
                last = state;
            }
            if at >= end {
                break (units, at, last, fresh);
            }
            drop(units);
            if !self.commit_more(context, at, end - at) {
                return false;
            }
        };
        if !limit::charge(fresh) {
            return false;
        }
        units.remove_all(self, next, free_end);
        if free_end > end {
            units.insert(self, end, free_end - end, last);
        }
        units.note_least(self);
        // SAFETY: units in our hands; the lock is held, or they are of the reserve.
        unsafe { self.set_used(start, len) };
        drop(units);
        self.left_out.take_in(self.arrays(), next, end);
        true
    }

    /// Commits at least `room` units, if there are `committed` ones: somebody else may have been faster. False where that cannot be
    /// done.
    fn commit_more(&self, context: Context, committed: u32, room: u32) -> bool {
        let Some(_committing) = self.committing.acquire(context) else { return false };
        if self.committed() != committed {
            return true;
        }
        fault::point(Place::ArenaCommitting);
        let Some(more) = self.arrays().commit_more(committed, self.end(), room) else {
            return false;
        };
        let Some(mut units) = self.state.acquire(context) else { return false };
        units.add(self, committed, more);
        true
    }

    /// # Safety
    /// As [`shrink`].
    unsafe fn shrink(&self, context: Context, start: u32, len: u32) {
        // SAFETY: as in `grow`.
        let (old, marks) = unsafe { ((*self.run(start)).len, (*self.run(start)).marks) };
        if old <= len || self.reserved_block(start).is_some() {
            return;
        }
        // SAFETY: the caller's promise.
        let state = unsafe { self.unmark(marks, start + len, old - len, RunState::Dirty) };
        if let Some(state) = state
            && let Some(mut units) = self.state.acquire(context)
        {
            fault::point(Place::ArenaShrinking);
            // The new end needs its tag first: what is given back looks at its neighbours.
            // SAFETY: units in our hands; the lock is held, or they are of the reserve.
            unsafe { self.set_used(start, len) };
            units.give(self, start + len, old - len, state);
            if state == RunState::Clean {
                limit::uncharge(old - len);
            }
        }
    }

    /// FreeRuns in dirty free runs. To be called under the lock.
    fn dirty(&self) -> u32 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// FreeRuns from the bottom that are readable and writable. Sure under the lock only.
    fn committed(&self) -> u32 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Writes the descriptors of a run in use.
    ///
    /// # Safety
    /// As [`Arena::set`].
    unsafe fn set_used(&self, start: u32, len: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.set(start, len, RunState::Used, RunState::Silent);
            (*self.run(start)).next = NONE;
        }
    }

    /// Writes the descriptors of a run: what they say on its first unit, and on its last one.
    ///
    /// # Safety
    /// There is at least one unit, all are committed and nobody else's, and the lock is held, or they are of the reserve.
    unsafe fn set(&self, start: u32, len: u32, first: RunState, last: RunState) {
        counters::wrote(Line::Arena, if len > 1 { 2 } else { 1 });
        // The first one comes last, as it may be the only one.
        for (index, state) in [(start + len - 1, last), (start, first)] {
            // SAFETY: both units belong to the run and are committed.
            unsafe {
                (*self.run(index)).len = len;
                (*self.run(index)).state = state;
            }
        }
    }
}

/// Free units that follow each other: up to `clean` they are dirty, from there on clean.
struct Found {
    start: u32,
    clean: u32,
    end: u32,
}

/// Runs of a bin that are looked at, at most.
const LOOKS: u32 = 32;
/// From this many units on, dirty and clean runs are used together: what is dirty has its pages.
const BOTH_FROM: u32 = (1 << 20) / UNIT as u32;

/// The free runs of an arena.
struct FreeRuns {
    /// The least number of dirty units there were in this window.
    least_dirty: u32,
    /// Dirty units that nobody needed during a former window, to be given back.
    unneeded: u32,
    /// The system refused to take what it was last asked to, and nothing was freed since.
    was_refused: bool,
    dirty_bins: Bins,
    clean_bins: Bins,
}

impl FreeRuns {
    const fn new() -> FreeRuns {
        FreeRuns {
            least_dirty: 0,
            unneeded: 0,
            was_refused: false,
            dirty_bins: Bins::new(),
            clean_bins: Bins::new(),
        }
    }

    fn bins(&mut self, state: RunState) -> &mut Bins {
        if state == RunState::Dirty { &mut self.dirty_bins } else { &mut self.clean_bins }
    }

    /// Free units, left in their bins, of which `len` follow each other from a multiple of `align` on: dirty ones, or for long runs
    /// dirty ones and clean ones behind them, or clean ones.
    ///
    /// # Errors
    /// How many units have to be committed first. With `may_commit` that may be better than what there is.
    fn find(
        &mut self,
        arena: &Arena,
        len: u32,
        align: u32,
        may_commit: bool,
    ) -> Result<Found, u32> {
        if let Some(start) = self.find_one(arena, RunState::Dirty, len, align) {
            // SAFETY: the first unit of a free run; the lock is held.
            let end = start + unsafe { arena.len(start) };
            return Ok(Found { start, clean: end, end });
        }
        let room = len.saturating_add(align - 1);
        if let Some(found) = self.find_both(arena, room, may_commit) {
            return found;
        }
        let start = self.find_one(arena, RunState::Clean, len, align).ok_or(room)?;
        // SAFETY: the first unit of a free run; the lock is held.
        Ok(Found { start, clean: start, end: start + unsafe { arena.len(start) } })
    }

    /// A dirty run that has `len` units together with the clean one behind it: among the longest ones, for long runs. Or how many
    /// units have to be committed for it to have.
    fn find_both(
        &mut self,
        arena: &Arena,
        len: u32,
        may_commit: bool,
    ) -> Option<Result<Found, u32>> {
        if len < BOTH_FROM {
            return None;
        }
        let mut start = self.dirty_bins.head(self.dirty_bins.last()?);
        for _ in 0..LOOKS {
            if start == NONE {
                break;
            }
            // SAFETY: the first unit of a free run; the lock is held.
            let clean = start + unsafe { arena.len(start) };
            if clean == arena.committed() && may_commit {
                // SAFETY: the first unit of a free run; the lock is held.
                return Some(Err(len.saturating_sub(unsafe { arena.len(start) })));
            }
            // SAFETY: below `committed`, the first unit of a run; the lock is held.
            if clean < arena.committed() && unsafe { (*arena.run(clean)).state } == RunState::Clean
            {
                // SAFETY: the first unit of a free run; the lock is held.
                let end = clean + unsafe { arena.len(clean) };
                if end - start >= len {
                    return Some(Ok(Found { start, clean, end }));
                }
            }
            // SAFETY: the first unit of a free run; the lock is held.
            start = unsafe { (*arena.run(start)).next };
        }
        None
    }

    /// A free run that has `len` units from a multiple of `align` on, left in its bin.
    fn find_one(&mut self, arena: &Arena, state: RunState, len: u32, align: u32) -> Option<u32> {
        let bins = self.bins(state);
        // Any run of this bin will do, and of those behind it.
        let sure = Bins::fitting(len.saturating_add(align - 1));
        if align == 1
            && let Some(bin) = bins.first_from(sure)
        {
            return Some(bins.head(bin));
        }
        // Those below may hold one that is just long enough, or starts where it should: a short look is worth it.
        let mut looks = 0;
        let mut next = bins.first_from(Bins::holding(len));
        while let Some(bin) = next.filter(|bin| *bin < sure) {
            let mut start = bins.head(bin);
            while start != NONE && looks < LOOKS {
                looks += 1;
                // SAFETY: runs in bins are committed; the lock is held.
                let run = unsafe { &*arena.run(start) };
                if arena.aligned(start, align) + len <= start + run.len {
                    return Some(start);
                }
                start = run.next;
            }
            next = bins.first_from(bin + 1);
        }
        next.map(|bin| bins.head(bin))
    }

    /// Takes the free runs from `start` to `end` off their bins.
    fn remove_all(&mut self, arena: &Arena, start: u32, end: u32) {
        let mut at = start;
        while at < end {
            // SAFETY: the first unit of a free run; the lock is held.
            let len = unsafe { arena.len(at) };
            self.remove(arena, at);
            at += len;
        }
    }

    /// Puts units from `start` to `end` into bins: those from `clean` on are.
    fn insert_parts(&mut self, arena: &Arena, start: u32, end: u32, clean: u32) {
        let middle = clean.clamp(start, end);
        if start < middle {
            self.insert(arena, start, middle - start, RunState::Dirty);
        }
        if middle < end {
            self.insert(arena, middle, end - middle, RunState::Clean);
        }
    }

    /// Adds units that were committed behind the others.
    fn add(&mut self, arena: &Arena, committed: u32, more: u32) {
        // Release: pairs with the Acquire in `Unit::is_committed`.
        arena.committed.store(committed + more, Ordering::Release);
        self.give(arena, committed, more, RunState::Clean);
    }

    /// Adds a run to the free ones, merged with free neighbours of its kind.
    fn give(&mut self, arena: &Arena, mut start: u32, mut len: u32, state: RunState) {
        self.was_refused = false;
        // Within a longer run nothing is in use.
        // SAFETY: the first unit of a run, committed; the lock is held.
        unsafe { (*arena.run(start)).state = RunState::Silent };
        // SAFETY: unit 0 is nobody's, so there is a unit below; the lock is held.
        if unsafe { (*arena.run(start - 1)).state } == state {
            // SAFETY: as above.
            let before = unsafe { (*arena.run(start - 1)).len };
            start -= before;
            len += before;
            self.remove(arena, start);
        }
        let next = start + len;
        // SAFETY: units below `committed` have descriptors.
        if next < arena.committed() && unsafe { (*arena.run(next)).state } == state {
            // SAFETY: as above.
            len += unsafe { (*arena.run(next)).len };
            self.remove(arena, next);
        }
        self.insert(arena, start, len, state);
    }

    fn insert(&mut self, arena: &Arena, start: u32, len: u32, state: RunState) {
        // SAFETY: units in our hands; the lock is held, or they are of the reserve.
        unsafe { arena.set(start, len, state, state) };
        if state == RunState::Dirty {
            arena.dirty.store(arena.dirty() + len, Ordering::Relaxed);
        }
        let bins = self.bins(state);
        let bin = Bins::holding(len);
        let next = bins.head(bin);
        // SAFETY: both are first units of free runs; the lock is held.
        unsafe {
            (*arena.run(start)).next = next;
            (*arena.run(start)).previous = NONE;
            if next != NONE {
                (*arena.run(next)).previous = start;
            }
        }
        bins.set_head(bin, start);
        counters::wrote(Line::Arena, 1);
    }

    /// Takes a free run off its bin; its state.
    fn remove(&mut self, arena: &Arena, start: u32) -> RunState {
        // SAFETY: the first unit of a free run; the lock is held.
        let run = unsafe { arena.run(start).read() };
        if run.state == RunState::Dirty {
            arena.dirty.store(arena.dirty() - run.len, Ordering::Relaxed);
        }
        // SAFETY: neighbours in a bin are first units of free runs.
        unsafe {
            if run.next != NONE {
                (*arena.run(run.next)).previous = run.previous;
            }
            if run.previous != NONE {
                (*arena.run(run.previous)).next = run.next;
            }
        }
        if run.previous == NONE {
            self.bins(run.state).set_head(Bins::holding(run.len), run.next);
            counters::wrote(Line::Arena, 1);
        }
        run.state
    }

    /// To be called when dirty units were taken, and what was too much of them is back.
    fn note_least(&mut self, arena: &Arena) {
        self.least_dirty = self.least_dirty.min(arena.dirty());
        self.unneeded = self.unneeded.min(arena.dirty());
    }

    /// Takes up to `most` dirty units of the longest run, or one about as long, off their bin, to be given back to the system: the
    /// last ones, from a multiple of [`PIECE`](purge::PIECE) on, so that no huge page is given back in parts.
    fn take_dirty(&mut self, arena: &Arena, most: u32) -> Option<Leaving> {
        let start = self.dirty_bins.head(self.dirty_bins.last()?);
        // SAFETY: the first unit of a free run; the lock is held.
        let found = unsafe { arena.len(start) };
        let past = (start + found - 1).wrapping_add(arena.arrays().base_unit()) % purge::PIECE;
        let len = found.min(most).min(past + 1);
        self.remove(arena, start);
        if found > len {
            self.insert(arena, start, found - len, RunState::Dirty);
        }
        self.unneeded = self.unneeded.saturating_sub(len);
        self.note_least(arena);
        let start = start + (found - len);
        let end = start + len;
        // SAFETY: units in our hands; the lock is held, or they are of the reserve.
        unsafe { arena.set(start, len, RunState::Leaving, RunState::Silent) };
        let (from, to) = self.take_clean_around(arena, start, end);
        Some(Leaving { from, start, end, to })
    }

    /// Takes clean units beside those from `start` to `end` off their bins, if they make whole blocks of these that can be left out of
    /// core files: up to where.
    fn take_clean_around(&mut self, arena: &Arena, start: u32, end: u32) -> (u32, u32) {
        let (from, to) = dumped::blocks_around(arena.arrays(), start, end);
        // SAFETY: units below `committed` have descriptors, and so has unit 0; the lock is held.
        let (below, above) = unsafe {
            let is_last = end >= arena.committed();
            (arena.tag(start - 1), (!is_last).then(|| arena.tag(end)))
        };
        let below = (below.0 == RunState::Clean).then(|| start - below.1);
        let above = above.filter(|run| run.0 == RunState::Clean).map(|run| end + run.1);
        let has_below =
            from.is_some_and(|from| from == start || below.is_some_and(|at| at <= from));
        let has_above = to == end || above.is_some_and(|at| at >= to);
        let is_one = from.is_none_or(|from| from + dumped::BLOCK >= end);
        if is_one && !(has_below && has_above) {
            return (start, end);
        }
        let (mut first, mut last) = (start, end);
        if let (Some(from), Some(at), true) = (from, below, has_below)
            && from < start
        {
            self.remove(arena, at);
            self.insert_parts(arena, at, from, at);
            // SAFETY: units in our hands; the lock is held, or they are of the reserve.
            unsafe { arena.set(from, start - from, RunState::Leaving, RunState::Silent) };
            first = from;
        }
        if let (Some(at), true) = (above, has_above)
            && end < to
        {
            self.remove(arena, end);
            self.insert_parts(arena, to, at, to);
            // SAFETY: units in our hands; the lock is held, or they are of the reserve.
            unsafe { arena.set(end, to - end, RunState::Leaving, RunState::Silent) };
            last = to;
        }
        (first, last)
    }

    /// Gives back what [`FreeRuns::take_dirty`] took; in the middle it is as `state` says.
    fn put_back(&mut self, arena: &Arena, leaving: Leaving, state: RunState) {
        let Leaving { from, start, end, to } = leaving;
        for (from, to, state) in
            [(from, start, RunState::Clean), (start, end, state), (end, to, RunState::Clean)]
        {
            if from < to {
                self.give(arena, from, to - from, state);
            }
        }
    }
}

/// FreeRuns on their way to the system: from `start` to `end` they are dirty, and from `from` to `to` clean around that.
#[derive(Clone, Copy)]
struct Leaving {
    from: u32,
    start: u32,
    end: u32,
    to: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_disjoint_aligned_and_reused() {
        let waiting = Context::enter(|context| context);
        let first = alloc(waiting, 0, 3, 1).unwrap();
        let second = alloc(waiting, 0, 5, 8).unwrap();
        let unit = Unit::of(second.address.as_ptr()).unwrap();
        assert_eq!(second.address.addr().get() % (8 * UNIT), 0);
        assert_eq!(unit.address(), second.address.as_ptr());
        assert_eq!(unit.run_len(), Some(5));
        // SAFETY: the runs are ours, of 3 and 5 units.
        unsafe {
            first.address.write_bytes(1, 3 * UNIT);
            second.address.write_bytes(2, 5 * UNIT);
            assert_eq!(*first.address.as_ptr(), 1);
            shrink(waiting, unit, 2);
            assert_eq!(unit.run_len(), Some(2));
            assert!(grow(waiting, unit, 4) && grow(waiting, unit, 3));
            assert_eq!(unit.run_len(), Some(4));
            assert!(free(waiting, unit));
            assert!(free(waiting, Unit::of(first.address.as_ptr()).unwrap()));
        }
        assert!(Unit::of(ptr::null_mut()).is_none());
        assert!(alloc(waiting, 0, u32::MAX as usize, 1).is_none());
    }

    #[test]
    fn a_busy_arena_has_its_reserve() {
        let waiting = Context::enter(|context| context);
        let run = alloc(waiting, 0, 2, 1).unwrap();
        let unit = Unit::of(run.address.as_ptr()).unwrap();
        let busy = unit.arena.state.acquire(waiting).unwrap();
        assert!(unit.arena.alloc(Context::TRYING, 5, 4).is_none());
        let reserved = unit.arena.alloc_reserved(5, 4).unwrap();
        let of_reserve = Unit::of(reserved.address.as_ptr()).unwrap();
        assert_eq!(reserved.address.addr().get() % (4 * UNIT), 0);
        assert_eq!(of_reserve.run_len(), Some(5));
        // SAFETY: both runs are ours, of 2 and 5 units.
        unsafe {
            reserved.address.write_bytes(1, 5 * UNIT);
            assert!(!grow(Context::TRYING, unit, 3));
            assert!(!grow(waiting, of_reserve, 6));
            shrink(Context::TRYING, unit, 1);
            assert_eq!(unit.run_len(), Some(2));
            assert!(!free(Context::TRYING, unit) && free(Context::TRYING, of_reserve));
            drop(busy);
            assert!(free(waiting, unit));
        }
        assert!(!of_reserve.is_committed());
    }
}
