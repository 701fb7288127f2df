//! What those see who watch from outside: probes for tracers, with the feature `usdt`. Without it there is nothing of this in a
//! program.
//!
//! A probe is a `nop` and a note in the executable that says where it is and where its arguments are: the statically defined
//! tracing of SystemTap, which `bpftrace`, `perf`, `gdb` and others know. `docs/tracing.md` has the list, and examples.
//!
//! This file may touch nothing.

/// Whether anybody may be watching. What is only to be told may be left undone otherwise.
pub(crate) const WATCHED: bool = cfg!(feature = "usdt");

/// A probe of the provider `hayloft`.
macro_rules! probe {
    ($name:ident $(, $argument:expr)+) => {{
        #[cfg(feature = "usdt")]
        probe::probe!(hayloft, $name $(, $argument)+);
        #[cfg(not(feature = "usdt"))]
        let _ = ($($argument,)+);
    }};
}

/// The program gets a block of `size` bytes, as many as it asked for, unless it is null.
#[inline(always)]
pub(crate) fn allocated(block: *mut u8, size: usize) -> *mut u8 {
    if WATCHED && !block.is_null() {
        probe!(alloc, block, size);
    }
    block
}

/// The program gives a block back.
#[inline(always)]
pub(crate) fn freed(block: *mut u8) {
    probe!(free, block);
}

/// A block has another size now, and perhaps another place, unless that is null: as if one were freed, and another allocated.
#[inline(always)]
pub(crate) fn resized(old: *mut u8, new: *mut u8, size: usize) -> *mut u8 {
    if WATCHED && !new.is_null() {
        freed(old);
        allocated(new, size);
    }
    new
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
