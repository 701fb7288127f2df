//! Reclaim: returns idle memory to the system.
//!
//! Time is divided into *windows*. Memory that stayed idle all through a window moves one step
//! further: from sheaves and barns to slabs, from slabs to pages, from pages to the system.
//! `HAYLOFT_DECAY_MS` is how long pages may stay idle: two windows of a third of it each, and
//! another in which they are purged. The thread purges in *slices*, each a share of the memory that
//! is due, so that resident memory falls as a slope instead of in one step. Memory in sheaves and
//! barns takes a window or two more.
//!
//! *Who ends windows.* In a program with several threads, a thread of ours does
//! (`hayloft/reclaim`). A free starts it when [`SPAWN_FROM`] bytes are idle or the heap has
//! [`SPAWN_FROM_ALL`] bytes. The thread ends when nothing is left to purge, so an idle program has
//! none. The C library does not know the thread (`os::bare`), so it can be started in any context
//! and keeps no program from ending. A free that must not wait starts it, too, since the program
//! may idle from then on. It also ends after [`LIFE`], to be started anew: it has the
//! credentials and filters of the thread that started it, and the program may have dropped those
//! since.
//!
//! A single-threaded program stays single-threaded, unless its heap has [`MUCH`] bytes. It may
//! enter a namespace, or a sandbox that kills for `clone`, as small programs do. In such a program,
//! frees end windows by the clock. Since an idle program makes no frees, each free also purges the
//! free pages beyond an *allowance*. The allowance grows if purged memory is needed again soon
//! afterwards. Frees cannot punch holes in slabs that were in use a moment ago.
//!
//! Frees do the same in any program while the thread cannot be started: at a limit of threads,
//! under a filter that refuses `clone`, or on an architecture without a bare `clone`.
//!
//! `HAYLOFT_BACKGROUND=1` starts the thread in all programs, `0` in none.
//!
//! The thread also checks whether memory is short (`pressure`), and then purges all idle memory.

mod pressure;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::atomic_fn::AtomicFn;
use crate::os;
use crate::page;
use crate::settings::{self, DEFAULT_DECAY_MS, Name};
use crate::sync::Context;

/// Idle bytes that justify the thread.
const SPAWN_FROM: usize = 2 << 20;
/// Heap size in bytes from which idle memory in slabs alone may justify the thread.
const SPAWN_FROM_ALL: usize = 16 << 20;
/// Heap size in bytes from which a single-threaded program gets the thread, too.
const MUCH: usize = 256 << 20;
/// Milliseconds after which the thread ends, with its window, even though frees go on.
const LIFE: u32 = 100_000;
/// Milliseconds until starting the thread is tried again after it failed. Meanwhile frees do its
/// work.
const RETRY: u64 = 1000;

/// Bytes that may initially stay idle in a single-threaded program, for each millisecond of decay.
/// With the default decay that is as much as glibc keeps at most. With a smaller allowance,
/// programs with phases of some megabytes take 1.5 times as long, because of page faults.
const ALLOWANCE_PER_MS: usize = (64 << 20) / DEFAULT_DECAY_MS as usize;
/// Upper bound on the allowance in bytes, where purged memory was missed.
const MOST_ALLOWANCE: usize = 1 << 30;
/// Milliseconds within which purged memory counts as missed if it is needed again.
const SOON: u64 = 10_000;

/// Most milliseconds between checks for memory pressure.
const LOOK_EVERY: u32 = 333;

/// Length of the shortest window, and of the shortest slice of a longer one, in milliseconds.
const SHORTEST: u32 = 10;
/// Most slices in a window.
const SLICES: u32 = 10;

/// State of the thread.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// The settings have not been read.
const UNKNOWN: u8 = 0;
/// There is no thread.
const NOBODY: u8 = 1;
/// A thread is being started.
const SPAWNING: u8 = 2;
/// The thread exists, and nothing was freed since it last began to look for idle memory.
const QUIET: u8 = 3;
/// The thread exists, and something was freed since it last began to look for idle memory.
const NOTED: u8 = 4;

/// Which programs have the thread.
static BACKGROUND: AtomicU8 = AtomicU8::new(OF_SEVERAL_THREADS);
const NONE: u8 = 0;
const OF_SEVERAL_THREADS: u8 = 1;
const ALL: u8 = 2;

/// Length of a window, in milliseconds.
static WINDOW: AtomicU32 = AtomicU32::new(DEFAULT_DECAY_MS / 3);

/// Returns the length of a window, in milliseconds.
pub(crate) fn window() -> u32 {
    WINDOW.load(Ordering::Relaxed)
}

/// The reason for which a window ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Occasion {
    /// A free finds that the time is over. It does only a part of the work; the routine returns
    /// whether some is left.
    Free,
    /// A free does another piece of the work that is left.
    Piece,
    /// The thread finds that the time is over. Memory that is due then is purged in slices.
    Window,
    /// A slice begins. `left` slices are left until the window ends, this one included.
    Slice { left: u32 },
    /// Memory is short.
    Shortage,
}

/// Ends a window. Returns whether there may be more to do at the end of the next one.
pub(crate) type Window = fn(Context, Occasion) -> bool;

/// The function that the thread calls. Set before the thread is started.
static ROUTINE: AtomicFn<Window> = AtomicFn::new();

/// Whether a free left what it freed, as its context must not wait and there is no thread. The next
/// slow path that may wait acts on it.
static LEFT: AtomicBool = AtomicBool::new(false);

/// Purges memory that is due, or leaves that to the thread. Call after a free, holding no lock.
/// `end_window` must be the same function in all calls.
#[inline]
pub(crate) fn freed(context: Context, end_window: Window) {
    page::keep_limit(context);
    // Relaxed: the free took a lock that the thread also takes to look for idle memory. If the
    // thread's last look missed the freed memory, the thread held that lock earlier than the free
    // did, and had stored QUIET before. So this load sees QUIET.
    if STATE.load(Ordering::Relaxed) != NOTED || !os::bare::is_alive() {
        act(context, end_window);
    }
}

/// As [`freed`], for memory that frees had to leave. Call after a slow path that frees nothing.
#[inline]
pub(crate) fn allocated(context: Context, end_window: Window) {
    // Relaxed: a thread that sees an old value leaves the memory to the next slow path.
    if LEFT.load(Ordering::Relaxed) && context.may_wait() {
        act(context, end_window);
    }
}

#[cold]
#[inline(never)]
fn act(context: Context, end_window: Window) {
    if STATE.load(Ordering::Relaxed) == UNKNOWN {
        read_settings();
    }
    let may_wait = context.may_wait();
    if may_wait && LEFT.load(Ordering::Relaxed) {
        LEFT.store(false, Ordering::Relaxed);
    }
    match STATE.load(Ordering::Relaxed) {
        // The thread was started by a child process that shared this memory, and ended with it.
        state @ (QUIET | NOTED) if !os::bare::is_alive() => _ = swap(state, NOBODY),
        QUIET => _ = swap(QUIET, NOTED),
        NOBODY if wants_thread() && (!is_worth_a_thread() || spawn(context, end_window)) => {}
        NOBODY if may_wait => {
            work_by_clock(context, end_window);
            keep_allowance(context);
        }
        NOBODY => LEFT.store(true, Ordering::Relaxed),
        _ => {}
    }
}

fn swap(from: u8, to: u8) -> bool {
    // Release: pairs with the Acquire in `thread_main`, so that its next look sees all memory freed
    // before.
    STATE.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Ends the window if its time is over, and otherwise does a piece of the work that the last end
/// left.
fn work_by_clock(context: Context, end_window: Window) {
    /// When the last window ended, in milliseconds. 0 before the first window began.
    static LAST: AtomicU64 = AtomicU64::new(0);
    static IS_LEFT: AtomicBool = AtomicBool::new(false);
    let (now, last) = (os::milliseconds(), LAST.load(Ordering::Relaxed));
    if now.wrapping_sub(last) >= WINDOW.load(Ordering::Relaxed).into()
        && LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        let is_left = last != 0 && end_window(context, Occasion::Free);
        IS_LEFT.store(is_left, Ordering::Relaxed);
    } else if IS_LEFT.load(Ordering::Relaxed) {
        IS_LEFT.store(end_window(context, Occasion::Piece), Ordering::Relaxed);
    }
}

/// The bytes that may stay idle where no thread purges. Relaxed everywhere, as numbers that guard
/// nothing.
struct Allowance {
    bytes: AtomicUsize,
    /// The allowance at first, and after no memory was missed for some time.
    least: AtomicUsize,
    /// When memory was last purged, and when purged memory was last missed, in milliseconds.
    purged: AtomicU64,
    missed: AtomicU64,
    /// Bytes of the heap at that time.
    held_then: AtomicUsize,
}

static ALLOWANCE: Allowance = Allowance::new(0);

impl Allowance {
    const fn new(least: usize) -> Allowance {
        Allowance {
            bytes: AtomicUsize::new(least),
            least: AtomicUsize::new(least),
            purged: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            held_then: AtomicUsize::new(0),
        }
    }

    /// Adapts the allowance to the idle and the held bytes of the heap, at `now` in milliseconds.
    /// Returns the idle bytes that may stay. A heap that has grown again soon after a purge missed
    /// the purged memory, so its allowance grows.
    fn learn(&self, unneeded: usize, held: usize, now: u64) -> usize {
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        if now.wrapping_sub(self.missed.load(Ordering::Relaxed)) >= SOON {
            bytes = self.least.load(Ordering::Relaxed);
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        if unneeded <= bytes {
            return unneeded;
        }
        let last = self.purged.load(Ordering::Relaxed);
        let grown = held.saturating_sub(self.held_then.load(Ordering::Relaxed));
        if bytes > 0 && last != 0 && now.wrapping_sub(last) < SOON && grown > bytes / 2 {
            bytes = grown.max(2 * bytes).min(MOST_ALLOWANCE).max(bytes);
            self.bytes.store(bytes, Ordering::Relaxed);
            self.missed.store(now, Ordering::Relaxed);
            self.held_then.store(held, Ordering::Relaxed);
        }
        // A heap that is mostly in use is about to use the rest.
        let in_use = if bytes > 0 { held.saturating_sub(unneeded) } else { 0 };
        let bytes = bytes.max(in_use);
        // Purge down to half of the allowance, so that the next free need not purge again.
        if unneeded <= bytes { unneeded } else { bytes / 2 }
    }

    /// Records that memory was purged.
    fn note_purge(&self, held: usize, now: u64) {
        self.purged.store(now.max(1), Ordering::Relaxed);
        self.held_then.store(held, Ordering::Relaxed);
    }
}

/// Purges idle memory beyond the allowance.
fn keep_allowance(context: Context) {
    let unneeded = page::dirty();
    if unneeded <= ALLOWANCE.least.load(Ordering::Relaxed) {
        return;
    }
    let now = os::milliseconds();
    let keep = ALLOWANCE.learn(unneeded, page::charged(), now);
    if keep < unneeded {
        page::trim_to(context, keep);
        ALLOWANCE.note_purge(page::charged(), now);
    }
}

/// Returns whether this program is one that has the thread.
fn wants_thread() -> bool {
    match BACKGROUND.load(Ordering::Relaxed) {
        ALL => true,
        NONE => false,
        _ => has_several_threads() || page::charged() >= MUCH,
    }
}

/// The first thread that called [`has_several_threads`], and whether another has called it since.
static FIRST_THREAD: AtomicUsize = AtomicUsize::new(0);
static HAS_OTHERS: AtomicBool = AtomicBool::new(false);

/// Returns whether slow paths ran on several threads of the program. Does not ask the C library, as
/// not every one can answer.
pub(crate) fn has_several_threads() -> bool {
    // Relaxed: a thread that sees an old value acts as would have been right a moment ago.
    if HAS_OTHERS.load(Ordering::Relaxed) || os::is_service_thread() {
        return HAS_OTHERS.load(Ordering::Relaxed);
    }
    let this = Context::thread();
    let first = match FIRST_THREAD.load(Ordering::Relaxed) {
        0 => FIRST_THREAD.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed),
        first => Err(first),
    };
    let is_another = first.is_err_and(|first| first != this);
    if is_another {
        HAS_OTHERS.store(true, Ordering::Relaxed);
    }
    is_another
}

fn is_worth_a_thread() -> bool {
    page::dirty() >= SPAWN_FROM || page::charged() >= SPAWN_FROM_ALL
}

/// Reads the settings. A second call changes nothing.
fn read_settings() {
    let decay: u32 = settings::number(Name::DecayMs).unwrap_or(DEFAULT_DECAY_MS);
    WINDOW.store((decay / 3).max(SHORTEST), Ordering::Relaxed);
    let least = ALLOWANCE_PER_MS * decay as usize;
    ALLOWANCE.least.store(least, Ordering::Relaxed);
    ALLOWANCE.bytes.store(least, Ordering::Relaxed);
    let background = match settings::flag(Name::Background) {
        None => OF_SEVERAL_THREADS,
        Some(false) => NONE,
        Some(true) => ALL,
    };
    BACKGROUND.store(background, Ordering::Relaxed);
    _ = swap(UNKNOWN, NOBODY);
}

/// Token of the thread that started the thread last.
static SPAWNER: AtomicUsize = AtomicUsize::new(0);

/// Starts the thread, unless that failed less than [`RETRY`] ago. Returns whether there is a thread
/// now, or another caller is starting one. A context that must not wait starts none while that
/// would have to wait for the end of the previous thread, nor in a fork: a child would forget it.
fn spawn(context: Context, end_window: Window) -> bool {
    /// When starting a thread last failed, in milliseconds.
    static FAILED: AtomicU64 = AtomicU64::new(0);
    // A fork holds all locks that can be held.
    let is_possible = || !os::bare::is_alive() && page::purging_lock().is_free();
    if !context.may_wait() && !is_possible() {
        return false;
    }
    let failed = FAILED.load(Ordering::Relaxed);
    if failed != 0 && os::milliseconds().wrapping_sub(failed) < RETRY {
        return false;
    }
    if !swap(NOBODY, SPAWNING) {
        return true;
    }
    SPAWNER.store(Context::thread(), Ordering::Relaxed);
    // Starting the thread orders this before all that the thread does.
    ROUTINE.set(end_window);
    let is_started = os::spawn_bare::<Reclaim>();
    if !is_started {
        FAILED.store(os::milliseconds().max(1), Ordering::Relaxed);
    }
    // In the child of a fork by a handler, the thread may have stayed behind.
    if !is_started || !os::bare::is_alive() {
        _ = swap(SPAWNING, NOBODY);
    }
    is_started
}

/// The reclaim thread.
struct Reclaim;

impl os::Service for Reclaim {
    const NAME: Option<&'static str> = Some("reclaim");
    const SCHEDULING: os::Scheduling = os::Scheduling::AsTheProcess;
    const MAIN: fn(usize) = thread_main;
}

fn thread_main(_: usize) {
    // `spawn` has set it.
    let Some(end_window) = ROUTINE.get() else { return };
    // Every free from now on finds the thread.
    STATE.store(NOTED, Ordering::Relaxed);
    // The thread needs its own table in any case: it must keep none of the program's files open.
    let may_open_files = os::bare::own_descriptors();
    let looks_at_pressure = may_open_files && pressure::counts();
    if !may_open_files {
        page::collapse_nothing();
    }
    let (mut lived, mut unlooked) = (0, 0);
    loop {
        let unlooked = looks_at_pressure.then_some(&mut unlooked);
        let occasion = wait(unlooked, |left| {
            Context::enter(|context| end_window(context, Occasion::Slice { left }))
        });
        // Acquire: pairs with the Release in `swap`. A free that this look misses finds QUIET, or a
        // later state.
        let was_noted = STATE.swap(QUIET, Ordering::Acquire) == NOTED;
        let before = page::decommitted();
        let has_more = Context::enter(|context| end_window(context, occasion));
        if occasion == Occasion::Shortage {
            pressure::note_yield(page::decommitted() - before);
        }
        lived = u32::saturating_add(lived, WINDOW.load(Ordering::Relaxed));
        // If the program goes on freeing, the next free starts another thread.
        let is_old = lived >= LIFE && was_noted;
        if (!has_more || is_old) && (swap(QUIET, NOBODY) || is_old && swap(NOTED, NOBODY)) {
            // If it does not, nobody else returns what is left.
            if has_more {
                Context::enter(|context| end_window(context, Occasion::Shortage));
            }
            break;
        }
    }
}

/// Waits until the window ends or memory is short, and returns which of them happened. Meanwhile
/// calls `slice` at regular intervals with the number of slices left, its own included, until it
/// returns that nothing is due. Checks for shortage whenever [`LOOK_EVERY`] milliseconds are over
/// since the last check: `unlooked` counts them, also from one window to the next. Without it,
/// never checks.
fn wait(mut unlooked: Option<&mut u32>, slice: impl Fn(u32) -> bool) -> Occasion {
    let window = WINDOW.load(Ordering::Relaxed);
    let slice_len = (window / SLICES).max(SHORTEST);
    let (mut left, mut is_due, mut unsliced) = (window, true, 0);
    while left > 0 {
        if is_due && unsliced == 0 {
            is_due = slice(left.div_ceil(slice_len));
            unsliced = slice_len;
        }
        let until_look = unlooked.as_deref().map_or(left, |unlooked| LOOK_EVERY - unlooked);
        let some = left.min(until_look).min(if is_due { unsliced } else { left });
        os::sleep_microseconds(some * 1000);
        left -= some;
        unsliced = unsliced.saturating_sub(some);
        let Some(unlooked) = unlooked.as_deref_mut() else { continue };
        *unlooked += some;
        if *unlooked >= LOOK_EVERY {
            *unlooked = 0;
            if pressure::is_high() {
                return Occasion::Shortage;
            }
        }
    }
    Occasion::Window
}

/// In the child of a fork, which has one thread and no reclaim thread.
pub(crate) fn in_child() {
    FIRST_THREAD.store(0, Ordering::Relaxed);
    HAS_OTHERS.store(false, Ordering::Relaxed);
    // A handler that interrupted the start of the thread forked. The interrupted code goes on.
    let goes_on = SPAWNER.load(Ordering::Relaxed) == Context::thread();
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => {}
        SPAWNING if goes_on => os::bare::in_child(),
        _ => {
            os::bare::in_child();
            STATE.store(NOBODY, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    const LEAST: usize = 4 * MIB;

    /// Frees a heap of `mib` MiB, one MiB after the other. Returns the bytes that stay, and the
    /// number of purges.
    fn free_all(allowance: &Allowance, mib: usize, now: u64) -> (usize, usize) {
        let (mut unneeded, mut held, mut purges) = (0, mib * MIB, 0);
        for _ in 0..mib {
            unneeded += MIB;
            let keep = allowance.learn(unneeded, held, now);
            if keep < unneeded {
                held -= unneeded - keep;
                unneeded = keep;
                allowance.note_purge(held, now);
                purges += 1;
            }
        }
        (unneeded, purges)
    }

    #[test]
    fn burst_leaves_the_least_allowance() {
        let allowance = Allowance::new(LEAST);
        let (rest, purges) = free_all(&allowance, 400, 1000);
        assert!(rest <= LEAST && purges > 5, "{rest} bytes stay after {purges} purges");
    }

    #[test]
    fn phases_in_quick_succession_keep_their_memory() {
        let allowance = Allowance::new(LEAST);
        free_all(&allowance, 100, 1000);
        let (_, purges) = free_all(&allowance, 100, 2000);
        assert!(purges < 5, "{purges} purges of memory that is needed again soon");
        assert_eq!(free_all(&allowance, 100, 3000), (100 * MIB, 0));
        let (rest, _) = free_all(&allowance, 150, 3000 + 10 * SOON);
        assert!(rest <= LEAST, "{rest} bytes stay after a long pause");
    }
}
