//! As many blocks as there may be: for tests that run out of memory.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::slice;

use crate::pattern;
use crate::routes::Hayloft;

/// Blocks of one layout, filled, on a stack of addresses.
#[derive(Debug)]
pub struct Hoard {
    table: &'static mut [*mut u8],
    len: usize,
}

impl Hoard {
    /// An empty one with room for so many addresses, in memory of its own, since the heap is about to be exhausted.
    ///
    /// # Panics
    ///
    /// If there is no such memory.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let bytes = capacity * size_of::<*mut u8>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping touches no other memory.
        let table = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(table, libc::MAP_FAILED);
        // SAFETY: the mapping is this long, zeroed, page-aligned and never unmapped; zeroed memory
        // is a null pointer.
        Self::on(unsafe { slice::from_raw_parts_mut(table.cast(), capacity) })
    }

    /// An empty one with room for addresses where they are to be.
    #[must_use]
    pub fn on(table: &'static mut [*mut u8]) -> Self {
        Self { table, len: 0 }
    }

    /// How many blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another address.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.table.len()
    }

    /// The last block that came.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn last(&self) -> *mut u8 {
        self.table[self.len - 1]
    }

    /// Allocates and fills blocks, of a size that is not zero, until it is refused or there is no room for addresses.
    pub fn fill_up(&mut self, layout: Layout) {
        while !self.is_full() {
            // SAFETY: the size is not zero.
            let address = unsafe { Hayloft.alloc(layout) };
            if address.is_null() {
                break;
            }
            // SAFETY: the block is this long.
            unsafe { pattern::fill(address, 0, layout.size(), self.len as u64) };
            self.table[self.len] = address;
            self.len += 1;
        }
    }

    /// Checks and frees every block.
    ///
    /// # Panics
    ///
    /// If one is not as it was filled.
    pub fn free_all(&mut self, layout: Layout) {
        while let Some(len) = self.len.checked_sub(1) {
            self.len = len;
            let (address, id) = (self.table[len], len as u64);
            // SAFETY: the block is live, this long and filled; it is freed once.
            unsafe {
                let mismatch = pattern::find_mismatch(address, layout.size(), id);
                assert_eq!(mismatch, None, "block {id} of {layout:?} at {address:p}");
                Hayloft.dealloc(address, layout);
            }
        }
    }
}
