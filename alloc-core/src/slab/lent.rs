//! Holes: pages of a partial slab that hold no live object.
//!
//! Holes are decommitted when nothing was cut from the slab for a while. That takes time, so the
//! lists lend the slab, and the lock is not held meanwhile. Afterwards the slab is *punched*, and
//! used after all others.

use core::ptr::NonNull;

use super::descriptor::Slab;
use super::shape::{Shape, WORD};
use crate::size_class::UNIT;

/// A slab that is on no list while its holes are decommitted, as it was when it was lent. Objects
/// may be freed to it meanwhile, but none are cut from it.
#[must_use = "a slab that is not brought back by `relist_lent` is lost"]
pub(crate) struct Lent {
    pub(super) slab: *mut Slab,
    pub(super) base: *mut u8,
    pub(super) shape: Shape,
    pub(super) free_count: u32,
    /// Bytes of the holes that have no memory.
    pub(crate) punched: usize,
    /// A copy of the bitmap.
    pub(super) free: [u64; WORD],
}

impl Lent {
    /// Calls `visit` with the address and the length in bytes of each hole: whole pages of `page`
    /// bytes that hold no live object.
    pub(crate) fn for_each_hole(&self, page: usize, mut visit: impl FnMut(NonNull<u8>, usize)) {
        let (size, objects) = (self.shape.size as usize, self.shape.objects as usize);
        let mut hole_to = |from: usize, to: usize| {
            // Slabs start on a page, so rounding offsets rounds addresses.
            let (from, to) = (from.next_multiple_of(page), to & !(page - 1));
            if from < to {
                // SAFETY: `from` and `to` are offsets within the slab, and a run is never at 0.
                visit(unsafe { NonNull::new_unchecked(self.base.add(from)) }, to - from);
            }
        };
        // The end of the last live object so far.
        let mut end = 0;
        for (at, free) in self.free.iter().enumerate().take(objects.div_ceil(WORD)) {
            let mut used = !free & (u64::MAX >> (WORD - WORD.min(objects - at * WORD)));
            while used != 0 {
                let start = (at * WORD + used.trailing_zeros() as usize) * size;
                hole_to(end, start);
                end = start + size;
                used &= used - 1;
            }
        }
        hole_to(end, self.shape.units as usize * UNIT);
    }
}

// These tests use addresses without memory behind them, on which Miri allows no arithmetic.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::shape::shape;
    use super::super::testing::{BASE, address, of_size};
    use super::*;
    use core::ptr;
    use std::vec::Vec;

    #[test]
    fn holes_are_whole_pages_without_objects() {
        const PAGE: usize = 4096;
        for (size, used) in [
            (48, &[][..]),
            (48, &[0]),
            (48, &[100, 101, 1364]),
            (1024, &[0, 3, 4, 8, 63]),
            (4096, &[5]),
            (20480, &[1]),
        ] {
            let class = of_size(size);
            let shape = shape(class);
            let mut free = [0; WORD];
            for index in (0..shape.objects()).filter(|index| !used.contains(index)) {
                free[index / WORD] |= 1 << (index % WORD);
            }
            let lent = Lent {
                slab: ptr::null_mut(),
                base: address(BASE),
                shape,
                free_count: (shape.objects() - used.len()) as u32,
                punched: 0,
                free,
            };
            let mut holes = Vec::new();
            lent.for_each_hole(PAGE, |start, len| {
                let start = start.addr().get() - BASE;
                assert!(start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0);
                holes.extend((start..start + len).step_by(PAGE));
            });
            let is_used = |page: &usize| {
                used.iter().any(|index| index * size < page + PAGE && (index + 1) * size > *page)
            };
            let pages = (0..shape.units as usize * UNIT).step_by(PAGE);
            let wanted: Vec<_> = pages.filter(|page| !is_used(page)).collect();
            assert_eq!(holes, wanted, "objects of {size} bytes, {used:?} in use");
        }
    }
}
