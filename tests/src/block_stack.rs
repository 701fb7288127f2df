//! Stacks of as many blocks as memory allows, for tests that exhaust it.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::slice;

use crate::entry_points::Hayloft;
use crate::pattern;

/// A stack of the addresses of filled blocks, all of one layout.
#[derive(Debug)]
pub struct BlockStack {
    table: &'static mut [*mut u8],
    len: usize,
}

impl BlockStack {
    /// Returns an empty stack with room for `capacity` addresses. The table is a mapping of its
    /// own, since the test is about to exhaust the heap.
    ///
    /// # Panics
    ///
    /// If the mapping fails.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let bytes = capacity * size_of::<*mut u8>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping touches no other memory.
        let table = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(table, libc::MAP_FAILED, "{bytes} bytes cannot be mapped");
        // SAFETY: the mapping is this long, zeroed, page-aligned and never unmapped. Zeroed memory
        // is a valid array of null pointers.
        Self::with_table(unsafe { slice::from_raw_parts_mut(table.cast(), capacity) })
    }

    /// Returns an empty stack that keeps its addresses in `table`.
    #[must_use]
    pub fn with_table(table: &'static mut [*mut u8]) -> Self {
        Self { table, len: 0 }
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the stack has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the table has no room for another address.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.table.len()
    }

    /// Returns the newest block.
    ///
    /// # Panics
    ///
    /// If the stack is empty.
    #[must_use]
    pub fn last(&self) -> *mut u8 {
        self.table[self.len - 1]
    }

    /// Allocates and fills blocks of `layout`, whose size must not be zero, until an allocation
    /// returns null or the table is full.
    pub fn fill(&mut self, layout: Layout) {
        while !self.is_full() {
            // SAFETY: the size is not zero.
            let address = unsafe { Hayloft.alloc(layout) };
            if address.is_null() {
                break;
            }
            // SAFETY: the block is `layout.size()` bytes long.
            unsafe { pattern::fill(address, 0, layout.size(), self.len as u64) };
            self.table[self.len] = address;
            self.len += 1;
        }
    }

    /// Checks and frees every block.
    ///
    /// # Panics
    ///
    /// If the contents of a block changed.
    pub fn free_all(&mut self, layout: Layout) {
        while let Some(len) = self.len.checked_sub(1) {
            self.len = len;
            let (address, id) = (self.table[len], len as u64);
            // SAFETY: the block is live, filled and of this layout. It leaves the stack and is
            // freed once.
            unsafe {
                let mismatch = pattern::find_mismatch(address, layout.size(), id);
                assert_eq!(
                    mismatch, None,
                    "the contents of block {id} of {layout:?} at {address:p} changed"
                );
                Hayloft.dealloc(address, layout);
            }
        }
    }
}
