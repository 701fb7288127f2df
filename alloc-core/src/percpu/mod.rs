//! Sheaves: a stack of free objects per CPU and class, used without taking a lock.
//!
//! The stacks lie in regions of `1 << REGION_SHIFT` bytes, one for each CPU the kernel may ever
//! have. All regions are reserved at once; each is committed when its CPU is first used. `arch`
//! describes their format. Two backends operate them:
//!
//! - *rseq*: restartable sequences, on threads that the C library or this allocator has registered.
//!   On a thread without a registration every operation misses, and the thread works on barn and
//!   slabs.
//! - *locked*: a try-lock per CPU, for kernels without rseq, other architectures, and Miri. Pushes
//!   and pops never wait for it: a signal handler that finds the lock held by the thread it
//!   interrupted goes on to barn and slabs.
//!
//! The first slow path, or `HAYLOFT_BACKEND=rseq|fallback`, selects the backend for the life of the
//! process. A signal handler that interrupts the selection sees no backend yet; its operations
//! miss. The fast path, `pop` and `push`, does not look at the backend: it misses while rseq is not
//! in use.

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
/// Highest number of CPUs that Linux can be configured for.
const MAX_CPUS: usize = 8192;
/// Number of CPUs that have room for regions in any case, unless address space is limited: 64 MiB.
const MANY_CPUS: usize = 256;
/// State of a region in which no sheaf may be opened.
const CLOSED: usize = OPEN + 1;

const WORD: usize = 8;
/// Byte offset of the locked backend's try-lock: behind the headers.
const LOCK_OFFSET: usize = HEADERS + MAX_CLASSES * WORD;
/// Byte offset of a word per sheaf with what [`flush_unused`] last saw: its `top`, and a count of
/// its refills and flushes.
const SEEN_OFFSET: usize = LOCK_OFFSET + size_of::<Lock<()>>();
/// Byte offset of a word per sheaf in which [`close_some`] keeps its `top`. On the stack, which may
/// be a small one, this array would be a third of all that a slow path uses.
const TOPS_OFFSET: usize = SEEN_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of an [`Idle`] per class, one byte each.
const IDLE_OFFSET: usize = TOPS_OFFSET + MAX_CLASSES * size_of::<u32>();
/// Byte offset of the allowance that [`spend`] draws on.
const ALLOWANCE_OFFSET: usize = (IDLE_OFFSET + MAX_CLASSES).next_multiple_of(WORD);
/// Byte offset of the event counters: for each class, one word per [`Event`].
const EVENTS_OFFSET: usize = ALLOWANCE_OFFSET + WORD;

/// Byte offset of the first sheaf's words.
const SHEAVES_OFFSET: usize = EVENTS_OFFSET + MAX_CLASSES * EVENTS * WORD;

/// Returns the most objects that a sheaf holds, by their size in bytes.
///
/// A random walk of allocations and frees takes O(capacity²) steps to empty or fill a sheaf, so
/// misses fall quadratically with capacity, while idle memory grows only linearly. (Compare
/// `calculate_sheaf_capacity` of `mm/slub.c`.) `objects` also bounds the bytes of middle sizes that
/// all sheaves of a CPU hold together.
const fn capacity_for(size: usize) -> usize {
    match size {
        ..=128 => 256,
        129..=512 => 64,
        513..=4096 => 32,
        _ => 16,
    }
}

/// Most objects in a sheaf of an object cache: each such sheaf has this number of words in a
/// region.
const MAX_CACHE_CAPACITY: usize = 92;

/// Returns the largest value of [`batch_len`] for classes of objects of `size` bytes.
pub(crate) const fn batch_len_for(size: usize) -> usize {
    capacity_for(size) / 2
}

/// Largest value of [`batch_len`] for classes of object caches.
pub(crate) const MAX_CACHE_BATCH: usize = MAX_CACHE_CAPACITY / 2;

/// Headers of all sheaves when open, empty, and at full capacity. Those of size classes never
/// change. A cache class's header is written when the cache is made, while the class's sheaves are
/// empty.
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

/// Returns the header of an empty sheaf above the word `floor`.
const fn header(floor: usize, capacity: usize) -> u64 {
    floor as u64 | ((floor + capacity) as u64) << 32
}

fn empty_header(class: Class) -> u64 {
    // Relaxed: a thread gets an object's class from the thread that defined it, and that orders
    // this load after the store.
    EMPTY_HEADERS.get(class.index()).map_or(0, |header| header.load(Ordering::Relaxed))
}

/// Configures a cache class's sheaves for objects of `size` bytes and resets its event counters.
/// The sheaves must be empty. A sheaf left open by the class's previous owner keeps its width until
/// it is next closed; that is safe, since a width never exceeds the words reserved for the sheaf.
pub(crate) fn define(class: Class, size: usize) {
    let capacity = capacity_for(size).min(MAX_CACHE_CAPACITY);
    if let Some(word) = EMPTY_HEADERS.get(class.index()) {
        word.store(header(floor(class) as usize, capacity), Ordering::Relaxed);
    }
    // Words that are zero are not written, so that regions never used stay untouched.
    (0..regions())
        .flat_map(|cpu| event_words(cpu, class))
        .filter(|word| word.load(Ordering::Relaxed) != 0)
        .for_each(|word| word.store(0, Ordering::Relaxed));
}

/// Returns the index of the word below a sheaf.
fn floor(class: Class) -> u32 {
    empty_header(class) as u32
}

/// Returns the most objects that a sheaf of this class holds.
pub(crate) fn capacity(class: Class) -> usize {
    let header = empty_header(class);
    ((header >> 32) - (header & u64::from(u32::MAX))) as usize
}

/// Divisor of the capacity that gives a newly opened sheaf's width.
const FIRST_PART: usize = 8;

/// Returns the width, in objects, of a newly opened sheaf. The rcu sheaf starts at full capacity:
/// its objects come seldom, but all at once.
fn first_width(class: Class) -> usize {
    let capacity = capacity(class);
    if class == Class::RCU { capacity } else { (capacity / FIRST_PART).max(capacity.min(2)) }
}

/// Returns the header of a newly opened sheaf.
fn first_header(class: Class) -> u64 {
    header(floor(class) as usize, first_width(class))
}

/// Returns the number of objects moved at once between a full-capacity sheaf and the layers behind
/// it. It is half a sheaf, so that neither an allocation nor a free right after the move misses.
#[inline]
pub(crate) fn batch_len(class: Class) -> usize {
    capacity(class) / 2
}

/// Returns the byte offset of a sheaf's header in a region.
const fn header_offset(class: Class) -> usize {
    HEADERS + class.index() * WORD
}

/// Pops an object from this CPU's sheaf. Returns null if the sheaf is empty or rseq is not in use.
#[inline(always)]
pub(crate) fn pop(class: Class) -> *mut u8 {
    // SAFETY: the index of a `Class` is the number of a sheaf.
    let object = unsafe { arch::pop(class.index()) };
    count_hits(class, usize::from(!object.is_null()));
    object
}

/// An event that is counted per CPU and class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// An allocation was served by the sheaf. Counted with the feature `counters` only: another
    /// store in the sections costs a pair of operations 5 to 7 % of its time.
    Hit,
    /// The sheaf was empty and was refilled.
    Refill,
    /// The sheaf was full and half of its objects left it.
    Flush,
    /// The barn was empty at a refill: the objects came from slabs.
    BarnEmpty,
    /// The barn was full at a flush: the objects went to slabs.
    BarnFull,
    /// No slab had objects for a refill either: a new slab was made.
    NewSlab,
}

/// Number of event kinds.
const EVENTS: usize = Event::NewSlab as usize + 1;

/// Adds `more` to a counter of this CPU; does nothing if the CPU has no sheaves.
///
/// Uses a single instruction without a lock prefix where the architecture has one. A count is then
/// lost only if the thread moves to another CPU right before the instruction and both CPUs count at
/// the same moment.
pub(crate) fn count(class: Class, event: Event, more: usize) {
    let cpu = cpu();
    if has_region(cpu)
        && let Some(word) = event_words(cpu, class).get(event as usize)
    {
        arch::add(word, more as u64);
    }
}

/// Counts objects that a sheaf served to the program.
#[inline(always)]
pub(crate) fn count_hits(class: Class, objects: usize) {
    if cfg!(feature = "counters") && objects > 0 {
        count(class, Event::Hit, objects);
    }
}

/// Returns a CPU's count of an event. May be called in any context.
pub(crate) fn counted(cpu: usize, class: Class, event: Event) -> u64 {
    event_words(cpu, class).get(event as usize).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Returns the event counters of a class on a CPU: an empty slice if the CPU has no sheaves. All
/// accesses are Relaxed, as the numbers guard nothing.
fn event_words(cpu: usize, class: Class) -> &'static [AtomicU64] {
    let offset = EVENTS_OFFSET + class.index() * EVENTS * WORD;
    // SAFETY: the words lie in the CPU's region and are only accessed as atomics.
    region_of(cpu)
        .map_or(&[], |base| unsafe { core::slice::from_raw_parts(base.add(offset).cast(), EVENTS) })
}

/// Pops up to `len` objects from this CPU's sheaf into `to`. Returns the number of objects.
///
/// # Safety
/// `to` is writable for `len` pointers.
#[inline]
pub(crate) unsafe fn pop_bulk(class: Class, to: *mut *mut u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    // SAFETY: the number of a sheaf and its floor; the caller guarantees that `to` is writable.
    unsafe { arch::pop_bulk(class.index(), floor(class) as usize, to, len) }
}

/// Pushes the first of `objects` onto this CPU's sheaf, as many as fit. Returns their number.
///
/// # Safety
/// As [`push`], for each of the objects.
#[inline]
pub(crate) unsafe fn push_bulk(class: Class, objects: &[*mut u8]) -> usize {
    if objects.is_empty() {
        return 0;
    }
    // SAFETY: the number of a sheaf; the caller guarantees that the objects are of `class` and
    // unused.
    unsafe { arch::push_bulk(class.index(), objects.as_ptr(), objects.len()) }
}

/// Pushes an object onto this CPU's sheaf. Returns false if the sheaf is full or rseq is not in
/// use.
///
/// # Safety
/// The object is of that class and nobody uses it.
#[inline(always)]
pub(crate) unsafe fn push(class: Class, object: *mut u8) -> bool {
    // SAFETY: the number of a sheaf; the caller guarantees that the object is of `class` and
    // unused.
    unsafe { arch::push(class.index(), object) }
}

/// As [`push`], but also returns false if the object is one of the topmost two already. May,
/// rarely, return false for an object that is not.
///
/// # Safety
/// As [`push`].
#[inline]
pub(crate) unsafe fn push_once(class: Class, object: *mut u8) -> bool {
    // SAFETY: the number of a sheaf; the caller guarantees that the object is of `class` and
    // unused.
    unsafe { arch::push_once(class.index(), object) }
}

/// Returns whether an object is one of the topmost two of this CPU's sheaf, on the locked backend.
pub(crate) fn is_on_top(class: Class, object: *mut u8) -> bool {
    Region::lock().is_some_and(|region| region.is_on_top(class, object))
}

/// Returns the CPU that this thread runs on at the time of the call.
#[inline]
pub(crate) fn cpu() -> usize {
    arch::cpu().unwrap_or_else(os::current_cpu)
}

/// How this process operates its sheaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Backend {
    /// Restartable sequences; the C library registers threads.
    Rseq = 1,
    /// Restartable sequences; this allocator registers threads.
    OwnRseq,
    /// A try-lock per CPU.
    Locked,
    /// Not selected yet, in a context that must not wait for the selection: every operation misses.
    Undecided,
}

/// A [`Backend`], or [`UNDECIDED`].
static BACKEND: AtomicU8 = AtomicU8::new(UNDECIDED);
const RSEQ: u8 = Backend::Rseq as u8;
const OWN_RSEQ: u8 = Backend::OwnRseq as u8;
const LOCKED: u8 = Backend::Locked as u8;
const UNDECIDED: u8 = 0;
/// Token of the thread that selects, or has selected, the backend; 0 before.
static DECIDER: AtomicUsize = AtomicUsize::new(0);

/// Address of CPU 0's region, and the number of CPUs that have room for one.
static REGIONS: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// Bitmap of the CPUs whose regions are committed, and one more than the highest of their numbers.
static COMMITTED: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Returns the backend of this process; the first call selects it. Registers the thread if that is
/// this allocator's task.
#[inline]
pub(crate) fn backend(context: Context) -> Backend {
    // Acquire: pairs with the Release in `decide`, so that the regions are visible.
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
    /// As the function [`pop`], through this backend.
    pub(crate) fn pop(self, class: Class) -> *mut u8 {
        if self != Backend::Locked {
            return pop(class);
        }
        let object = Region::lock().map_or(ptr::null_mut(), |region| region.pop(class));
        count_hits(class, usize::from(!object.is_null()));
        object
    }

    /// As the function [`push`], through this backend.
    ///
    /// # Safety
    /// As [`push`].
    pub(crate) unsafe fn push(self, class: Class, object: *mut u8) -> bool {
        if self != Backend::Locked {
            // SAFETY: the caller guarantees that the object is of `class` and unused.
            return unsafe { push(class, object) };
        }
        // SAFETY: the caller guarantees that the object is of `class` and unused.
        Region::lock().is_some_and(|region| unsafe { region.push(class, object) })
    }

    /// Pushes as many objects of the batch as fit onto this CPU's sheaf and drops these from the
    /// batch. Opens the sheaf if it is closed.
    ///
    /// # Safety
    /// The objects are of that class and nobody uses them.
    pub(crate) unsafe fn fill(self, class: Class, batch: &mut Batch) {
        fault::point(Place::SheafFilling);
        let objects = batch.objects();
        // SAFETY: the number and header of a sheaf; the caller guarantees that the objects are of
        // `class` and unused; the slice is readable for its length.
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
                // If the thread has moved to a CPU without a region, both calls do nothing.
                arch::open(class.index(), first_header(class));
                arch::push_bulk(class.index(), objects.as_ptr(), objects.len())
            }
        };
        batch.skip_first(moved);
    }

    /// Doubles the width of this CPU's sheaf, up to its capacity, after it proved too small.
    /// Returns the number of objects to move at once from now on: half the new width. So a class
    /// that is used once keeps few objects in its sheaf, and a busy class many.
    pub(crate) fn widen(self, class: Class) -> usize {
        let (floor, capacity) = (floor(class), capacity(class) as u32);
        let wider = |last: &AtomicU32| {
            // A guess: sections may be running.
            let width = last.load(Ordering::Relaxed).saturating_sub(floor);
            if width == 0 { first_width(class) as u32 } else { (2 * width).min(capacity) }
        };
        let width = if self == Backend::Locked {
            Region::lock().map(|region| {
                let [_, last] = region.header(class);
                let width = wider(last);
                // As with rseq, a closed sheaf stays closed and no sheaf becomes narrower: it may
                // hold objects up to its present end.
                if (1..floor + width).contains(&last.load(Ordering::Relaxed)) {
                    last.store(floor + width, Ordering::Relaxed);
                }
                width
            })
        } else {
            arch::cpu().and_then(region_of).map(|base| {
                // SAFETY: `base` is the region of a CPU.
                let width = wider(unsafe { header_halves(base, class) }[1]);
                // SAFETY: `width` is at most the capacity, and the sheaf has words for that. If the
                // thread has moved, the other CPU's sheaf grows, or none.
                unsafe { arch::widen(class.index(), floor + width) };
                width
            })
        };
        (width.map_or(first_width(class), |width| width as usize) / 2).max(1)
    }

    /// Moves up to `len` objects of this CPU's sheaf into an empty batch.
    pub(crate) fn drain(self, class: Class, batch: &mut Batch, len: usize) {
        // SAFETY: both `pop_bulk` functions write the number of objects that they return.
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
    // Relaxed: `BACKEND` publishes the result.
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
    // Regions exist already if a fork interrupted another thread's selection.
    let regions = NonNull::new(REGIONS.load(Ordering::Relaxed)).or_else(|| {
        // Reserve for every CPU number that the kernel can represent, whatever /sys says, so that
        // no number points beyond the regions. The kernel reports the length of its CPU mask, which
        // is fixed as long as it runs.
        let cpus = match os::cpu_numbers() {
            0 => MAX_CPUS,
            numbers if os::has_little_address_space() => numbers,
            // The process may be moved to a larger machine.
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
        // SAFETY: two closed regions lie in front of the others. This comes before any thread is
        // registered by us: a registered thread has a CPU number, and handlers on it may use it.
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

/// Reserves `cpus` readable regions, all of their sheaves closed, behind [`CLOSED_REGIONS`] others.
/// Returns the address of the first one behind these.
fn reserve_regions(cpus: usize) -> Option<NonNull<u8>> {
    let bytes = (cpus + CLOSED_REGIONS) * REGION;
    let regions = os::reserve(bytes)?;
    // SAFETY: `regions` is a whole reservation of `bytes` bytes, and the result lies inside it.
    unsafe {
        if !os::let_read(regions, bytes) {
            os::unreserve(regions, bytes);
            return None;
        }
        // No huge pages: little of each region is touched, and by its own CPU only.
        os::prefer_huge_pages(regions, bytes, false);
        Some(regions.add(CLOSED_REGIONS * REGION))
    }
}

/// Returns whether a CPU has a region. Commits one if it has none and there is memory.
#[inline]
fn has_region(cpu: usize) -> bool {
    #[cold]
    fn get_region(cpu: usize) -> bool {
        CLOSING.acquire(Context::TRYING).is_some_and(|_closing| commit_region(cpu, OPEN))
    }
    region_of(cpu).is_some() || get_region(cpu)
}

/// Commits the region of a CPU in state `state`, unless it is committed already. Returns false if
/// there is no memory, or no room for that CPU. The caller holds [`CLOSING`].
fn commit_region(cpu: usize, state: usize) -> bool {
    /// Attempts left to skip since the last one that failed.
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    /// Attempts to skip after one that failed.
    const RETRY: u32 = 1000;

    if region_of(cpu).is_some() {
        return true;
    }
    // Acquire: pairs with the Release in `decide`, so that `CPUS` is visible.
    let Some(regions) = NonNull::new(REGIONS.load(Ordering::Acquire)) else { return false };
    if cpu >= CPUS.load(Ordering::Relaxed) {
        return false;
    }
    let skipped = SKIPPED.load(Ordering::Relaxed);
    if skipped > 0 {
        SKIPPED.store(skipped - 1, Ordering::Relaxed);
        return false;
    }
    // SAFETY: the region lies in the reservation. Its state word is only accessed as an atomic, or
    // by sections.
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
    // Release: pairs with the Acquire in `region_of`, so that the region is writable.
    COMMITTED[cpu / 64].fetch_or(1 << (cpu % 64), Ordering::Release);
    true
}

/// Warns once per process that a CPU has no sheaves.
#[cold]
fn no_memory() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        os::warn(format_args!("no memory for sheaves of some CPU: allocations are slow there"));
    }
}

/// Returns whether the kernel aborts interrupted sections, as it should.
#[cfg(all(target_arch = "aarch64", not(miri)))]
fn kernel_aborts_sections() -> bool {
    aborts_sections_on_arm(os::release(&mut [0; 65]))
}
#[cfg(not(all(target_arch = "aarch64", not(miri))))]
fn kernel_aborts_sections() -> bool {
    true
}

/// Returns whether an AArch64 kernel aborts sections that are preempted by another thread of the
/// same CPU, or by a signal. 6.19, and 7.0 before 7.0.14, do not. (Linux 411c1cf43039,
/// "arm64/entry: Fix arm64-specific rseq brokenness".)
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

/// Returns the backend by which threads are registered, and the offset of their `struct rseq` from
/// the thread pointer; `None` if the kernel refuses.
fn rseq() -> Option<(Backend, isize)> {
    if let Some(offset) = arch::libc_rseq() {
        return Some((Backend::Rseq, offset));
    }
    let offset = arch::own_rseq().addr().wrapping_sub(arch::thread_pointer().addr());
    (arch::HAVE_RSEQ && register_thread()).then_some((Backend::OwnRseq, offset as isize))
}

/// Registers this thread's own `struct rseq`, unless that was tried before. Returns whether the
/// thread is registered. Does not write to the area, which may be the kernel's already.
#[cold]
fn register_thread() -> bool {
    unsafe extern "C" fn unregister(_: *mut core::ffi::c_void) {
        // SAFETY: this thread's area, registered below. The thread uses no sheaves from now on.
        unsafe { os::unregister_rseq(arch::own_rseq()) };
    }
    static AT_EXIT: os::ThreadExit = os::ThreadExit::new(unregister);

    let area = arch::own_rseq();
    let registration = &arch::locals().registration;
    // No compare-exchange: if a handler registers between load and store, the second registration
    // is redundant and harmless.
    if registration.load(Ordering::Relaxed) == 0 {
        // Stored before the hook is set: allocations that setting it makes then go to barn and
        // slabs.
        registration.store(1, Ordering::Relaxed);
        // SAFETY: this thread's area, which lives until the hook has run.
        if AT_EXIT.expect() && unsafe { os::register_rseq(area) } {
            fault::point(Place::ThreadRegistered);
        }
    }
    // SAFETY: this thread's area, which the kernel may write at any time. The number is -1 before
    // registration and after its end.
    unsafe { (&raw const (*area).cpu_id).read_volatile() >= 0 }
}

/// Returns the region of a CPU, if it has one.
fn region_of(cpu: usize) -> Option<*mut u8> {
    // Acquire: pairs with the Release in `commit_region`.
    let committed = COMMITTED.get(cpu / 64)?.load(Ordering::Acquire) >> (cpu % 64) & 1 == 1;
    // SAFETY: a committed region lies in the reservation.
    committed.then(|| unsafe { REGIONS.load(Ordering::Relaxed).add(cpu * REGION) })
}

/// Returns whether the backend is the fallback.
fn is_locked() -> bool {
    BACKEND.load(Ordering::Acquire) == LOCKED
}

/// Visits every lock of this layer.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::Closing, CLOSING.raw());
    if !is_locked() {
        return;
    }
    for base in (0..regions()).filter_map(region_of) {
        // SAFETY: `base` is a committed region, whose lock word starts as zero, a free lock.
        let lock: &Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        visit(LockClass::Sheaves, lock.raw());
    }
}

/// Returns the word of a region that says whether sheaves may be opened in it.
///
/// # Safety
/// `base` is the address of a region.
unsafe fn state_word<'a>(base: *mut u8) -> &'a AtomicUsize {
    // SAFETY: the caller guarantees that `base` is a region. The word is only accessed as an
    // atomic, or by sections.
    unsafe { &*base.add(STATE).cast() }
}

/// Returns the halves of a sheaf's header, `top` and `last`. Other threads than the sheaf's user
/// read them, too.
///
/// # Safety
/// `base` is the address of a region.
unsafe fn header_halves<'a>(base: *mut u8, class: Class) -> [&'a AtomicU32; 2] {
    // SAFETY: the caller guarantees that `base` is a region, in which the header lies. It is only
    // accessed as atomics, or by sections.
    unsafe {
        let top: *const AtomicU32 = base.add(header_offset(class)).cast();
        [&*top, &*top.add(1)]
    }
}

/// Re-enables a CPU's region: its sheaves may be opened again. Serialised with closers: if a sheaf
/// opened while one ran, each would write one half of its header.
pub(crate) fn open(context: Context, cpu: usize) {
    let _closing = CLOSING.acquire(context);
    if let Some(base) = region_of(cpu) {
        // SAFETY: `base` is the region of a CPU.
        let state = unsafe { state_word(base) };
        // An open region is skipped: the store would make its page resident here, as a copy after a
        // fork.
        if state.load(Ordering::Relaxed) != OPEN {
            // Release: a section that reads this and opens a sheaf does so after the closer has
            // read the sheaf.
            state.store(OPEN, Ordering::Release);
        }
    }
}

/// Resets the regions in a fork child, where no CPU is offline and no other thread is closing
/// sheaves: reopens every region and makes half-closed sheaves usable. If the fork interrupted this
/// thread while it was closing sheaves, everything stays as it is: the thread continues with that.
/// If another thread was selecting the backend, the selection starts anew.
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
        // SAFETY: `base` is the region of a CPU, and there is no other thread.
        let state = unsafe { state_word(base) };
        // Open regions are not written: the page would be copied.
        if state.load(Ordering::Relaxed) == OPEN {
            continue;
        }
        state.store(OPEN, Ordering::Relaxed);
        for class in all_classes() {
            // SAFETY: `base` is the region of a CPU.
            let [top, last] = unsafe { header_halves(base, class) };
            if top.load(Ordering::Relaxed) != 0 && last.load(Ordering::Relaxed) == 0 {
                last.store((empty_header(class) >> 32) as u32, Ordering::Relaxed);
            }
        }
    }
}

/// Returns an upper bound of the CPUs that have sheaves: one more than the highest of their
/// numbers.
pub(crate) fn regions() -> usize {
    HIGHEST.load(Ordering::Relaxed)
}

/// Returns whether any sheaf holds objects on a CPU: a guess while they are in use.
pub(crate) fn has_any(cpu: usize) -> bool {
    all_classes().any(|class| held(cpu, class) > 0)
}

/// Returns the number of objects in the sheaf of a class on a CPU: a guess while it is in use.
pub(crate) fn held(cpu: usize, class: Class) -> usize {
    let Some(base) = region_of(cpu) else { return 0 };
    // SAFETY: `base` is the region of a CPU.
    let [top, _] = unsafe { header_halves(base, class) };
    top.load(Ordering::Relaxed).saturating_sub(floor(class)) as usize
}

/// Takes `bytes`, the size of an object that entered a sheaf, from this CPU's allowance for middle
/// sizes. Returns whether the allowance is used up.
#[inline(always)]
pub(crate) fn spend(bytes: usize) -> bool {
    allowance_of(cpu()).is_some_and(|word| {
        arch::add(word, (bytes as u64).wrapping_neg());
        // A guess if the thread has moved to another CPU.
        word.load(Ordering::Relaxed).cast_signed() < 0
    })
}

/// Returns `bytes`, the size of an object that left a sheaf, to this CPU's allowance.
#[inline(always)]
pub(crate) fn refund(bytes: usize) {
    if let Some(word) = allowance_of(cpu()) {
        arch::add(word, bytes as u64);
    }
}

/// Sets the allowance of a CPU, in bytes.
pub(crate) fn set_allowance(cpu: usize, bytes: usize) {
    if let Some(word) = allowance_of(cpu) {
        word.store(bytes as u64, Ordering::Relaxed);
    }
}

/// Returns the word with a CPU's allowance, if the CPU has sheaves.
#[inline(always)]
fn allowance_of(cpu: usize) -> Option<&'static AtomicU64> {
    // SAFETY: the word lies in the CPU's region and is only accessed as an atomic.
    region_of(cpu).map(|base| unsafe { &*base.add(ALLOWANCE_OFFSET).cast::<AtomicU64>() })
}

/// Serialises closing of sheaves of other CPUs.
static CLOSING: Lock<()> = Lock::new(LockClass::Closing, ());

/// Closes all sheaves of a CPU, even while other threads use them, and passes their objects to
/// `take` in batches. No sheaf is opened there again before [`open`]. Returns false, with all
/// objects in their sheaves still, if that is impossible: the kernel cannot restart sections there,
/// a lock is not available in this context, or the region of the CPU cannot be committed.
pub(crate) fn close(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    CLOSING.acquire(context).is_some_and(|_closing| {
        // A CPU without a region gets a closed one, so that it does not get an open one later.
        if !commit_region(cpu, CLOSED) {
            return false;
        }
        let done = close_some(context, cpu, all_classes(), take);
        if !done && let Some(base) = region_of(cpu) {
            // SAFETY: `base` is the region of a CPU. Release: as in `open`.
            unsafe { state_word(base) }.store(OPEN, Ordering::Release);
        }
        done
    })
}

/// As [`close`] for the sheaf of one class, which may be opened again at once.
pub(crate) fn flush(
    context: Context,
    cpu: usize,
    class: Class,
    mut take: impl FnMut(&mut Batch),
) -> bool {
    empty(context, cpu, iter::once(class), |_, batch| take(batch))
}

/// As [`close`], but all sheaves may be opened again at once.
pub(crate) fn flush_all(context: Context, cpu: usize, take: impl FnMut(Class, &mut Batch)) -> bool {
    empty(context, cpu, all_classes(), take)
}

/// As [`flush_all`], at the end of a window, for the sheaves that were [idle](Idle) long enough,
/// and with `even_busy` for all others. The rcu sheaf is left alone. Returns whether any sheaf was
/// flushed, or may be idle by the end of the next window.
pub(crate) fn flush_unused(
    context: Context,
    cpu: usize,
    even_busy: bool,
    take: impl FnMut(Class, &mut Batch),
) -> bool {
    let Some(base) = region_of(cpu) else { return false };
    // One bit per class.
    let mut idle = [0u64; MAX_CLASSES.div_ceil(64)];
    let is_idle =
        |idle: &[u64], class: Class| idle[class.index() / 64] >> (class.index() % 64) & 1 != 0;
    let (mut any_idle, mut any_busy) = (false, false);
    for class in all_classes().filter(|class| *class != Class::RCU) {
        // SAFETY: `base` is the region of a CPU; a word and a byte of it that are only accessed as
        // atomics.
        let ([top, _], last, memory) = unsafe {
            let last = base.add(SEEN_OFFSET + class.index() * size_of::<u32>());
            let memory = base.add(IDLE_OFFSET + class.index());
            (header_halves(base, class), &*last.cast::<AtomicU32>(), &*memory.cast::<AtomicU8>())
        };
        let top = top.load(Ordering::Relaxed);
        let seen = if top <= floor(class) {
            Seen::Empty
        } else {
            // A busy sheaf may be as full at each look, but was refilled or flushed in between.
            // Only pairs of an allocation and a free leave no trace. `top` takes 16 bits: a region
            // has fewer than 2^16 words.
            let events = counted(cpu, class, Event::Refill) + counted(cpu, class, Event::Flush);
            let now = top | (events as u32) << 16;
            let is_unchanged = last.load(Ordering::Relaxed) == now;
            last.store(now, Ordering::Relaxed);
            if is_unchanged { Seen::Unchanged } else { Seen::Busy }
        };
        let before = memory.load(Ordering::Relaxed);
        let mut remembered = Idle::from_byte(before);
        let is_due = remembered.end_window(seen);
        // Unchanged bytes are not written, so that idle regions stay untouched.
        if remembered.to_byte() != before {
            memory.store(remembered.to_byte(), Ordering::Relaxed);
        }
        if seen != Seen::Empty {
            let is_due = is_due || even_busy;
            idle[class.index() / 64] |= u64::from(is_due) << (class.index() % 64);
            any_idle |= is_due;
            // Perhaps only the fast path used the sheaf, and it notifies nobody: ask for another
            // window.
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
    // SAFETY: `base` is the region of a CPU.
    let state = unsafe { state_word(base) };
    let before = state.load(Ordering::Relaxed);
    let done = close_some(context, cpu, classes, take);
    // Release: as in `open`.
    state.store(before, Ordering::Release);
    done
}

/// Failed attempts to restart sections after which the kernel is taken to refuse permanently.
const RESTARTS: u32 = 100;

/// Closes the region of a CPU and the sheaves of `classes` in it, and passes their objects to
/// `take`. Returns false if the lock is not available or the kernel refuses to restart sections:
/// then all objects are in their sheaves, some of which may have got their full width. The caller
/// holds [`CLOSING`] and sets the state of the region afterwards.
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
                // SAFETY: `pop_bulk` writes at most `len` pointers, for which the batch has room.
                unsafe { batch.fill_with(MAX_BATCH, |to, len| region.pop_bulk(class, to, len)) };
                if batch.len() == 0 {
                    break;
                }
                fault::point(Place::SheavesClosed);
                take(class, &mut batch);
            }
            // `last` first, as with rseq. The order matters to a fork child created in between,
            // which opens half-closed sheaves: see `without_cpus`.
            let [top, last] = region.header(class);
            last.store(0, Ordering::Release);
            top.store(0, Ordering::Release);
        }
        return true;
    }

    // By halves: sections that may be running store the first half only, once the region is closed.
    // SAFETY: `base` is the region of a CPU.
    let half = |class: Class, number: usize| unsafe { header_halves(base, class)[number] };
    // SAFETY: `base` is the region of a CPU.
    unsafe { state_word(base) }.store(CLOSED, Ordering::SeqCst);
    // After the first restart no section opens a sheaf; after the second, none pushes.
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
    // SAFETY: a word of the region that is only used here, under the lock of closers.
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
        // A pop that was running may still have stored its `top`. Then the sheaf holds one object
        // less, and another round is needed.
        let restarted = (0..RESTARTS).any(|_| {
            os::restart_sections_on(cpu) || {
                spin_or_yield();
                false
            }
        });
        if !restarted {
            // The kernel helped before and refuses now: a filter was added. Everything is restored.
            // A pop that was running stores its `top`, one less, before or after that.
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
            // SAFETY: words of the sheaf above its floor, which nobody else uses while it is
            // closed.
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

/// A CPU's region, with its try-lock held.
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
        // SAFETY: `base` is a committed region, whose lock word starts as zero, a free lock.
        let lock: &'static Lock<()> = unsafe { &*base.add(LOCK_OFFSET).cast() };
        Some(Region { base, _lock: lock.acquire(context)? })
    }

    /// Returns the word that says whether sheaves may be opened in the region.
    fn state(&self) -> &AtomicUsize {
        // SAFETY: `base` is the region of a CPU.
        unsafe { state_word(self.base) }
    }

    /// Returns the halves of a header, which only the holder of the lock changes.
    fn header(&self, class: Class) -> [&AtomicU32; 2] {
        // SAFETY: `base` is the region of a CPU.
        unsafe { header_halves(self.base, class) }
    }

    /// Returns the address of a word.
    ///
    /// # Safety
    /// `index` lies in the region, as all indices from headers do.
    unsafe fn word(&self, index: u32) -> *mut *mut u8 {
        // SAFETY: the caller guarantees that the word lies in the region.
        unsafe { self.base.add(index as usize * WORD).cast() }
    }

    fn pop(&self, class: Class) -> *mut u8 {
        let [top_at, last_at] = self.header(class);
        let top = top_at.load(Ordering::Relaxed);
        if last_at.load(Ordering::Relaxed) == 0 || top == floor(class) {
            return ptr::null_mut();
        }
        top_at.store(top - 1, Ordering::Relaxed);
        // SAFETY: the lock is held, and the word belongs to the sheaf.
        unsafe { *self.word(top) }
    }

    /// Returns whether an object is one of the topmost two.
    fn is_on_top(&self, class: Class, object: *mut u8) -> bool {
        let (top, floor) = (self.header(class)[0].load(Ordering::Relaxed), floor(class));
        let topmost = floor.max(top.saturating_sub(2)) + 1..=top;
        // SAFETY: the lock is held, and the words belong to the sheaf.
        topmost.into_iter().any(|index| unsafe { *self.word(index) } == object)
    }

    /// # Safety
    /// As the function [`push`].
    unsafe fn push(&self, class: Class, object: *mut u8) -> bool {
        let [top_at, last_at] = self.header(class);
        if last_at.load(Ordering::Relaxed) == 0 && self.state().load(Ordering::Relaxed) == OPEN {
            let header = first_header(class);
            top_at.store(header as u32, Ordering::Relaxed);
            // Release, here and below, keeps the stores in this order for the child of a fork in
            // between.
            last_at.store((header >> 32) as u32, Ordering::Release);
        }
        let top = top_at.load(Ordering::Relaxed);
        if top >= last_at.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the lock is held, and the word belongs to the sheaf.
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
        // SAFETY: the lock is held, and the words belong to the sheaf; the caller guarantees that
        // `to` is writable.
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

    /// A CPU has no memory before its first use, and every number that a kernel may have can be
    /// looked up.
    #[test]
    fn regions_come_with_their_cpus() {
        Context::enter(backend);
        let numbers = CPUS.load(Ordering::Relaxed);
        assert!(numbers >= os::cpu_numbers().min(MAX_CPUS) && numbers > cpu());
        assert!(region_of(numbers - 1).is_none() && region_of(usize::MAX).is_none());
        let last = REGIONS.load(Ordering::Relaxed).wrapping_add((numbers - 1) * REGION);
        // SAFETY: `last` lies in the reservation, which is readable.
        let [top, end] = unsafe { header_halves(last, Class::RCU) };
        assert_eq!((top.load(Ordering::Relaxed), end.load(Ordering::Relaxed)), (0, 0));
        assert!(has_region(cpu()) && regions() > cpu());
    }
}
