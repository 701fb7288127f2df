//! Owned raw blocks of memory: what the workloads allocate when they want the allocator and nothing else.
//!
//! All go through `std::alloc`, as a Rust program does. What differs is how much the compiler knows of the layout.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The alignment of blocks that say nothing else.
const ALIGN: usize = 8;

/// A block whose size is known at compile time.
pub(crate) struct Fixed<const SIZE: usize>(NonNull<u8>);

// SAFETY: a `Fixed` owns its block, and any thread may write to or free a block.
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
        // SAFETY: the block is ours and has at least one byte.
        unsafe { block.0.write(1) };
        block
    }
}

impl<const SIZE: usize> Drop for Fixed<SIZE> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `new`.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) }
    }
}

/// A block whose size and alignment are known only at run time.
pub(crate) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a `Block` owns its memory, and any thread may write to or free it.
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
        // SAFETY: the size is not zero.
        let start = checked(unsafe { alloc(layout) }, layout);
        // SAFETY: the block is ours and has at least one byte.
        unsafe { start.write(1) };
        Self { start, layout }
    }

    /// Allocates `size` bytes of zeros, and reads the first and the last.
    #[inline(always)]
    pub(crate) fn zeroed(size: usize) -> Self {
        let layout = layout(size, ALIGN);
        // SAFETY: the size is not zero.
        let start = checked(unsafe { alloc_zeroed(layout) }, layout);
        // SAFETY: both bytes lie in the block, which is initialised. Volatile, so that the reads happen.
        let (first, last) = unsafe { (start.read_volatile(), start.add(size - 1).read_volatile()) };
        assert!(first == 0 && last == 0, "alloc_zeroed returned memory that is not zero");
        Self { start, layout }
    }

    /// How many bytes were asked for.
    #[inline(always)]
    pub(crate) fn size(&self) -> usize {
        self.layout.size()
    }

    /// Writes one byte on each page, so that the kernel has to back all of them.
    #[inline(always)]
    pub(crate) fn touch_pages(&mut self) {
        self.touch_every(4096);
    }

    /// Writes one byte in `step` bytes.
    #[inline(always)]
    pub(crate) fn touch_every(&mut self, step: usize) {
        for offset in (0..self.layout.size()).step_by(step) {
            // SAFETY: `offset` lies within the block, which is ours. Volatile, so that the writes happen.
            unsafe { self.start.add(offset).write_volatile(1) };
        }
    }

    /// Writes the first `len` bytes, or all where there are fewer.
    #[inline(always)]
    pub(crate) fn fill_first(&mut self, len: usize) {
        // SAFETY: the block is ours and has that many bytes.
        unsafe { self.start.write_bytes(0xa5, len.min(self.layout.size())) };
    }

    /// Writes every byte.
    #[inline(always)]
    pub(crate) fn fill(&mut self) {
        // SAFETY: the block is ours and has that many bytes.
        unsafe { self.start.write_bytes(0xa5, self.layout.size()) };
    }
}

impl Drop for Block {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by one of the constructors.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Allocates for `layout`, whose size must not be zero, and gives the memory up to the caller.
///
/// With [`free_raw`], for the places where a block has no single owner.
#[inline(always)]
pub(crate) fn alloc_raw(layout: Layout) -> NonNull<u8> {
    debug_assert_ne!(layout.size(), 0);
    // SAFETY: the size is not zero.
    checked(unsafe { alloc(layout) }, layout)
}

/// Frees what [`alloc_raw`] gave.
///
/// # Safety
///
/// `block` comes from `alloc_raw` with the same `layout`, and nobody uses it any more.
#[inline(always)]
pub(crate) unsafe fn free_raw(block: NonNull<u8>, layout: Layout) {
    // SAFETY: passed on to the caller.
    unsafe { dealloc(block.as_ptr(), layout) }
}

/// The layout of a block, checked at the cost of two predictable branches.
#[inline(always)]
fn layout(size: usize, align: usize) -> Layout {
    assert!(size != 0);
    Layout::from_size_align(size, align).expect("a size and alignment that make a layout")
}

/// A pointer that is not null, or the end of the process.
#[inline(always)]
fn checked(start: *mut u8, layout: Layout) -> NonNull<u8> {
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}
