//! The blocks of a program with many data structures.

use std::alloc::Layout;
use std::ptr::NonNull;

use super::mix::Mix;
use crate::blocks::{alloc_raw, free_raw};
use crate::prng::Prng;
use crate::run::Gauge;

/// Several data structures whose blocks were allocated in turn, so that each has blocks everywhere
/// in memory.
///
/// Apart from the blocks themselves, a herd allocates only one or two words per structure. More
/// would make the bookkeeping visible in the resident memory.
pub(super) struct Herd<'a> {
    structures: Vec<Chain>,
    live: usize,
    prng: Prng,
    gauge: &'a Gauge,
}

impl<'a> Herd<'a> {
    /// Creates a herd without blocks.
    pub(super) fn new(gauge: &'a Gauge, seed: u64, structures: usize) -> Self {
        let structures = (0..structures).map(|_| Chain::default()).collect();
        Self { structures, live: 0, prng: Prng::new(seed), gauge }
    }

    /// Adds blocks, each to a random structure, until `bytes` are live.
    pub(super) fn grow(&mut self, mix: &Mix, bytes: usize) {
        while self.live < bytes {
            self.add(mix);
        }
    }

    /// Frees the oldest block of a random structure and adds a new block to another, `count` times.
    pub(super) fn churn(&mut self, mix: &Mix, count: usize) {
        for _ in 0..count {
            let structure = self.prng.below(self.structures.len());
            if let Some(link) = self.structures[structure].unlink() {
                self.free(link);
            }
            self.add(mix);
        }
    }

    /// Frees all blocks of a structure.
    pub(super) fn clear(&mut self, structure: usize) {
        while let Some(link) = self.structures[structure].unlink() {
            self.free(link);
        }
    }

    /// Keeps one block in `one_in`, chosen at random, and frees the others.
    pub(super) fn thin(&mut self, one_in: usize) {
        for structure in 0..self.structures.len() {
            let mut all = std::mem::take(&mut self.structures[structure]);
            while let Some(link) = all.unlink() {
                if self.prng.below(one_in) == 0 {
                    self.structures[structure].link(link);
                } else {
                    self.free(link);
                }
            }
        }
    }

    fn add(&mut self, mix: &Mix) {
        let size = mix.size(&mut self.prng);
        let structure = self.prng.below(self.structures.len());
        self.structures[structure].link(Link::allocate(size));
        self.live += size;
        self.gauge.grew(size);
    }

    fn free(&mut self, link: NonNull<Link>) {
        // SAFETY: only blocks from `Link::allocate` are linked, and this one was just unlinked.
        let size = unsafe { Link::free(link) };
        self.live -= size;
        self.gauge.shrank(size);
    }
}

impl Drop for Herd<'_> {
    fn drop(&mut self) {
        for structure in 0..self.structures.len() {
            self.clear(structure);
        }
    }
}

/// The header at the start of each block.
pub(super) struct Link {
    next: Option<NonNull<Link>>,
    size: usize,
}

impl Link {
    /// Allocates a block of `size` bytes and writes all of it.
    pub(super) fn allocate(size: usize) -> NonNull<Self> {
        debug_assert!(size >= size_of::<Self>());
        let block = alloc_raw(Self::layout(size));
        let link = block.cast();
        // SAFETY: the block was just allocated with `size` bytes. It is aligned for a link and has
        // room for one.
        unsafe {
            block.write_bytes(0xa5, size);
            link.write(Self { next: None, size });
        }
        link
    }

    /// Frees a block and returns its size.
    ///
    /// # Safety
    ///
    /// `link` comes from [`allocate`](Self::allocate), and nothing uses it afterwards.
    pub(super) unsafe fn free(link: NonNull<Self>) -> usize {
        // SAFETY: the caller guarantees that `link` is a live block from `allocate`, which wrote
        // its header.
        let size = unsafe { link.as_ref().size };
        // SAFETY: `allocate` used this layout, and the caller guarantees that nothing uses the
        // block afterwards.
        unsafe { free_raw(link.cast(), Self::layout(size)) };
        size
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, align_of::<Self>()).expect("a size of a mix")
    }
}

/// One data structure: a queue of blocks.
#[derive(Default)]
pub(super) struct Chain {
    ends: Option<(NonNull<Link>, NonNull<Link>)>,
}

impl Chain {
    /// Appends a block, which must be in no other chain.
    pub(super) fn link(&mut self, mut link: NonNull<Link>) {
        // SAFETY: the block is in no chain, so nothing else refers to it.
        unsafe { link.as_mut().next = None };
        let first = match self.ends {
            Some((first, mut last)) => {
                // SAFETY: this chain owns its blocks and nothing else refers to them.
                unsafe { last.as_mut().next = Some(link) };
                first
            }
            None => link,
        };
        self.ends = Some((first, link));
    }

    /// Removes the first block and returns it.
    pub(super) fn unlink(&mut self) -> Option<NonNull<Link>> {
        let (first, last) = self.ends?;
        // SAFETY: this chain owns its blocks and nothing else refers to them.
        let next = unsafe { first.as_ref().next };
        self.ends = next.map(|next| (next, last));
        Some(first)
    }
}
