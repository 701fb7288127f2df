//! Pages: address space reserved in *arenas*, divided into 64 KiB *units* and allocated in *runs*
//! of consecutive units.
//!
//! Nearly always there is one arena per node, of 256 GiB. More are made where a limit on address
//! space made the first one small.
//!
//! Units are committed from the bottom of the arena upwards. A free run is *clean* or *dirty*. A
//! clean run has not been touched since its pages were committed or last decommitted: it reads as
//! zero and costs no memory. Every other free run is dirty. Allocations prefer dirty runs. Clean
//! and dirty runs are not merged with each other, but a long allocation may be cut from a dirty run
//! and the clean run behind it. Free runs are kept in bins by length, eight bins to an octave. They
//! merge with their neighbours by boundary tags: the descriptors of a run's first and last unit
//! both hold its length and state.
//!
//! A low-water mark decides which dirty runs return to the system: units that stayed dirty through
//! a whole window are decommitted at its end. (This is the working-set estimate of FreeBSD's UMA,
//! applied to pages.) `reclaim` decides when windows end and how long they are. Whole pages of
//! metadata are decommitted with the runs that they describe.
//!
//! The arena's lock covers all of this, except that committing and purging, which take time, run
//! without it. The last part of an arena is its *reserve*, which needs no lock. The reserve serves
//! contexts that must not wait for the lock, and any context once nothing else is left.
//!
//! An arena belongs to a NUMA node, and the kernel is asked to take its memory from that node.
//! First touch alone would place a page near the thread that first used its run; but runs are
//! reused, and must stay near the threads that allocate them later. If a node's arenas cannot serve
//! a request, the arenas of other nodes are tried before the request is refused.

mod advice;
mod arrays;
mod bins;
mod decommit;
mod descriptor;
mod dumped;
mod give_up;
mod limit;
mod make;
mod purge;
mod reserve;

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::{fmt, mem};

use crate::arch::FIRST;
use crate::fault::{self, Place};
use crate::node;
use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Lock, LockClass, RawLock};
use crate::watch;
use advice::{HugePages, prefer_node};
use arrays::Arrays;
pub(crate) use arrays::{ENTRY_SIZE, META_SIZE};
use bins::Bins;
pub(crate) use decommit::{decommit, decommits, decommitted};
use descriptor::{MOVED, NONE, PIECES, Run, RunState, SPARSE};
use dumped::LeftOut;
pub(crate) use give_up::limit_address_space;
use make::make_arena;
pub(crate) use purge::{
    Purging, alloc_after_trim, due, end_window, in_child, lock as purging_lock, purge_due, trim,
    trim_to,
};
use reserve::{BLOCK, Reserve};

struct Arena {
    /// Bytes of all units, or only of those below the address space that was given up. 0 until the
    /// arena is published with Release, which pairs with the Acquire of every reader.
    bytes: AtomicUsize,
    arrays: UnsafeCell<Arrays>,
    /// Number of units, from the bottom, that are readable and writable. Written under both locks.
    committed: AtomicU32,
    /// The unit behind the last one that may be committed: the first of the reserve, or a lower one
    /// after address space was given up. Written under `committing`.
    end: AtomicU32,
    /// The unit behind the last one of the reserve: the end of the arena, or a lower one after
    /// address space was given up.
    behind: AtomicU32,
    /// Number of units in dirty free runs. Written under `state`.
    dirty: AtomicU32,
    state: Lock<FreeRuns>,
    /// Held while units are committed, without holding `state`, so that other threads can allocate
    /// from the existing free runs meanwhile.
    committing: Lock<()>,
    reserve: Reserve,
    left_out: LeftOut,
}

// SAFETY: `arrays` is written by the thread that claimed the arena, before `bytes` publishes it,
// and only read afterwards. All other fields are atomic or protected by a lock.
unsafe impl Sync for Arena {}

const MAX_ARENAS: usize = 64;
static ARENAS: [Arena; MAX_ARENAS] = [const { Arena::new() }; MAX_ARENAS];
/// Number of arenas claimed so far, including those that are not published yet.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Returns the published arenas.
fn arenas() -> impl Iterator<Item = &'static Arena> {
    // Relaxed: a hint; an arena's contents are read only after its `bytes`.
    let claimed = CLAIMED.load(Ordering::Relaxed);
    // SAFETY: `CLAIMED` never exceeds `MAX_ARENAS`. By pointers, since a reference to the array
    // would make Miri look at all of it.
    let arena = |index| unsafe { &*(&raw const ARENAS).cast::<Arena>().add(index) };
    // Acquire: pairs with the Release in `fill`.
    (0..claimed).map(arena).filter(|arena: &&Arena| arena.bytes.load(Ordering::Acquire) > 0)
}

/// Returns the published arenas of a node.
fn arenas_of(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.arrays().node == node)
}

/// Returns the published arenas of all other nodes.
fn arenas_beside(node: usize) -> impl Iterator<Item = &'static Arena> {
    arenas().filter(move |arena| arena.arrays().node != node)
}

/// A run that was allocated.
pub(crate) struct Allocation {
    pub(crate) address: NonNull<u8>,
    /// Whether the run reads as zero.
    pub(crate) zeroed: bool,
    /// Number of units at the start of the run that may hold anything. The others read as zero and
    /// take no memory yet.
    pub(crate) dirty: usize,
}

/// A unit of one of our arenas, found by an address in it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    arena: &'static Arena,
    index: u32,
}

impl Unit {
    /// Returns the unit that holds `address`, or `None` if no arena of ours does.
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

    /// Returns the unit that starts at `address`, which is this unit or one below it in the same
    /// run.
    #[inline]
    pub(crate) fn at(self, address: *mut u8) -> Unit {
        let below = (self.address().addr() - address.addr()) >> UNIT_SHIFT;
        Unit { arena: self.arena, index: self.index - below as u32 }
    }

    /// Returns the node of the unit's arena.
    pub(crate) fn node(self) -> usize {
        self.arena.arrays().node
    }

    /// Returns the address of the unit.
    #[inline]
    pub(crate) fn address(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of units.
        unsafe { self.arena.arrays().base.add((self.index as usize) << UNIT_SHIFT) }
    }

    /// Returns the metadata of the unit: [`META_SIZE`] bytes, aligned to a cache line, that are
    /// zero until they are first written. The metadata stays committed as long as a run holds the
    /// unit.
    #[inline]
    pub(crate) fn meta(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of metadata.
        unsafe { self.arena.arrays().meta.add(self.index as usize * META_SIZE) }
    }

    /// Returns the entry of the unit: [`ENTRY_SIZE`] bytes, aligned to as many, that are zero until
    /// they are first written. The entry can be read and written as long as the metadata can, and
    /// keeps its contents forever.
    #[inline]
    pub(crate) fn entry(self) -> *mut u8 {
        // SAFETY: `index` is a unit of this arena, so the address lies in its array of entries.
        unsafe { self.arena.arrays().entries.add(self.index as usize * ENTRY_SIZE) }
    }

    /// Returns whether the metadata of the unit can be read: the unit is committed, or lies in a
    /// block of the reserve that is taken and committed.
    pub(crate) fn is_committed(self) -> bool {
        // Acquire: pairs with the Release in `FreeRuns::add`.
        self.index < self.arena.committed.load(Ordering::Acquire)
            || self
                .arena
                .reserved_block(self.index)
                .is_some_and(|block| self.arena.reserve.has(block))
    }

    /// Returns the length in units of the run in use that starts here, or `None` if none does. The
    /// answer is reliable for the owner of the run only, since nobody else changes its descriptor.
    pub(crate) fn run_len(self) -> Option<usize> {
        if !self.is_committed() {
            return None;
        }
        // SAFETY: the unit is committed, as was just checked.
        unsafe { self.arena.used_len(self.index) }.map(|len| len as usize)
    }

    /// Explains, for a message, why no block in use starts at an address in this unit.
    #[cold]
    pub(crate) fn misplaced(self) -> Misplaced {
        Context::enter(|context| self.arena.misplaced(context, self.index))
    }
}

/// Returns the entry of the unit that holds `address`, or `None` if the address is foreign or
/// its unit is not committed.
#[inline(always)]
pub(crate) fn entry_at(address: *mut u8) -> Option<*mut u8> {
    // Nearly all addresses lie in the arena that was made first. Acquire: pairs with the Release in
    // `fill`.
    let bytes = FIRST.bytes.load(Ordering::Acquire);
    let offset = address.addr().wrapping_sub(FIRST.base.load(Ordering::Relaxed).addr());
    // SAFETY: `ARENAS` has an element 0. By a pointer, since a reference to the array would make
    // Miri look at all of it.
    let committed = unsafe { &(*(&raw const ARENAS).cast::<Arena>()).committed };
    // Acquire: as in `Unit::is_committed`.
    if offset < bytes && (offset >> UNIT_SHIFT) < committed.load(Ordering::Acquire) as usize {
        let entries = FIRST.entries.load(Ordering::Relaxed);
        return Some(entries.wrapping_add((offset >> UNIT_SHIFT) * ENTRY_SIZE));
    }
    elsewhere(address)
}

/// As [`entry_at`], for an address in any arena.
#[cold]
#[inline(never)]
fn elsewhere(address: *mut u8) -> Option<*mut u8> {
    Unit::of(address).filter(|unit| unit.is_committed()).map(Unit::entry)
}

/// The reason why no block in use starts at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Misplaced {
    /// The address lies in free memory of this many bytes.
    Free(usize),
    /// The address lies in a run in use that starts at the pointer and has this many bytes.
    Within(*mut u8, usize),
    /// The address was never part of a run, or the reason cannot be determined.
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

/// Allocates a run of `units` units whose address is a multiple of `align` units, a power of two.
/// Its memory is of `node` if that node has some. Returns `None` when out of memory.
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

/// As [`alloc`], without trimming when the soft limit is exceeded.
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
        // Prefer a new arena of this node to the arenas of other nodes.
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
        // Another arena does not help where an arena still has address space: then memory ran out,
        // or the limit is reached.
        let is_in_vain = |arena: &Arena| arena.has_room(need) && arena.may_be_had(context);
        if has_made || limit::forbids(len) || arenas().any(is_in_vain) {
            return None;
        }
        has_made = make_arena(context, node, need, claimed)?;
    }
}

/// Allocates a run that is longer than its block has to be. It comes from the existing arenas of
/// `node` only, never from a reserve, another node or a new arena.
pub(crate) fn alloc_room(context: Context, node: usize, units: usize) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    arenas_of(node).find_map(|arena| arena.alloc(context, len, 1))
}

/// Frees a run. Returns false, and the run is still the caller's, if the lock would have to be
/// waited for.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and nobody uses the run any longer.
#[must_use]
pub(crate) unsafe fn free(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller guarantees that an unused run from `alloc` starts at `unit`.
    unsafe { unit.arena.free(context, unit.index, RunState::Dirty) }
}

/// As [`free`], for a run whose pages read as zero.
///
/// # Safety
/// As [`free`], and the run was not touched since its pages were last decommitted or moved away.
#[must_use]
pub(crate) unsafe fn free_clean(context: Context, unit: Unit) -> bool {
    // SAFETY: the caller guarantees that an unused and untouched run from `alloc` starts at `unit`.
    unsafe { unit.arena.free(context, unit.index, RunState::Clean) }
}

/// Makes a run read as zero by decommitting its memory, unless it is `zeroed` already. The run gets
/// no huge pages unless `HAYLOFT_THP=always`, so that it takes memory only where it is written.
/// Returns false if the system refused to decommit.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and its contents are dead.
pub(crate) unsafe fn clear(unit: Unit, zeroed: bool) -> bool {
    // SAFETY: the caller guarantees that a run from `alloc` with dead contents starts at `unit`.
    unsafe { unit.arena.clear(unit.index, zeroed) }
}

/// Number of runs in use whose pages were moved into them.
static MOVES: AtomicU32 = AtomicU32::new(0);

/// Returns the number of runs in use whose pages were moved into them.
pub(crate) fn moves() -> u32 {
    MOVES.load(Ordering::Relaxed)
}

/// Marks a run as moved. Call after pages were moved into it.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn note_move(unit: Unit) {
    // SAFETY: the caller guarantees that it owns the run, and only the owner touches a run's marks.
    unsafe { (*unit.arena.run(unit.index)).marks |= MOVED };
    // Relaxed: a counter that guards nothing.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// Returns the bytes of dirty free memory, which the system still counts as ours. The sum is a
/// guess while other threads allocate and free.
pub(crate) fn dirty() -> usize {
    arenas().map(|arena| arena.dirty.load(Ordering::Relaxed) as usize * UNIT).sum()
}

/// Returns whether a run of `units` units that was refused might be allocated after decommitting
/// all idle memory. Units that the system refuses to commit now, it would refuse to commit then.
pub(crate) fn may_have(units: usize) -> bool {
    let is_limited = u32::try_from(units).is_ok_and(limit::forbids);
    let is_committed = |arena: &Arena| arena.committed() as usize > units;
    units <= limit::hard() && (is_limited || arenas().any(is_committed))
}

/// Returns the bytes of memory in use and of dirty free memory, which the system still counts as
/// ours.
pub(crate) fn charged() -> usize {
    limit::charged() << UNIT_SHIFT
}

/// Returns the hard limit on [`charged`] in bytes, or `None` if there is none.
pub(crate) fn limit() -> Option<usize> {
    limit::hard().checked_mul(UNIT)
}

/// Trims all free memory at once if the soft limit is exceeded. Does nothing in a context that must
/// not wait. Call after frees, and after allocating a clean run.
#[inline]
pub(crate) fn keep_limit(context: Context) {
    if limit::is_soft_exceeded() {
        trim(context);
    }
}

/// Returns whether there is memory to purge. Waits for frees in progress, so that they count, too.
/// Runs that the system refused to decommit count only after something else is freed, so that they
/// are not offered to it again and again.
pub(crate) fn is_dirty(context: Context) -> bool {
    arenas().any(|arena| {
        let units = arena.state.acquire(context);
        units.is_some_and(|units| arena.dirty() > 0 && !units.was_refused)
    })
}

/// Calls `visit` with every unit whose metadata can be read.
pub(crate) fn for_each_unit(visit: &mut dyn FnMut(Unit)) {
    for arena in arenas() {
        let arrays = arena.arrays();
        // Unit 0 is never part of a run.
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

/// Calls `visit` with every lock of this layer except [`purging_lock`], which is taken before the
/// locks of slabs.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::ArenaMaking, make::lock());
    arenas().for_each(|arena| {
        visit(LockClass::Committing, arena.committing.raw());
        visit(LockClass::Arena, arena.state.raw());
    });
}

/// Records that only the first `bytes` bytes of a run are used, rounded up to [`PIECES`]; the
/// others are room to grow. `bytes` is at least 1. When [`grow`] or [`shrink`] sets a new length,
/// all of the run counts as used again.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns and that has at least `bytes`
/// bytes.
pub(crate) unsafe fn set_used_bytes(unit: Unit, bytes: usize) {
    let pieces = u32::try_from(bytes.div_ceil(PIECES)).unwrap_or(NONE);
    // SAFETY: the caller guarantees that it owns the run; nobody else looks at `next` of a run in
    // use.
    unsafe { (*unit.arena.run(unit.index)).next = pieces };
}

/// Returns the bytes of a run that are used: the value of [`set_used_bytes`] if that was called,
/// and otherwise all.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that the caller owns.
pub(crate) unsafe fn used_bytes(unit: Unit) -> usize {
    // SAFETY: the caller guarantees that it owns the run, so its descriptor does not change.
    let (len, pieces) = unsafe {
        let run = unit.arena.run(unit.index);
        ((*run).len, (*run).next)
    };
    if pieces == NONE { (len as usize) << UNIT_SHIFT } else { pieces as usize * PIECES }
}

/// Extends a run to at least `units` units without moving it. The added units may hold anything.
/// Returns false if that is impossible.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`].
pub(crate) unsafe fn grow(context: Context, unit: Unit, units: usize) -> bool {
    // SAFETY: the caller guarantees that a run from `alloc` starts at `unit`.
    u32::try_from(units).is_ok_and(|len| unsafe { unit.arena.grow(context, unit.index, len) })
}

/// Shortens a run to `units` units, at least one, without moving it. A run of the reserve keeps its
/// length. So does any run if the lock would have to be waited for, or if the system cannot map
/// moved pages anew.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that has at least `units` units. Nobody uses the
/// units cut off any longer.
pub(crate) unsafe fn shrink(context: Context, unit: Unit, units: usize) {
    // SAFETY: the caller guarantees that a run of at least `units` units starts at `unit`, so that
    // the number fits.
    unsafe { unit.arena.shrink(context, unit.index, units as u32) };
}

impl Arena {
    const fn new() -> Arena {
        Arena {
            bytes: AtomicUsize::new(0),
            arrays: UnsafeCell::new(Arrays {
                base: ptr::null_mut(),
                entries: ptr::null_mut(),
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
        // SAFETY: an arena is reachable only after it was published, and `arrays` is not written
        // afterwards.
        unsafe { &*self.arrays.get() }
    }

    /// Returns whether more than `units` units are left to commit, by the length of the arena. A
    /// guess while other threads commit.
    fn has_room(&self, units: u32) -> bool {
        self.end() - self.committed() > units
    }

    /// Returns whether unit `index` lies in the reserve.
    #[inline]
    fn is_of_reserve(&self, index: usize) -> bool {
        let behind = self.behind.load(Ordering::Relaxed) as usize;
        (self.arrays().reserve as usize..behind).contains(&index)
    }

    /// Returns the unit behind the last one that may be committed.
    fn end(&self) -> u32 {
        self.end.load(Ordering::Relaxed)
    }

    /// Returns whether the arena's locks could be taken. A guess in a context that must not wait
    /// for them.
    fn may_be_had(&self, context: Context) -> bool {
        let is_free =
            |lock: &RawLock| if context.may_wait() { !lock.is_abandoned() } else { lock.is_free() };
        is_free(self.state.raw()) && is_free(self.committing.raw())
    }

    /// Returns the descriptor of a unit, which is valid only if the arena has that unit. Use it
    /// under the lock.
    #[inline]
    fn run(&self, index: u32) -> *mut Run {
        self.arrays().runs.wrapping_add(index as usize)
    }

    /// Returns the boundary tag of a unit: state and length of the run that starts or ends there.
    /// Leaves out its marks, which the owner of a run in use changes without the lock.
    ///
    /// # Safety
    /// The unit is committed, and either the lock is held or the caller owns the run.
    unsafe fn tag(&self, index: u32) -> (RunState, u32) {
        // SAFETY: the caller guarantees that the unit is committed and that nobody changes its tag
        // meanwhile.
        unsafe { ((*self.run(index)).state, (*self.run(index)).len) }
    }

    /// Returns the length in units of the run in use that starts at unit `index`, or `None` if none
    /// does.
    ///
    /// # Safety
    /// The unit is committed.
    unsafe fn used_len(&self, index: u32) -> Option<u32> {
        // SAFETY: the caller guarantees that the unit is committed.
        let (state, len) = unsafe { self.tag(index) };
        (state == RunState::Used).then_some(len)
    }

    /// Returns the length in units of the free run that starts at `start`.
    ///
    /// # Safety
    /// `start` is the first unit of a run that is in a bin or about to be put into one. The lock is
    /// held.
    unsafe fn len(&self, start: u32) -> u32 {
        // SAFETY: the caller guarantees that a free run starts there, whose units are all
        // committed.
        unsafe { (*self.run(start)).len }
    }

    /// Returns the first unit from `start` on whose address is a multiple of `align` units.
    fn aligned(&self, start: u32, align: u32) -> u32 {
        start + (start.wrapping_add(self.arrays().base_unit()).wrapping_neg() & (align - 1))
    }

    /// Makes the [`Allocation`] of a run that leaves the arena. Its first `dirty` units may hold
    /// anything.
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
        // SAFETY: the lock is held, and these units were just taken off their bins.
        unsafe { self.set_used(start, len) };
        // SAFETY: `start` is the first unit of the run that was just taken.
        unsafe { (*self.run(start)).marks = 0 };
        drop(units);
        self.left_out.take_in(self.arrays(), clean, end);
        Some(self.handed_out(start, len, clean - start))
    }

    /// # Safety
    /// As [`free`].
    unsafe fn free(&self, context: Context, start: u32, state: RunState) -> bool {
        // SAFETY: the caller guarantees that a run in use starts at `start`, which is committed
        // then; nobody else changes its descriptor.
        let Some(len) = (unsafe { self.used_len(start) }) else { self.misused(context, start) };
        watch::make_noaccess(self.arrays().address(start).as_ptr(), (len as usize) << UNIT_SHIFT);
        // SAFETY: a run in use starts at `start`, and the caller owns it.
        let marks = unsafe { mem::take(&mut (*self.run(start)).marks) };
        // SAFETY: the caller guarantees that it owns the run and that its contents are dead.
        let Some(state) = (unsafe { self.unmark(marks, start, len, state) }) else {
            // The run stays in use, so that nobody is given its addresses.
            return true;
        };
        if marks & MOVED != 0 {
            MOVES.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(block) = self.reserved_block(start) {
            // SAFETY: the caller guarantees that it owns the run and that its contents are dead.
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
        // A double free may race on two threads, so look again under the lock.
        // SAFETY: the unit is committed: it held the start of a run in use above.
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

    /// Ends the process, since a unit was freed at which no run in use starts.
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
            // A block of the reserve is taken and committed as a whole, or not at all.
            let is_run = self.reserved_block(at).is_none_or(|block| self.reserve.has(block));
            // SAFETY: `at` is the first unit of a run and committed; the lock is held.
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

    /// Decommits a run, which reads as zero from then on, and the whole pages of metadata that
    /// describe it. Returns false if the kernel refused.
    ///
    /// # Safety
    /// The caller alone owns the run, and its contents and metadata are dead.
    unsafe fn decommit(&self, start: u32, len: u32) -> bool {
        // SAFETY: the caller guarantees that it alone owns the run and that its metadata is dead.
        unsafe { self.decommit_metadata(start, len) };
        let bytes = (len as usize) << UNIT_SHIFT;
        // SAFETY: the caller guarantees that it alone owns the run and that its contents are dead.
        unsafe { decommit(self.arrays().address(start), bytes) }
    }

    /// # Safety
    /// As [`clear`], for the run that starts at `start`.
    unsafe fn clear(&self, start: u32, zeroed: bool) -> bool {
        // SAFETY: the caller guarantees that a run from `alloc` with dead contents starts at
        // `start`.
        unsafe {
            let (address, run) = (self.arrays().address(start), self.run(start));
            let bytes = ((*run).len as usize) << UNIT_SHIFT;
            if HugePages::wanted() != HugePages::Always {
                (*run).marks |= SPARSE;
                os::prefer_huge_pages(address, bytes, false);
            }
            zeroed || decommit(address, bytes)
        }
    }

    /// Makes the memory of a run with `marks`, or of a part of it, like that of any other run: maps
    /// moved pages anew, decommits sparse ones, and sets the advice on huge pages. Returns `Clean`
    /// if the memory reads as zero afterwards, and otherwise `state`. Returns `None` if mapping
    /// anew failed: then nobody may touch the memory any longer.
    ///
    /// # Safety
    /// The caller owns the run, and the contents of the part are dead.
    unsafe fn unmark(&self, marks: u32, start: u32, len: u32, state: RunState) -> Option<RunState> {
        let (address, bytes) = (self.arrays().address(start), (len as usize) << UNIT_SHIFT);
        let mut state = state;
        if marks & MOVED != 0 {
            // SAFETY: the caller guarantees that it owns these units and that their contents are
            // dead.
            if !unsafe { os::renew(address, bytes) } {
                return None;
            }
            prefer_node(address, bytes, self.arrays().node);
            state = RunState::Clean;
        }
        // SAFETY: the caller guarantees that it owns these units and that their contents are dead.
        if marks & SPARSE != 0 && unsafe { os::decommit(address, bytes) } {
            // Pages written here and there would be in the way of huge pages.
            state = RunState::Clean;
        }
        if marks != 0 {
            // SAFETY: these units lie in this arena.
            unsafe { os::prefer_huge_pages(address, bytes, HugePages::are_for(len, start)) };
        }
        Some(state)
    }

    /// Decommits the whole pages of metadata that describe a run.
    ///
    /// # Safety
    /// The caller alone owns the run, and its metadata is dead.
    unsafe fn decommit_metadata(&self, start: u32, len: u32) {
        let meta = self.arrays().meta;
        let page = os::page_size();
        let first = (meta.addr() + start as usize * META_SIZE).next_multiple_of(page);
        let end = (meta.addr() + (start + len) as usize * META_SIZE) & !(page - 1);
        // SAFETY: the caller guarantees that the metadata of the run is dead. Pages that also
        // describe other units lie outside of `first..end`.
        unsafe {
            if first < end {
                let first = NonNull::new_unchecked(meta.add(first - meta.addr()));
                os::decommit(first, end - first.addr().get());
            }
        }
    }

    /// As [`Arena::alloc`], from the reserve and without a lock. The run may hold anything.
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
        // Commit whole blocks, so that the metadata of all units of a block is committed, or of
        // none.
        if !arrays.commit(start, start + count as u32 * BLOCK, false) {
            self.reserve.give(block, count);
            limit::uncharge(len);
            return None;
        }
        self.reserve.set_committed(block, count);
        // SAFETY: these units are committed, and their blocks were just taken from the reserve.
        unsafe { self.set_used(start, len) };
        // SAFETY: `start` is the first unit of the run that was just taken.
        unsafe { (*self.run(start)).marks = 0 };
        Some(self.handed_out(start, len, len))
    }

    /// Returns the block of the reserve that holds unit `index`, if the reserve does.
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
        // SAFETY: the caller guarantees that a run in use starts at `start`; nobody else changes
        // its descriptor.
        let old = unsafe { (*self.run(start)).len };
        if len <= old {
            // All of the run is used from now on.
            // SAFETY: a run in use starts at `start`, and the caller owns it.
            unsafe { (*self.run(start)).next = NONE };
            return true;
        }
        if self.reserved_block(start).is_some() {
            return false;
        }
        let (next, end) = (start + old, start + len);
        // A clean and a dirty run may follow each other, so several free runs may be needed.
        let (mut units, free_end, last, fresh) = loop {
            let Some(units) = self.state.acquire(context) else { return false };
            fault::point(Place::ArenaGrowing);
            let (mut at, mut last, mut fresh) = (next, RunState::Silent, 0);
            while at < end && at < self.committed() {
                // SAFETY: `at` is the first unit of a run, below `committed`; the lock is held.
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
        // SAFETY: the lock is held; the caller owns the run, and the units behind it were just
        // taken off their bins.
        unsafe { self.set_used(start, len) };
        drop(units);
        self.left_out.take_in(self.arrays(), next, end);
        true
    }

    /// Commits at least `room` units behind the first `committed` ones. Does nothing if another
    /// thread has committed some already. Returns false if committing is impossible.
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
        // SAFETY: the caller guarantees that a run in use starts at `start`; nobody else changes
        // its descriptor.
        let (old, marks) = unsafe { ((*self.run(start)).len, (*self.run(start)).marks) };
        if old <= len || self.reserved_block(start).is_some() {
            return;
        }
        // SAFETY: the caller guarantees that it owns the run and that nobody uses the units cut
        // off.
        let state = unsafe { self.unmark(marks, start + len, old - len, RunState::Dirty) };
        if let Some(state) = state
            && let Some(mut units) = self.state.acquire(context)
        {
            fault::point(Place::ArenaShrinking);
            // Write the tag of the new end first: freeing the rest looks at its neighbours.
            // SAFETY: the lock is held, and the caller owns the run.
            unsafe { self.set_used(start, len) };
            units.give(self, start + len, old - len, state);
            if state == RunState::Clean {
                limit::uncharge(old - len);
            }
        }
    }

    /// Returns the number of units in dirty free runs. Call under the lock.
    fn dirty(&self) -> u32 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Returns the number of units, from the bottom, that are readable and writable. Exact under
    /// the lock only.
    fn committed(&self) -> u32 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Writes the descriptors of a run in use.
    ///
    /// # Safety
    /// As [`Arena::set`].
    unsafe fn set_used(&self, start: u32, len: u32) {
        // SAFETY: the caller guarantees that the units are committed and that nobody else uses
        // their descriptors.
        unsafe {
            self.set(start, len, RunState::Used, RunState::Silent);
            (*self.run(start)).next = NONE;
        }
    }

    /// Writes the boundary tags of a run: `first` on its first unit, `last` on its last one.
    ///
    /// # Safety
    /// `len` is at least 1, and all units are committed and belong to nobody else. The lock is
    /// held, or the units are of the reserve.
    unsafe fn set(&self, start: u32, len: u32, first: RunState, last: RunState) {
        counters::wrote(Line::Arena, if len > 1 { 2 } else { 1 });
        // Write the first unit last, as it may be the only one.
        for (index, state) in [(start + len - 1, last), (start, first)] {
            // SAFETY: the caller guarantees that both units are committed and belong to nobody
            // else.
            unsafe {
                (*self.run(index)).len = len;
                (*self.run(index)).state = state;
            }
        }
    }
}

/// Consecutive free units: dirty from `start` to `clean`, clean from there to `end`.
struct Found {
    start: u32,
    clean: u32,
    end: u32,
}

/// Largest number of runs to look at in one search.
const LOOKS: u32 = 32;
/// Length in units from which on a run may be cut from a dirty and a clean run together: the dirty
/// part has its pages already.
const BOTH_FROM: u32 = (1 << 20) / UNIT as u32;

/// The free runs of an arena.
struct FreeRuns {
    /// Lowest number of dirty units in this window.
    least_dirty: u32,
    /// Number of dirty units that stayed idle through a former window and are due to be
    /// decommitted.
    unneeded: u32,
    /// Whether the system refused the last decommit, and nothing was freed since.
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

    /// Finds consecutive free units among which `len` units start at a multiple of `align`, and
    /// leaves them in their bins. Prefers a dirty run; then, if `len` is long, a dirty run with the
    /// clean run behind it; then a clean run.
    ///
    /// # Errors
    /// Returns the number of units to commit first. With `may_commit`, that may be returned
    /// although a clean run is long enough, where committing lets a dirty run be used.
    fn find(
        &mut self,
        arena: &Arena,
        len: u32,
        align: u32,
        may_commit: bool,
    ) -> Result<Found, u32> {
        if let Some(start) = self.find_one(arena, RunState::Dirty, len, align) {
            // SAFETY: a free run starts at `start`; the lock is held.
            let end = start + unsafe { arena.len(start) };
            return Ok(Found { start, clean: end, end });
        }
        let room = len.saturating_add(align - 1);
        if let Some(found) = self.find_both(arena, room, may_commit) {
            return found;
        }
        let start = self.find_one(arena, RunState::Clean, len, align).ok_or(room)?;
        // SAFETY: a free run starts at `start`; the lock is held.
        Ok(Found { start, clean: start, end: start + unsafe { arena.len(start) } })
    }

    /// Finds a dirty run that has `len` units together with the clean run behind it. Only for long
    /// runs, and only among the longest dirty runs. Returns `Err` with the number of units to
    /// commit if a dirty run at the end of the committed units would do then.
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
            // SAFETY: a free run starts at `start`; the lock is held.
            let clean = start + unsafe { arena.len(start) };
            if clean == arena.committed() && may_commit {
                // SAFETY: a free run starts at `start`; the lock is held.
                return Some(Err(len.saturating_sub(unsafe { arena.len(start) })));
            }
            // SAFETY: `clean` is the first unit of a run, below `committed`; the lock is held.
            if clean < arena.committed() && unsafe { (*arena.run(clean)).state } == RunState::Clean
            {
                // SAFETY: a free run starts at `clean`; the lock is held.
                let end = clean + unsafe { arena.len(clean) };
                if end - start >= len {
                    return Some(Ok(Found { start, clean, end }));
                }
            }
            // SAFETY: a free run starts at `start`; the lock is held.
            start = unsafe { (*arena.run(start)).next };
        }
        None
    }

    /// Finds a free run of `state` that has `len` units from a multiple of `align` on, and leaves
    /// it in its bin.
    fn find_one(&mut self, arena: &Arena, state: RunState, len: u32, align: u32) -> Option<u32> {
        let bins = self.bins(state);
        // Any run of this bin and of all bins behind it fits.
        let sure = Bins::fitting(len.saturating_add(align - 1));
        if align == 1
            && let Some(bin) = bins.first_from(sure)
        {
            return Some(bins.head(bin));
        }
        // Lower bins may hold a run that is just long enough, or that starts at the right multiple:
        // a short search of them pays.
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
            // SAFETY: a free run starts at `at`; the lock is held.
            let len = unsafe { arena.len(at) };
            self.remove(arena, at);
            at += len;
        }
    }

    /// Puts the units from `start` to `end` into bins: those below `clean` as a dirty run, the
    /// others as a clean one.
    fn insert_parts(&mut self, arena: &Arena, start: u32, end: u32, clean: u32) {
        let middle = clean.clamp(start, end);
        if start < middle {
            self.insert(arena, start, middle - start, RunState::Dirty);
        }
        if middle < end {
            self.insert(arena, middle, end - middle, RunState::Clean);
        }
    }

    /// Adds the `more` units that were committed behind the first `committed` ones.
    fn add(&mut self, arena: &Arena, committed: u32, more: u32) {
        // Release: pairs with the Acquire in `Unit::is_committed`.
        arena.committed.store(committed + more, Ordering::Release);
        self.give(arena, committed, more, RunState::Clean);
    }

    /// Adds a run to the free ones, merged with free neighbours of the same state.
    fn give(&mut self, arena: &Arena, mut start: u32, mut len: u32, state: RunState) {
        self.was_refused = false;
        // No inner unit of a longer run may hold `Used`.
        // SAFETY: `start` is the first unit of a run and committed; the lock is held.
        unsafe { (*arena.run(start)).state = RunState::Silent };
        // SAFETY: unit 0 is in no run, so there is a unit below `start`; the lock is held.
        if unsafe { (*arena.run(start - 1)).state } == state {
            // SAFETY: the unit below is the last one of a free run, which has a tag; the lock is
            // held.
            let before = unsafe { (*arena.run(start - 1)).len };
            start -= before;
            len += before;
            self.remove(arena, start);
        }
        let next = start + len;
        // SAFETY: units below `committed` have descriptors; the lock is held.
        if next < arena.committed() && unsafe { (*arena.run(next)).state } == state {
            // SAFETY: a free run starts at `next`; the lock is held.
            len += unsafe { (*arena.run(next)).len };
            self.remove(arena, next);
        }
        self.insert(arena, start, len, state);
    }

    fn insert(&mut self, arena: &Arena, start: u32, len: u32, state: RunState) {
        // SAFETY: the lock is held, and the caller passes committed units that are in no bin and
        // not in use.
        unsafe { arena.set(start, len, state, state) };
        if state == RunState::Dirty {
            arena.dirty.store(arena.dirty() + len, Ordering::Relaxed);
        }
        let bins = self.bins(state);
        let bin = Bins::holding(len);
        let next = bins.head(bin);
        // SAFETY: `start` and `next` are first units of free runs; the lock is held.
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

    /// Takes a free run off its bin. Returns its state.
    fn remove(&mut self, arena: &Arena, start: u32) -> RunState {
        // SAFETY: a free run starts at `start`; the lock is held.
        let run = unsafe { arena.run(start).read() };
        if run.state == RunState::Dirty {
            arena.dirty.store(arena.dirty() - run.len, Ordering::Relaxed);
        }
        // SAFETY: neighbours in a bin are first units of free runs; the lock is held.
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

    /// Lowers the window's low-water mark, and the number of units due to be decommitted, to the
    /// number of dirty units. Call after taking dirty units, once the excess is reinserted.
    fn note_least(&mut self, arena: &Arena) {
        self.least_dirty = self.least_dirty.min(arena.dirty());
        self.unneeded = self.unneeded.min(arena.dirty());
    }

    /// Takes up to `most` dirty units off the longest run, or one about as long, to be decommitted.
    /// It takes the end of the run, back to a multiple of [`PIECE`](purge::PIECE) at most, so that
    /// no huge page is decommitted in parts.
    fn take_dirty(&mut self, arena: &Arena, most: u32) -> Option<Leaving> {
        let start = self.dirty_bins.head(self.dirty_bins.last()?);
        // SAFETY: a free run starts at `start`; the lock is held.
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
        // SAFETY: the lock is held, and these units were just taken off their bin.
        unsafe { arena.set(start, len, RunState::Leaving, RunState::Silent) };
        let (from, to) = self.take_clean_around(arena, start, end);
        Some(Leaving { from, start, end, to })
    }

    /// Takes the clean units on both sides of `start..end` off their bins, where they complete
    /// blocks that can be left out of core files. Returns the first unit and the end of the whole
    /// range.
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
            // SAFETY: the lock is held, and these units were just taken off their bin.
            unsafe { arena.set(from, start - from, RunState::Leaving, RunState::Silent) };
            first = from;
        }
        if let (Some(at), true) = (above, has_above)
            && end < to
        {
            self.remove(arena, end);
            self.insert_parts(arena, to, at, to);
            // SAFETY: the lock is held, and these units were just taken off their bin.
            unsafe { arena.set(end, to - end, RunState::Leaving, RunState::Silent) };
            last = to;
        }
        (first, last)
    }

    /// Frees the units that [`FreeRuns::take_dirty`] took: those between `start` and `end` as
    /// `state`, the others as clean.
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

/// Units that are being decommitted: dirty from `start` to `end`, with clean ones around them from
/// `from` to `to`.
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
        // SAFETY: the test owns both runs, of 3 and 5 units.
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
        // SAFETY: the test owns both runs, of 2 and 5 units.
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
