//! The naive model: a plain list of live blocks, against which every result of the allocator is
//! checked.
//!
//! After each operation the model knows the address and contents of every block. It panics if the
//! allocator returns null, an address that is not aligned, a block that overlaps another, changed
//! contents, or zeroed memory that is not zero. The allocator cannot corrupt the model: the list is
//! an array inside [`Model`], and contents are recomputed from a number.

use std::alloc::{GlobalAlloc, Layout};
use std::thread;

use arrayvec::ArrayVec;

use crate::pattern::{self, Mismatch};

/// Most blocks that a model holds at a time.
pub const LIVE_MAX: usize = 1024;

/// A live block.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: *mut u8,
    layout: Layout,
    id: u64,
}

/// A model of the blocks that one thread allocated through the entry point `A`.
#[derive(Debug)]
pub struct Model<A: GlobalAlloc> {
    allocator: A,
    live: ArrayVec<Block, LIVE_MAX>,
    next_id: u64,
}

impl<A: GlobalAlloc> Model<A> {
    /// Returns an empty model. Models with different `salt` fill blocks with different patterns.
    pub fn new(allocator: A, salt: u64) -> Self {
        Self { allocator, live: ArrayVec::new(), next_id: pattern::mix(salt) }
    }

    /// Returns the number of live blocks.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Returns whether no block is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Returns whether the model has no room for another block.
    pub fn is_full(&self) -> bool {
        self.live.is_full()
    }

    /// Allocates a block and fills it.
    ///
    /// # Panics
    ///
    /// If the allocator's result is wrong, or the size of `layout` is zero.
    pub fn alloc(&mut self, layout: Layout) {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not zero.
        let address = unsafe { self.allocator.alloc(layout) };
        self.adopt(address, layout);
    }

    /// Allocates a zeroed block, checks that it is zero, and fills it.
    ///
    /// # Panics
    ///
    /// As for [`Model::alloc`].
    pub fn alloc_zeroed(&mut self, layout: Layout) {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not zero.
        let address = unsafe { self.allocator.alloc_zeroed(layout) };
        assert!(!address.is_null(), "alloc_zeroed({layout:?}) is null");
        // SAFETY: the block is this long, and `alloc_zeroed` initialised it.
        if let Some(mismatch) = unsafe { pattern::find_nonzero(address, layout.size()) } {
            panic!("alloc_zeroed({layout:?}) at {address:p} is not zero: {mismatch:?}");
        }
        self.adopt(address, layout);
    }

    /// Resizes a block and checks that its contents are preserved.
    ///
    /// # Panics
    ///
    /// As for [`Model::alloc`]; also if `new_size` is zero or there is no block `index`.
    pub fn realloc(&mut self, index: usize, new_size: usize) {
        assert_ne!(new_size, 0);
        let Block { address, layout, id } = self.live.swap_remove(index);
        check(address, layout, layout.size(), id, "before realloc");
        let new_layout = Layout::from_size_align(new_size, layout.align()).expect("a valid layout");
        // SAFETY: the block is live with this layout. The new size is not zero and makes a valid
        // layout.
        let moved = unsafe { self.allocator.realloc(address, layout, new_size) };
        assert!(!moved.is_null(), "realloc({address:p}, {layout:?}, {new_size}) is null");
        let kept = layout.size().min(new_size);
        check(moved, new_layout, kept, id, "after realloc");
        self.place(Block { address: moved, layout: new_layout, id }, kept);
    }

    /// Checks and frees a block.
    ///
    /// # Panics
    ///
    /// If its contents changed, or there is no block `index`.
    pub fn free(&mut self, index: usize) {
        let Block { address, layout, id } = self.live.swap_remove(index);
        check(address, layout, layout.size(), id, "before dealloc");
        // SAFETY: the block was live with this layout and has just left the list.
        unsafe { self.allocator.dealloc(address, layout) };
    }

    /// Checks a block.
    ///
    /// # Panics
    ///
    /// As for [`Model::free`].
    pub fn check(&self, index: usize) {
        let Block { address, layout, id } = self.live[index];
        check(address, layout, layout.size(), id, "at rest");
    }

    /// Checks every block.
    ///
    /// # Panics
    ///
    /// If the contents of a block changed.
    pub fn check_all(&self) {
        (0..self.live.len()).for_each(|index| self.check(index));
    }

    /// Checks and frees every block: first every second one, then the rest.
    ///
    /// # Panics
    ///
    /// As for [`Model::check_all`].
    pub fn free_all(&mut self) {
        for index in (0..self.live.len()).rev().step_by(2) {
            self.free(index);
        }
        while !self.live.is_empty() {
            self.free(0);
        }
    }

    /// Gives a fresh block its number, then fills and lists it.
    fn adopt(&mut self, address: *mut u8, layout: Layout) {
        let id = self.next_id;
        self.next_id += 1;
        self.place(Block { address, layout, id }, 0);
    }

    /// Checks the alignment of a block and that it overlaps no other, fills it from offset `filled`
    /// on, and lists it.
    fn place(&mut self, block: Block, filled: usize) {
        let Block { address, layout, id } = block;
        assert!(!address.is_null(), "the block for {layout:?} is null");
        assert!(address.addr().is_multiple_of(layout.align()), "{address:p} for {layout:?}");
        let range = extent(&block);
        for other in &self.live {
            let taken = extent(other);
            let apart = range.end <= taken.start || taken.end <= range.start;
            assert!(apart, "{block:?} overlaps {other:?}");
        }
        // SAFETY: the block is live, this long, and overlaps no other block of the model.
        unsafe { pattern::fill(address, filled, layout.size(), id) };
        self.live.push(block);
    }
}

impl<A: GlobalAlloc> Drop for Model<A> {
    /// Frees the remaining blocks, unless a check failed: the allocator is not called again after
    /// that.
    fn drop(&mut self) {
        if !thread::panicking() {
            self.free_all();
        }
    }
}

fn extent(block: &Block) -> std::ops::Range<usize> {
    let start = block.address.addr();
    start..start + block.layout.size()
}

fn check(address: *const u8, layout: Layout, len: usize, id: u64, when: &str) {
    // SAFETY: `len` is at most the size of this live block, whose first `len` bytes are filled.
    let mismatch = unsafe { pattern::find_mismatch(address, len, id) };
    if let Some(Mismatch { offset, expected, found }) = mismatch {
        panic!(
            "{when}: block {address:p} with {layout:?} has {found:#04x} at offset {offset}, \
             not {expected:#04x}"
        );
    }
}
