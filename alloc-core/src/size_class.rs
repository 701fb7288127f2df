//! Classes: all objects of a class are cut alike, and may take each other's place.
//!
//! Most classes are *size classes*. The size class that serves a [`Layout`] follows by arithmetic
//! that folds at compile time. The other classes belong to object caches, whose creators choose how
//! objects are cut. Size classes step by 8 bytes up to 32 B, by 16 up to 128 B, and then by an
//! eighth of a power of two (144, 160, … 256, 288, … 1 MiB). So above 128 B the unused tail of an
//! object is below 12.5 % of it.
//!
//! Every class size is a multiple of the step of its octave. So a size rounded up to a multiple of
//! its alignment falls into a class whose size is also a multiple of that alignment. Objects cut
//! from a slab that starts on a unit boundary are therefore aligned without further work.
//!
//! Sizes up to [`MAX_SMALL`] are *small*: inlined code looks up their class. Sizes above, up to
//! [`MAX_MIDDLE`], are *middle* sizes. Anything larger is a page run.
//!
//! Above 32 B all objects are aligned to 16 bytes, as with any `malloc`, although Rust does not
//! require it: panic unwinders assume that alignment of their exception object, which has 56 B in
//! the standard library (`movaps` in LLVM's libunwind, linked with musl).

use core::alloc::Layout;

/// Log2 of the bytes of a unit, of which runs and slabs consist. A unit is a multiple of every page
/// size of Linux.
pub(crate) const UNIT_SHIFT: u32 = UNIT.trailing_zeros();
/// Bytes of a unit.
pub(crate) const UNIT: usize = 64 * 1024;

/// Number of size classes.
pub const CLASSES: usize = 114;

/// Number of size classes for small sizes, which come first.
pub const SMALL_CLASSES: usize = 74;

/// Number of size classes for middle sizes.
pub(crate) const MIDDLE_CLASSES: usize = CLASSES - SMALL_CLASSES;

/// Number of classes, including those of object caches.
pub(crate) const MAX_CLASSES: usize = CLASSES + if cfg!(loom) { 0 } else { 256 };

/// Largest number of object caches.
pub(crate) const MAX_CACHES: usize = (MAX_CLASSES - CLASSES).saturating_sub(1);

/// Largest small size, in bytes.
pub const MAX_SMALL: usize = 32 * 1024;

/// Largest size that a class serves, in bytes. Larger blocks are page runs.
pub const MAX_MIDDLE: usize = 1024 * 1024;

/// Largest alignment that a class serves, in bytes.
pub const MAX_SMALL_ALIGN: usize = 4096;

/// Bytes behind a block that nobody may use, so that Valgrind detects accesses beyond the block.
/// Their last word holds the size of the block.
pub(crate) const REDZONE: usize = if cfg!(feature = "valgrind") { 16 } else { 0 };

/// Log2 of the factor by which an alignment less one is multiplied. The product reaches
/// [`MAX_SMALL`] exactly for alignments above [`MAX_SMALL_ALIGN`], so that [`small_class_of`] tests
/// size and alignment in one comparison.
const ALIGN_SCALE: u32 = (MAX_SMALL / MAX_SMALL_ALIGN).trailing_zeros();

/// Class indices by size, in steps of 8 bytes. Arithmetic alone would cost twice the instructions
/// where the size is not a constant, and the sizes in use touch few lines of the table.
static LOOKUP: [u8; MAX_SMALL / 8] = {
    let mut lookup = [0; MAX_SMALL / 8];
    let mut step = 0;
    while step < lookup.len() {
        lookup[step] = index_of(step * 8 + 7) as u8;
        step += 1;
    }
    lookup
};

/// Returns the index of the smallest class whose objects have a byte at offset `last`.
const fn index_of(last: usize) -> usize {
    match last {
        ..32 => last / 8,
        32..128 => last / 16 + 2,
        _ => (last >> (last.ilog2() - 3)) + (last.ilog2() as usize - 6) * 8 - 6,
    }
}

/// Alignment of `malloc` (`max_align_t`). Its callers may store anything in a block that needs no
/// special alignment.
pub const MALLOC_ALIGN: usize = 16;

/// As [`LOOKUP`], for sizes rounded up to [`MALLOC_ALIGN`], in steps of that. Size 0 has the class
/// of size 1.
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

/// Number of a class. Size classes come first, in order of size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(usize);

/// The number of larger classes that may serve a middle size. A program that replaces blocks of
/// random middle sizes finds most of the missing ones there.
const NEIGHBOURS: usize = 3;

impl Class {
    /// Returns the size class with this index, or `None` from [`CLASSES`] up.
    pub const fn from_index(index: usize) -> Option<Class> {
        if index < CLASSES { Some(Class(index)) } else { None }
    }

    /// Returns the class with this index, which may be that of an object cache.
    pub(crate) const fn any_from_index(index: usize) -> Option<Class> {
        if index < MAX_CLASSES { Some(Class(index)) } else { None }
    }

    /// A class without objects of its own. Its sheaves hold objects of any cache that wait for a
    /// grace period.
    pub(crate) const RCU: Class = Class(MAX_CLASSES - 1);

    /// Returns the class of the object cache with this number, or `None` from [`MAX_CACHES`] up.
    pub(crate) const fn from_cache_index(number: usize) -> Option<Class> {
        if number < MAX_CACHES { Some(Class(CLASSES + number)) } else { None }
    }

    /// Returns the index of the class, which is below [`CLASSES`] for a size class.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0
    }

    /// Returns the index of this class among those of object caches, or `None` for a size class.
    #[inline]
    pub(crate) const fn cache_index(self) -> Option<usize> {
        self.0.checked_sub(CLASSES)
    }

    /// Returns all classes of middle sizes.
    pub(crate) fn middle() -> impl Iterator<Item = Class> {
        (SMALL_CLASSES..CLASSES).map(Class)
    }

    /// Returns the larger classes whose objects may serve requests of this one: the next three of a
    /// middle class, none of another.
    pub(crate) fn larger_middle(self) -> impl Iterator<Item = Class> {
        let count = if self.is_middle() { NEIGHBOURS } else { 0 };
        (1..=count).map(move |more| Class(self.0 + more)).filter(|class| class.is_middle())
    }

    /// Returns whether requests of this middle class may be served by objects of `other`: its own,
    /// or those of [`Class::larger_middle`].
    #[inline]
    pub(crate) const fn may_be_served_by(self, other: Class) -> bool {
        other.0.wrapping_sub(self.0) <= NEIGHBOURS
    }

    /// Returns whether this is the class of a middle size.
    #[inline]
    pub(crate) const fn is_middle(self) -> bool {
        SMALL_CLASSES <= self.0 && self.0 < CLASSES
    }

    /// Returns the size in bytes of the objects of a size class.
    #[inline]
    pub const fn size(self) -> usize {
        let index = self.0;
        match index {
            ..4 => (index + 1) * 8,
            4..10 => (index - 1) * 16,
            // The first class of an octave has the index 10, 18 and so on.
            _ => (((index - 2) & 7) + 9) << (((index - 2) >> 3) + 3),
        }
    }
}

/// Returns the class that serves `layout`, or `None` if a page run must serve it, or if its size is
/// 0.
pub const fn class_of(layout: Layout) -> Option<Class> {
    match small_class_of(layout) {
        None => middle_class_of(layout),
        class => class,
    }
}

/// Returns the class that serves `layout` if that is the class of a middle size.
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

/// Returns the class that serves `layout` if that is the class of a small size.
#[inline(always)]
pub(crate) const fn small_class_of(layout: Layout) -> Option<Class> {
    let align = layout.align();
    let last = rounded(layout).wrapping_sub(1);
    if (last | ((align - 1) << ALIGN_SCALE)) >= MAX_SMALL {
        return None;
    }
    // SAFETY: the comparison above excludes larger values, which the compiler does not see.
    unsafe { core::hint::assert_unchecked(last < MAX_SMALL) };
    Some(Class(LOOKUP[last / 8] as usize))
}

/// Returns the class that serves `size` bytes aligned to [`MALLOC_ALIGN`] if that is the class of a
/// small size.
#[inline(always)]
pub(crate) fn small_class_of_size(size: usize) -> Option<Class> {
    if size > MAX_SMALL - REDZONE {
        return None;
    }
    let step = (size + REDZONE).div_ceil(MALLOC_ALIGN);
    // SAFETY: `size + REDZONE` is at most `MAX_SMALL`, for which the table has its last entry.
    Some(Class(usize::from(unsafe { *LOOKUP_MALLOC.get_unchecked(step) })))
}

// With a redzone, sizes map to other classes.
#[cfg(all(test, not(feature = "valgrind")))]
mod tests {
    use super::*;

    /// Step between tested sizes: every size is tested, but not under Miri, which is slow.
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
            assert!(waste < bound, "{waste} bytes wasted for {size}");
        }
    }

    #[test]
    fn class_sizes_are_multiples_of_the_alignment() {
        for shift in 0..=MAX_SMALL_ALIGN.trailing_zeros() {
            let align = 1 << shift;
            let middle = (MAX_SMALL + 1..=MAX_MIDDLE - align).step_by(509 * STEP);
            for size in (1..=MAX_SMALL).step_by(STEP).chain(middle) {
                let class = class_of(Layout::from_size_align(size, align).unwrap()).unwrap();
                assert!(
                    class.size() >= size && class.size().is_multiple_of(align),
                    "class of {} bytes for size {size}, alignment {align}",
                    class.size()
                );
            }
        }
    }

    #[test]
    fn class_of_a_size_has_malloc_alignment() {
        for size in (0..=MAX_SMALL + 1).step_by(STEP) {
            let layout = Layout::from_size_align(size.max(1), MALLOC_ALIGN).unwrap();
            assert_eq!(small_class_of_size(size), small_class_of(layout), "{size}");
        }
        assert_eq!(small_class_of_size(usize::MAX), None);
    }

    #[test]
    fn zero_size_and_large_layouts_have_no_class() {
        for (size, align) in [(0, 1), (MAX_MIDDLE + 1, 1), (1, 8192), (isize::MAX as usize, 1)] {
            assert_eq!(class_of(Layout::from_size_align(size, align).unwrap()), None);
        }
        for size in [MAX_SMALL, MAX_MIDDLE] {
            assert!(class_of(Layout::from_size_align(size, 4096).unwrap()).is_some());
        }
    }
}
