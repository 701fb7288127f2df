//! Reclaim: memory that nobody needs goes back to the system, while the program is idle, too.
//!
//! A thread of ours ends *windows* of time, and what was unneeded all through one goes a step further. It is made once
//! [`SPAWN_FROM`] bytes are unneeded, or the heap has [`SPAWN_FROM_ALL`], and sleeps while there is nothing to give back; so a
//! small program never has it, and an idle one is not woken. It has all signals blocked, and is not one of those that act as
//! CPUs: programs that need none of these have memory to give back, too.
//!
//! Only an allocation makes it. A free may be one of the C library's, which frees the thread-locals of threads that ended under the
//! very lock that it needs to make a thread (glibc's `dl_stack_cache_lock`). Nor is it made on a thread that has signals blocked, which
//! may be in a handler that interrupted the making of a thread. Until there is one, with `HAYLOFT_BACKGROUND=0`, or where there
//! can be none, frees look at a clock.
//!
//! `HAYLOFT_DECAY_MS` is how long pages may stay unneeded: two windows of a third each, and some time to give them back; 0 gives
//! them back at once. What CPUs and nodes keep for those takes a window or two more.
//!
//! Where memory is short (`pressure`), it all goes back.
//!
//! This file may touch `page`, `pressure`, `sync` and `os`.

use core::ffi::c_void;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::os;
use crate::page;
use crate::pressure;
use crate::sync::{Bell, Context};

/// Bytes that are unneeded for which a thread is worth it.
const SPAWN_FROM: usize = 2 << 20;
/// Bytes of a heap among which as much may be unneeded, in slabs.
const SPAWN_FROM_ALL: usize = 16 << 20;

/// Bytes of its stack.
const STACK: usize = 256 << 10;

/// Milliseconds at most between looks at whether memory is short.
const LOOK_EVERY: u32 = 333;

/// No workload measured takes more time than with a second; `git gc` needs a tenth less memory.
const DEFAULT_DECAY_MS: u32 = 300;
const MAX_DECAY_MS: u32 = 60 * 60 * 1000;

/// Who ends windows.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// Settings were not read.
const UNKNOWN: u8 = 0;
/// Frees, by the clock; the next allocation makes the thread, if it is worth it.
const NOBODY: u8 = 1;
/// Frees, by the clock.
const CLOCK: u8 = 2;
/// Nobody, but somebody makes the thread.
const SPAWNING: u8 = 3;
/// The thread.
const THREAD: u8 = 4;
/// Nobody: all goes back at once.
const AT_ONCE: u8 = 5;

/// Milliseconds of a window.
static WINDOW: AtomicU32 = AtomicU32::new(DEFAULT_DECAY_MS / 3);

/// Silent while the thread sleeps, as nothing is dirty.
static BELL: Bell = Bell::new();

/// What is done at the end of a window, or when memory is short; whether there may be more to do at the end of the next.
pub(crate) type Window = fn(Context, is_short: bool) -> bool;

/// What the thread does; written before it is made.
static ROUTINE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// To be called when something was freed, without any lock. `end_window` is always the same.
#[inline]
pub(crate) fn freed(context: Context, end_window: Window) {
    page::keep_limit(context);
    // Relaxed, here and below: who finds an old state does what would have been right a moment ago.
    if STATE.load(Ordering::Relaxed) != THREAD {
        freed_without_thread(context, end_window);
    } else if BELL.is_silent() && BELL.ring() {
        BELL.wake();
    }
}

#[cold]
#[inline(never)]
fn freed_without_thread(context: Context, end_window: Window) {
    // What may not wait leaves it to the next.
    if !context.may_wait() {
        return;
    }
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => settle(),
        AT_ONCE => {
            page::trim(context);
        }
        NOBODY if !is_worth_a_thread() => {}
        CLOCK | NOBODY => {
            /// When the last window ended, in milliseconds; 0 before the first has begun.
            static LAST: AtomicU64 = AtomicU64::new(0);
            let (now, last) = (os::milliseconds(), LAST.load(Ordering::Relaxed));
            if now.wrapping_sub(last) >= WINDOW.load(Ordering::Relaxed).into()
                && LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                && last != 0
            {
                end_window(context, pressure::is_high());
            }
        }
        _ => {}
    }
}

/// To be called at the end of what allocates beyond sheaves, without any lock. `end_window` as in [`freed`].
#[inline]
pub(crate) fn allocated(context: Context, end_window: Window) {
    if STATE.load(Ordering::Relaxed) <= NOBODY && context.may_wait() && is_worth_a_thread() {
        make_thread(end_window);
    }
}

#[cold]
#[inline(never)]
fn make_thread(end_window: Window) {
    settle();
    if STATE.load(Ordering::Relaxed) == NOBODY && !os::has_signals_blocked() {
        spawn(end_window);
    }
}

fn is_worth_a_thread() -> bool {
    page::dirty() >= SPAWN_FROM || page::charged() >= SPAWN_FROM_ALL
}

/// Reads the settings, unless they were read.
fn settle() {
    if STATE.load(Ordering::Relaxed) == UNKNOWN {
        let settled = settings();
        // Unless somebody was faster, whose thread may be there already.
        _ = STATE.compare_exchange(UNKNOWN, settled, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn settings() -> u8 {
    let decay = match os::env(c"HAYLOFT_DECAY_MS") {
        None => DEFAULT_DECAY_MS,
        Some(text) => {
            let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            number.filter(|number| *number <= MAX_DECAY_MS).unwrap_or_else(|| {
                let what = format_args!("no number of milliseconds up to {MAX_DECAY_MS}");
                os::ignored(c"HAYLOFT_DECAY_MS", what);
                DEFAULT_DECAY_MS
            })
        }
    };
    WINDOW.store((decay / 3).max(1), Ordering::Relaxed);
    pressure::read();
    let background = match os::env(c"HAYLOFT_BACKGROUND") {
        None | Some(b"1") => true,
        Some(b"0") => false,
        Some(_) => {
            os::ignored(c"HAYLOFT_BACKGROUND", format_args!("neither 0 nor 1"));
            true
        }
    };
    match (decay, background) {
        (0, _) => AT_ONCE,
        (_, false) => CLOCK,
        (_, true) => NOBODY,
    }
}

fn spawn(end_window: Window) {
    // What it allocates and frees may come here again.
    let swap = |from, to| STATE.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    if swap(NOBODY, SPAWNING).is_err() {
        return;
    }
    // Relaxed: making the thread orders this before its life.
    ROUTINE.store(end_window as *mut (), Ordering::Relaxed);
    // The new thread inherits the mask.
    let _masked = os::block_signals();
    let thread = os::spawn(STACK, live, ptr::null_mut());
    STATE.store(if thread.is_some() { THREAD } else { CLOCK }, Ordering::Relaxed);
}

/// The life of the thread: as long as that of the process.
extern "C" fn live(_: *mut c_void) -> *mut c_void {
    os::name_thread(c"hayloft/reclaim");
    // SAFETY: what `spawn` stored.
    let end_window: Window = unsafe { mem::transmute(ROUTINE.load(Ordering::Relaxed)) };
    loop {
        BELL.answer();
        // It looks under the locks of arenas: who frees after that finds the bell silent, and rings it.
        let mut is_short = false;
        while Context::enter(|context| end_window(context, is_short)) {
            is_short = wait();
        }
        BELL.sleep();
    }
}

/// Waits for the end of a window, or until memory is short; whether it is.
fn wait() -> bool {
    let mut left = WINDOW.load(Ordering::Relaxed);
    while left > 0 {
        let some = left.min(LOOK_EVERY);
        os::sleep_microseconds(some * 1000);
        left -= some;
        if pressure::is_high() {
            return true;
        }
    }
    false
}

/// In the child of a fork, which does not have the thread.
pub(crate) fn forget() {
    let state = STATE.load(Ordering::Relaxed);
    if state == THREAD || state == SPAWNING {
        STATE.store(NOBODY, Ordering::Relaxed);
    }
}
