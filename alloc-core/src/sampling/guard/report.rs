//! Messages about misused guarded blocks.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::fmt;
use core::sync::atomic::{AtomicI32, Ordering};

use super::slots::{Event, FRAMES, FREED, LIVE, Slot, page_of, slot_of_page};
use crate::arch;
use crate::os::{self, Fault};
use crate::stack::{capture, capture_interrupted, describe};

/// What is wrong, apart from faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Misuse {
    /// A free of an address where no block in use starts.
    Free,
    /// A byte beside a block was overwritten.
    Written,
    /// A block is resized or measured that is not in use.
    Use,
}

/// The thread that writes the report, the only one of the process; 0 before, and [`DONE`] after.
static REPORTER: AtomicI32 = AtomicI32::new(0);
const DONE: i32 = -1;

/// Makes this thread the one that writes the report. Returns false, once the report is written, if
/// that is another thread, and at once if this one fails to write it.
fn may_report() -> bool {
    let me = os::thread_id();
    loop {
        match REPORTER.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(reporter) if reporter == me || reporter == DONE => return false,
            Err(_) => os::sleep_microseconds(1000),
        }
    }
}

/// A place relative to a block.
struct Place {
    address: usize,
    block: usize,
    size: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { address, block, size } = *self;
        let bytes = |count: usize| if count == 1 { "byte" } else { "bytes" };
        let end = block + size;
        if address < block {
            let before = block - address;
            write!(to, "{before} {} before", bytes(before))?;
        } else if address >= end {
            // The first byte behind a block is at a distance of one, as the last byte before it is.
            let behind = address - end + 1;
            write!(to, "{behind} {} behind the end of", bytes(behind))?;
        } else if address == block {
            to.write_str("at the start of")?;
        } else {
            let inside = address - block;
            write!(to, "{inside} {} into", bytes(inside))?;
        }
        write!(to, " a block of {size} {} at {block:#x}", bytes(size))
    }
}

/// Returns the slot whose block an address most likely belongs to: that of its page, or the nearer
/// neighbour of a page between slots.
fn slot_for(address: usize) -> Option<&'static Slot> {
    let page = page_of(address)?;
    let is_used = |slot: &&Slot| matches!(slot.state.load(Ordering::Acquire), LIVE | FREED);
    if let Some(slot) = slot_of_page(page) {
        return Some(slot).filter(is_used);
    }
    let neighbours = [page.checked_sub(1), Some(page + 1)];
    let slots = neighbours.into_iter().flatten().filter_map(slot_of_page).filter(is_used);
    slots.min_by_key(|slot| {
        let start = slot.address.load(Ordering::Relaxed);
        let end = start + slot.size.load(Ordering::Relaxed);
        // Blocks in use first, as their neighbours are accessed more often than freed ones'.
        (
            slot.state.load(Ordering::Relaxed) != LIVE,
            address.abs_diff(start).min(address.abs_diff(end)),
        )
    })
}

/// Explains a fault at an address of a slot or between slots. Returns false for another one.
pub(super) fn explain(mut fault: Fault) -> bool {
    if page_of(fault.address).is_none() {
        return false;
    }
    if may_report() {
        // SAFETY: the argument is a fault of this thread, whose handler has not returned.
        unsafe { call_on_own_stack(explain_on_stack, (&raw mut fault).cast()) };
        REPORTER.store(DONE, Ordering::Relaxed);
    }
    true
}

/// Bytes of the stack on which a report is written: the thread's own may be that of a signal
/// handler, of which a kernel's frame takes most.
const STACK: usize = 64 << 10;

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: the one thread that reports uses it.
unsafe impl Sync for Stack {}

static REPORT_STACK: Stack = Stack(UnsafeCell::new([0; STACK]));

/// Calls a function on the stack for reports.
///
/// # Safety
/// [`may_report`] returned true. The call with this argument is sound.
unsafe fn call_on_own_stack(function: extern "C" fn(*mut c_void), argument: *mut c_void) {
    // SAFETY: the caller guarantees that this is the one thread that reports, once.
    unsafe {
        let end = REPORT_STACK.0.get().cast::<u8>().add(STACK);
        arch::call_on_stack(end, function, argument);
    }
}

extern "C" fn explain_on_stack(fault: *mut c_void) {
    // SAFETY: `explain` passes a fault.
    let Fault { address, is_write, context } = unsafe { fault.cast::<Fault>().read() };
    let access = match is_write {
        Some(true) => "write",
        Some(false) => "read",
        None => "access",
    };
    let slot = slot_for(address);
    match slot {
        Some(slot) => {
            let kind = kind_of_access(slot, address);
            os::warn(format_args!("{kind}: {access} at {address:#x}, {}", slot.place(address)));
        }
        None => os::warn(format_args!("wild {access} at {address:#x}, beside no block")),
    }
    let mut frames = [0; FRAMES];
    // SAFETY: the context of a fault whose handler has not returned.
    let count = unsafe { capture_interrupted(context, &mut frames) };
    show_stacks(access, frames.get(..count).unwrap_or_default(), slot);
}

fn kind_of_access(slot: &Slot, address: usize) -> &'static str {
    let start = slot.address.load(Ordering::Relaxed);
    let end = start + slot.size.load(Ordering::Relaxed);
    match slot.state.load(Ordering::Relaxed) {
        FREED if (start..end).contains(&address) => "use after free",
        FREED => "use after free, beside the block",
        _ if address < start => "buffer underflow",
        _ => "buffer overflow",
    }
}

/// A misuse to report.
struct Report {
    misuse: Misuse,
    address: usize,
    frames: [usize; FRAMES],
    count: usize,
}

/// Ends the process with a report.
#[cold]
#[inline(never)]
pub(super) fn misused(misuse: Misuse, address: usize) -> ! {
    if !may_report() {
        os::abort(format_args!("a guarded block was misused at {address:#x}, as well"));
    }
    let mut report = Report { misuse, address, frames: [0; FRAMES], count: 0 };
    report.count = capture(&mut report.frames);
    // SAFETY: the argument is a report.
    unsafe { call_on_own_stack(report_on_stack, (&raw mut report).cast()) };
    os::abort(format_args!("a guarded block was misused, so the process ends"));
}

extern "C" fn report_on_stack(report: *mut c_void) {
    // SAFETY: `misused` passes a report.
    let Report { misuse, address, frames, count } = unsafe { &*report.cast::<Report>() };
    let address = *address;
    let Some(slot) = slot_for(address) else {
        os::warn(format_args!("{address:#x} is no block: it lies between guarded blocks"));
        return;
    };
    let start = slot.address.load(Ordering::Relaxed);
    let is_freed = slot.state.load(Ordering::Relaxed) == FREED;
    let place = slot.place(address);
    match misuse {
        Misuse::Free if is_freed && address == start => {
            os::warn(format_args!("double free: {place}"));
        }
        Misuse::Free => os::warn(format_args!("invalid free: of {address:#x}, {place}")),
        Misuse::Use if is_freed => {
            os::warn(format_args!("use after free: realloc or size of {address:#x}, {place}"));
        }
        Misuse::Use => os::warn(format_args!("realloc or size of no block: {address:#x}, {place}")),
        Misuse::Written if address < start => {
            os::warn(format_args!("buffer underflow: found at the free, written {place}"));
        }
        Misuse::Written => {
            os::warn(format_args!("buffer overflow: found at the free, written {place}"));
        }
    }
    let what = if *misuse == Misuse::Use { "use" } else { "free" };
    show_stacks(what, frames.get(..*count).unwrap_or_default(), Some(slot));
}

/// Shows the stack of this thread's mistake, an access or a call, and those of the block's
/// allocation and free.
fn show_stacks(mistake: &str, frames: &[usize], slot: Option<&Slot>) {
    os::warn(format_args!("  the {mistake}, by thread {}:", os::thread_id()));
    show(frames);
    if let Some(slot) = slot {
        slot.show_events();
    }
}

fn show(frames: &[usize]) {
    describe(frames, &mut |line| os::warn(line));
}

impl Slot {
    fn place(&self, address: usize) -> Place {
        let block = self.address.load(Ordering::Relaxed);
        Place { address, block, size: self.size.load(Ordering::Relaxed) }
    }

    /// Shows who allocated the block, and if it was freed, who did that.
    fn show_events(&self) {
        let now = os::milliseconds();
        let [allocation, free] = &self.by;
        allocation.show("allocated", now);
        if self.state.load(Ordering::Relaxed) == FREED {
            free.show("freed", now);
        }
    }
}

impl Event {
    fn show(&self, done: &str, now: u64) {
        let thread = self.thread.load(Ordering::Relaxed);
        let ago = now.saturating_sub(self.time.load(Ordering::Relaxed));
        os::warn(format_args!("  {done} by thread {thread}, {ago} ms before:"));
        let mut frames = [0; FRAMES];
        frames.iter_mut().zip(&self.frames).for_each(|(to, frame)| {
            *to = frame.load(Ordering::Relaxed);
        });
        let count = frames.iter().position(|frame| *frame == 0).unwrap_or(FRAMES);
        show(frames.get(..count).unwrap_or_default());
    }
}
