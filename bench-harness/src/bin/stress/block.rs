//! A block of memory that can check its own contents.

use std::alloc::{self, Layout};
use std::hint::black_box;
use std::ptr::{self, NonNull};

use hayloft_core::nolock;

use crate::failure::{self, Actor, Fault};
use crate::pattern;

/// An allocated block, filled with the pattern of its key. A block that is dropped without
/// [`Block::free`] leaks, and the totals show it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Block {
    address: NonNull<u8>,
    layout: Layout,
    key: u64,
    born: Actor,
}

// SAFETY: a block owns its memory, and any thread may free memory that another allocated.
unsafe impl Send for Block {}

impl Block {
    /// Allocates and fills a block. Returns `None` if the allocator has no memory.
    pub(crate) fn alloc(layout: Layout, key: u64, born: Actor) -> Option<Self> {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not zero.
        let block = Self::adopt(unsafe { alloc::alloc(layout) }, layout, key, born)?;
        block.fill_from(0);
        Some(block)
    }

    /// Does the same as [`Block::alloc`] by the entry point that never waits, which may fail more
    /// often.
    pub(crate) fn alloc_nolock(layout: Layout, key: u64, born: Actor) -> Option<Self> {
        let address = nolock::alloc(layout).map_or(ptr::null_mut(), NonNull::as_ptr);
        let block = Self::adopt(address, layout, key, born)?;
        block.fill_from(0);
        Some(block)
    }

    /// Allocates a zeroed block, checks that it is zero, and fills it.
    pub(crate) fn alloc_zeroed(layout: Layout, key: u64, born: Actor) -> Option<Self> {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not zero.
        let block = Self::adopt(unsafe { alloc::alloc_zeroed(layout) }, layout, key, born)?;
        // SAFETY: the block has `layout.size()` bytes, and `alloc_zeroed` initialised them.
        let nonzero = unsafe { pattern::find_nonzero(block.address.as_ptr(), layout.size()) };
        if let Some(mismatch) = nonzero {
            block.fail(Fault::NotZeroed(mismatch), "after alloc_zeroed", born);
        }
        block.fill_from(0);
        Some(block)
    }

    /// Wraps a newly allocated address in a block and checks its alignment. Returns `None` for
    /// null.
    fn adopt(address: *mut u8, layout: Layout, key: u64, born: Actor) -> Option<Self> {
        // The compiler may remove an allocation whose uses it can follow; the black box prevents
        // that.
        let address = NonNull::new(black_box(address))?;
        let block = Self { address, layout, key, born };
        block.check_alignment("after an allocation", born);
        Some(block)
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.layout.size()
    }

    /// Returns the number that determines the contents.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Returns whether the thread of `actor` allocated the block, in the same generation and role.
    pub(crate) fn is_of(&self, actor: Actor) -> bool {
        let of = |actor: Actor| (actor.role, actor.thread, actor.generation);
        of(self.born) == of(actor)
    }

    /// Checks every byte.
    pub(crate) fn check(&self, when: &str, actor: Actor) {
        self.check_prefix(self.layout.size(), when, actor);
    }

    /// Resizes the block, and checks its contents before and after. If the allocator refuses,
    /// checks that the block is unchanged and returns `false`.
    pub(crate) fn realloc(&mut self, new_size: usize, actor: Actor) -> bool {
        assert_ne!(new_size, 0);
        self.check("before realloc", actor);
        let old_size = self.layout.size();
        let new_layout = Layout::from_size_align(new_size, self.layout.align())
            .expect("a size far below isize::MAX");
        // SAFETY: the block came from this allocator with this layout. The new size is not zero and
        // makes a valid layout.
        let moved = unsafe { alloc::realloc(self.address.as_ptr(), self.layout, new_size) };
        let Some(moved) = NonNull::new(black_box(moved)) else {
            self.check("after a refused realloc", actor);
            return false;
        };
        self.address = moved;
        self.layout = new_layout;
        self.check_alignment("after realloc", actor);
        let kept = old_size.min(new_size);
        self.check_prefix(kept, "after realloc", actor);
        self.fill_from(kept);
        true
    }

    /// Checks and frees the block.
    pub(crate) fn free(self, actor: Actor) {
        self.check("before dealloc", actor);
        // SAFETY: the block came from this allocator with this layout and is not used again.
        unsafe { alloc::dealloc(self.address.as_ptr(), self.layout) };
    }

    /// Checks the block and frees it by the entry point that never waits, whichever one allocated
    /// it.
    pub(crate) fn free_nolock(self, actor: Actor) {
        self.check("before dealloc", actor);
        // SAFETY: the block came from this allocator with this layout and is not used again.
        unsafe { nolock::free(self.address, self.layout) };
    }

    /// Writes the pattern from offset `from` to the end.
    fn fill_from(&self, from: usize) {
        // SAFETY: `self` owns the block, which has `layout.size()` bytes.
        unsafe { pattern::fill(self.address.as_ptr(), from, self.layout.size(), self.key) };
    }

    fn check_prefix(&self, len: usize, when: &str, actor: Actor) {
        // SAFETY: `len` is at most the block's size, and its first `len` bytes have been filled.
        let mismatch = unsafe { pattern::find_mismatch(self.address.as_ptr(), len, self.key) };
        if let Some(mismatch) = mismatch {
            self.fail(Fault::Contents(mismatch), when, actor);
        }
    }

    fn check_alignment(&self, when: &str, actor: Actor) {
        if !self.address.addr().get().is_multiple_of(self.layout.align()) {
            self.fail(Fault::Misaligned, when, actor);
        }
    }

    #[cold]
    fn fail(&self, fault: Fault, when: &str, actor: Actor) -> ! {
        failure::report(fault, when, actor, Some(self.born), self.address.as_ptr(), self.layout)
    }
}
