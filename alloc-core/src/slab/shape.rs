//! Shapes: the layout and the policy of the slabs of a class.
//!
//! A shape maps offsets in a slab to objects, and numbers of free objects to lists, without a
//! division: it holds reciprocals. It also holds the policy for empty slabs and for the contents of
//! free objects.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use super::lists::{EMPTY, LISTS, UNLISTED};
use crate::size_class::{Class, MAX_CLASSES, MAX_SMALL, UNIT};

/// Bits of a word of the bitmap.
pub(super) const WORD: usize = u64::BITS as usize;
/// Most objects of a slab. The summary has a bit per word of the bitmap, and must fit one word.
const MAX_OBJECTS: usize = WORD * WORD;
/// Empty slabs of a class that a node keeps, except for middle sizes.
pub(crate) const MIN_EMPTY: u32 = 1;

/// The layout and the policy of the slabs of a class.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes from one object to the next.
    pub(super) size: u32,
    /// 2^32 / size, rounded up. Multiplied by the offset of an object in the slab, it yields the
    /// object's index in the upper 32 bits. Within an object the index is exact for small sizes.
    reciprocal: u32,
    /// Objects of a slab.
    pub(super) objects: u32,
    /// Bytes of all objects of a slab.
    span: u32,
    /// Units of a slab.
    pub(crate) units: u32,
    /// 2^16 * LISTS / (objects + 1). Multiplied by a number of free objects, it yields the list, in
    /// the bits from 16 up.
    list_scale: u32,
    /// Byte offset in an object of the word that links it while it is free and on a list.
    pub(crate) link: u32,
    /// Empty slabs that a node keeps, so that it does not free and allocate the same one in turns.
    pub(super) min_empty: u32,
    /// Initialises each object of a new slab. What it wrote stays in an object while that is free.
    pub(super) constructor: Option<fn(NonNull<u8>)>,
}

/// The shapes of all classes. Those of size classes never change. That of a cache class is written
/// when a cache is created, while the class has no objects.
pub(super) struct Shapes(pub(super) UnsafeCell<[Shape; MAX_CLASSES]>);

// SAFETY: a shape is written only while its class has no objects. A thread that gets an object from
// another synchronises with it.
unsafe impl Sync for Shapes {}

pub(super) static SHAPES: Shapes = {
    let mut shapes = [Shape::new(8); MAX_CLASSES];
    let mut index = 0;
    while let Some(class) = Class::from_index(index) {
        shapes[index] = Shape::new(class.size());
        index += 1;
    }
    Shapes(UnsafeCell::new(shapes))
};

/// Returns the shape of a class.
#[inline(always)]
pub(crate) fn shape(class: Class) -> Shape {
    // SAFETY: a class's index is below `MAX_CLASSES`, and its shape is not written while it is in
    // use. There is no reference to the whole array, as shapes of other classes may be written.
    unsafe { SHAPES.0.get().cast::<Shape>().add(class.index()).read() }
}

/// Sets the shape of a cache class.
///
/// # Safety
/// The class is one of an object cache, and nobody uses it.
pub(crate) unsafe fn define(class: Class, shape: Shape) {
    // SAFETY: the caller guarantees that nobody uses the class.
    unsafe { (&raw mut (*SHAPES.0.get())[class.index()]).write(shape) };
}

impl Shape {
    const fn new(size: usize) -> Shape {
        let units = units_for(size);
        let objects = units * UNIT / size;
        let objects = if objects > MAX_OBJECTS { MAX_OBJECTS } else { objects };
        Shape {
            size: size as u32,
            reciprocal: ((1u64 << 32).div_ceil(size as u64)) as u32,
            objects: objects as u32,
            span: (objects * size) as u32,
            units: units as u32,
            list_scale: ((LISTS << 16) / (objects + 1)) as u32,
            link: 0,
            min_empty: if size > MAX_SMALL { 0 } else { MIN_EMPTY },
            constructor: None,
        }
    }

    /// Returns the shape of an object cache. There are `stride` bytes from one object to the next,
    /// at most [`MAX_SMALL`]; the program gets those below `link`. With `kept`, empty slabs stay
    /// until [`Partial::shed`].
    ///
    /// [`Partial::shed`]: super::Partial::shed
    pub(crate) fn for_cache(
        stride: usize,
        link: usize,
        kept: bool,
        constructor: Option<fn(NonNull<u8>)>,
    ) -> Shape {
        let min_empty = if kept { u32::MAX } else { MIN_EMPTY };
        Shape { link: link as u32, min_empty, constructor, ..Shape::new(stride) }
    }

    /// Returns whether empty slabs are kept, as readers may look at them.
    pub(crate) fn is_kept(&self) -> bool {
        self.min_empty == u32::MAX
    }

    /// Returns whether free objects have contents: the work of a constructor, or what readers may
    /// look at.
    pub(crate) fn keeps_contents(&self) -> bool {
        self.is_kept() || self.constructor.is_some()
    }

    /// Returns the bytes from one object to the next.
    pub(crate) const fn stride(&self) -> usize {
        self.size as usize
    }

    /// Returns the number of objects of a slab.
    pub(crate) fn objects(&self) -> usize {
        self.objects as usize
    }

    /// Returns a word that decides whether an object starts at an offset in a unit: it does if the
    /// product of word and offset, in 32 bits, is below the word.
    ///
    /// With slabs of one unit this is 2^32 / `size`, rounded up, and decides exactly whether the
    /// offset is a multiple of `size`. With larger slabs, objects are taken to start at each
    /// multiple of the largest power of two that divides their size. For middle sizes the word is
    /// 0, so the test always fails, and a free examines the address more closely.
    #[inline]
    pub(super) const fn in_unit(&self) -> u32 {
        if self.stride() > MAX_SMALL {
            0
        } else if self.units == 1 {
            self.reciprocal
        } else {
            (1u64 << (32 - self.size.trailing_zeros())) as u32
        }
    }

    /// Returns the list of a slab with `free` free objects.
    #[inline(always)]
    pub(super) fn list(&self, free: u32) -> u8 {
        match free {
            0 => UNLISTED,
            _ if free == self.objects => EMPTY,
            _ => ((free * self.list_scale) >> 16) as u8,
        }
    }

    /// Returns the index of the object that starts at `offset` bytes in a slab, if one does.
    #[inline(always)]
    pub(super) fn index_at(&self, offset: usize) -> Option<usize> {
        if offset >= self.span as usize {
            return None;
        }
        let index = self.index(offset);
        (index * self.size as usize == offset).then_some(index)
    }

    /// Returns the index of the object that contains `offset`, which is less than 2^32.
    #[inline(always)]
    pub(super) fn index(&self, offset: usize) -> usize {
        ((offset as u64 * u64::from(self.reciprocal)) >> 32) as usize
    }

    /// Returns the part of the slab that word `at` of the bitmap stands for: its offset and its
    /// length in bytes.
    #[inline(always)]
    pub(super) fn word(&self, at: usize) -> (usize, usize) {
        let len = WORD * self.size as usize;
        (at * len, len.min(self.span as usize - at * len))
    }
}

/// Returns the units of a slab of objects of `size` bytes. It is the fewest units that hold four
/// objects and leave at most a twelfth of themselves behind the last object. One object is enough
/// for a middle size: a program that holds one such object occupies the whole slab, though it need
/// not touch all of it.
const fn units_for(size: usize) -> usize {
    let least = if size > MAX_SMALL { size } else { 4 * size };
    let mut units = least.div_ceil(UNIT);
    while units * UNIT % size > units * UNIT / 12 {
        units += 1;
    }
    units
}

// These tests only compute, so Miri has little to check.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn waste_of_slabs_is_bounded() {
        // Not the smallest class: a bitmap has room for only half of the objects in a unit.
        let mut previous = Class::from_index(0).map_or(0, Class::size);
        for class in (1..).map_while(Class::from_index) {
            let (shape, size) = (shape(class), class.size());
            let (bytes, used) = (shape.units as usize * UNIT, shape.span as usize);
            assert!(
                bytes - used <= bytes / 12 && bytes <= 2 * size.max(256 << 10),
                "slab of {bytes} bytes for objects of {size}, {used} used"
            );
            assert_eq!(shape.in_unit() == 0, class.is_middle());
            // With its share of what the slab leaves over.
            let least = previous + 1;
            assert!(
                least <= 128 || bytes * 5 <= shape.objects() * least * 6,
                "a block of {least} bytes takes more than a fifth more"
            );
            previous = size;
        }
    }

    /// The word by which `free` decides where objects start agrees with division.
    #[test]
    fn starts_of_objects_are_recognised_without_division() {
        for class in (0..).map_while(Class::from_index).filter(|class| !class.is_middle()) {
            let shape = shape(class);
            let word = shape.in_unit();
            let step =
                if shape.units == 1 { class.size() } else { 1 << class.size().trailing_zeros() };
            for offset in 0..UNIT {
                let starts = (offset as u32).wrapping_mul(word) < word;
                assert_eq!(starts, offset % step == 0, "class {}, offset {offset}", class.size());
            }
        }
        // Objects of caches may have any size.
        for stride in (8..=MAX_SMALL).step_by(8) {
            let shape = Shape::for_cache(stride, 0, false, None);
            let word = shape.in_unit();
            for index in 0..shape.objects().min(UNIT.div_ceil(stride)) {
                let offset = index * stride % UNIT;
                assert!(
                    (offset as u32).wrapping_mul(word) < word,
                    "stride {stride}, index {index}"
                );
                assert_eq!(shape.index_at(index * stride), Some(index));
                assert_eq!(shape.index_at(index * stride + stride / 2), None);
            }
        }
    }

    #[test]
    fn lists_are_ordered_by_free_objects() {
        for class in (0..).map_while(Class::from_index) {
            let shape = shape(class);
            assert_eq!(shape.list(0), UNLISTED);
            assert_eq!(shape.list(shape.objects), EMPTY);
            let lists: Vec<_> = (1..shape.objects).map(|free| shape.list(free)).collect();
            assert!(lists.is_sorted() && lists.iter().all(|list| usize::from(*list) < LISTS));
        }
    }
}
