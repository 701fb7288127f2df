//! What debuggers and profilers do to a thread: it is interrupted at each instruction, and whoever interrupted it walks its stack.
//!
//! A thread steps itself, by the trap flag: the kernel sends it a signal after each instruction, which also interrupts the
//! restartable sequence that it may be in. The signal's handler walks the stack.
#![cfg(all(target_arch = "x86_64", target_env = "gnu"))]

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use alloc_core::by_address;
use alloc_core::cache::Cache;
use alloc_global::Hayloft;
use tests::scenario::on_both_backends;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// More than anything here takes, even without optimization: a thread that was stopped so often makes no progress.
const MOST_STEPS: usize = 1_000_000;

const TRAP_FLAG: i64 = 1 << 8;

const IDLE: usize = 0;
const STEPPING: usize = 1;

static STATE: AtomicUsize = AtomicUsize::new(IDLE);
static STEPS: AtomicUsize = AtomicUsize::new(0);
/// Where the thread's stack begins: what every walk must reach.
static OUTERMOST: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Walks that did not, and the instruction where the first of them began.
static LOST: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

unsafe extern "C" {
    fn backtrace(frames: *mut *mut c_void, room: c_int) -> c_int;
}

/// The outermost frame of this stack.
fn outermost() -> *mut c_void {
    let mut frames = [ptr::null_mut(); 100];
    // SAFETY: there is room for so many.
    let depth = unsafe { backtrace(frames.as_mut_ptr(), frames.len() as c_int) };
    frames[..depth as usize].last().copied().unwrap_or(ptr::null_mut())
}

extern "C" fn stepped(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's record of the interrupted thread.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let steps = STEPS.fetch_add(1, Ordering::Relaxed);
    if STATE.load(Ordering::Relaxed) == IDLE || steps > MOST_STEPS {
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
        return;
    }
    registers[libc::REG_EFL as usize] |= TRAP_FLAG;
    let instruction = registers[libc::REG_RIP as usize] as usize;
    // SAFETY: where the thread goes on there is code. A jump by way of the offset table is the linker's, for a call of the C
    // library, of which not every linker tells how to walk on.
    let in_stub =
        unsafe { ptr::with_exposed_provenance::<[u8; 2]>(instruction).read() } == [0xff, 0x25];
    if !in_stub
        && outermost() != OUTERMOST.load(Ordering::Relaxed)
        && LOST[0].fetch_add(1, Ordering::Relaxed) == 0
    {
        LOST[1].store(instruction, Ordering::Relaxed);
    }
}

/// Runs something step by step. It must come to its end, and the stack must be known at each step.
fn step_through(what: &str, run: impl Fn()) {
    // What is done once is not stepped through: threads are made with their signals blocked, which a trap does not survive.
    (0..2000).for_each(|_| run());
    OUTERMOST.store(outermost(), Ordering::Relaxed);
    for round in 0..2 {
        STEPS.store(0, Ordering::Relaxed);
        STATE.store(STEPPING, Ordering::Relaxed);
        // SAFETY: there is a handler.
        unsafe { libc::raise(libc::SIGTRAP) };
        run();
        STATE.store(IDLE, Ordering::Relaxed);
        let steps = STEPS.load(Ordering::Relaxed);
        println!("{what}, round {round}: {steps} steps");
        assert!(steps > 20 && steps < MOST_STEPS, "{what}, round {round}: {steps} steps");
        let [lost, first] = LOST.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert_eq!(lost, 0, "{what}: stacks not walked to their end, the first from {first:#x}");
    }
}

#[test]
fn a_thread_that_is_stepped_makes_progress_and_its_stack_is_known() {
    on_both_backends(|| {
        handle_traps();
        step_through_all();
    });
}

fn handle_traps() {
    // SAFETY: a handler that allocates nothing: what `backtrace` loads is loaded by the first call.
    unsafe {
        outermost();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stepped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()), 0);
    }
}

fn step_through_all() {
    let layout = Layout::from_size_align(100, 8).unwrap();
    step_through("a block", || {
        // SAFETY: a block that is freed once, with its layout.
        unsafe {
            let block = GLOBAL.alloc(layout);
            assert!(!block.is_null());
            GLOBAL.dealloc(black_box(block), layout);
        }
    });
    step_through("a block known by its address", || {
        let block = by_address::alloc(200);
        assert!(!block.is_null());
        // SAFETY: a block that is freed once.
        unsafe { by_address::free(black_box(block)) };
    });
    step_through("a block that grows", || {
        // SAFETY: as above.
        unsafe {
            let block = by_address::realloc(by_address::alloc(50), 1000);
            assert!(!block.is_null());
            by_address::free(black_box(block));
        }
    });
    let cache = Cache::builder("stepped", layout).build().unwrap();
    step_through("an object", || {
        let object = cache.alloc().unwrap();
        // SAFETY: an object of that cache.
        unsafe { cache.free(black_box(object)) };
    });
    step_through("many objects", || {
        let mut room = [MaybeUninit::<NonNull<u8>>::uninit(); 10];
        assert_eq!(cache.alloc_bulk(&mut room), room.len());
        // SAFETY: filled by `alloc_bulk`, with objects of that cache.
        unsafe { cache.free_bulk(&room.map(|object| object.assume_init())) };
    });
    cache.destroy().unwrap();
}
