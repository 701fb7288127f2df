//! Owned raw blocks of memory, for workloads that exercise the allocator and nothing else.
//!
//! All blocks come from `std::alloc`, as in any Rust program. The types differ in how much the
//! compiler knows of the layout.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of blocks that specify none.
const ALIGN: usize = 8;

/// A block whose size is known at compile time.
pub(crate) struct Fixed<const SIZE: usize>(NonNull<u8>);

// SAFETY: a `Fixed` owns its block, and any thread may write to the block or free it.
unsafe impl<const SIZE: usize> Send for Fixed<SIZE> {}

impl<const SIZE: usize> Fixed<SIZE> {
    const LAYOUT: Layout = match Layout::from_size_align(SIZE, ALIGN) {
        Ok(layout) if SIZE > 0 => layout,
        _ => panic!("a block has a size that is not zero"),
    };

    /// Allocates a block.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        // SAFETY: the size is not zero.
        Self(checked(unsafe { alloc(Self::LAYOUT) }, Self::LAYOUT))
    }

    /// Allocates a block and writes its first byte.
    #[inline(always)]
    pub(crate) fn touched() -> Self {
        let block = Self::new();
        // SAFETY: `block` owns its memory, which has at least one byte.
        unsafe { block.0.write(1) };
        block
    }
}

impl<const SIZE: usize> Drop for Fixed<SIZE> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `new` allocated the block with this layout, and `self` owns it.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) }
    }
}

/// A block whose size and alignment are known only at run time.
pub(crate) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a `Block` owns its memory, and any thread may write to the memory or free it.
unsafe impl Send for Block {}

impl Block {
    /// Allocates `size` bytes, which must not be zero, and writes the first.
    #[inline(always)]
    pub(crate) fn new(size: usize) -> Self {
        Self::aligned(size, ALIGN)
    }

    /// Allocates `size` bytes at a multiple of `align`, a power of two, and writes the first.
    #[inline(always)]
    pub(crate) fn aligned(size: usize, align: usize) -> Self {
        let layout = layout(size, align);
        // SAFETY: `layout` checked that the size is not zero.
        let start = checked(unsafe { alloc(layout) }, layout);
        // SAFETY: the block was just allocated and has at least one byte.
        unsafe { start.write(1) };
        Self { start, layout }
    }

    /// Allocates `size` bytes of zeros, and reads the first and the last.
    #[inline(always)]
    pub(crate) fn zeroed(size: usize) -> Self {
        let layout = layout(size, ALIGN);
        // SAFETY: `layout` checked that the size is not zero.
        let start = checked(unsafe { alloc_zeroed(layout) }, layout);
        // SAFETY: both bytes lie in the block, which is initialised. Volatile, so that the compiler
        // keeps the reads.
        let (first, last) = unsafe { (start.read_volatile(), start.add(size - 1).read_volatile()) };
        assert!(first == 0 && last == 0, "alloc_zeroed returned memory that is not zero");
        Self { start, layout }
    }

    /// Returns the requested size in bytes.
    #[inline(always)]
    pub(crate) fn size(&self) -> usize {
        self.layout.size()
    }

    /// Writes one byte on each page, which makes the kernel back the whole block.
    #[inline(always)]
    pub(crate) fn touch_pages(&mut self) {
        self.touch_every(4096);
    }

    /// Writes one byte in every `step` bytes.
    #[inline(always)]
    pub(crate) fn touch_every(&mut self, step: usize) {
        for offset in (0..self.layout.size()).step_by(step) {
            // SAFETY: `offset` lies within the block, which `self` owns. Volatile, so that the
            // compiler keeps the writes.
            unsafe { self.start.add(offset).write_volatile(1) };
        }
    }

    /// Writes the first `len` bytes, or all of them if the block is smaller.
    #[inline(always)]
    pub(crate) fn fill_first(&mut self, len: usize) {
        // SAFETY: `self` owns the block, and `min` keeps the write within it.
        unsafe { self.start.write_bytes(0xa5, len.min(self.layout.size())) };
    }

    /// Writes every byte.
    #[inline(always)]
    pub(crate) fn fill(&mut self) {
        // SAFETY: `self` owns the block, which has `layout.size()` bytes.
        unsafe { self.start.write_bytes(0xa5, self.layout.size()) };
    }
}

impl Drop for Block {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: a constructor allocated the block with this layout, and `self` owns it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Allocates a block of `layout` and hands its ownership to the caller. The size must not be zero.
///
/// Pairs with [`free_raw`], for blocks that have no single owner.
#[inline(always)]
pub(crate) fn alloc_raw(layout: Layout) -> NonNull<u8> {
    debug_assert_ne!(layout.size(), 0);
    // SAFETY: the caller passes a layout whose size is not zero.
    checked(unsafe { alloc(layout) }, layout)
}

/// Frees a block from [`alloc_raw`].
///
/// # Safety
///
/// `block` comes from `alloc_raw` with the same `layout`, and nothing uses it afterwards.
#[inline(always)]
pub(crate) unsafe fn free_raw(block: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller guarantees that `block` has this layout and is not used afterwards.
    unsafe { dealloc(block.as_ptr(), layout) }
}

/// Returns the layout of a block. The checks cost two predictable branches.
#[inline(always)]
fn layout(size: usize, align: usize) -> Layout {
    assert!(size != 0);
    Layout::from_size_align(size, align).expect("a size and alignment that make a layout")
}

/// Returns `start` if it is not null, and ends the process otherwise.
#[inline(always)]
fn checked(start: *mut u8, layout: Layout) -> NonNull<u8> {
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}
