//! Pages: address space reserved in *arenas*, cut into *runs* of 64 KiB units.
//!
//! An arena is one reservation: descriptors of runs, then metadata that the slab layer keeps per unit, then the units.
//! All three are parallel arrays, so pointer → unit → descriptor is arithmetic and "is it ours" a range check. Nearly
//! always there is one arena, of 256 GiB; more are made where a limit on address space made the first one small.
//!
//! Units are committed from the bottom up. A free run is *clean* (never touched since its pages were last given back:
//! it reads as zero and costs no memory) or *dirty*; the two are not merged with each other, and dirty ones are
//! preferred. Free runs are kept in bins by length, eight to an octave, and merge with their neighbours by boundary
//! tags: the descriptors of a run's first and last unit both name its length and state.
//!
//! Dirty runs go back to the system by a low-water mark: what nobody needed during a whole [`DECAY_MS`] is given back at
//! the next occasion. (The working-set estimate of FreeBSD's UMA, for pages.)
//!
//! Beyond the first [`HUGE_FROM`] units, transparent huge pages are asked for (`HAYLOFT_THP=auto|always|never`).
//!
//! This file may touch `os`, `sync` and the unit of `size_class`.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::os;
use crate::size_class::{UNIT, UNIT_SHIFT};
use crate::sync::Lock;

/// Metadata per unit for the slab layer, in bytes.
pub(crate) const META_SIZE: usize = if cfg!(debug_assertions) { 1088 } else { 576 };

/// What a first reservation asks for; half as much is tried as often as it takes.
const ARENA_BYTES: usize = if cfg!(miri) { 8 << 20 } else { 256 << 30 };
const MAX_ARENAS: usize = 64;

/// Dirty memory that went unneeded for this long is given back, in milliseconds.
const DECAY_MS: u64 = 1000;

/// Units of a huge page.
const HUGE_PAGE: u32 = (2 << 20) / UNIT as u32;

/// From this many committed units on, huge pages are asked for: there the rest of the last one is a small part of
/// what the program has. A heap that grows to 64 MB in phases took 1.6 times as long without.
const HUGE_FROM: u32 = (4 << 20) / UNIT as u32;

/// The least that is committed at once, in units.
const GROWTH: u32 = 16;
/// The most that is committed at once beyond the need, in units.
const MAX_GROWTH: u32 = 1024;

/// No run. Unit 0 of an arena is never part of one, so that zeroed memory is an empty set of bins.
const NONE: u32 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// Not free: handed out, or about to be given back to the system.
    Used,
    Dirty,
    Clean,
}

/// Descriptor of a unit; meaningful on the first and the last unit of a run.
#[repr(C)]
struct Run {
    /// Units of the run.
    len: u32,
    state: State,
    /// Neighbours in the bin, by their first unit; on the first unit of a free run only.
    next: u32,
    previous: u32,
}

/// What an arena is made of; written once, before the arena is published.
struct Place {
    base: *mut u8,
    bytes: usize,
    runs: *mut Run,
    meta: *mut u8,
}

struct Arena {
    place: UnsafeCell<Place>,
    state: Lock<Units>,
}

// SAFETY: `place` is written before `ARENA_COUNT` covers the arena and only read after; the rest is a lock.
unsafe impl Sync for Arena {}

static ARENAS: [Arena; MAX_ARENAS] = [const { Arena::new() }; MAX_ARENAS];
/// Arenas in use. Release when one is published, pairs with the Acquire of whoever looks one up.
static ARENA_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Serialises the making of arenas.
static MAKING: Lock<()> = Lock::new(());

/// A run handed out.
pub(crate) struct Allocation {
    pub(crate) address: NonNull<u8>,
    /// The run reads as zero.
    pub(crate) zeroed: bool,
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
        // Acquire: pairs with the Release in `make_arena`.
        let count = ARENA_COUNT.load(Ordering::Acquire);
        ARENAS.iter().take(count).find_map(|arena| {
            let offset = address.addr().wrapping_sub(arena.place().base.addr());
            let index = (offset >> UNIT_SHIFT) as u32;
            (offset < arena.place().bytes).then_some(Unit { arena, index })
        })
    }

    /// The unit at or below this one whose address is a multiple of `units`, a power of two.
    #[inline]
    pub(crate) fn align_down(self, units: u32) -> Unit {
        let past = self.index.wrapping_add(self.arena.base_unit()) & (units - 1);
        Unit { arena: self.arena, index: self.index - past }
    }

    /// Address of the unit.
    #[inline]
    pub(crate) fn address(self) -> *mut u8 {
        // SAFETY: the index lies in the arena.
        unsafe { self.arena.place().base.add((self.index as usize) << UNIT_SHIFT) }
    }

    /// The metadata of the unit: [`META_SIZE`] bytes, zero until somebody writes them, on a cache line. Committed as
    /// long as a run holds the unit.
    #[inline]
    pub(crate) fn meta(self) -> *mut u8 {
        // SAFETY: the index lies in the arena.
        unsafe { self.arena.place().meta.add(self.index as usize * META_SIZE) }
    }

    /// Whether the unit was ever handed out, so that its metadata can be read.
    #[cfg(debug_assertions)]
    pub(crate) fn is_committed(self) -> bool {
        self.index < self.arena.state.lock().committed
    }

    /// Units of the used run that starts here, or `None` if none does.
    pub(crate) fn run_len(self) -> Option<usize> {
        let state = self.arena.state.lock();
        if self.index >= state.committed {
            return None;
        }
        // SAFETY: descriptors below `committed` are; the lock is held.
        let run = unsafe { self.arena.run(self.index).read() };
        (run.state == State::Used && run.len > 0).then_some(run.len as usize)
    }
}

/// Hands out a run of `units`, its address a multiple of `align` units, a power of two. `None` when out of
/// memory.
pub(crate) fn alloc(units: usize, align: usize) -> Option<Allocation> {
    let len = u32::try_from(units).ok()?;
    let align = u32::try_from(align).ok()?;
    loop {
        // Acquire: pairs with the Release in `make_arena`.
        let count = ARENA_COUNT.load(Ordering::Acquire);
        let found = ARENAS.iter().take(count).find_map(|arena| arena.alloc(len, align));
        if found.is_some() {
            return found;
        }
        make_arena(len.checked_add(align)?, count)?;
    }
}

/// Takes a run back.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`], and nobody uses the run any more.
pub(crate) unsafe fn free(unit: Unit) {
    // SAFETY: the caller's promise.
    unsafe { unit.arena.free(unit.index, State::Dirty) };
}

/// As [`free`], for a run whose pages read as zero.
///
/// # Safety
/// As [`free`], and the run was not touched since its pages were last given back or moved away.
pub(crate) unsafe fn free_clean(unit: Unit) {
    // SAFETY: the caller's promise.
    unsafe { unit.arena.free(unit.index, State::Clean) };
}

/// Makes a run at least as long as this without moving it; false if that cannot be done. Units added may hold anything.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`].
pub(crate) unsafe fn grow(unit: Unit, units: usize) -> bool {
    // SAFETY: the caller's promise.
    u32::try_from(units).is_ok_and(|len| unsafe { unit.arena.grow(unit.index, len) })
}

/// Makes a run as short as this, at least one unit, without moving it.
///
/// # Safety
/// `unit` is the first of a run from [`alloc`] that is at least as long; units cut off are not used any more.
pub(crate) unsafe fn shrink(unit: Unit, units: usize) {
    // SAFETY: the caller's promise; it bounds `units` by a length that fits.
    unsafe { unit.arena.shrink(unit.index, units as u32) };
}

/// Makes the arena number `count`, for a run of at least `need` units; `None` if it cannot be had.
#[cold]
fn make_arena(need: u32, count: usize) -> Option<()> {
    let _making = MAKING.lock();
    if ARENA_COUNT.load(Ordering::Relaxed) != count {
        return Some(());
    }
    let arena = ARENAS.get(count)?;
    let least = (need as usize).checked_mul(UNIT + META_SIZE + size_of::<Run>())? + 3 * UNIT;
    let mut bytes = ARENA_BYTES.max(least.checked_next_multiple_of(UNIT)?);
    let reserved = loop {
        if let Some(address) = os::reserve(bytes) {
            break address;
        }
        if bytes == least {
            return None;
        }
        bytes = (bytes / 2).max(least);
    };
    if bytes < ARENA_BYTES && bytes / 2 >= least && !cfg!(miri) {
        // Address space is limited: leave half of what there was to the stacks and mappings of the program.
        let keep = (bytes / 2).next_multiple_of(UNIT);
        // SAFETY: the upper part of a reservation nobody has used.
        unsafe { os::unreserve(reserved.add(keep), bytes - keep) };
        bytes = keep;
    }

    // Each array starts on a unit, which is why three were added above.
    let padding = reserved.as_ptr().align_offset(UNIT);
    let units = (bytes - 3 * UNIT) / (UNIT + META_SIZE + size_of::<Run>());
    let runs_bytes = (units * size_of::<Run>()).next_multiple_of(UNIT);
    let meta_bytes = (units * META_SIZE).next_multiple_of(UNIT);
    let units =
        units.min((bytes - padding - runs_bytes - meta_bytes) / UNIT).min(u32::MAX as usize / 2);
    // SAFETY: three arrays within the reservation; the arena is not published yet, so the cell is ours.
    unsafe {
        let runs = reserved.as_ptr().add(padding);
        *arena.place.get() = Place {
            base: runs.add(runs_bytes + meta_bytes),
            bytes: units * UNIT,
            runs: runs.cast(),
            meta: runs.add(runs_bytes),
        };
    }
    let mut state = arena.state.lock();
    state.units = units as u32;
    state.committed = 1;
    state.huge_from = huge_from();
    drop(state);
    // Release: pairs with the Acquire in `alloc` and `Unit::of`.
    ARENA_COUNT.store(count + 1, Ordering::Release);
    Some(())
}

/// Committed units from which on huge pages are asked for, by `HAYLOFT_THP`.
fn huge_from() -> u32 {
    match os::env(c"HAYLOFT_THP") {
        None | Some(b"auto") => HUGE_FROM,
        Some(b"always") => 0,
        Some(b"never") => u32::MAX,
        Some(_) => {
            os::warn(format_args!("HAYLOFT_THP is none of auto, always and never; ignored"));
            HUGE_FROM
        }
    }
}

impl Arena {
    const fn new() -> Arena {
        let place =
            Place { base: ptr::null_mut(), bytes: 0, runs: ptr::null_mut(), meta: ptr::null_mut() };
        Arena { place: UnsafeCell::new(place), state: Lock::new(Units::new()) }
    }

    #[inline(always)]
    fn place(&self) -> &Place {
        // SAFETY: arenas are reached through `ARENA_COUNT`, after which the place is not written any more.
        unsafe { &*self.place.get() }
    }

    /// Number of the arena's first unit among those of the address space, as far as it matters for alignment.
    #[inline(always)]
    fn base_unit(&self) -> u32 {
        (self.place().base.addr() >> UNIT_SHIFT) as u32
    }

    /// Descriptor of a unit; to be used under the lock.
    #[inline]
    fn run(&self, index: u32) -> *mut Run {
        // SAFETY: callers name units of this arena.
        unsafe { self.place().runs.add(index as usize) }
    }

    fn address(&self, index: u32) -> NonNull<u8> {
        // SAFETY: callers name units of this arena, which is not at address 0.
        unsafe { NonNull::new_unchecked(self.place().base.add((index as usize) << UNIT_SHIFT)) }
    }

    fn alloc(&self, len: u32, align: u32) -> Option<Allocation> {
        let mut units = self.state.lock();
        let room = len.checked_add(align - 1)?;
        let found = units.find(self, State::Dirty, room).or_else(|| {
            units.find(self, State::Clean, room).or_else(|| {
                units.grow(self, room)?;
                units.find(self, State::Clean, room)
            })
        });
        let found = found?;
        let state = units.remove(self, found);
        // SAFETY: a free run just taken off its bin; the lock is held.
        let found_len = unsafe { (*self.run(found)).len };
        let start = found + (found.wrapping_add(self.base_unit()).wrapping_neg() & (align - 1));
        let (before, after) = (start - found, found_len - (start - found) - len);
        if before > 0 {
            units.insert(self, found, before, state);
        }
        if after > 0 {
            units.insert(self, start + len, after, state);
        }
        self.set(start, len, State::Used);
        drop(units);
        Some(Allocation { address: self.address(start), zeroed: state == State::Clean })
    }

    /// # Safety
    /// As [`free`].
    unsafe fn free(&self, start: u32, state: State) {
        let mut units = self.state.lock();
        // SAFETY: the first unit of a used run, by the caller's promise; the lock is held.
        let len = unsafe { (*self.run(start)).len };
        units.give(self, start, len, state);
        units.decay();
        while let Some((start, len)) = units.next_to_purge(self) {
            drop(units);
            // SAFETY: the run was taken off the bins and marked as used, so it is ours alone.
            let clean = unsafe { os::decommit(self.address(start), (len as usize) << UNIT_SHIFT) };
            units = self.state.lock();
            units.give(self, start, len, if clean { State::Clean } else { State::Dirty });
            if !clean {
                units.to_purge = 0;
            }
        }
    }

    /// # Safety
    /// As [`grow`].
    unsafe fn grow(&self, start: u32, len: u32) -> bool {
        let mut units = self.state.lock();
        // SAFETY: the first unit of a used run, by the caller's promise; the lock is held.
        let old = unsafe { (*self.run(start)).len };
        if len <= old {
            return true;
        }
        let next = start + old;
        let more = len - old;
        if next == units.committed && units.grow(self, more).is_none() {
            return false;
        }
        // SAFETY: `next` is committed: it was, or `grow` made it so.
        let (state, room) = unsafe { ((*self.run(next)).state, (*self.run(next)).len) };
        if state == State::Used || room < more {
            return false;
        }
        units.remove(self, next);
        if room > more {
            units.insert(self, next + more, room - more, state);
        }
        self.set(start, len, State::Used);
        true
    }

    /// # Safety
    /// As [`shrink`].
    unsafe fn shrink(&self, start: u32, len: u32) {
        let mut units = self.state.lock();
        // SAFETY: as in `grow`.
        let old = unsafe { (*self.run(start)).len };
        if old > len {
            // The new end needs its tag first: what is given back looks at its neighbours.
            self.set(start, len, State::Used);
            units.give(self, start + len, old - len, State::Dirty);
        }
    }

    /// Writes both boundary tags of a run. To be called under the lock.
    fn set(&self, start: u32, len: u32, state: State) {
        for index in [start, start + len - 1] {
            // SAFETY: both units belong to the run and are committed.
            unsafe {
                (*self.run(index)).len = len;
                (*self.run(index)).state = state;
            }
        }
    }
}

/// The free runs of an arena.
struct Units {
    /// All units of the arena.
    units: u32,
    /// Units from the bottom that are readable and writable.
    committed: u32,
    /// Units in dirty free runs, and the least this was since the last tick.
    dirty: u32,
    least_dirty: u32,
    /// Dirty units to be given back now.
    to_purge: u32,
    last_tick: u64,
    /// From here on huge pages are asked for.
    huge_from: u32,
    dirty_bins: Bins,
    clean_bins: Bins,
}

impl Units {
    const fn new() -> Units {
        Units {
            units: 0,
            committed: 0,
            dirty: 0,
            least_dirty: 0,
            to_purge: 0,
            last_tick: 0,
            huge_from: 0,
            dirty_bins: Bins::new(),
            clean_bins: Bins::new(),
        }
    }

    fn bins(&mut self, state: State) -> &mut Bins {
        if state == State::Dirty { &mut self.dirty_bins } else { &mut self.clean_bins }
    }

    /// A free run of at least `len` units, left in its bin.
    fn find(&mut self, arena: &Arena, state: State, len: u32) -> Option<u32> {
        let bins = self.bins(state);
        if let Some(bin) = bins.first_from(Bins::fitting(len)) {
            return Some(bins.head(bin));
        }
        // The bin below may hold a run that is just long enough; a short look is worth it.
        let mut start = bins.head(Bins::holding(len));
        for _ in 0..32 {
            if start == NONE {
                break;
            }
            // SAFETY: runs in bins are committed; the lock is held.
            let run = unsafe { &*arena.run(start) };
            if run.len >= len {
                return Some(start);
            }
            start = run.next;
        }
        None
    }

    /// Commits units from the bottom of what is not, so that the last clean run has at least `room`.
    fn grow(&mut self, arena: &Arena, room: u32) -> Option<()> {
        let rest = self.units - self.committed;
        let wish = room.max(GROWTH).max((self.committed / 8).min(MAX_GROWTH));
        // Up to the end of a huge page, so that none is committed in parts.
        let past = self.committed.saturating_add(wish).wrapping_add(arena.base_unit()) % HUGE_PAGE;
        let wish = wish.saturating_add((HUGE_PAGE - past) % HUGE_PAGE).min(rest);
        (wish >= room && (self.commit(arena, wish) || self.commit(arena, room))).then_some(())
    }

    fn commit(&mut self, arena: &Arena, more: u32) -> bool {
        let (from, to) = (self.committed as usize, (self.committed + more) as usize);
        // Metadata is committed in whole units too, so a part may be committed a second time; that changes nothing.
        let meta = |base: *mut u8, size: usize| {
            let start = (from * size) & !(UNIT - 1);
            let end = (to * size).next_multiple_of(UNIT);
            // SAFETY: both ends lie in the array that starts at `base`, which is as long as the arena has units.
            unsafe { os::commit(NonNull::new_unchecked(base.add(start)), end - start) }
        };
        let place = arena.place();
        let done = meta(place.runs.cast(), size_of::<Run>())
            && meta(place.meta, META_SIZE)
            // SAFETY: units of this arena that nobody uses.
            && unsafe { os::commit(arena.address(from as u32), (to - from) << UNIT_SHIFT) };
        if done {
            if self.committed >= self.huge_from {
                let bytes = (to - from) << UNIT_SHIFT;
                // SAFETY: units of this arena, committed above.
                unsafe { os::prefer_huge_pages(arena.address(from as u32), bytes) };
            }
            self.committed = to as u32;
            self.give(arena, from as u32, more, State::Clean);
        }
        done
    }

    /// Adds a run to the free ones, merged with free neighbours of its kind.
    fn give(&mut self, arena: &Arena, mut start: u32, mut len: u32, state: State) {
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
        if next < self.committed && unsafe { (*arena.run(next)).state } == state {
            // SAFETY: as above.
            len += unsafe { (*arena.run(next)).len };
            self.remove(arena, next);
        }
        self.insert(arena, start, len, state);
    }

    fn insert(&mut self, arena: &Arena, start: u32, len: u32, state: State) {
        arena.set(start, len, state);
        if state == State::Dirty {
            self.dirty += len;
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
    }

    /// Takes a free run off its bin; its state.
    fn remove(&mut self, arena: &Arena, start: u32) -> State {
        // SAFETY: the first unit of a free run; the lock is held.
        let run = unsafe { arena.run(start).read() };
        if run.state == State::Dirty {
            self.dirty -= run.len;
            self.least_dirty = self.least_dirty.min(self.dirty);
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
        }
        run.state
    }

    /// At most once in [`DECAY_MS`]: what was never needed since the last time is to be purged.
    fn decay(&mut self) {
        let now = os::milliseconds();
        if now.wrapping_sub(self.last_tick) >= DECAY_MS {
            self.last_tick = now;
            self.to_purge = self.least_dirty;
            self.least_dirty = self.dirty;
        }
    }

    /// Takes a dirty run off its bin, as used, while there is something to purge.
    fn next_to_purge(&mut self, arena: &Arena) -> Option<(u32, u32)> {
        let bin = if self.to_purge > 0 { self.dirty_bins.last() } else { None }?;
        let start = self.dirty_bins.head(bin);
        self.remove(arena, start);
        // SAFETY: a run just taken off its bin; the lock is held.
        let found = unsafe { (*arena.run(start)).len };
        let len = found.min(self.to_purge);
        if found > len {
            self.insert(arena, start, found - len, State::Dirty);
        }
        let start = start + (found - len);
        arena.set(start, len, State::Used);
        self.to_purge -= len;
        Some((start, len))
    }
}

/// Free runs of one kind, in bins by length: one for each length below 16, then eight to an octave.
struct Bins {
    heads: [u32; Bins::COUNT],
    /// A bit per bin that is not empty.
    filled: [u64; Bins::COUNT / 64],
}

impl Bins {
    /// Enough for every length.
    const COUNT: usize = 256;

    const fn new() -> Bins {
        Bins { heads: [NONE; Bins::COUNT], filled: [0; Bins::COUNT / 64] }
    }

    /// The bin that runs of `len` units are kept in.
    fn holding(len: u32) -> usize {
        let octave = len.max(8).ilog2();
        ((octave - 3) * 8 + (len >> (octave - 3))) as usize
    }

    /// The first bin in which every run has at least `len` units.
    fn fitting(len: u32) -> usize {
        let octave = len.max(8).ilog2();
        let round = (1 << (octave - 3)) - 1;
        Bins::holding(len.saturating_add(round))
    }

    fn head(&self, bin: usize) -> u32 {
        self.heads.get(bin).copied().unwrap_or(NONE)
    }

    fn set_head(&mut self, bin: usize, start: u32) {
        if let (Some(head), Some(word)) = (self.heads.get_mut(bin), self.filled.get_mut(bin / 64)) {
            *head = start;
            let bit = 1 << (bin % 64);
            *word = if start == NONE { *word & !bit } else { *word | bit };
        }
    }

    /// The first bin from `bin` on that is not empty.
    fn first_from(&self, bin: usize) -> Option<usize> {
        let mut mask = u64::MAX << (bin % 64);
        for (index, word) in self.filled.iter().enumerate().skip(bin / 64) {
            if word & mask != 0 {
                return Some(index * 64 + (word & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The last bin that is not empty.
    fn last(&self) -> Option<usize> {
        let (index, word) = self.filled.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        Some(index * 64 + 63 - word.leading_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_what_fits() {
        for len in 1..1 << 17 {
            let (holding, fitting) = (Bins::holding(len), Bins::fitting(len));
            assert!(holding <= fitting && fitting <= holding + 1, "{len}");
            assert!(Bins::holding(len + 1) >= holding && Bins::holding(len + 1) <= holding + 1);
            // Nothing shorter than `len` is kept in the first bin said to fit it.
            assert!(len == 1 || Bins::holding(len - 1) < fitting, "{len}");
        }
        assert!(Bins::holding(u32::MAX) < Bins::COUNT);
    }

    #[test]
    fn bins_find_the_first_and_the_last() {
        let mut bins = Bins::new();
        assert_eq!((bins.first_from(0), bins.last()), (None, None));
        for bin in [3, 64, 130] {
            bins.set_head(bin, 7);
        }
        assert_eq!(bins.first_from(0), Some(3));
        assert_eq!(bins.first_from(4), Some(64));
        assert_eq!(bins.first_from(65), Some(130));
        assert_eq!(bins.first_from(131), None);
        bins.set_head(130, NONE);
        assert_eq!(bins.last(), Some(64));
    }

    #[test]
    fn runs_are_disjoint_aligned_and_reused() {
        let first = alloc(3, 1).unwrap();
        let second = alloc(5, 8).unwrap();
        let unit = Unit::of(second.address.as_ptr()).unwrap();
        assert_eq!(second.address.addr().get() % (8 * UNIT), 0);
        assert_eq!(unit.address(), second.address.as_ptr());
        assert_eq!(unit.run_len(), Some(5));
        // SAFETY: the runs are ours, of 3 and 5 units.
        unsafe {
            first.address.write_bytes(1, 3 * UNIT);
            second.address.write_bytes(2, 5 * UNIT);
            assert_eq!(*first.address.as_ptr(), 1);
            shrink(unit, 2);
            assert_eq!(unit.run_len(), Some(2));
            assert!(grow(unit, 4) && grow(unit, 3));
            assert_eq!(unit.run_len(), Some(4));
            free(unit);
            free(Unit::of(first.address.as_ptr()).unwrap());
        }
        assert!(Unit::of(ptr::null_mut()).is_none());
        assert!(alloc(u32::MAX as usize, 1).is_none());
    }
}
