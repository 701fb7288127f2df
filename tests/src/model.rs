//! The naive model: a plain list of live blocks, against which every answer is checked.
//!
//! After each operation the model knows where every block lies and what it contains, and panics
//! where the allocator disagrees: null, an address that is not aligned, a block that overlaps
//! another, contents that changed, zeroed memory that is not zero. It is right whatever the
//! allocator does, since its list is an array inside [`Model`] and contents follow from a number.

use std::alloc::{GlobalAlloc, Layout};
use std::thread;

use arrayvec::ArrayVec;

use crate::pattern::{self, Mismatch};

/// Most blocks a model holds at a time.
pub const LIVE_MAX: usize = 1024;

/// A live block.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: *mut u8,
    layout: Layout,
    id: u64,
}

/// The model of the blocks one thread has allocated by the route `A`.
#[derive(Debug)]
pub struct Model<A: GlobalAlloc> {
    allocator: A,
    live: ArrayVec<Block, LIVE_MAX>,
    next_id: u64,
}

impl<A: GlobalAlloc> Model<A> {
    /// A model without blocks. Models with different `salt` fill blocks with different patterns.
    pub fn new(allocator: A, salt: u64) -> Self {
        Self { allocator, live: ArrayVec::new(), next_id: pattern::mix(salt) }
    }

    /// Live blocks.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether no block is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Whether no further block can be held.
    pub fn is_full(&self) -> bool {
        self.live.is_full()
    }

    /// Allocates a block and fills it.
    ///
    /// # Panics
    ///
    /// Where the allocator's answer is wrong, or the size of `layout` is zero.
    pub fn alloc(&mut self, layout: Layout) {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not zero.
        let address = unsafe { self.allocator.alloc(layout) };
        self.adopt(address, layout);
    }

    /// Allocates a zeroed block, checks that it is, and fills it.
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

    /// Resizes a block; its contents must come along.
    ///
    /// # Panics
    ///
    /// As for [`Model::alloc`]; and if `new_size` is zero or there is no block `index`.
    pub fn realloc(&mut self, index: usize, new_size: usize) {
        assert_ne!(new_size, 0);
        let Block { address, layout, id } = self.live.swap_remove(index);
        check(address, layout, layout.size(), id, "before realloc");
        let new_layout = Layout::from_size_align(new_size, layout.align()).expect("a valid layout");
        // SAFETY: the block is live with this layout; the new size is not zero and makes a layout.
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
    /// If the contents of one changed.
    pub fn check_all(&self) {
        (0..self.live.len()).for_each(|index| self.check(index));
    }

    /// Checks and frees every block, every other one first.
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

    /// Takes a fresh block into the list.
    fn adopt(&mut self, address: *mut u8, layout: Layout) {
        let id = self.next_id;
        self.next_id += 1;
        self.place(Block { address, layout, id }, 0);
    }

    /// Checks where a block lies, fills it from offset `filled` on, and lists it.
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
        // SAFETY: the block is this long, live, and overlaps no other of ours.
        unsafe { pattern::fill(address, filled, layout.size(), id) };
        self.live.push(block);
    }
}

impl<A: GlobalAlloc> Drop for Model<A> {
    /// Frees what is left; after a failed check nothing more is asked of the allocator.
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
