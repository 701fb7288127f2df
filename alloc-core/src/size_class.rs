//! Classes: objects of a class are cut alike, and may take each other's place.
//!
//! Most are *size classes*, and which of them serves a [`Layout`] is arithmetic that folds at compile time; the others belong
//! to object caches, whose maker chooses how they are cut. Size classes step
//! by 8 bytes up to 32 B, by 16 up to 128 B, and then by an eighth of a power of two (144, 160, … 256, 288, … 1 MiB), so the
//! unused tail of an object is below 12.5 % of it above 128 B. Every class size is a multiple of the step of its octave; a size
//! rounded up to a multiple of its alignment therefore lands in a class whose size is a multiple of that alignment too, and
//! objects cut from a slab that starts on a unit boundary are aligned without more ado.
//!
//! Sizes up to [`MAX_SMALL`] are *small*: their class is looked up by inlined code. Those above, up to [`MAX_MIDDLE`], are
//! *middle* sizes, and what is larger is a page run.
//!
//! Above 32 B all is aligned to 16 bytes, as by any `malloc`, though Rust does not ask for it: what unwinds a panic takes its
//! exception object, 56 B in the standard library, for aligned like that (`movaps` in LLVM's libunwind, linked with musl).
//!
//! This file may touch nothing but numbers.

use core::alloc::Layout;

/// Log2 of the bytes of a unit, what runs and slabs are made of. A unit is a multiple of every page size Linux has.
#[cfg(not(loom))]
pub(crate) const UNIT_SHIFT: u32 = UNIT.trailing_zeros();
/// Bytes of a unit.
pub(crate) const UNIT: usize = 64 * 1024;

/// Number of size classes.
pub const CLASSES: usize = 114;

/// Number of size classes of small sizes, which are the first ones.
pub const SMALL_CLASSES: usize = 74;

/// Number of size classes of middle sizes.
pub(crate) const MIDDLE_CLASSES: usize = CLASSES - SMALL_CLASSES;

/// Number of classes, those of object caches included.
pub(crate) const MAX_CLASSES: usize = CLASSES + if cfg!(loom) { 0 } else { 256 };

/// Number of object caches there can be.
pub(crate) const MAX_CACHES: usize = (MAX_CLASSES - CLASSES).saturating_sub(1);

/// Largest small size, in bytes.
pub const MAX_SMALL: usize = 32 * 1024;

/// Largest size a class serves, in bytes. Above it, objects are page runs.
pub const MAX_MIDDLE: usize = 1024 * 1024;

/// Largest alignment a class serves, in bytes.
pub const MAX_SMALL_ALIGN: usize = 4096;

/// Bytes behind what was asked for that nobody gets, so that Valgrind sees who goes beyond a block; the last word of them holds the
/// block's size.
pub(crate) const REDZONE: usize = if cfg!(feature = "valgrind") { 16 } else { 0 };

/// An eighth of the alignments must not reach [`MAX_SMALL`]: [`class_of`] tests size and alignment in one compare.
const ALIGN_SCALE: u32 = (MAX_SMALL / MAX_SMALL_ALIGN).trailing_zeros();

/// Class indices by size, in steps of 8 bytes. Arithmetic alone would cost twice the instructions wherever the size does
/// not fold, and sizes in use touch few lines of the table.
static LOOKUP: [u8; MAX_SMALL / 8] = {
    let mut lookup = [0; MAX_SMALL / 8];
    let mut step = 0;
    while step < lookup.len() {
        lookup[step] = index_of(step * 8 + 7) as u8;
        step += 1;
    }
    lookup
};

/// Returns the index of the smallest class whose objects have a byte of the offset `last`.
const fn index_of(last: usize) -> usize {
    match last {
        ..32 => last / 8,
        32..128 => last / 16 + 2,
        _ => (last >> (last.ilog2() - 3)) + (last.ilog2() as usize - 6) * 8 - 6,
    }
}

/// What a `malloc` aligns to, for its callers may put anything there that has no alignment of its own. (`max_align_t`.)
pub const MALLOC_ALIGN: usize = 16;

/// As [`LOOKUP`], in steps of [`MALLOC_ALIGN`] and rounded up to one, with a size of 0 like 1.
static LOOKUP_MALLOC: [u8; MAX_SMALL / MALLOC_ALIGN + 1] = {
    let mut lookup = [0; MAX_SMALL / MALLOC_ALIGN + 1];
    let mut step = 0;
    while step < lookup.len() {
        let size = if step == 0 { MALLOC_ALIGN } else { step * MALLOC_ALIGN };
        lookup[step] = LOOKUP[(size - 1) / 8];
        step += 1;
    }
    lookup
};

/// Number of a class: size classes come first, in order of size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(usize);

impl Class {
    /// The size class with this index, or `None` from [`CLASSES`] up.
    pub const fn from_index(index: usize) -> Option<Class> {
        if index < CLASSES { Some(Class(index)) } else { None }
    }

    /// The class with this index, those of object caches included.
    pub(crate) const fn any_from_index(index: usize) -> Option<Class> {
        if index < MAX_CLASSES { Some(Class(index)) } else { None }
    }

    /// The class of no objects: its sheaves hold those of any cache that wait for readers.
    pub(crate) const RCU: Class = Class(MAX_CLASSES - 1);

    /// The class of the object cache of this number, below [`MAX_CACHES`].
    pub(crate) const fn from_cache_index(number: usize) -> Option<Class> {
        if number < MAX_CACHES { Some(Class(CLASSES + number)) } else { None }
    }

    /// Index below [`CLASSES`] for a size class.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0
    }

    /// Which of the classes of object caches this is; `None` for a size class.
    #[inline]
    pub(crate) const fn cache_index(self) -> Option<usize> {
        self.0.checked_sub(CLASSES)
    }

    /// Returns all classes of middle sizes.
    pub(crate) fn middle() -> impl Iterator<Item = Class> {
        (SMALL_CLASSES..CLASSES).map(Class)
    }

    /// Whether this is the class of a middle size.
    #[inline]
    pub(crate) const fn is_middle(self) -> bool {
        SMALL_CLASSES <= self.0 && self.0 < CLASSES
    }

    /// Size of the objects of a size class in bytes.
    #[inline]
    pub const fn size(self) -> usize {
        let index = self.0;
        match index {
            ..4 => (index + 1) * 8,
            4..10 => (index - 1) * 16,
            // The first of an octave has the number 10, and then 18 and so on.
            _ => (((index - 2) & 7) + 9) << (((index - 2) >> 3) + 3),
        }
    }
}

/// Returns the class that serves `layout`, or `None` where a page run has to (and for a size of 0).
pub const fn class_of(layout: Layout) -> Option<Class> {
    match small_class_of(layout) {
        None => middle_class_of(layout),
        class => class,
    }
}

/// Returns the class of a middle size that serves `layout`, if one does.
pub(crate) const fn middle_class_of(layout: Layout) -> Option<Class> {
    let last = rounded(layout).wrapping_sub(1);
    if last >= MAX_MIDDLE || last < MAX_SMALL || layout.align() > MAX_SMALL_ALIGN {
        return None;
    }
    Some(Class(index_of(last)))
}

/// Returns the size of a layout, rounded up to its alignment.
#[inline(always)]
const fn rounded(layout: Layout) -> usize {
    let align = layout.align();
    // Cannot overflow: a `Layout`'s size rounded up to its alignment is at most `isize::MAX`.
    (layout.size() + REDZONE + (align - 1)) & !(align - 1)
}

/// Returns the class of a small size that serves `layout`, if one does.
#[inline(always)]
pub(crate) const fn small_class_of(layout: Layout) -> Option<Class> {
    let align = layout.align();
    let last = rounded(layout).wrapping_sub(1);
    if (last | ((align - 1) << ALIGN_SCALE)) >= MAX_SMALL {
        return None;
    }
    // SAFETY: tested above, in a way that the compiler does not see through.
    unsafe { core::hint::assert_unchecked(last < MAX_SMALL) };
    Some(Class(LOOKUP[last / 8] as usize))
}

/// Returns the class of a small size that serves `size` bytes aligned to [`MALLOC_ALIGN`], if one does.
#[inline(always)]
pub(crate) fn small_class_of_size(size: usize) -> Option<Class> {
    if size > MAX_SMALL - REDZONE {
        return None;
    }
    let step = (size + REDZONE).div_ceil(MALLOC_ALIGN);
    // SAFETY: the table has an entry for the largest size, too.
    Some(Class(usize::from(unsafe { *LOOKUP_MALLOC.get_unchecked(step) })))
}

// With a redzone all sizes are others.
#[cfg(all(test, not(feature = "valgrind")))]
mod tests {
    use super::*;

    /// Every size; under Miri, which takes its time, one in many.
    const STEP: usize = if cfg!(miri) { 251 } else { 1 };

    fn of_size(size: usize) -> Class {
        class_of(Layout::from_size_align(size, 1).unwrap()).unwrap()
    }

    #[test]
    fn classes_ascend_and_each_size_maps_to_its_own() {
        let mut previous = 0;
        for index in 0..CLASSES {
            let class = Class::from_index(index).unwrap();
            assert!(class.size() > previous);
            assert_eq!(of_size(class.size()), class);
            assert_eq!(of_size(previous + 1), class);
            previous = class.size();
        }
        assert_eq!(Class(SMALL_CLASSES - 1).size(), MAX_SMALL);
        assert_eq!(previous, MAX_MIDDLE);
        assert_eq!(Class::from_index(CLASSES), None);
    }

    #[test]
    fn waste_is_bounded() {
        let middle = (MAX_SMALL + 1..=MAX_MIDDLE).step_by(101 * STEP);
        for size in (1..=MAX_SMALL).step_by(STEP).chain(middle) {
            let waste = of_size(size).size() - size;
            let bound = match size {
                ..=32 => 8,
                33..=128 => 16,
                _ => size.div_ceil(8),
            };
            assert!(waste < bound, "{size}");
        }
    }

    #[test]
    fn alignment_divides_the_class() {
        for shift in 0..=MAX_SMALL_ALIGN.trailing_zeros() {
            let align = 1 << shift;
            let middle = (MAX_SMALL + 1..=MAX_MIDDLE - align).step_by(509 * STEP);
            for size in (1..=MAX_SMALL).step_by(STEP).chain(middle) {
                let class = class_of(Layout::from_size_align(size, align).unwrap()).unwrap();
                assert!(
                    class.size() >= size && class.size().is_multiple_of(align),
                    "{size} {align}"
                );
            }
        }
    }

    #[test]
    fn sizes_alone_are_served_as_if_aligned() {
        for size in (0..=MAX_SMALL + 1).step_by(STEP) {
            let layout = Layout::from_size_align(size.max(1), MALLOC_ALIGN).unwrap();
            assert_eq!(small_class_of_size(size), small_class_of(layout), "{size}");
        }
        assert_eq!(small_class_of_size(usize::MAX), None);
    }

    #[test]
    fn what_no_class_serves() {
        for (size, align) in [(0, 1), (MAX_MIDDLE + 1, 1), (1, 8192), (isize::MAX as usize, 1)] {
            assert_eq!(class_of(Layout::from_size_align(size, align).unwrap()), None);
        }
        for size in [MAX_SMALL, MAX_MIDDLE] {
            assert!(class_of(Layout::from_size_align(size, 4096).unwrap()).is_some());
        }
    }
}
