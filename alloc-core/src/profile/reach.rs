//! Which sampled blocks the program can still reach: a conservative search for their addresses.
//!
//! It begins at everything that the program can write, except for the allocator's own memory, the
//! sampled blocks themselves, and the part of the ending thread's stack that is not in use. Any
//! word there that holds an address within a sampled block reaches it, and so does any word in a
//! block that is reached. Registers of the ending thread are on its stack.
//!
//! Blocks that are not sampled count as reached, in use or free. So a block that is reached only
//! from a lost one is found if that one is sampled, too, as all are with a mean of one byte.
//!
//! All memory is read by the kernel: another thread may unmap it at any time.

use core::ops::Range;
use core::slice;

use super::mappings::{self, Room};
use super::scratch::{Scratch, Zeroed};
use crate::os::{self, PageMap};
use crate::page;
use crate::percpu;
use crate::sampling::{self, Live};

/// A sampled block in use.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) live: Live,
    pub(super) found: Found,
}

impl Block {
    fn range(&self) -> Range<usize> {
        self.live.address..self.live.address + self.live.size
    }
}

/// How a block was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Found {
    /// Not at all: it is lost.
    Nowhere = 0,
    /// In a lost block.
    InLost,
    /// By the program.
    Reached,
}

// SAFETY: the fields are numbers, and zero is a way of being found.
unsafe impl Zeroed for Block {}

/// Memory for what is being read.
#[derive(Clone, Copy)]
struct Buffers {
    words: [usize; Buffers::WORDS],
    /// Descriptions of pages, 8 bytes each.
    pages: [[u8; 8]; Buffers::PAGES],
}

impl Buffers {
    const WORDS: usize = 8192;
    const PAGES: usize = 512;
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for Buffers {}

/// A range of addresses that is not searched.
#[derive(Clone, Copy)]
struct Gap {
    start: usize,
    limit: usize,
}

// SAFETY: the fields are numbers.
unsafe impl Zeroed for Gap {}

/// Most gaps besides the blocks: arenas, and others.
const MORE_GAPS: usize = 80;

/// Finds out how each block is reached. The blocks are sorted by address. `stack` is the lowest
/// address on this thread's stack that the program uses. Returns false if memory cannot be read.
pub(super) fn search(blocks: &mut Scratch<Block>, count: usize, stack: usize) -> bool {
    let Some((mut room, mut search, gaps, gap_count)) = prepare(blocks, count) else {
        return false;
    };
    let Some(blocks) = blocks.get_mut(..count) else { return false };
    let gaps = gaps.get(..gap_count).unwrap_or_default();
    let is_listed = mappings::each_writable(room.only(), &mut |mapping| {
        let is_stack = mapping.contains(&stack);
        let start = if is_stack { stack } else { mapping.start };
        search.between(blocks, start..mapping.end, gaps);
    });
    if !is_listed || !search.has_read {
        return false;
    }
    search.follow(blocks);
    // All others are lost. Those whose addresses are in other lost ones are lost with these.
    search.reached = Found::InLost;
    for index in 0..count {
        if let Some(block) = blocks.get(index).filter(|block| block.found != Found::Reached) {
            search.origin = Some(index);
            search.range(blocks, block.range());
        }
    }
    true
}

/// Takes the memory of a search, and lists the gaps: disjoint, sorted, and their number.
fn prepare(
    blocks: &Scratch<Block>,
    count: usize,
) -> Option<(Scratch<Room>, Search, Scratch<Gap>, usize)> {
    let room = Scratch::<Room>::new(1)?;
    let buffers = Scratch::<Buffers>::new(1)?;
    let waiting = Scratch::<u32>::new(count)?;
    let mut gaps = Scratch::<Gap>::new(count + MORE_GAPS)?;
    let own = [blocks.range(), room.range(), buffers.range(), waiting.range(), gaps.range()];
    let mut gap_count = 0;
    let mut add = |range: Range<usize>| {
        if let Some(to) = gaps.get_mut(gap_count).filter(|_| !range.is_empty()) {
            *to = Gap { start: range.start, limit: range.end };
            gap_count += 1;
        }
    };
    own.into_iter().chain(sampling::own_memory()).chain([percpu::own_memory()]).for_each(&mut add);
    page::for_each_metadata(&mut add);
    for block in blocks.get(..count)? {
        add(block.range());
    }
    let gap_count = unite(gaps.get_mut(..gap_count)?);
    let search = Search {
        waiting,
        waiting_count: 0,
        buffers,
        pages: PageMap::open(),
        reached: Found::Reached,
        origin: None,
        has_read: false,
    };
    Some((room, search, gaps, gap_count))
}

/// Sorts gaps, and unites those that overlap. Returns the number of gaps that are left.
fn unite(gaps: &mut [Gap]) -> usize {
    gaps.sort_unstable_by_key(|gap| gap.start);
    let mut count: usize = 0;
    for index in 0..gaps.len() {
        let Some(gap) = gaps.get(index).copied() else { break };
        match count.checked_sub(1).and_then(|last| gaps.get_mut(last)) {
            Some(last) if gap.start <= last.limit => last.limit = last.limit.max(gap.limit),
            _ => {
                if let Some(to) = gaps.get_mut(count) {
                    *to = gap;
                }
                count += 1;
            }
        }
    }
    count
}

/// A search in progress.
struct Search {
    /// Numbers of blocks that were reached and not searched yet.
    waiting: Scratch<u32>,
    waiting_count: usize,
    buffers: Scratch<Buffers>,
    /// `None` where the system hides it: then each page is read.
    pages: Option<PageMap>,
    /// What becomes of a block whose address is found.
    reached: Found,
    /// The block that is being searched, which does not reach itself.
    origin: Option<usize>,
    /// Whether any memory could be read.
    has_read: bool,
}

impl Search {
    /// Searches the addresses of a range that are in no gap.
    fn between(&mut self, blocks: &mut [Block], range: Range<usize>, gaps: &[Gap]) {
        let mut at = range.start;
        let first = gaps.partition_point(|gap| gap.limit <= range.start);
        let after = gaps.iter().skip(first).take_while(|gap| gap.start < range.end);
        for gap in after {
            if gap.start > at {
                self.range(blocks, at..gap.start);
            }
            at = gap.limit;
        }
        if at < range.end {
            self.range(blocks, at..range.end);
        }
    }

    /// Searches the blocks that were reached.
    fn follow(&mut self, blocks: &mut [Block]) {
        while let Some(last) = self.waiting_count.checked_sub(1) {
            self.waiting_count = last;
            let Some(index) = self.waiting.get(last) else { break };
            let Some(block) = blocks.get(*index as usize).copied() else { break };
            self.range(blocks, block.range());
        }
    }

    /// Searches all pages of a range that have contents.
    fn range(&mut self, blocks: &mut [Block], range: Range<usize>) {
        let page = os::system_page_size();
        let mut at = range.start.next_multiple_of(size_of::<usize>());
        while at < range.end {
            let first = at - at % page;
            let limit = first.saturating_add(Buffers::PAGES * page).min(range.end);
            let count = (limit - first).div_ceil(page);
            let pages = self.buffers.only().pages.get_mut(..count).unwrap_or_default();
            let is_known =
                self.pages.as_ref().is_some_and(|map| map.read(first, pages.as_flattened_mut()));
            // The start of a run of pages with contents.
            let mut start = None;
            for index in 0..count {
                let pages = &self.buffers.only().pages;
                let has_contents =
                    !is_known || pages.get(index).is_some_and(|page| PageMap::has_contents(*page));
                let here = (first + index * page).max(at);
                match (start, has_contents) {
                    (None, true) => start = Some(here),
                    (Some(from), false) => {
                        self.pages_of(blocks, from..here);
                        start = None;
                    }
                    _ => {}
                }
            }
            if let Some(from) = start {
                self.pages_of(blocks, from..limit);
            }
            at = limit;
        }
    }

    /// Searches a range whose pages have contents, as far as they can be read.
    fn pages_of(&mut self, blocks: &mut [Block], range: Range<usize>) {
        const WORD: usize = size_of::<usize>();
        let mut at = range.start;
        // After a failure, pages are read one by one.
        let mut most = Buffers::WORDS * WORD;
        while at + WORD <= range.end {
            let page = os::system_page_size();
            let to_page_end = page - at % page;
            let len = (range.end - at).min(if most > page { most } else { to_page_end });
            let len = len - len % WORD;
            let words = self.buffers.only().words.get_mut(..len / WORD).unwrap_or_default();
            // SAFETY: the bytes of numbers, of which each value is valid.
            let bytes = unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) };
            if os::copy_memory(at, bytes) {
                self.has_read = true;
                self.words(blocks, len / WORD);
                at += len;
            } else if most > page {
                most = page;
            } else {
                at += to_page_end;
            }
        }
    }

    /// Looks for addresses of blocks among the words in the buffer.
    fn words(&mut self, blocks: &mut [Block], count: usize) {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return };
        let all = first.live.address..last.range().end;
        let Search { buffers, waiting, waiting_count, reached, origin, .. } = self;
        let words = buffers.only().words.get(..count).unwrap_or_default();
        for word in words.iter().filter(|word| all.contains(word)) {
            let after = blocks.partition_point(|block| block.live.address <= *word);
            let Some(index) = after.checked_sub(1) else { continue };
            let Some(block) = blocks.get_mut(index) else { continue };
            if !block.range().contains(word)
                || block.found != Found::Nowhere
                || *origin == Some(index)
            {
                continue;
            }
            block.found = *reached;
            if *reached == Found::Reached
                && let Some(to) = waiting.get_mut(*waiting_count)
            {
                *to = index as u32;
                *waiting_count += 1;
            }
        }
    }
}
