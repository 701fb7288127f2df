//! Blocks of a program that has many data structures.

use std::alloc::Layout;
use std::ptr::NonNull;

use super::mix::Mix;
use crate::blocks::{alloc_raw, free_raw};
use crate::engine::Gauge;
use crate::prng::Prng;

/// Several data structures whose blocks were allocated in turn: each has blocks everywhere.
///
/// Nothing is allocated but the blocks themselves and one word or two for each structure, or what is resident would tell of
/// the bookkeeping, too.
pub(super) struct Herd<'a> {
    structures: Vec<Chain>,
    live: usize,
    prng: Prng,
    gauge: &'a Gauge,
}

impl<'a> Herd<'a> {
    /// One without blocks.
    pub(super) fn new(gauge: &'a Gauge, seed: u64, structures: usize) -> Self {
        let structures = (0..structures).map(|_| Chain::default()).collect();
        Self { structures, live: 0, prng: Prng::new(seed), gauge }
    }

    /// Adds blocks, each to a random structure, until there are `bytes`.
    pub(super) fn grow(&mut self, mix: &Mix, bytes: usize) {
        while self.live < bytes {
            self.add(mix);
        }
    }

    /// Frees the oldest block of a random structure and adds a new one to another, so many times.
    pub(super) fn churn(&mut self, mix: &Mix, count: usize) {
        for _ in 0..count {
            let structure = self.prng.below(self.structures.len());
            if let Some(link) = self.structures[structure].unlink() {
                self.free(link);
            }
            self.add(mix);
        }
    }

    /// Frees a structure.
    pub(super) fn clear(&mut self, structure: usize) {
        while let Some(link) = self.structures[structure].unlink() {
            self.free(link);
        }
    }

    /// Keeps one block in `one_in`, at random.
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
        // SAFETY: only what was allocated is linked, and it was unlinked.
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

/// The first words of a block.
struct Link {
    next: Option<NonNull<Link>>,
    size: usize,
}

impl Link {
    /// Allocates a block of that size and writes all of it.
    fn allocate(size: usize) -> NonNull<Self> {
        debug_assert!(size >= size_of::<Self>());
        let block = alloc_raw(Self::layout(size));
        let link = block.cast();
        // SAFETY: the block is ours, as long as that, and aligned for a link, for which there is room.
        unsafe {
            block.write_bytes(0xa5, size);
            link.write(Self { next: None, size });
        }
        link
    }

    /// Frees a block, and tells how large it was.
    ///
    /// # Safety
    ///
    /// `link` comes from [`allocate`](Self::allocate), and nobody uses it any more.
    unsafe fn free(link: NonNull<Self>) -> usize {
        // SAFETY: the block is there until the next line.
        let size = unsafe { link.as_ref().size };
        // SAFETY: allocated with this layout.
        unsafe { free_raw(link.cast(), Self::layout(size)) };
        size
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, align_of::<Self>()).expect("a size of a mix")
    }
}

/// One data structure: a queue of blocks.
#[derive(Default)]
struct Chain {
    ends: Option<(NonNull<Link>, NonNull<Link>)>,
}

impl Chain {
    /// Puts a block at the end. It must be in no other chain.
    fn link(&mut self, mut link: NonNull<Link>) {
        // SAFETY: the block is in no chain, so it is ours.
        unsafe { link.as_mut().next = None };
        let first = match self.ends {
            Some((first, mut last)) => {
                // SAFETY: a block that is linked is ours.
                unsafe { last.as_mut().next = Some(link) };
                first
            }
            None => link,
        };
        self.ends = Some((first, link));
    }

    /// Takes the block at the beginning.
    fn unlink(&mut self) -> Option<NonNull<Link>> {
        let (first, last) = self.ends?;
        // SAFETY: a block that is linked is ours.
        let next = unsafe { first.as_ref().next };
        self.ends = next.map(|next| (next, last));
        Some(first)
    }
}
