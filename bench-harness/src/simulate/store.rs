//! The shared stores behind the sheaves, as in `hayloft-core`: barns, slabs, and lists of slabs.
//! Objects are mere numbers here. Every operation returns counts of its work, which the model
//! multiplies by costs.
//!
//! A shared store belongs to a class and a group of CPUs. In `hayloft-core` that group is a node,
//! and the store is called a node class.

use hayloft_core::tuning::{LISTS, MIN_EMPTY, Numbers};

use super::machine::{Here, Line, Time};

/// An object: the number of its slab, and its index in the slab.
pub(super) type Object = u32;

/// Bits of an [`Object`] for its index in the slab.
const INDEX_BITS: u32 = 12;
const NONE: u32 = u32::MAX;
const WORD: usize = 64;
/// Pointers in a cache line, and also words of a bitmap.
const PER_LINE: usize = 8;

/// Returns the number of an object's slab.
pub(super) fn slab_of(object: Object) -> usize {
    (object >> INDEX_BITS) as usize
}

/// Counts of the work of one CPU, to multiply by costs.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Work {
    pub(super) copies: usize,
    pub(super) bits: usize,
    pub(super) visits: usize,
    /// Time for transfers of cache lines.
    pub(super) lines: Time,
}

/// A barn, with the lines of its slots.
pub(super) struct Barn {
    pub(super) objects: Vec<Object>,
    lines: Vec<Line>,
}

impl Barn {
    fn new(numbers: &Numbers) -> Self {
        Self {
            objects: Vec::with_capacity(numbers.barn),
            lines: vec![Line::NEW; numbers.barn.div_ceil(PER_LINE).max(1)],
        }
    }

    /// Moves the last objects, at most `len`, to `to`.
    pub(super) fn take(&mut self, len: usize, here: Here<'_>, to: &mut Vec<Object>) -> Work {
        let left = self.objects.len().saturating_sub(len);
        let lines = self.touch(left, self.objects.len(), here);
        to.extend(self.objects.drain(left..));
        Work { copies: to.len(), lines, ..Work::default() }
    }

    /// Returns whether the barn has room for `more` objects.
    pub(super) fn has_room(&self, more: usize, numbers: &Numbers) -> bool {
        self.objects.len() + more <= numbers.barn
    }

    pub(super) fn put(&mut self, from: &mut Vec<Object>, here: Here<'_>) -> Work {
        let held = self.objects.len();
        let copies = from.len();
        self.objects.append(from);
        let lines = self.touch(held, self.objects.len(), here);
        Work { copies, lines, ..Work::default() }
    }

    fn touch(&mut self, from: usize, to: usize, here: Here<'_>) -> Time {
        let lines = &mut self.lines[from / PER_LINE..to.div_ceil(PER_LINE)];
        let ways = lines.iter_mut().map(|line| here.distances.streamed(line.write(here)));
        ways.sum()
    }
}

/// A slab. Each set bit in `free` is a free object.
pub(super) struct Slab {
    pub(super) store: u16,
    pub(super) objects: usize,
    pub(super) free: Vec<u64>,
    pub(super) free_count: usize,
    list: usize,
    next: u32,
    previous: u32,
    header: Line,
    words: Vec<Line>,
}

impl Slab {
    fn is_empty(&self) -> bool {
        self.free_count == self.objects
    }
}

/// Slabs of all classes, and the numbers of those that no longer exist.
#[derive(Default)]
pub(super) struct AllSlabs {
    pub(super) slabs: Vec<Slab>,
    pub(super) unused: Vec<u32>,
}

impl AllSlabs {
    /// Creates a slab whose objects are all free, on no list, and returns its number.
    pub(super) fn make(&mut self, store: u16, numbers: &Numbers) -> usize {
        let words = numbers.slab.div_ceil(WORD);
        let mut free = vec![u64::MAX; words];
        if !numbers.slab.is_multiple_of(WORD) {
            free[words - 1] = u64::MAX >> (WORD - numbers.slab % WORD);
        }
        let slab = Slab {
            store,
            objects: numbers.slab,
            free,
            free_count: numbers.slab,
            list: LISTS,
            next: NONE,
            previous: NONE,
            header: Line::NEW,
            words: vec![Line::NEW; words.div_ceil(PER_LINE)],
        };
        match self.unused.pop() {
            Some(number) => {
                self.slabs[number as usize] = slab;
                number as usize
            }
            None => {
                assert!(self.slabs.len() < 1 << (32 - INDEX_BITS), "too many slabs");
                self.slabs.push(slab);
                self.slabs.len() - 1
            }
        }
    }

    /// Cuts objects from a slab until the batch holds `len`. The lowest object comes last.
    pub(super) fn cut(
        &mut self,
        number: usize,
        len: usize,
        here: Here<'_>,
        batch: &mut Vec<Object>,
    ) -> Work {
        let slab = &mut self.slabs[number];
        let before = batch.len();
        let mut work = Work { visits: 1, lines: slab.header.write(here), ..Work::default() };
        for (at, word) in slab.free.iter_mut().enumerate() {
            if *word == 0 || batch.len() == len {
                continue;
            }
            // The lines of the bitmap follow the line of the header, so they are prefetched.
            work.lines += here.distances.streamed(slab.words[at / PER_LINE].write(here));
            while *word != 0 && batch.len() < len {
                let index = at * WORD + word.trailing_zeros() as usize;
                batch.push((number as u32) << INDEX_BITS | index as u32);
                *word &= *word - 1;
            }
        }
        // Batches are emptied from their end.
        batch[before..].reverse();
        work.bits = batch.len() - before;
        slab.free_count -= work.bits;
        work
    }
}

/// The partial slabs of a shared store.
pub(super) struct Partial {
    heads: [u32; LISTS],
    empty: usize,
    /// Line with the end of the lists. They begin in the line of their lock.
    line: Line,
}

impl Partial {
    fn new() -> Self {
        Self { heads: [NONE; LISTS], empty: 0, line: Line::NEW }
    }

    /// Brings the lists to the CPU that has acquired their lock.
    pub(super) fn fetch(&mut self, here: Here<'_>) -> Time {
        here.distances.streamed(self.line.write(here))
    }

    /// Lists a new slab.
    pub(super) fn add(&mut self, slab: usize, all: &mut AllSlabs) {
        self.empty += usize::from(all.slabs[slab].is_empty());
        self.relist(slab, all);
    }

    pub(super) fn cut(
        &mut self,
        numbers: &Numbers,
        here: Here<'_>,
        all: &mut AllSlabs,
        batch: &mut Vec<Object>,
    ) -> Work {
        let mut work = Work::default();
        while batch.len() < numbers.batch
            && let Some(head) = self.heads.iter().find(|head| **head != NONE)
        {
            let slab = *head as usize;
            self.empty -= usize::from(all.slabs[slab].is_empty());
            work.add(all.cut(slab, numbers.batch, here, batch));
            self.relist(slab, all);
        }
        work
    }

    /// Returns the last objects of a batch to their slabs, as long as these belong to this shared
    /// store. Slabs that become empty beyond the number kept move to `emptied`.
    pub(super) fn put(
        &mut self,
        store: usize,
        here: Here<'_>,
        all: &mut AllSlabs,
        batch: &mut Vec<Object>,
        emptied: &mut Vec<u32>,
    ) -> Work {
        let mut work = Work::default();
        let mut last = None;
        while let Some(object) = batch.last()
            && usize::from(all.slabs[slab_of(*object)].store) == store
        {
            let object = batch.pop().expect("there is one");
            let number = slab_of(object);
            let slab = &mut all.slabs[number];
            let index = (object & ((1 << INDEX_BITS) - 1)) as usize;
            let (at, bit) = (index / WORD, 1 << (index % WORD));
            assert!(slab.free[at] & bit == 0, "an object is in two places");
            // Consecutive objects of the same bitmap word are set at once.
            if last.replace((number, at)) != Some((number, at)) {
                // All slabs are known beforehand, so the lines of their headers are prefetched
                // after the first. The line of a word follows its header, and is prefetched too.
                let way = slab.header.write(here);
                work.lines += if work.visits == 0 { way } else { here.distances.streamed(way) };
                work.visits += 1;
                work.lines += here.distances.streamed(slab.words[at / PER_LINE].write(here));
            }
            slab.free[at] |= bit;
            slab.free_count += 1;
            work.bits += 1;
            if slab.is_empty() {
                if self.empty >= MIN_EMPTY as usize {
                    self.unlist(number, all);
                    emptied.push(number as u32);
                    continue;
                }
                self.empty += 1;
            }
            self.relist(number, all);
        }
        work
    }

    fn relist(&mut self, number: usize, all: &mut AllSlabs) {
        let free = all.slabs[number].free_count;
        let scale = (LISTS << 16) / (all.slabs[number].objects + 1);
        let list = if free == 0 { LISTS } else { (free * scale) >> 16 };
        if all.slabs[number].list == list {
            return;
        }
        self.unlist(number, all);
        if list == LISTS {
            return;
        }
        let next = std::mem::replace(&mut self.heads[list], number as u32);
        let slab = &mut all.slabs[number];
        (slab.list, slab.next, slab.previous) = (list, next, NONE);
        if next != NONE {
            all.slabs[next as usize].previous = number as u32;
        }
    }

    fn unlist(&mut self, number: usize, all: &mut AllSlabs) {
        let slab = &mut all.slabs[number];
        let list = std::mem::replace(&mut slab.list, LISTS);
        if list == LISTS {
            return;
        }
        let (next, previous) = (slab.next, slab.previous);
        if next != NONE {
            all.slabs[next as usize].previous = previous;
        }
        match previous {
            NONE => self.heads[list] = next,
            _ => all.slabs[previous as usize].next = next,
        }
    }
}

impl Work {
    pub(super) fn add(&mut self, other: Self) {
        self.copies += other.copies;
        self.bits += other.bits;
        self.visits += other.visits;
        self.lines += other.lines;
    }
}

/// A shared store: the barn and the partial slabs of a class for one group of CPUs.
pub(super) struct Store {
    pub(super) barn: Barn,
    pub(super) partial: Partial,
}

impl Store {
    pub(super) fn new(numbers: &Numbers) -> Self {
        Self { barn: Barn::new(numbers), partial: Partial::new() }
    }
}
