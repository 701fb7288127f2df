//! Reading the memory of a stack, at addresses that may be wrong.
//!
//! Of the stack that a thread runs on, all above its stack pointer is mapped. Where the end of the
//! stack is known, memory up to there is read directly. All other memory is read by a system call
//! that cannot fault (`process_vm_readv`); a walk ends where the kernel refuses it.

use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering;

use crate::{arch, os};

/// Bytes below the top of the main thread's stack in which the kernel places nothing else, whatever
/// the limit on the stack is.
const MAIN_STACK: usize = 64 << 20;
/// Most bytes of a thread's stack that are checked.
const THREAD_STACK: usize = 2 << 20;
/// Words read by one system call.
const WINDOW: usize = 8;
/// More bytes than a frame usually has.
const LARGE: usize = 64 << 10;
const WORD: usize = size_of::<usize>();

pub(super) struct Memory {
    /// The part of the stack that is known to be mapped.
    stack: Range<usize>,
    /// The code whose table is being used. It is mapped as well.
    code: Range<usize>,
    /// Words read by a system call, their number, and the address of the first.
    window: [usize; WINDOW],
    len: usize,
    start: usize,
}

impl Memory {
    /// Returns the memory as seen from a stack pointer of this thread.
    pub(super) fn new(stack_pointer: usize) -> Memory {
        let (stack, code) = (mapped_stack(stack_pointer), 0..0);
        Memory { stack, code, window: [0; WINDOW], len: 0, start: 0 }
    }

    /// Notes that the walk goes on at another stack pointer, perhaps on another stack.
    #[inline]
    pub(super) fn move_to(&mut self, before: usize, stack_pointer: usize) {
        let is_on_stack = if self.stack.is_empty() {
            // Asking for each frame would take long.
            stack_pointer.wrapping_sub(before) < LARGE
        } else {
            // The outermost frame may end where the stack does.
            self.stack.start <= stack_pointer && stack_pointer <= self.stack.end
        };
        if !is_on_stack {
            self.stack = mapped_stack(stack_pointer);
        }
    }

    /// Returns whether all frames up to this address are on the same stack.
    pub(super) fn is_on_stack(&self, address: usize) -> bool {
        self.stack.contains(&address)
    }

    /// Notes the code whose table is being used.
    pub(super) fn set_code(&mut self, code: Range<usize>) {
        self.code = code;
    }

    /// Reads a word. `None` if the address is not that of a word in readable memory.
    #[inline]
    pub(super) fn read(&mut self, address: usize) -> Option<usize> {
        let holds = |range: &Range<usize>| range.start <= address && address < range.end;
        if address & (WORD - 1) != 0 {
            return None;
        }
        // The ends of stacks are on a multiple of a word.
        if holds(&self.stack) || (holds(&self.code) && address + WORD <= self.code.end) {
            // SAFETY: the word is mapped: it belongs to the part of the stack in use, or to code
            // that is on the stack. Volatile, as other code of this thread owns the memory.
            return Some(unsafe { ptr::with_exposed_provenance::<usize>(address).read_volatile() });
        }
        self.read_carefully(address)
    }

    #[cold]
    fn read_carefully(&mut self, address: usize) -> Option<usize> {
        let index = |from: usize| address.checked_sub(from).map(|distance| distance / WORD);
        let in_window = |memory: &Memory| {
            let index = index(memory.start).filter(|index| *index < memory.len)?;
            memory.window.get(index).copied()
        };
        in_window(self).or_else(|| {
            let to = self.window.as_mut_ptr().cast();
            // SAFETY: the array is writable.
            let copied = unsafe { os::copy_readable(address, to, size_of_val(&self.window)) };
            self.start = address;
            self.len = copied.unwrap_or(0) / WORD;
            in_window(self)
        })
    }

    /// Reads the 8 bytes before an address.
    pub(super) fn before(&self, address: usize) -> Option<[u8; 8]> {
        let mut bytes = [0; 8];
        let from = address.checked_sub(bytes.len())?;
        if self.code.start <= from && address <= self.code.end {
            // SAFETY: the bytes are mapped, as in `read`.
            return Some(unsafe { ptr::with_exposed_provenance::<[u8; 8]>(from).read() });
        }
        // SAFETY: the array is writable.
        let copied = unsafe { os::copy_readable(from, bytes.as_mut_ptr(), bytes.len()) };
        (copied == Some(bytes.len())).then_some(bytes)
    }
}

/// Returns the range from a stack pointer of this thread to the end of the stack; an empty range if
/// the end is not known.
fn mapped_stack(stack_pointer: usize) -> Range<usize> {
    let up_to = |end: usize| stack_pointer..end & !(WORD - 1);
    // The kernel places these bytes above all frames of the main thread.
    let top = os::auxiliary(libc::AT_RANDOM);
    if (top.saturating_sub(MAIN_STACK)..top).contains(&stack_pointer) {
        return up_to(top);
    }
    // C libraries place the memory that the thread pointer names above the stack, in the same
    // mapping.
    let top = arch::thread_pointer().addr();
    // Relaxed: this thread's own word, also in its signal handlers.
    let checked = arch::locals().checked_stack.load(Ordering::Relaxed);
    if checked != 0 && (checked..top).contains(&stack_pointer) {
        return up_to(top);
    }
    if let Some(alternate) = os::alternate_stack().filter(|stack| stack.contains(&stack_pointer)) {
        return up_to(alternate.end);
    }
    // A program may run on a stack of its own making, anywhere. So the pages up to the thread
    // pointer are checked, the first time. Below the stack of a thread is a page that is not
    // readable. (Without one, a stack of the program's own making would have to be directly below
    // that of the thread to be mistaken for a part of it.)
    let page = os::system_page_size();
    let from = stack_pointer & !(page - 1);
    let end = if checked == 0 { top } else { checked };
    let is_own =
        from < end && top - from <= THREAD_STACK && (from..end).step_by(page).all(os::is_readable);
    if !is_own {
        return 0..0;
    }
    // Relaxed: as above. A handler that came in between has stored an address in the same stack.
    arch::locals().checked_stack.store(from, Ordering::Relaxed);
    up_to(top)
}
