//! A thread unknown to the C library.
//!
//! It is created by a bare `clone`, which takes no lock and allocates nothing. So it can be created
//! in a `free` that the C library calls under its own locks, in a signal handler, and in a fork
//! child. The C library does not count it: the process exits when the program's own threads have
//! ended, even while this thread runs, and `fork` treats a program with one thread of its own as
//! single-threaded.
//!
//! The price is that this thread must not use any part of the C library that depends on the
//! library's own record of the thread: no thread-locals except this allocator's, no locks, no
//! panics. Its block of thread-locals is zero, except for a few words, wherever the C library and
//! this allocator read it.
//!
//! At most one such thread exists. Its stack and its block are reserved once and reused.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::inject::{Call, fails};
use super::linux::{self, call};
use crate::arch;

/// Stack alignment in bytes that the ABIs require.
const STACK_ALIGNMENT: usize = 16;
/// Bytes on both sides of the known thread-locals, where the C library keeps its thread descriptor.
const MARGIN: usize = 16 << 10;

/// The `cpu_id` of a thread that the kernel refused to register.
const REFUSED: i32 = -2;

/// The kernel's number of the thread; 0 while there is none. The kernel clears it, and wakes its
/// waiters, when the thread has left its stack.
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The lowest address of the thread's memory: a guard page, the stack, the block of thread-locals.
/// Null before the first thread.
static MEMORY: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Layout of the thread's memory, in bytes.
struct Layout {
    /// Bytes in total.
    len: usize,
    /// Offset of the end of the stack.
    stack_end: usize,
    /// Offset of the address in the thread pointer.
    thread_pointer: usize,
}

impl Layout {
    /// Returns the layout for a stack of `stack` bytes that fits the thread-locals of this process,
    /// or `None` if their location is unknown.
    fn of_this_process(stack: usize) -> Option<Layout> {
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
        let stack_end = page + stack.next_multiple_of(page);
        let thread_pointer = stack_end + (below + MARGIN).next_multiple_of(page);
        let len = thread_pointer + (above + MARGIN).next_multiple_of(page);
        Some(Layout { len, stack_end, thread_pointer })
    }
}

/// Returns whether the thread exists. It may be about to end.
pub(crate) fn is_alive() -> bool {
    NUMBER.load(Ordering::Relaxed) != 0
}

/// Notes, in a fork child, that the thread does not exist there.
pub(crate) fn in_child() {
    NUMBER.store(0, Ordering::Relaxed);
}

/// Starts the thread, which runs `body` on a stack of `stack` bytes, the same in all calls, with
/// all signals blocked, including those that the C library reserves for itself. Returns false if no
/// thread can be created. Waits for the previous thread to leave its stack. May be called in any
/// context, by one caller at a time.
pub(super) fn spawn(stack: usize, body: extern "C" fn()) -> bool {
    if fails(Call::Clone) {
        return false;
    }
    let Some(layout) = Layout::of_this_process(stack) else { return false };
    let Some(memory) = memory(&layout) else { return false };
    // Acquire: pairs with the kernel's store when the previous thread is done with the memory.
    while let number @ 1.. = NUMBER.load(Ordering::Acquire) {
        linux::futex_wait_shared(&NUMBER, number);
    }
    // SAFETY: the offsets lie in the thread's memory, which no one else uses: the previous thread
    // has ended, and there is one caller at a time.
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
        // The new thread inherits the signal mask.
        linux::change_bare_mask(&all, Some(&mut before));
        // Not at the very end: Valgrind takes the page of the stack pointer for the last page of
        // the stack.
        let top = memory.add(layout.stack_end - STACK_ALIGNMENT).as_ptr();
        let made = arch::start_thread(flags, top, NUMBER.as_ptr(), pointer, body);
        linux::change_bare_mask(&before, None);
        made > 0
    }
}

/// Returns the memory of the thread. The first call reserves it.
fn memory(layout: &Layout) -> Option<NonNull<u8>> {
    // Acquire: pairs with the Release store at the end of this function.
    if let Some(memory) = NonNull::new(MEMORY.load(Ordering::Acquire)) {
        return Some(memory);
    }
    let memory = linux::reserve(layout.len)?;
    let page = linux::page_size();
    // SAFETY: the range lies in the reservation just made; its first page stays inaccessible.
    if !unsafe { linux::commit(memory.add(page), layout.len - page) } {
        // SAFETY: the reservation was just made and never published.
        unsafe { linux::unreserve(memory, layout.len) };
        return None;
    }
    // Release: pairs with the Acquire load at the start of this function.
    MEMORY.store(memory.as_ptr(), Ordering::Release);
    Some(memory)
}

/// Initialises the block of thread-locals: zeros, except the words that hold the thread pointer and
/// the fields that mark the thread as one without a CPU.
///
/// # Safety
/// `block` is the end of the stack in memory of this `layout`, and `pointer` the thread pointer in
/// it. Nobody uses that memory.
unsafe fn prepare(block: *mut u8, layout: &Layout, pointer: *mut u8) {
    // SAFETY: the caller guarantees unused memory of this layout, and the layout was computed from
    // the offsets used here.
    unsafe {
        block.write_bytes(0, layout.len - layout.stack_end);
        if cfg!(target_arch = "x86_64") {
            // The ABI keeps the thread pointer in the first word, C libraries also in the third.
            pointer.cast::<*mut u8>().write(pointer);
            pointer.cast::<*mut u8>().add(2).write(pointer);
        }
        let here = arch::thread_pointer().addr();
        let own = arch::own_rseq().addr().wrapping_sub(here) as isize;
        // Counts as registered: a registration would need the C library's hook at thread exit.
        let locals = ptr::from_ref(arch::locals()).addr().wrapping_sub(here) as isize;
        (*pointer.offset(locals).cast::<arch::Locals>()).registration.store(1, Ordering::Relaxed);
        for area in [Some(own), arch::libc_rseq()].into_iter().flatten() {
            let area = pointer.offset(area).cast::<arch::RseqArea>();
            (&raw mut (*area).cpu_id).write(REFUSED);
        }
    }
}

/// Gives this thread an empty descriptor table of its own. The program neither sees nor closes
/// descriptors opened here. Returns false if the kernel cannot do this (before 5.9).
pub(crate) fn own_descriptors() -> bool {
    const UNSHARE: usize = 2;
    // SAFETY: `UNSHARE` limits the closing to this thread's own table; it uses none of its entries.
    unsafe { call(libc::SYS_close_range, [0, u32::MAX as usize, UNSHARE]).is_ok() }
}
