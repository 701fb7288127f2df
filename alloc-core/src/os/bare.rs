//! A thread that the C library does not know.
//!
//! It is made by a bare `clone`, which takes no lock and allocates nothing. So it can be made in a
//! `free` that the C library makes under its own locks, in a signal handler, and in the child of a
//! fork. The C library does not count it: a program whose threads have all ended ends, though this
//! one is there, and `fork` treats a program with one thread of its own as that.
//!
//! The price is that it may use nothing of the C library that needs a thread it knows: no
//! thread-locals but this allocator's, no locks, no panics. It gets a block for thread-locals that
//! is zero where the C library and this allocator look.
//!
//! There is one at a time. Its stack and its block are reserved once and used again.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::inject::{Call, fails};
use super::linux::{self, call};
use crate::arch;

/// Bytes of its stack.
const STACK: usize = 256 << 10;
/// Bytes that the ABIs align a stack to.
const STACK_ALIGNMENT: usize = 16;
/// Bytes beyond the thread-locals that are known, on both sides: the C library's descriptor of a
/// thread is there.
const MARGIN: usize = 16 << 10;

/// The CPU number of a thread that the kernel refused to register.
const REFUSED: i32 = -2;

/// The kernel's number of the thread; 0 while there is none. The kernel clears it, and wakes, when
/// the thread has left its stack.
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// What it runs; written before it is started.
static BODY: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
/// The lowest address of its memory: a guard page, the stack, the block. Null before the first.
static MEMORY: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Where things are in the memory of the thread.
struct Layout {
    /// Bytes in all, and up to the end of the stack.
    len: usize,
    stack_end: usize,
    /// Offset of what the thread pointer points to.
    thread_pointer: usize,
}

impl Layout {
    /// Returns the layout that the thread-locals of this process call for, or `None` where nobody
    /// knows where these are.
    fn of_this_process() -> Option<Layout> {
        let pointer = arch::thread_pointer();
        if pointer.is_null() {
            return None;
        }
        // SAFETY: the address of this thread's `errno` is always valid.
        let errno = unsafe { libc::__errno_location() };
        let offset = |address: usize| address.wrapping_sub(pointer.addr()) as isize;
        let offsets = [
            offset(errno.addr()),
            offset(arch::own_rseq().addr()),
            offset(ptr::from_ref(arch::locals()).addr()),
            arch::libc_rseq().unwrap_or(0),
        ];
        let below = offsets.iter().map(|offset| offset.min(&0).unsigned_abs()).max()?;
        let above = offsets.iter().map(|offset| offset.max(&0).unsigned_abs()).max()?;
        let page = linux::page_size();
        let stack_end = page + STACK.next_multiple_of(page);
        let thread_pointer = stack_end + (below + MARGIN).next_multiple_of(page);
        let len = thread_pointer + (above + MARGIN).next_multiple_of(page);
        Some(Layout { len, stack_end, thread_pointer })
    }
}

/// Returns whether the thread is there. It may be about to end.
pub(crate) fn is_alive() -> bool {
    NUMBER.load(Ordering::Relaxed) != 0
}

/// In the child of a fork, which does not have the thread.
pub(crate) fn in_child() {
    NUMBER.store(0, Ordering::Relaxed);
}

/// Starts the thread, which runs `body` with all signals blocked, ordinary scheduling, the CPUs
/// that the process may use, and a table of descriptors of its own that is empty; false where there
/// can be none. Waits for the last one to leave its stack. May be called in any context, by one
/// caller at a time.
pub(crate) fn spawn(body: extern "C" fn()) -> bool {
    if fails(Call::Clone) {
        return false;
    }
    let Some(layout) = Layout::of_this_process() else { return false };
    let Some(memory) = memory(&layout) else { return false };
    // Acquire: the last thread is done with the memory; the kernel's store orders that.
    while let number @ 1.. = NUMBER.load(Ordering::Acquire) {
        linux::futex_wait_shared(&NUMBER, number);
    }
    // SAFETY: offsets within memory that is ours alone, as no such thread exists.
    unsafe {
        let pointer = memory.add(layout.thread_pointer).as_ptr();
        prepare(memory.add(layout.stack_end).as_ptr(), &layout, pointer);
        let all = u64::MAX;
        let mut before = 0u64;
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        BODY.store(body as *mut (), Ordering::Relaxed);
        // The new thread inherits the mask.
        linux::change_bare_mask(&all, Some(&mut before));
        // Not at the very end: Valgrind takes the page that the stack pointer lies in for the
        // last one of the stack.
        let stack = memory.add(layout.stack_end - STACK_ALIGNMENT).as_ptr();
        let made = arch::start_thread(flags, stack, NUMBER.as_ptr(), pointer, thread_main);
        linux::change_bare_mask(&before, None);
        made > 0
    }
}

/// Returns the memory of the thread, reserved by the first call.
fn memory(layout: &Layout) -> Option<NonNull<u8>> {
    // Acquire: pairs with the Release below.
    if let Some(memory) = NonNull::new(MEMORY.load(Ordering::Acquire)) {
        return Some(memory);
    }
    let memory = linux::reserve(layout.len)?;
    let page = linux::page_size();
    // SAFETY: a reservation of that length, of which the first page stays inaccessible.
    if !unsafe { linux::commit(memory.add(page), layout.len - page) } {
        // SAFETY: nobody has it.
        unsafe { linux::unreserve(memory, layout.len) };
        return None;
    }
    // Release: pairs with the Acquire above.
    MEMORY.store(memory.as_ptr(), Ordering::Release);
    Some(memory)
}

/// Makes a block that is zero, but for what tells where it is and that the thread has no CPU.
///
/// # Safety
/// `block` is where the stack ends, and `pointer` the thread pointer; nobody uses that memory.
unsafe fn prepare(block: *mut u8, layout: &Layout, pointer: *mut u8) {
    // SAFETY: the caller's promise; the offsets are those that the layout was made for.
    unsafe {
        block.write_bytes(0, layout.len - layout.stack_end);
        if cfg!(target_arch = "x86_64") {
            // The ABI has the thread pointer there, and C libraries in the third word as well.
            pointer.cast::<*mut u8>().write(pointer);
            pointer.cast::<*mut u8>().add(2).write(pointer);
        }
        let here = arch::thread_pointer().addr();
        let own = arch::own_rseq().addr().wrapping_sub(here) as isize;
        // Registering it would take a hook at its end, of the C library.
        let locals = ptr::from_ref(arch::locals()).addr().wrapping_sub(here) as isize;
        (*pointer.offset(locals).cast::<arch::Locals>()).registration.store(1, Ordering::Relaxed);
        for area in [Some(own), arch::libc_rseq()].into_iter().flatten() {
            let area = pointer.offset(area).cast::<arch::RseqArea>();
            (&raw mut (*area).cpu_id).write(REFUSED);
        }
    }
}

/// The life of the thread.
extern "C" fn thread_main() {
    linux::schedule_as_the_process();
    // SAFETY: what `spawn` stored.
    unsafe { core::mem::transmute::<*mut (), extern "C" fn()>(BODY.load(Ordering::Relaxed))() }
}

/// Gives this thread a table of descriptors of its own, without any: the program neither sees what
/// is opened here, nor closes it. False where the kernel cannot (before 5.9).
pub(crate) fn own_descriptors() -> bool {
    const UNSHARE: usize = 2;
    // SAFETY: this thread has no descriptors open that are its own.
    unsafe { call(libc::SYS_close_range, [0, u32::MAX as usize, UNSHARE]).is_ok() }
}
