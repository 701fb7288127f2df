//! Hooks for outside observers: probes for tracers, with the feature `usdt`, and requests to
//! Valgrind, with the feature `valgrind`. Without these features nothing of this is compiled in.
//!
//! A probe is a `nop`, and a note in the executable with the location of the `nop` and of its
//! arguments. This is SystemTap's statically defined tracing, which `bpftrace`, `perf`, `gdb` and
//! others support. `docs/tracing.md` has the list, and examples.
//!
//! Memcheck is informed which bytes are blocks of the program, and that the program may use no
//! other bytes of slabs and runs. A block has exactly the requested length. Behind it are
//! [`REDZONE`](crate::size_class::REDZONE) bytes that belong to nobody, whose last word records
//! that length. A block moves whenever its size changes. The allocator's own memory with pointers
//! to blocks is hidden from memcheck: otherwise lost blocks would seem reachable.
//! `docs/valgrind.md` describes the rest.

#[cfg(feature = "valgrind")]
mod valgrind;

use crate::size_class::REDZONE;

/// Whether an observer is possible. Work that only serves observers may be skipped otherwise.
pub(crate) const WATCHED: bool = cfg!(any(feature = "usdt", feature = "valgrind"));

/// Whether a block has exactly as many bytes as requested.
pub(crate) const EXACT: bool = REDZONE != 0;

/// A probe of the provider `hayloft`.
macro_rules! probe {
    ($name:ident $(, $argument:expr)+) => {{
        #[cfg(feature = "usdt")]
        probe::probe!(hayloft, $name $(, $argument)+);
        #[cfg(not(feature = "usdt"))]
        let _ = ($($argument,)+);
    }};
}

/// Reports that the program gets a block of `size` bytes, exactly as many as it requested. Ignores
/// a null pointer. The contents are meaningful if they are `defined`. Returns the block.
#[inline(always)]
pub(crate) fn allocated(block: *mut u8, size: usize, defined: bool) -> *mut u8 {
    let _ = defined;
    if WATCHED && !block.is_null() {
        #[cfg(feature = "valgrind")]
        valgrind::allocated(block, size, defined);
        probe!(alloc, block, size);
    }
    block
}

/// Reports that the program frees a block.
#[inline(always)]
pub(crate) fn freed(block: *mut u8) {
    #[cfg(feature = "valgrind")]
    valgrind::freed(block);
    probe!(free, block);
}

/// Reports that a block has a new size and perhaps a new address, as a free and an allocation.
/// Ignores a null `new`. Returns `new`. Never called where blocks are [`EXACT`], since those always
/// move.
#[inline(always)]
pub(crate) fn resized(old: *mut u8, new: *mut u8, size: usize) -> *mut u8 {
    if WATCHED && !new.is_null() {
        freed(old);
        allocated(new, size, true);
    }
    new
}

/// Forbids access to these bytes, until they are made accessible or belong to a block of the
/// program.
#[inline(always)]
pub(crate) fn make_noaccess(address: *mut u8, len: usize) {
    #[cfg(feature = "valgrind")]
    valgrind::make_noaccess(address, len);
    let _ = (address, len);
}

/// Permits access to these bytes. Their contents are meaningful if they are `defined`.
#[inline(always)]
pub(crate) fn make_accessible(address: *mut u8, len: usize, defined: bool) {
    #[cfg(feature = "valgrind")]
    valgrind::make_accessible(address, len, defined);
    let _ = (address, len, defined);
}

/// Hides these bytes, which are the allocator's own and hold pointers to blocks. Call again after
/// they were decommitted.
#[inline(always)]
pub(crate) fn hide(address: *mut u8, len: usize) {
    #[cfg(feature = "valgrind")]
    valgrind::hide(address, len);
    let _ = (address, len);
}

/// Returns the address of the size word at the end of a block, whose `extent` is its length in
/// bytes including the redzone.
///
/// # Safety
/// There is a block of that extent, in an [`EXACT`] allocator.
unsafe fn size_word(block: *mut u8, extent: usize) -> *mut usize {
    // SAFETY: the caller guarantees a block of this extent; its last word is in the redzone.
    unsafe { block.add(extent - size_of::<usize>()).cast() }
}

/// Records the size of a block of `extent` bytes, and then forbids access to all of them.
///
/// # Safety
/// As [`size_word`], and the block does not belong to the program yet.
pub(crate) unsafe fn write_size(block: *mut u8, extent: usize, size: usize) {
    // SAFETY: the caller guarantees a block of this extent that nobody uses. The end of an extent
    // need not be aligned.
    unsafe {
        let word = size_word(block, extent);
        make_accessible(word.cast(), size_of::<usize>(), false);
        word.write_unaligned(size);
    }
    make_noaccess(block, extent);
}

/// Returns the recorded size of a block of `extent` bytes.
///
/// # Safety
/// As [`size_word`], and [`write_size`] was called for the block.
pub(crate) unsafe fn read_size(block: *mut u8, extent: usize) -> usize {
    // SAFETY: the caller guarantees a block of this extent whose size was recorded.
    unsafe {
        let word = size_word(block, extent);
        make_accessible(word.cast(), size_of::<usize>(), true);
        let size = word.read_unaligned();
        make_noaccess(word.cast(), size_of::<usize>());
        size
    }
}

/// A move of objects between a sheaf and a barn or slabs.
pub(crate) struct Move {
    /// Bytes of each object.
    pub(crate) size: usize,
    pub(crate) objects: usize,
    /// The CPU of the sheaf.
    pub(crate) cpu: usize,
}

/// Reports that the sheaf of a CPU was empty and is being refilled.
#[inline(always)]
pub(crate) fn refill(told: impl FnOnce() -> Move) {
    if WATCHED {
        let Move { size, objects, cpu } = told();
        probe!(refill, size, objects, cpu);
    }
}

/// Reports that objects leave a CPU for its barn or for slabs.
#[inline(always)]
pub(crate) fn flush(told: impl FnOnce() -> Move) {
    if WATCHED {
        let Move { size, objects, cpu } = told();
        probe!(flush, size, objects, cpu);
    }
}

/// Reports that a run becomes a slab, or that an empty slab ceases to be one.
#[inline(always)]
pub(crate) fn slab(address: *mut u8, is_new: bool, bytes: impl FnOnce() -> usize) {
    if WATCHED {
        probe!(slab, address, bytes(), is_new);
    }
}
