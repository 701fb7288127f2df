//! Sheaves: per CPU and class, a stack of free objects, reached without a lock.
//!
//! The stacks lie in regions of `1 << REGION_SHIFT` bytes, one for each CPU the kernel may ever have, reserved at once
//! and committed when the CPU is first used; `arch` describes their format. Two backends operate them:
//!
//! - *rseq*: restartable sequences, on threads that the C library or we ourselves have registered. A thread that has
//!   none misses every time and works on barn and slabs.
//! - *locked*: a try-lock per CPU, for kernels without rseq, other architectures, Miri. It only tries, so a signal
//!   handler that finds the lock held by the thread it interrupted goes on to barn and slabs.
//!
//! A handler that interrupts the decision finds neither, and misses.
//!
//! One of them is chosen for the life of the process by the first slow path, or by `HAYLOFT_BACKEND=rseq|fallback`.
//! `pop` and `push`, the fast path, know nothing of all that: where rseq is not in use, or not yet, they miss.
//!
//! This file may touch `arch`, `os`, `sync`, `batch`, `idle`, `size_class` and `fault`.

use core::iter;
use core::ptr::{self, NonNull};
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use crate::arch::{self, HEADERS, OPEN, REGION_SHIFT, STATE};
use crate::batch::{Batch, MAX_BATCH};
use crate::fault::{self, Place};
use crate::idle::{Idle, Seen};
use crate::os;
use crate::size_class::{Class, MAX_CLASSES};
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Lock, LockClass, RawLock, spin_or_yield};
use crate::watch;

const REGION: usize = 1 << REGION_SHIFT;
/// Closed regions in front of CPU 0's, for the CPU numbers -1 and -2.
const CLOSED_REGIONS: usize = 2;
/// CPUs that Linux can be configured for.
const MAX_CPUS: usize = 8192;
/// CPUs that have room for regions in any case, unless address space is limited: 64 MiB of it.
const MANY_CPUS: usize = 256;
/// The state of a region in which no sheaf may be opened.
const CLOSED: usize = OPEN + 1;

const WORD: usize = 8;
/// Byte offset of the try-lock of the locked backend: behind the headers.
const LOCK_OFFSET: usize = HEADERS + MAX_CLASSES * WORD;
/// Byte offset of what [`flush_unused`] saw last of each sheaf: its `top`, and how often it was filled or emptied.
const SEEN_OFFSET: usize = LOCK_OFFSET + size_of::<Lock<()>>();
/// Byte offset of where [`close_some`] keeps the `top` of each sheaf: on its stack, which may be a small one, that is a third of
/// all that a slow path takes.
const TOPS_OFFSET: usize = SEEN_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of an [`Idle`] for each class, as a byte.
const IDLE_OFFSET: usize = TOPS_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of the word for [`spend`].
const ALLOWANCE_OFFSET: usize = (IDLE_OFFSET + MAX_CLASSES).next_multiple_of(WORD);
/// Byte offset of what is counted: for each class, a word for each [`Event`].
const EVENTS_OFFSET: usize = ALLOWANCE_OFFSET + WORD;

/// Byte offset of the first sheaf's words.
const SHEAVES_OFFSET: usize = EVENTS_OFFSET + MAX_CLASSES * EVENTS * WORD;

/// Most objects a sheaf holds, by their size in bytes. How many steps a walk at random of allocations and frees takes from one end
/// to the other grows with the square; what CPUs hold that no program uses, with the size. (Compare `calculate_sheaf_capacity` of
/// `mm/slub.c`.) What those of middle sizes hold in all is bounded by bytes, too: see
/// `objects`.
const fn capacity_for(size: usize) -> usize {
    match size {
        ..=128 => 256,
        129..=512 => 64,
        513..=4096 => 32,
        _ => 16,
    }
}

/// Most objects a sheaf of an object cache holds: as many words each of them has in a region.
const MAX_CACHE_CAPACITY: usize = 92;

/// The most that [`batch_len`] says for classes of objects of `size` bytes.
pub(crate) const fn batch_len_for(size: usize) -> usize {
    capacity_for(size) / 2
}

/// The most that [`batch_len`] says for classes of object caches.
pub(crate) const MAX_CACHE_BATCH: usize = MAX_CACHE_CAPACITY / 2;

/// Headers of all sheaves when open and empty, with all their capacity. Those of size classes never change; those of object
/// caches are written when one is made, while its sheaves are empty.
static EMPTY_HEADERS: [AtomicU64; MAX_CLASSES] = {
    let mut headers = [const { AtomicU64::new(0) }; MAX_CLASSES];
    let mut word = SHEAVES_OFFSET / WORD;
    let mut index = 0;
    while index < MAX_CLASSES {
        let words = match Class::from_index(index) {
            Some(class) => capacity_for(class.size()),
            None => MAX_CACHE_CAPACITY,
        };
        assert!(words / 2 <= MAX_BATCH || cfg!(loom));
        headers[index] = AtomicU64::new(header(word, words));
        word += words + 1;
        index += 1;
    }
    assert!(word * WORD <= REGION);
    headers
};

/// The header of an empty sheaf above the word `floor`.
const fn header(floor: usize, capacity: usize) -> u64 {
    floor as u64 | ((floor + capacity) as u64) << 32
}

fn empty_header(class: Class) -> u64 {
    // Relaxed: whoever has an object of a class was told of the class by who made it.
    EMPTY_HEADERS.get(class.index()).map_or(0, |header| header.load(Ordering::Relaxed))
}

/// Makes the sheaves of a class of an object cache such as objects of `size` bytes want, and counts from zero. They must be empty: one that is open
/// still, since the class was another cache's, stays as wide as it was until it is closed, which is within the words it has.
pub(crate) fn define(class: Class, size: usize) {
    let capacity = capacity_for(size).min(MAX_CACHE_CAPACITY);
    if let Some(word) = EMPTY_HEADERS.get(class.index()) {
        word.store(header(floor(class) as usize, capacity), Ordering::Relaxed);
    }
    // Regions that were never used stay untouched.
    (0..regions())
        .flat_map(|cpu| event_words(cpu, class))
        .filter(|word| word.load(Ordering::Relaxed) != 0)
        .for_each(|word| word.store(0, Ordering::Relaxed));
}

/// The word below a sheaf.
fn floor(class: Class) -> u32 {
    empty_header(class) as u32
}

/// Most objects a sheaf of this class holds.
pub(crate) fn capacity(class: Class) -> usize {
    let header = empty_header(class);
    ((header >> 32) - (header & u64::from(u32::MAX))) as usize
}

/// A sheaf that is opened begins with this part of its capacity.
const FIRST_PART: usize = 8;

/// Most objects that a sheaf of this class holds when it is opened. Those that wait for readers come seldom, and all at once.
fn first_width(class: Class) -> usize {
    let capacity = capacity(class);
    if class == Class::RCU { capacity } else { (capacity / FIRST_PART).max(capacity.min(2)) }
}

/// The header of a sheaf that is opened.
fn first_header(class: Class) -> u64 {
    header(floor(class) as usize, first_width(class))
}

/// Objects moved at once between a sheaf that has all its capacity and what is behind it: half a sheaf, so that neither an
/// allocation nor a free follows with a miss.
#[inline]
pub(crate) fn batch_len(class: Class) -> usize {
    capacity(class) / 2
}

/// Byte offset of a sheaf's header in a region.
const fn header_offset(class: Class) -> usize {
    HEADERS + class.index() * WORD
}

/// Takes an object off this CPU's sheaf; null where there is none, or no rseq.
#[inline(always)]
pub(crate) fn pop(class: Class) -> *mut u8 {
    // SAFETY: a class.
    let object = unsafe { arch::pop(class.index()) };
    count_hits(class, usize::from(!object.is_null()));
    object
}

/// What is counted of the sheaves of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// An object was there. Counted with the feature `counters` only: one more store in the sections costs a pair of operations
    /// 5 to 7 % of its time.
    Hit,
    /// None was there: the sheaf was filled.
    Refill,
    /// There was no room for one: half of them left the sheaf.
    Flush,
    /// The barn had none for a refill: they came from slabs.
    BarnEmpty,
    /// The barn had no room for a flush: it went to slabs.
    BarnFull,
    /// Nor had any slab: a new one was made.
    NewSlab,
}

/// How many kinds there are.
const EVENTS: usize = Event::NewSlab as usize + 1;

/// Counts for this CPU, unless it has no sheaves. By one instruction, but without a lock, where there is such a thing: what is counted is
/// lost only where a thread moves to another CPU right before it, and both count at the same moment.
pub(crate) fn count(class: Class, event: Event, more: usize) {
    let cpu = cpu();
    if has_region(cpu)
        && let Some(word) = event_words(cpu, class).get(event as usize)
    {
        arch::add(word, more as u64);
    }
}

/// Counts objects that the program got from a sheaf.
#[inline(always)]
pub(crate) fn count_hits(class: Class, objects: usize) {
    if cfg!(feature = "counters") && objects > 0 {
        count(class, Event::Hit, objects);
    }
}

/// What was counted on a CPU so far; in any context.
pub(crate) fn counted(cpu: usize, class: Class, event: Event) -> u64 {
    event_words(cpu, class).get(event as usize).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Where the events of a class are counted; nowhere, if the CPU has no sheaves. Relaxed, everywhere: numbers that are looked at, and
/// guard nothing.
fn event_words(cpu: usize, class: Class) -> &'static [AtomicU64] {
    let offset = EVENTS_OFFSET + class.index() * EVENTS * WORD;
    // SAFETY: words in the region, which are only used as atomics.
    region_of(cpu)
        .map_or(&[], |base| unsafe { core::slice::from_raw_parts(base.add(offset).cast(), EVENTS) })
}

/// Takes up to `len` objects off this CPU's sheaf into `to`; how many.
///
/// # Safety
/// `to` is writable for `len` pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(class: Class, to: *mut *mut u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    // SAFETY: a class and the floor of its sheaf; the rest is the caller's promise.
    unsafe { arch::pop_bulk(class.index(), floor(class) as usize, to, len) }
}

/// Puts the first of `objects` on this CPU's sheaf, as many as fit; how many.
///
/// # Safety
/// As [`push`], for each of the objects.
#[inline]
pub(crate) unsafe fn push_bulk(class: Class, objects: &[*mut u8]) -> usize {
    if objects.is_empty() {
        return 0;
    }
    // SAFETY: a class; the objects are the caller's to give.
    unsafe { arch::push_bulk(class.index(), objects.as_ptr(), objects.len()) }
}

/// Puts an object on this CPU's sheaf; false where that is full, or there is no rseq.
///
/// # Safety
/// The object is of that class and nobody uses it.
#[inline(always)]
pub(crate) unsafe fn push(class: Class, object: *mut u8) -> bool {
    // SAFETY: a class; the object is the caller's to give.
    unsafe { arch::push(class.index(), object) }
}

/// As [`push`]; false also where the object is one of the two topmost already, and perhaps where it is not.
///
/// # Safety
/// As [`push`].
#[inline]
pub(crate) unsafe fn push_once(class: Class, object: *mut u8) -> bool {
    // SAFETY: as in `push`.
    unsafe { arch::push_once(class.index(), object) }
}

/// Whether an object is one of the two topmost of this CPU's sheaf, for the locked backend.
pub(crate) fn is_on_top(class: Class, object: *mut u8) -> bool {
    Region::lock().is_some_and(|region| region.is_on_top(class, object))
}

/// The CPU this thread runs on, at the time of asking.
#[inline]
pub(crate) fn cpu() -> usize {
    arch::cpu().unwrap_or_else(os::current_cpu)
}

/// How sheaves are operated in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Backend {
    /// Restartable sequences; the C library registers threads.
    Rseq = 1,
    /// Restartable sequences; this allocator registers threads.
    OwnRseq,
    /// A try-lock per CPU.
    Locked,
    /// Not decided, in a context that cannot wait until it is: every operation misses.
    Undecided,
}

/// A [`Backend`], or [`UNDECIDED`].
static BACKEND: AtomicU8 = AtomicU8::new(UNDECIDED);
const RSEQ: u8 = Backend::Rseq as u8;
const OWN_RSEQ: u8 = Backend::OwnRseq as u8;
const LOCKED: u8 = Backend::Locked as u8;
const UNDECIDED: u8 = 0;
/// The thread that decides, or has decided; 0 before.
static DECIDER: AtomicUsize = AtomicUsize::new(0);

/// Where CPU 0's region is or will be, and how many CPUs can have one.
static REGIONS: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// CPUs whose regions are committed, a bit each, and one more than the highest of their numbers.
static COMMITTED: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// The backend of this process, decided by the first call; registers the thread where that is our task.
#[inline]
pub(crate) fn backend(context: Context) -> Backend {
    // Acquire: pairs with the Release in `decide`, so that the regions are seen.
    match BACKEND.load(Ordering::Acquire) {
        RSEQ => Backend::Rseq,
        LOCKED => Backend::Locked,
        OWN_RSEQ => {
            register_thread();
            Backend::OwnRseq
        }
        _ => decide(context),
    }
}

impl Backend {
    /// [`pop`] by way of this backend.
    pub(crate) fn pop(self, class: Class) -> *mut u8 {
        if self != Backend::Locked {
            return pop(class);
        }
        let object = Region::lock().map_or(ptr::null_mut(), |region| region.pop(class));
        count_hits(class, usize::from(!object.is_null()));
        object
    }

    /// [`push`] by way of this backend.
    ///
    /// # Safety
    /// As [`push`].
    pub(crate) unsafe fn push(self, class: Class, object: *mut u8) -> bool {
        if self != Backend::Locked {
            // SAFETY: the caller's promise.
            return unsafe { push(class, object) };
        }
        // SAFETY: the caller's promise.
        Region::lock().is_some_and(|region| unsafe { region.push(class, object) })
    }

    /// Puts as many objects of the batch on this CPU's sheaf as fit, and drops these from the batch.
    ///
    /// # Safety
    /// The objects are of that class and nobody uses them.
    pub(crate) unsafe fn fill(self, class: Class, batch: &mut Batch) {
        fault::point(Place::SheafFilling);
        let objects = batch.objects();
        // SAFETY: classes, headers and objects as promised; the slice is readable for its length.
        let moved = unsafe {
            if self == Backend::Locked {
                has_region(os::current_cpu());
                let region = Region::lock();
                let fits = |object: &&*mut u8| {
                    region.as_ref().is_some_and(|region| region.push(class, **object))
                };
                objects.iter().take_while(fits).count()
            } else {
                if !arch::cpu().is_some_and(has_region) {
                    return;
                }
                // On a CPU by now that has none, both do nothing.
                arch::open(class.index(), first_header(class));
                arch::push_bulk(class.index(), objects.as_ptr(), objects.len())
            }
        };
        batch.skip_first(moved);
    }

    /// Has the sheaf of this CPU hold twice as many objects as before, up to its capacity, for it was too small; how many are to
    /// be moved at once now: half of them. A class that is used once holds few objects so, and a busy one many.
    pub(crate) fn widen(self, class: Class) -> usize {
        let (floor, capacity) = (floor(class), capacity(class) as u32);
        let wider = |last: &AtomicU32| {
            // A guess where sections may be running.
            let width = last.load(Ordering::Relaxed).saturating_sub(floor);
            if width == 0 { first_width(class) as u32 } else { (2 * width).min(capacity) }
        };
        let width = if self == Backend::Locked {
            Region::lock().map(|region| {
                let [_, last] = region.header(class);
                let width = wider(last);
                // As with rseq, a closed sheaf stays closed and none becomes narrower: it may hold
                // objects up to the end that it has.
                if (1..floor + width).contains(&last.load(Ordering::Relaxed)) {
                    last.store(floor + width, Ordering::Relaxed);
                }
                width
            })
        } else {
            arch::cpu().and_then(region_of).map(|base| {
                // SAFETY: a region.
                let width = wider(unsafe { header_halves(base, class) }[1]);
                // SAFETY: the sheaf has as many words as its capacity. On another CPU by now, that one's grows, or neither.
                unsafe { arch::widen(class.index(), floor + width) };
                width
            })
        };
        (width.map_or(first_width(class), |width| width as usize) / 2).max(1)
    }

    /// Moves up to `len` objects of this CPU's sheaf into an empty batch.
    pub(crate) fn drain(self, class: Class, batch: &mut Batch, len: usize) {
        // SAFETY: both roads write as many objects as they say.
        unsafe {
            batch.fill_with(len, |to, len| {
                if self == Backend::Locked {
                    Region::lock().map_or(0, |region| region.pop_bulk(class, to, len))
                } else {
                    pop_bulk(class, to, len)
                }
            });
        }
        fault::point(Place::SheafDrained);
    }
}

#[cold]
#[inline(never)]
fn decide(context: Context) -> Backend {
    // Relaxed: what was decided is told by `BACKEND`.
    let decider =
        DECIDER.compare_exchange(0, Context::thread(), Ordering::Relaxed, Ordering::Relaxed);
    if decider.is_err() {
        while BACKEND.load(Ordering::Relaxed) == UNDECIDED {
            if !context.may_wait() {
                return Backend::Undecided;
            }
            os::yield_now();
        }
        return backend(context);
    }
    fault::point(Place::BackendDeciding);
    let rseq_wanted = match os::env(c"HAYLOFT_BACKEND") {
        None => kernel_aborts_sections(),
        Some(b"rseq") => true,
        Some(b"fallback") => false,
        Some(_) => {
            os::ignored(c"HAYLOFT_BACKEND", format_args!("neither rseq nor fallback"));
            true
        }
    };
    // There are some where a fork interrupted another thread that decided.
    let regions = NonNull::new(REGIONS.load(Ordering::Relaxed)).or_else(|| {
        // For all numbers that the kernel tells apart, whatever /sys says: none leads beyond. It is asked for its mask, and has
        // no more than that as long as it runs.
        let cpus = match os::cpu_numbers() {
            0 => MAX_CPUS,
            numbers if os::has_little_address_space() => numbers,
            // A process may be moved to a larger machine.
            numbers => numbers.max(MANY_CPUS),
        };
        let cpus = cpus.max(os::possible_cpus().unwrap_or(0)).min(MAX_CPUS);
        let regions = reserve_regions(cpus);
        CPUS.store(if regions.is_some() { cpus } else { 0 }, Ordering::Relaxed);
        // Release: pairs with the Acquire in `commit_region`.
        REGIONS.store(regions.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Release);
        regions
    });
    if regions.is_none() {
        no_memory();
    }
    let rseq = regions.filter(|_| rseq_wanted).and_then(|regions| {
        // SAFETY: two closed regions lie in front of the others. Before any thread is registered
        // by us: from then on it has a CPU number, and handlers on it may use it.
        unsafe { arch::publish_region(regions.as_ptr()) };
        rseq()
    });
    let backend = match rseq {
        // SAFETY: the regions are published; every thread has a `struct rseq` at the offset.
        Some((backend, offset)) => unsafe {
            arch::publish_rseq_offset(offset);
            backend
        },
        None => Backend::Locked,
    };
    // Release: pairs with the Acquire in `backend`.
    BACKEND.store(backend as u8, Ordering::Release);
    backend
}

/// Reserves `cpus` regions that can be read, all sheaves closed, behind [`CLOSED_REGIONS`] others; returns the address of the
/// first.
fn reserve_regions(cpus: usize) -> Option<NonNull<u8>> {
    let bytes = (cpus + CLOSED_REGIONS) * REGION;
    let regions = os::reserve(bytes)?;
    // SAFETY: the whole of a reservation of ours, and a place in it.
    unsafe {
        if !os::let_read(regions, bytes) {
            os::unreserve(regions, bytes);
            return None;
        }
        // Of each region little is touched, by its own CPU.
        os::prefer_huge_pages(regions, bytes, false);
        Some(regions.add(CLOSED_REGIONS * REGION))
    }
}

/// Whether a CPU has a region; it gets one if it has not, and there is memory.
#[inline]
fn has_region(cpu: usize) -> bool {
    #[cold]
    fn get_region(cpu: usize) -> bool {
        CLOSING.acquire(Context::TRYING).is_some_and(|_closing| commit_region(cpu, OPEN))
    }
    region_of(cpu).is_some() || get_region(cpu)
}

/// Commits the region of a CPU if it has none, and puts it into that state; false where there is no memory. The caller holds
/// [`CLOSING`].
fn commit_region(cpu: usize, state: usize) -> bool {
    /// Attempts that are not made since one failed.
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    /// After so many, another one is.
    const RETRY: u32 = 1000;

    if region_of(cpu).is_some() {
        return true;
    }
    // Acquire: pairs with the Release in `decide`: how many there can be is known.
    let Some(regions) = NonNull::new(REGIONS.load(Ordering::Acquire)) else { return false };
    if cpu >= CPUS.load(Ordering::Relaxed) {
        return false;
    }
    let skipped = SKIPPED.load(Ordering::Relaxed);
    if skipped > 0 {
        SKIPPED.store(skipped - 1, Ordering::Relaxed);
        return false;
    }
    // SAFETY: the region lies in the reservation; its state is a word that is only used as an atomic, or by sections.
    unsafe {
        let region = regions.add(cpu * REGION);
        if !os::commit(region, REGION) {
            SKIPPED.store(RETRY, Ordering::Relaxed);
            no_memory();
            return false;
        }
        watch::hide(region.add(SHEAVES_OFFSET).as_ptr(), REGION - SHEAVES_OFFSET);
        state_word(region.as_ptr()).store(state, Ordering::Release);
    }
    HIGHEST.fetch_max(cpu + 1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `region_of`: the region can be written.
    COMMITTED[cpu / 64].fetch_or(1 << (cpu % 64), Ordering::Release);
    true
}

/// Says once that CPUs have no sheaves.
#[cold]
fn no_memory() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        os::warn(format_args!("no memory for sheaves of some CPU: allocations are slow there"));
    }
}

/// Whether the kernel does what it is to do with sections that are interrupted.
#[cfg(all(target_arch = "aarch64", not(miri)))]
fn kernel_aborts_sections() -> bool {
    aborts_sections_on_arm(os::release(&mut [0; 65]))
}
#[cfg(not(all(target_arch = "aarch64", not(miri))))]
fn kernel_aborts_sections() -> bool {
    true
}

/// Whether a kernel for AArch64 aborts sections that are preempted by another thread of the same CPU, or by a signal: 6.19 and
/// 7.0 do not, before 7.0.14. (Linux 411c1cf43039, "arm64/entry: Fix arm64-specific rseq brokenness".)
#[cfg(any(test, all(target_arch = "aarch64", not(miri))))]
fn aborts_sections_on_arm(release: &[u8]) -> bool {
    let mut numbers = release.split(|byte| !byte.is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u32, |number, digit| {
            number.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
        })
    });
    let mut next = || numbers.next().unwrap_or(0);
    !matches!((next(), next(), next()), (6, 19, _) | (7, 0, ..=13))
}

/// Who registers threads, and the offset of their `struct rseq` from the thread pointer; `None` where the kernel refuses.
fn rseq() -> Option<(Backend, isize)> {
    if let Some(offset) = arch::libc_rseq() {
        return Some((Backend::Rseq, offset));
    }
    let offset = arch::own_rseq().addr().wrapping_sub(arch::thread_pointer().addr());
    (arch::HAVE_RSEQ && register_thread()).then_some((Backend::OwnRseq, offset as isize))
}

/// Registers this thread's own `struct rseq` if nobody tried to before; whether it is registered. Nothing is written to the area,
/// which may be the kernel's already.
#[cold]
fn register_thread() -> bool {
    unsafe extern "C" fn unregister(_: *mut core::ffi::c_void) {
        // SAFETY: this thread's area, registered below; from now on the thread does without.
        unsafe { os::unregister_rseq(arch::own_rseq()) };
    }
    static AT_EXIT: os::ThreadExit = os::ThreadExit::new(unregister);

    let area = arch::own_rseq();
    let registration = &arch::locals().registration;
    // Not by compare-exchange: where a handler comes in between, this registers once more, in vain.
    if registration.load(Ordering::Relaxed) == 0 {
        // Until the hook is set: what it allocates goes to barn and slabs.
        registration.store(1, Ordering::Relaxed);
        // SAFETY: this thread's area, which lives until the hook has run.
        if AT_EXIT.expect() && unsafe { os::register_rseq(area) } {
            fault::point(Place::ThreadRegistered);
        }
    }
    // SAFETY: this thread's area. The number is -1 before it is registered and after; the kernel may write it at any time.
    unsafe { (&raw const (*area).cpu_id).read_volatile() >= 0 }
}

/// The region of a CPU, if it has one.
fn region_of(cpu: usize) -> Option<*mut u8> {
    // Acquire: pairs with the Release in `commit_region`.
    let committed = COMMITTED.get(cpu / 64)?.load(Ordering::Acquire) >> (cpu % 64) & 1 == 1;
    // SAFETY: the region lies in the reservation.
    committed.then(|| unsafe { REGIONS.load(Ordering::Relaxed).add(cpu * REGION) })
}

/// Whether the backend is the fallback.
fn is_locked() -> bool {
    BACKEND.load(Ordering::Acquire) == LOCKED
}

/// Every lock of this layer.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::Closing, CLOSING.raw());
    if !is_locked() {
        return;
    }
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: a region; see `Region::lock_of`.
        let lock: &Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        visit(LockClass::Sheaves, lock.raw());
    }
}

/// The word of a region that says whether sheaves may be opened in it.
///
/// # Safety
/// `base` is the address of a region.
unsafe fn state_word<'a>(base: *mut u8) -> &'a AtomicUsize {
    // SAFETY: the caller's promise; the word is only used as an atomic, or by sections.
    unsafe { &*base.add(STATE).cast() }
}

/// The halves of a sheaf's header, `top` and `last`. Others than the sheaf's user look at them, too.
///
/// # Safety
/// `base` is the address of a region.
unsafe fn header_halves<'a>(base: *mut u8, class: Class) -> [&'a AtomicU32; 2] {
    // SAFETY: the caller's promise: a header lies in the region. It is only used as atomics, or by sections.
    unsafe {
        let top: *const AtomicU32 = base.add(header_offset(class)).cast();
        [&*top, &*top.add(1)]
    }
}

/// Lets sheaves be opened again in the region of a CPU, when nobody is closing any there: of one that is opened in the midst of
/// that, the closing stores one half and the opening the other.
pub(crate) fn open(context: Context, cpu: usize) {
    let _closing = CLOSING.acquire(context);
    if let Some(base) = region_of(cpu) {
        // SAFETY: a region.
        let state = unsafe { state_word(base) };
        // One that is open is left alone: the store would bring its page here.
        if state.load(Ordering::Relaxed) != OPEN {
            // Release: whoever opens a sheaf there, by a section that reads this, does so after it was read by who closed it.
            state.store(OPEN, Ordering::Release);
        }
    }
}

/// In the child of a fork, where no CPU is offline, nor closed by a thread that is not there: lets sheaves be opened again, and
/// those that were half closed be used. All stay as they are where the fork interrupted this thread in closing some: it goes on
/// with that. If another thread was deciding on the backend, this one begins anew.
pub(crate) fn without_cpus() {
    if BACKEND.load(Ordering::Relaxed) == UNDECIDED
        && DECIDER.load(Ordering::Relaxed) != Context::thread()
    {
        DECIDER.store(0, Ordering::Relaxed);
    }
    if CLOSING.raw().is_mine() {
        return;
    }
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: a region. There is no other thread.
        let state = unsafe { state_word(base) };
        // No store to those that are open: the page would be copied.
        if state.load(Ordering::Relaxed) == OPEN {
            continue;
        }
        state.store(OPEN, Ordering::Relaxed);
        for class in all_classes() {
            // SAFETY: a region.
            let [top, last] = unsafe { header_halves(base, class) };
            if top.load(Ordering::Relaxed) != 0 && last.load(Ordering::Relaxed) == 0 {
                last.store((empty_header(class) >> 32) as u32, Ordering::Relaxed);
            }
        }
    }
}

/// One more than the highest number of a CPU that has sheaves, possibly.
pub(crate) fn regions() -> usize {
    HIGHEST.load(Ordering::Relaxed)
}

/// Whether any sheaf holds objects on a CPU; a guess while somebody uses them.
pub(crate) fn has_any(cpu: usize) -> bool {
    all_classes().any(|class| held(cpu, class) > 0)
}

/// Objects that the sheaf of a class holds on a CPU; a guess while somebody uses it.
pub(crate) fn held(cpu: usize, class: Class) -> usize {
    let Some(base) = region_of(cpu) else { return 0 };
    // SAFETY: a region.
    let [top, _] = unsafe { header_halves(base, class) };
    top.load(Ordering::Relaxed).saturating_sub(floor(class)) as usize
}

/// Takes `bytes` from the allowance of this CPU for objects of middle sizes that come to its sheaves. Returns whether it is used up.
#[inline(always)]
pub(crate) fn spend(bytes: usize) -> bool {
    allowance_of(cpu()).is_some_and(|word| {
        arch::add(word, (bytes as u64).wrapping_neg());
        // A guess where the thread is on another CPU by now.
        word.load(Ordering::Relaxed).cast_signed() < 0
    })
}

/// Sets what [`spend`] takes from.
pub(crate) fn set_allowance(cpu: usize, bytes: usize) {
    if let Some(word) = allowance_of(cpu) {
        word.store(bytes as u64, Ordering::Relaxed);
    }
}

/// Returns where the allowance of a CPU is, if it has sheaves.
#[inline(always)]
fn allowance_of(cpu: usize) -> Option<&'static AtomicU64> {
    // SAFETY: a word in the region, which is only used as an atomic.
    region_of(cpu).map(|base| unsafe { &*base.add(ALLOWANCE_OFFSET).cast::<AtomicU64>() })
}

/// Serialises those who close sheaves of other CPUs.
static CLOSING: Lock<()> = Lock::new(LockClass::Closing, ());

/// Closes all sheaves of a CPU, which other threads may be using, and has their objects taken away in batches; none is opened
/// there before [`open`]. False where the kernel cannot help with that; then the sheaves are as they were.
pub(crate) fn close(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    CLOSING.acquire(context).is_some_and(|_closing| {
        // Also of a CPU that has no region: it shall not get an open one.
        if !commit_region(cpu, CLOSED) {
            return false;
        }
        let done = close_some(context, cpu, all_classes(), take);
        if !done && let Some(base) = region_of(cpu) {
            // SAFETY: a region. Release: as in `open`.
            unsafe { state_word(base) }.store(OPEN, Ordering::Release);
        }
        done
    })
}

/// As [`close`], the sheaf of one class, which may be opened again at once.
pub(crate) fn flush(
    context: Context,
    cpu: usize,
    class: Class,
    mut take: impl FnMut(&mut Batch),
) -> bool {
    empty(context, cpu, iter::once(class), |_, batch| take(batch))
}

/// As [`close`], and all sheaves may be opened again at once.
pub(crate) fn flush_all(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    empty(context, cpu, all_classes(), take)
}

/// As [`flush_all`], at the end of a window: sheaves that were [idle](Idle) for long enough, or `even_busy` ones. Returns whether
/// there were any, or others that may be idle next time.
pub(crate) fn flush_unused(
    context: Context,
    cpu: usize,
    even_busy: bool,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(base) = region_of(cpu) else { return false };
    // A bit per class.
    let mut idle = [0u64; MAX_CLASSES.div_ceil(64)];
    let is_idle =
        |idle: &[u64], class: Class| idle[class.index() / 64] >> (class.index() % 64) & 1 != 0;
    let (mut any_idle, mut any_busy) = (false, false);
    for class in all_classes().filter(|class| *class != Class::RCU) {
        // SAFETY: a region, and a word and a byte of it that are only used as atomics.
        let ([top, _], last, memory) = unsafe {
            let last = base.add(SEEN_OFFSET + class.index() * size_of::<u32>());
            let memory = base.add(IDLE_OFFSET + class.index());
            (header_halves(base, class), &*last.cast::<AtomicU32>(), &*memory.cast::<AtomicU8>())
        };
        let top = top.load(Ordering::Relaxed);
        let seen = if top <= floor(class) {
            Seen::Empty
        } else {
            // A busy sheaf may be as full each time, but is then refilled or flushed in between. Only pairs of an
            // allocation and a free leave no trace. A region has fewer than 2^16 words.
            let events = counted(cpu, class, Event::Refill) + counted(cpu, class, Event::Flush);
            let now = top | (events as u32) << 16;
            let is_unchanged = last.load(Ordering::Relaxed) == now;
            last.store(now, Ordering::Relaxed);
            if is_unchanged { Seen::Unchanged } else { Seen::Busy }
        };
        let before = memory.load(Ordering::Relaxed);
        let mut remembered = Idle::from_byte(before);
        let is_due = remembered.end_window(seen);
        // Regions that nobody uses stay untouched.
        if remembered.to_byte() != before {
            memory.store(remembered.to_byte(), Ordering::Relaxed);
        }
        if seen != Seen::Empty {
            let is_due = is_due || even_busy;
            idle[class.index() / 64] |= u64::from(is_due) << (class.index() % 64);
            any_idle |= is_due;
            // Perhaps only the fast path was here, which tells nobody.
            any_busy |= !is_due;
        }
    }
    let classes = all_classes().filter(|class| is_idle(&idle, *class));
    (any_idle && empty(context, cpu, classes, take)) || any_busy
}

fn all_classes() -> impl Iterator<Item = Class> + Clone {
    (0..MAX_CLASSES).filter_map(Class::any_from_index)
}

fn empty(
    context: Context,
    cpu: usize,
    classes: impl Iterator<Item = Class> + Clone,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(base) = region_of(cpu) else { return true };
    let Some(_closing) = CLOSING.acquire(context) else { return false };
    // SAFETY: a region.
    let state = unsafe { state_word(base) };
    let before = state.load(Ordering::Relaxed);
    let done = close_some(context, cpu, classes, take);
    // Release: as in `open`.
    state.store(before, Ordering::Release);
    done
}

/// Attempts to restart sections before the kernel is taken to refuse that from now on.
const RESTARTS: u32 = 100;

/// Closes the region of a CPU and the sheaves of some classes in it, and has their objects taken away.
fn close_some(
    context: Context,
    cpu: usize,
    classes: impl Iterator<Item = Class> + Clone,
    mut take: impl FnMut(Class, &mut Batch),
) -> bool {
    let backend = backend(context);
    let Some(base) = region_of(cpu) else { return true };
    let mut batch = Batch::new();
    if backend == Backend::Locked {
        let Some(region) = Region::lock_of(cpu, context) else { return false };
        region.state().store(CLOSED, Ordering::Relaxed);
        for class in classes {
            loop {
                // SAFETY: a batch has room for what it is asked for.
                unsafe { batch.fill_with(MAX_BATCH, |to, len| region.pop_bulk(class, to, len)) };
                if batch.len() == 0 {
                    break;
                }
                fault::point(Place::SheavesClosed);
                take(class, &mut batch);
            }
            // `last` first, as with rseq, and in that order for the child of a fork in between,
            // which opens what is half closed: `without_cpus`.
            let [top, last] = region.header(class);
            last.store(0, Ordering::Release);
            top.store(0, Ordering::Release);
        }
        return true;
    }

    // By halves, as sections may be running: they store the first half only.
    // SAFETY: a region.
    let half = |class: Class, number: usize| unsafe { header_halves(base, class)[number] };
    // SAFETY: a region.
    unsafe { state_word(base) }.store(CLOSED, Ordering::SeqCst);
    // After the first restart no sheaf is opened any more, after the second nothing is pushed.
    if !os::restart_sections_on(cpu) {
        return false;
    }
    for class in classes.clone() {
        half(class, 1).store(0, Ordering::SeqCst);
    }
    if !os::restart_sections_on(cpu) {
        for class in classes.filter(|class| half(*class, 0).load(Ordering::Relaxed) != 0) {
            half(class, 1).store((empty_header(class) >> 32) as u32, Ordering::SeqCst);
        }
        return false;
    }
    // SAFETY: a word of the region, which is used here only, under the lock of those who close.
    let tops = |class: Class| unsafe {
        &*base.add(TOPS_OFFSET + class.index() * size_of::<u32>()).cast::<AtomicU32>()
    };
    for class in classes.clone() {
        tops(class).store(0, Ordering::Relaxed);
    }
    loop {
        let mut all_closed = true;
        for class in classes.clone() {
            let top = half(class, 0).swap(0, Ordering::SeqCst);
            counters::wrote(Line::Sheaves, 1);
            if top != 0 {
                tops(class).store(top, Ordering::Relaxed);
                all_closed = false;
            }
        }
        if all_closed {
            break;
        }
        // A pop that was running may store its `top` still; then there is one object less, and another round.
        let restarted = (0..RESTARTS).any(|_| {
            os::restart_sections_on(cpu) || {
                spin_or_yield();
                false
            }
        });
        if !restarted {
            // The kernel, which has helped before, does not any more: a filter is new. All goes back. Such a pop stores its
            // `top`, which is one less, before that or after.
            for class in classes {
                let [top, last] = [half(class, 0), half(class, 1)];
                let before = tops(class).load(Ordering::Relaxed);
                let back = top.compare_exchange(0, before, Ordering::SeqCst, Ordering::Relaxed);
                if before != 0 || back.is_err() {
                    last.store((empty_header(class) >> 32) as u32, Ordering::SeqCst);
                }
            }
            return false;
        }
    }
    for class in classes {
        let mut top = tops(class).load(Ordering::Relaxed) as usize;
        let floor = floor(class) as usize;
        while top > floor {
            let len = (top - floor).min(MAX_BATCH);
            top -= len;
            // SAFETY: words of the sheaf above its floor, which nobody else uses while it is closed.
            unsafe {
                batch.fill_with(len, |to, len| {
                    ptr::copy_nonoverlapping(base.add((top + 1) * WORD).cast(), to, len);
                    len
                });
            }
            fault::point(Place::SheavesClosed);
            take(class, &mut batch);
        }
    }
    true
}

/// A CPU's region under its try-lock.
struct Region {
    base: *mut u8,
    _lock: Guard<'static, ()>,
}

impl Region {
    fn lock() -> Option<Region> {
        let region = Region::lock_of(os::current_cpu(), Context::TRYING)?;
        fault::point(Place::SheavesLocked);
        Some(region)
    }

    fn lock_of(cpu: usize, context: Context) -> Option<Region> {
        let base = region_of(cpu)?;
        // SAFETY: the CPU's region; its lock word starts as zero, which is a free lock.
        let lock: &'static Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        Some(Region { base, _lock: lock.acquire(context)? })
    }

    /// The word that says whether sheaves may be opened in the region.
    fn state(&self) -> &AtomicUsize {
        // SAFETY: a region.
        unsafe { state_word(self.base) }
    }

    /// The halves of a header, which only the holder of the lock changes.
    fn header(&self, class: Class) -> [&AtomicU32; 2] {
        // SAFETY: a region.
        unsafe { header_halves(self.base, class) }
    }

    /// Returns the address of a word.
    ///
    /// # Safety
    /// The word lies in the region, as those do that headers name.
    unsafe fn word(&self, index: u32) -> *mut *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(index as usize * WORD).cast() }
    }

    fn pop(&self, class: Class) -> *mut u8 {
        let [top_at, last_at] = self.header(class);
        let top = top_at.load(Ordering::Relaxed);
        if last_at.load(Ordering::Relaxed) == 0 || top == floor(class) {
            return ptr::null_mut();
        }
        top_at.store(top - 1, Ordering::Relaxed);
        // SAFETY: the lock is held; the word belongs to the sheaf.
        unsafe { *self.word(top) }
    }

    /// Whether an object is one of the two topmost.
    fn is_on_top(&self, class: Class, object: *mut u8) -> bool {
        let (top, floor) = (self.header(class)[0].load(Ordering::Relaxed), floor(class));
        let topmost = floor.max(top.saturating_sub(2)) + 1..=top;
        // SAFETY: the lock is held; the words belong to the sheaf.
        topmost.into_iter().any(|index| unsafe { *self.word(index) } == object)
    }

    /// # Safety
    /// As [`push`].
    unsafe fn push(&self, class: Class, object: *mut u8) -> bool {
        let [top_at, last_at] = self.header(class);
        if last_at.load(Ordering::Relaxed) == 0 && self.state().load(Ordering::Relaxed) == OPEN {
            let header = first_header(class);
            top_at.store(header as u32, Ordering::Relaxed);
            // Release, here and below: in this order for the child of a fork in between.
            last_at.store((header >> 32) as u32, Ordering::Release);
        }
        let top = top_at.load(Ordering::Relaxed);
        if top >= last_at.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the lock is held; the word belongs to the sheaf.
        unsafe { *self.word(top + 1) = object };
        top_at.store(top + 1, Ordering::Release);
        true
    }

    /// # Safety
    /// `to` is writable for `len` pointers.
    unsafe fn pop_bulk(&self, class: Class, to: *mut *mut u8, len: usize) -> usize {
        let [top_at, _] = self.header(class);
        let top = top_at.load(Ordering::Relaxed);
        let len = len.min(top.saturating_sub(floor(class)) as usize);
        let below = top - len as u32;
        // SAFETY: the lock is held; the words belong to the sheaf, `to` is the caller's.
        unsafe { ptr::copy_nonoverlapping(self.word(below + 1), to, len) };
        top_at.store(below, Ordering::Relaxed);
        len
    }
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        for broken in ["6.19.0", "6.19.12-arch1-1", "7.0.0-rc3", "7.0.13", "7.0", "6.19-rc1"] {
            assert!(!aborts_sections_on_arm(broken.as_bytes()), "{broken}");
        }
        for sound in ["", "5.10.0", "6.1.9", "6.18.19", "7.0.14-generic", "7.1.0", "16.19.0", "x"] {
            assert!(aborts_sections_on_arm(sound.as_bytes()), "{sound}");
        }
    }

    /// No CPU has memory before it is used, and any number that a kernel may have can be looked up.
    #[test]
    fn regions_come_with_their_cpus() {
        Context::enter(backend);
        let numbers = CPUS.load(Ordering::Relaxed);
        assert!(numbers >= os::cpu_numbers().min(MAX_CPUS) && numbers > cpu());
        assert!(region_of(numbers - 1).is_none() && region_of(usize::MAX).is_none());
        let last = REGIONS.load(Ordering::Relaxed).wrapping_add((numbers - 1) * REGION);
        // SAFETY: what can be read.
        let [top, end] = unsafe { header_halves(last, Class::RCU) };
        assert_eq!((top.load(Ordering::Relaxed), end.load(Ordering::Relaxed)), (0, 0));
        assert!(has_region(cpu()) && regions() > cpu());
    }
}
