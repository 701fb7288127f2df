//! Reclaim: memory that nobody needs goes back to the system.
//!
//! Time is cut into *windows*; memory that was not needed all through one goes a step further: from
//! sheaves and barns to slabs, from these to pages, from there to the system.
//! `HAYLOFT_DECAY_MS` is how long pages may stay unneeded: two windows of a third each, and some
//! time to purge them. Sheaves and barns take a window or two more.
//!
//! *Who ends windows.* In a program of several threads, a thread of ours (`hayloft/reclaim`). It is
//! made by the free that finds [`SPAWN_FROM`] bytes unneeded, or [`SPAWN_FROM_ALL`] held, and ends
//! when there is nothing left to give back, so an idle program has none. The C library does not
//! know it (`os::bare`), so it can be made in any context, and keeps no program from ending. It ends
//! after [`LIFE`] windows as well, to be made again: it has the credentials and filters of its
//! maker, which the program may have given up since.
//!
//! A program of one thread stays that, unless it holds [`MUCH`]: it may enter a namespace, or a
//! sandbox that kills for `clone`, as small programs do. There frees end windows by the clock. An idle
//! one makes no frees, so besides that no more than an *allowance* of free pages stays when a free is
//! over. The allowance grows where memory that was purged is needed again soon after. What frees
//! cannot do is to give back holes of slabs that were in use a moment ago.
//!
//! `HAYLOFT_BACKGROUND=1` makes the thread in all programs, `0` in none.
//!
//! The thread also looks whether memory is short (`pressure`); then all goes back.
//!
//! This file may touch `page`, `pressure`, `sync` and `os`.

use core::mem;
use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use crate::os;
use crate::page;
use crate::pressure;
use crate::sync::Context;

/// Bytes that are unneeded for which a thread is worth it.
const SPAWN_FROM: usize = 2 << 20;
/// Bytes of a heap among which as much may be unneeded, in slabs.
const SPAWN_FROM_ALL: usize = 16 << 20;
/// Bytes of a heap for which a program of one thread gets another.
const MUCH: usize = 256 << 20;
/// Windows that a thread lives, where frees go on.
const LIFE: u32 = 100;
/// Milliseconds after which a thread is tried again that could not be made.
const RETRY: u64 = 1000;

/// Bytes that may stay unneeded in a program of one thread for each millisecond of decay, at first: in
/// all as much as glibc keeps at most. With less, programs with phases of some megabytes take half as
/// long again, for page faults.
const ALLOWANCE_PER_MS: usize = (64 << 20) / DEFAULT_DECAY_MS as usize;
/// Most bytes that may, where memory was missed.
const MOST_ALLOWANCE: usize = 1 << 30;
/// Milliseconds within which memory that was purged is missed, if it is needed again.
const SOON: u64 = 10_000;

/// Milliseconds at most between looks at whether memory is short.
const LOOK_EVERY: u32 = 333;

/// No workload measured takes more time than with a second; `git gc` needs a tenth less memory.
const DEFAULT_DECAY_MS: u32 = 300;
const MAX_DECAY_MS: u32 = 60 * 60 * 1000;
/// Milliseconds of the shortest window.
const SHORTEST: u32 = 10;

/// Whether there is a thread.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// The settings were not read.
const UNKNOWN: u8 = 0;
/// There is none.
const NOBODY: u8 = 1;
/// Somebody makes it.
const SPAWNING: u8 = 2;
/// It is there, and nothing was freed since it last began to look for what to give back.
const QUIET: u8 = 3;
/// It is there, and something was freed since.
const NOTED: u8 = 4;

/// Which programs have the thread.
static BACKGROUND: AtomicU8 = AtomicU8::new(OF_SEVERAL_THREADS);
const NONE: u8 = 0;
const OF_SEVERAL_THREADS: u8 = 1;
const ALL: u8 = 2;

/// Milliseconds of a window.
static WINDOW: AtomicU32 = AtomicU32::new(DEFAULT_DECAY_MS / 3);

/// Why a window ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Occasion {
    /// Its time is over, as a free finds, which is not to do all of the work. The answer is whether
    /// some of it is left.
    Free,
    /// A free does another piece of what is left.
    Piece,
    /// Its time is over.
    Window,
    /// Memory is short.
    Shortage,
}

/// Ends a window; returns whether there may be more to do at the end of the next.
pub(crate) type Window = fn(Context, Occasion) -> bool;

/// What the thread does; written before it is made.
static ROUTINE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Gives back what is due, or has the thread do it. To be called when something was freed, without
/// any lock. `end_window` is always the same.
#[inline]
pub(crate) fn freed(context: Context, end_window: Window) {
    page::keep_limit(context);
    // Relaxed: the free took a lock under which the thread looks. If it did not see what was freed,
    // its store of QUIET came before that lock, and is seen here.
    if STATE.load(Ordering::Relaxed) != NOTED || !os::bare::is_alive() {
        freed_slow(context, end_window);
    }
}

#[cold]
#[inline(never)]
fn freed_slow(context: Context, end_window: Window) {
    // What may not wait leaves it to the next.
    if !context.may_wait() {
        return;
    }
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => read_settings(),
        // It was made by a child that shared this memory, and ended with it.
        state @ (QUIET | NOTED) if !os::bare::is_alive() => _ = swap(state, NOBODY),
        QUIET => _ = swap(QUIET, NOTED),
        NOBODY if wants_thread() => spawn(end_window),
        NOBODY => {
            work_by_clock(context, end_window);
            keep_allowance(context);
        }
        _ => {}
    }
}

fn swap(from: u8, to: u8) -> bool {
    // Release: pairs with the Acquire in `live`: what was freed before is seen by the next look.
    STATE.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Ends the window if its time is over, or does a piece of what the last end left.
fn work_by_clock(context: Context, end_window: Window) {
    /// When the last window ended, in milliseconds; 0 before the first has begun.
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

/// How much may stay unneeded where no thread gives it back; relaxed everywhere, as numbers that
/// guard nothing.
struct Allowance {
    bytes: AtomicUsize,
    /// What it is at first, and when nothing was missed for a time.
    least: AtomicUsize,
    /// When memory was purged last, and when purged memory was missed last, in milliseconds.
    purged: AtomicU64,
    missed: AtomicU64,
    /// The bytes that were held then.
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

    /// Learns from what is unneeded now, at a time in milliseconds: returns the bytes that may stay
    /// of it. A heap that has grown again soon after it was purged missed that memory.
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
        // A heap that is in use for the most part is about to use the rest.
        let in_use = if bytes > 0 { held.saturating_sub(unneeded) } else { 0 };
        let bytes = bytes.max(in_use);
        // Half of it, for the next free not to purge again.
        if unneeded <= bytes { unneeded } else { bytes / 2 }
    }

    /// Notes that memory was purged.
    fn note_purge(&self, held: usize, now: u64) {
        self.purged.store(now.max(1), Ordering::Relaxed);
        self.held_then.store(held, Ordering::Relaxed);
    }
}

/// Purges what is unneeded beyond the allowance.
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

/// Whether the thread is for this program.
fn wants_thread() -> bool {
    match BACKGROUND.load(Ordering::Relaxed) {
        ALL => true,
        NONE => false,
        _ => has_several_threads() || page::charged() >= MUCH,
    }
}

/// The first thread that asked whether there are others, and whether another asked since.
static FIRST_THREAD: AtomicUsize = AtomicUsize::new(0);
static HAS_OTHERS: AtomicBool = AtomicBool::new(false);

/// Whether slow paths were seen on several threads. No C library is asked, as not all of them tell.
pub(crate) fn has_several_threads() -> bool {
    // Relaxed: who finds an old answer does what would have been right a moment ago.
    if HAS_OTHERS.load(Ordering::Relaxed) {
        return true;
    }
    let this = Context::thread();
    let first = FIRST_THREAD.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed);
    let is_first = first.is_ok_and(|_| true) || first == Err(this);
    HAS_OTHERS.store(!is_first, Ordering::Relaxed);
    !is_first
}

fn is_worth_a_thread() -> bool {
    page::dirty() >= SPAWN_FROM || page::charged() >= SPAWN_FROM_ALL
}

/// Reads the settings. A second time changes nothing.
fn read_settings() {
    let decay = match os::env(c"HAYLOFT_DECAY_MS") {
        None => DEFAULT_DECAY_MS,
        Some(text) => {
            let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            number.filter(|number| *number <= MAX_DECAY_MS).unwrap_or_else(|| {
                os::ignored(
                    c"HAYLOFT_DECAY_MS",
                    format_args!("no number of milliseconds up to {MAX_DECAY_MS}"),
                );
                DEFAULT_DECAY_MS
            })
        }
    };
    WINDOW.store((decay / 3).max(SHORTEST), Ordering::Relaxed);
    let least = ALLOWANCE_PER_MS * decay as usize;
    ALLOWANCE.least.store(least, Ordering::Relaxed);
    ALLOWANCE.bytes.store(least, Ordering::Relaxed);
    pressure::read();
    let background = match os::env(c"HAYLOFT_BACKGROUND") {
        None => OF_SEVERAL_THREADS,
        Some(b"0") => NONE,
        Some(b"1") => ALL,
        Some(_) => {
            os::ignored(c"HAYLOFT_BACKGROUND", format_args!("neither 0 nor 1"));
            OF_SEVERAL_THREADS
        }
    };
    BACKGROUND.store(background, Ordering::Relaxed);
    _ = swap(UNKNOWN, NOBODY);
}

/// Makes the thread, if that is worth it.
fn spawn(end_window: Window) {
    /// When a thread could not be made last, in milliseconds.
    static FAILED: AtomicU64 = AtomicU64::new(0);
    if !is_worth_a_thread() {
        return;
    }
    let failed = FAILED.load(Ordering::Relaxed);
    if failed != 0 && os::milliseconds().wrapping_sub(failed) < RETRY || !swap(NOBODY, SPAWNING) {
        return;
    }
    // Relaxed: making the thread orders this before its life.
    ROUTINE.store(end_window as *mut (), Ordering::Relaxed);
    if !os::bare::spawn(thread_main) {
        FAILED.store(os::milliseconds().max(1), Ordering::Relaxed);
        _ = swap(SPAWNING, NOBODY);
    }
}

/// The life of the thread.
extern "C" fn thread_main() {
    // Whoever frees something from now on finds the thread.
    STATE.store(NOTED, Ordering::Relaxed);
    os::name_thread(c"hayloft/reclaim");
    let looks_at_pressure = os::bare::own_descriptors();
    // SAFETY: what `spawn` stored.
    let end_window: Window = unsafe { mem::transmute(ROUTINE.load(Ordering::Relaxed)) };
    let mut windows = 0;
    loop {
        let occasion = wait(looks_at_pressure);
        // Acquire: pairs with the Release in `swap`. A free that is not seen by this look finds
        // QUIET, or what comes after it.
        let was_noted = STATE.swap(QUIET, Ordering::Acquire) == NOTED;
        let before = page::decommitted();
        let has_more = Context::enter(|context| end_window(context, occasion));
        if occasion == Occasion::Shortage {
            pressure::note_yield(page::decommitted() - before);
        }
        windows += 1;
        // In a program that goes on, the next free makes another.
        let is_old = windows >= LIFE && was_noted;
        if (!has_more || is_old) && (swap(QUIET, NOBODY) || is_old && swap(NOTED, NOBODY)) {
            break;
        }
    }
}

/// Waits for the end of a window, or until memory is short.
fn wait(looks_at_pressure: bool) -> Occasion {
    let mut left = WINDOW.load(Ordering::Relaxed);
    while left > 0 {
        let some = left.min(LOOK_EVERY);
        os::sleep_microseconds(some * 1000);
        left -= some;
        if looks_at_pressure && pressure::is_high() {
            return Occasion::Shortage;
        }
    }
    Occasion::Window
}

/// In the child of a fork, which has one thread, and not this one.
pub(crate) fn in_child() {
    os::bare::in_child();
    FIRST_THREAD.store(0, Ordering::Relaxed);
    HAS_OTHERS.store(false, Ordering::Relaxed);
    if STATE.load(Ordering::Relaxed) != UNKNOWN {
        STATE.store(NOBODY, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    const LEAST: usize = 4 * MIB;

    /// Frees a heap of so many MiB, one after the other; returns the bytes that stay, and how often
    /// some were purged.
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
    fn a_burst_leaves_the_least_allowance() {
        let allowance = Allowance::new(LEAST);
        let (rest, purges) = free_all(&allowance, 400, 1000);
        assert!(rest <= LEAST && purges > 5);
    }

    #[test]
    fn phases_that_come_soon_keep_their_memory() {
        let allowance = Allowance::new(LEAST);
        free_all(&allowance, 100, 1000);
        let (_, purges) = free_all(&allowance, 100, 2000);
        assert!(purges < 5, "it is missed, and stays");
        assert_eq!(free_all(&allowance, 100, 3000), (100 * MIB, 0));
        let (rest, _) = free_all(&allowance, 150, 3000 + 10 * SOON);
        assert!(rest <= LEAST, "after a long time it is as at first");
    }
}
