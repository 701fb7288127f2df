//! Debuggers and profilers: a thread is interrupted at each instruction, and its stack is walked
//! there.
//!
//! A thread steps itself by the trap flag. The kernel sends it a signal after each instruction,
//! which also aborts a restartable sequence. The signal's handler walks the stack.
#![cfg(all(target_arch = "x86_64", target_env = "gnu"))]

use std::alloc::GlobalAlloc;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use hayloft::Hayloft;
use hayloft_core::cache::Cache;
use hayloft_core::{by_address, stack};
use tests::scenario::on_both_backends;
use tests::sizes::layout;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// More steps than anything here takes, even unoptimised. A thread that was stopped that often
/// makes no progress.
const MOST_STEPS: usize = 1_000_000;

const TRAP_FLAG: i64 = 1 << 8;

const IDLE: usize = 0;
const STEPPING: usize = 1;

static STATE: AtomicUsize = AtomicUsize::new(IDLE);
static STEPS: AtomicUsize = AtomicUsize::new(0);
/// Outermost frame of the thread's stack, which every walk must reach.
static OUTERMOST: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Number of walks that did not reach it, and the instruction at which the first of them began.
static TRUNCATED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

unsafe extern "C" {
    fn backtrace(frames: *mut *mut c_void, room: c_int) -> c_int;
}

/// Returns the outermost frame of this stack.
fn outermost() -> *mut c_void {
    let mut frames = [ptr::null_mut(); 100];
    // SAFETY: `frames` has room for as many frames as the call says.
    let depth = unsafe { backtrace(frames.as_mut_ptr(), frames.len() as c_int) };
    frames[..depth as usize].last().copied().unwrap_or(ptr::null_mut())
}

/// As [`outermost`], but by Hayloft's own walk.
fn outermost_captured() -> *mut c_void {
    let mut frames = [0; 100];
    let depth = stack::capture(&mut frames);
    let outermost = frames[..depth].last().copied().unwrap_or(0);
    ptr::without_provenance_mut(outermost)
}

extern "C" fn stepped(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: `context` is the kernel's record of the interrupted thread, valid during the handler.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let steps = STEPS.fetch_add(1, Ordering::Relaxed);
    if STATE.load(Ordering::Relaxed) == IDLE || steps > MOST_STEPS {
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
        return;
    }
    registers[libc::REG_EFL as usize] |= TRAP_FLAG;
    let instruction = registers[libc::REG_RIP as usize] as usize;
    // SAFETY: the thread will execute the code at `instruction`. An indirect jump there is a
    // linker's stub for a call of the C library, and not every linker emits unwind information for
    // stubs. Hayloft's own walk knows them.
    let in_stub =
        unsafe { ptr::with_exposed_provenance::<[u8; 2]>(instruction).read() } == [0xff, 0x25];
    let expected = OUTERMOST.load(Ordering::Relaxed);
    let is_complete = outermost_captured() == expected && (in_stub || outermost() == expected);
    if !is_complete && TRUNCATED[0].fetch_add(1, Ordering::Relaxed) == 0 {
        TRUNCATED[1].store(instruction, Ordering::Relaxed);
    }
}

/// Runs `run` instruction by instruction. It must complete, and every walk must reach the outermost
/// frame.
fn step_through(what: &str, run: impl Fn()) {
    // One-time work is not stepped through. It creates threads, with signals blocked, and a trap
    // while `SIGTRAP` is blocked kills the process.
    (0..2000).for_each(|_| run());
    OUTERMOST.store(outermost(), Ordering::Relaxed);
    for round in 0..2 {
        STEPS.store(0, Ordering::Relaxed);
        STATE.store(STEPPING, Ordering::Relaxed);
        // SAFETY: a handler is installed.
        unsafe { libc::raise(libc::SIGTRAP) };
        run();
        STATE.store(IDLE, Ordering::Relaxed);
        let steps = STEPS.load(Ordering::Relaxed);
        println!("{what}, round {round}: {steps} steps");
        assert!(steps > 20 && steps < MOST_STEPS, "{what}, round {round}: {steps} steps");
        let [truncated, first] = TRUNCATED.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert_eq!(truncated, 0, "{what}: incomplete stack walks, the first from {first:#x}");
    }
}

#[test]
fn single_stepped_thread_makes_progress_and_can_be_unwound() {
    on_both_backends(|| {
        handle_traps();
        step_through_all();
    });
}

fn handle_traps() {
    // SAFETY: the handler allocates nothing, since the first call of `backtrace` has loaded what it
    // needs.
    unsafe {
        outermost();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stepped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()), 0);
    }
}

fn step_through_all() {
    let layout = layout(100, 8);
    step_through("a block", || {
        // SAFETY: the layout is not empty, and the block is freed once, with the same layout.
        unsafe {
            let block = GLOBAL.alloc(layout);
            assert!(!block.is_null());
            GLOBAL.dealloc(black_box(block), layout);
        }
    });
    step_through("a block known by its address", || {
        let block = by_address::alloc(200);
        assert!(!block.is_null());
        // SAFETY: the block is live, and freed once.
        unsafe { by_address::free(black_box(block)) };
    });
    step_through("a block that grows", || {
        // SAFETY: `realloc` gets a live block, and the block that it returns is freed once.
        unsafe {
            let block = by_address::realloc(by_address::alloc(50), 1000);
            assert!(!block.is_null());
            by_address::free(black_box(block));
        }
    });
    let cache = Cache::builder("stepped", layout).build().unwrap();
    step_through("an object", || {
        let object = cache.alloc().unwrap();
        // SAFETY: the object belongs to this cache and is freed once.
        unsafe { cache.free(black_box(object)) };
    });
    step_through("many objects", || {
        let mut room = [MaybeUninit::<NonNull<u8>>::uninit(); 10];
        assert_eq!(cache.alloc_bulk(&mut room), room.len());
        // SAFETY: `alloc_bulk` filled the array with objects of this cache, each freed once.
        unsafe { cache.free_bulk(&room.map(|object| object.assume_init())) };
    });
    cache.destroy().unwrap();
}
