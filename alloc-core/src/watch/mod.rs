//! What those see who watch from outside: probes for tracers, with the feature `usdt`, and what Valgrind is told, with the feature
//! `valgrind`. Without these there is nothing of this in a program.
//!
//! A probe is a `nop` and a note in the executable that says where it is and where its arguments are: the statically defined
//! tracing of SystemTap, which `bpftrace`, `perf`, `gdb` and others know. `docs/tracing.md` has the list, and examples.
//!
//! Memcheck is told which bytes are blocks of the program, and that it may use no others of what blocks are cut from. A block is as
//! long as was asked for, to the byte, with [`REDZONE`](crate::size_class::REDZONE) bytes behind it that belong to nobody, the last
//! of which tell that length. It moves whenever its size changes. Where pointers to blocks lie that are nobody's, memory is hidden
//! from it: otherwise what was lost would seem to be still within reach. `docs/valgrind.md` tells the rest.
//!
//! This file may touch the numbers of `size_class`.

#[cfg(feature = "valgrind")]
mod valgrind;

use crate::size_class::REDZONE;

/// Whether anybody may be watching. What is only to be told may be left undone otherwise.
pub(crate) const WATCHED: bool = cfg!(any(feature = "usdt", feature = "valgrind"));

/// Whether a block has no more bytes than were asked for.
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

/// The program gets a block of `size` bytes, as many as it asked for, unless it is null. Its contents mean something if they are
/// `defined`.
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

/// The program gives a block back.
#[inline(always)]
pub(crate) fn freed(block: *mut u8) {
    #[cfg(feature = "valgrind")]
    valgrind::freed(block);
    probe!(free, block);
}

/// A block has another size now, and perhaps another place, unless that is null: as if one were freed, and another allocated. Not to
/// be had where blocks are [`EXACT`].
#[inline(always)]
pub(crate) fn resized(old: *mut u8, new: *mut u8, size: usize) -> *mut u8 {
    if WATCHED && !new.is_null() {
        freed(old);
        allocated(new, size, true);
    }
    new
}

/// Nobody may use these bytes, until they are opened or the program gets them.
#[inline(always)]
pub(crate) fn make_noaccess(address: *mut u8, len: usize) {
    #[cfg(feature = "valgrind")]
    valgrind::make_noaccess(address, len);
    let _ = (address, len);
}

/// These bytes may be used; they mean something if they are `defined`.
#[inline(always)]
pub(crate) fn make_accessible(address: *mut u8, len: usize, defined: bool) {
    #[cfg(feature = "valgrind")]
    valgrind::make_accessible(address, len, defined);
    let _ = (address, len, defined);
}

/// These bytes are the allocator's own, and point to blocks. To be called again when they were given to the system in between.
#[inline(always)]
pub(crate) fn hide(address: *mut u8, len: usize) {
    #[cfg(feature = "valgrind")]
    valgrind::hide(address, len);
    let _ = (address, len);
}

/// The word behind a block that has `extent` bytes, all in all.
///
/// # Safety
/// There is a block of that extent, of an [`EXACT`] allocator.
unsafe fn size_word(block: *mut u8, extent: usize) -> *mut usize {
    // SAFETY: the caller's promise: the last word of the redzone.
    unsafe { block.add(extent - size_of::<usize>()).cast() }
}

/// Writes how large a block is, of `extent` bytes all in all, none of which may be used then.
///
/// # Safety
/// As [`size_word`], and the block is nobody's yet.
pub(crate) unsafe fn write_size(block: *mut u8, extent: usize, size: usize) {
    // SAFETY: the caller's promise. The end of an extent need not be aligned.
    unsafe {
        let word = size_word(block, extent);
        make_accessible(word.cast(), size_of::<usize>(), false);
        word.write_unaligned(size);
    }
    make_noaccess(block, extent);
}

/// How large a block is, of `extent` bytes all in all.
///
/// # Safety
/// As [`size_word`], and [`write_size`] was called for it.
pub(crate) unsafe fn read_size(block: *mut u8, extent: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let word = size_word(block, extent);
        make_accessible(word.cast(), size_of::<usize>(), true);
        let size = word.read_unaligned();
        make_noaccess(word.cast(), size_of::<usize>());
        size
    }
}

/// Objects go from one place to another.
pub(crate) struct Move {
    /// Bytes of each.
    pub(crate) size: usize,
    pub(crate) objects: usize,
    /// The CPU from whose sheaf or to which they go.
    pub(crate) cpu: usize,
}

/// The sheaf of a CPU was empty, and objects are fetched for it.
#[inline(always)]
pub(crate) fn refill(told: impl FnOnce() -> Move) {
    if WATCHED {
        let Move { size, objects, cpu } = told();
        probe!(refill, size, objects, cpu);
    }
}

/// Objects leave a CPU for barn or slabs.
#[inline(always)]
pub(crate) fn flush(told: impl FnOnce() -> Move) {
    if WATCHED {
        let Move { size, objects, cpu } = told();
        probe!(flush, size, objects, cpu);
    }
}

/// A run becomes a slab, or a slab that is empty is one no more.
#[inline(always)]
pub(crate) fn slab(address: *mut u8, is_new: bool, bytes: impl FnOnce() -> usize) {
    if WATCHED {
        probe!(slab, address, bytes(), is_new);
    }
}
