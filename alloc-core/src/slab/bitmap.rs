//! Bitmaps: the free objects of a slab, a bit each.
//!
//! A bitmap lies in the descriptor, outside the slab. So a free does not touch the object, objects
//! are cut in ascending order of address whatever the order of the frees, and a double free is
//! detected in passing.
//!
//! Nothing here reads or writes the memory of a slab. Addresses are only computed and compared.

use core::mem::MaybeUninit;
use core::ptr;

use super::shape::{Shape, WORD};
use crate::batch::Batch;
use crate::sync::counters::{self, Line};

/// The free objects of a slab. A struct of its own, so that a mutable borrow under the lock does
/// not cover `identity`, which is read without the lock.
#[repr(C)]
pub(super) struct Bitmap {
    /// A bit per word of `free` that is not zero.
    pub(super) summary: u64,
    /// A bit per free object.
    pub(super) free: [u64; WORD],
}

impl Bitmap {
    /// Marks `objects` as free, up to the first one that is no object of the slab at `base`.
    /// Returns the number of objects marked.
    ///
    /// # Errors
    /// Returns an object that is free already, or occurs twice. Then the objects gathered with it
    /// for the same word of the bitmap are not marked.
    #[inline]
    pub(super) fn set_free(
        &mut self,
        objects: &[*mut u8],
        base: *mut u8,
        shape: &Shape,
    ) -> Result<usize, *mut u8> {
        let mut rest = objects;
        while let Some((&first, others)) = rest.split_first() {
            let Some(index) = shape.index_at(first.addr().wrapping_sub(base.addr())) else {
                break;
            };
            // Neighbours are often freed together: gather the bits of a word.
            let (at, bit) = (index / WORD, index % WORD);
            let size = shape.size as usize;
            let step = others.first().map(|second| second.addr().wrapping_sub(first.addr()));
            let up = (WORD - bit).min(shape.objects as usize - index).min(rest.len());
            let down = (bit + 1).min(rest.len());
            let (bits, count) = if step == Some(size) && is_row(rest, up, size) {
                (low_bits(up) << bit, up)
            } else if step == Some(size.wrapping_neg()) && is_row(rest, down, size.wrapping_neg()) {
                (low_bits(down) << (bit + 1 - down), down)
            } else {
                let (start, len) = shape.word(at);
                let start = base.addr() + start;
                let (mut bits, mut count) = (1 << bit, 1);
                for object in others {
                    let offset = object.addr().wrapping_sub(start);
                    if offset >= len {
                        break;
                    }
                    let index = shape.index(offset);
                    // No object starts at this address. The next round reports it.
                    if index * size != offset {
                        break;
                    }
                    bits |= 1 << (index % WORD);
                    count += 1;
                }
                (bits, count)
            };
            // SAFETY: `index` is below the objects of a slab, so `at` is a word of the bitmap.
            let word = unsafe { self.free.get_unchecked_mut(at) };
            if *word & bits != 0 || (count > 1 && bits.count_ones() as usize != count) {
                return Err(find_double_free(rest, *word, base, shape));
            }
            *word |= bits;
            counters::wrote(Line::SlabBitmap, 1);
            self.summary |= 1 << at;
            rest = rest.get(count..).unwrap_or(&[]);
        }
        Ok(objects.len() - rest.len())
    }

    /// Cuts free objects from the slab at `base`, from the lowest address up, until the batch holds
    /// `len`. Returns the number of objects cut.
    #[inline]
    pub(super) fn cut(
        &mut self,
        base: *mut u8,
        shape: &Shape,
        batch: &mut Batch,
        len: usize,
    ) -> u32 {
        let before = batch.len();
        let mut summary = self.summary;
        let fill = |room: &mut [MaybeUninit<*mut u8>]| {
            let mut left = room.len();
            while summary != 0 && left > 0 {
                let at = summary.trailing_zeros() as usize;
                // SAFETY: `at` is below 64.
                let free = unsafe { self.free.get_unchecked_mut(at) };
                let mut word = *free;
                // SAFETY: a word with a free bit has a first object, which lies in the slab.
                let first = unsafe { base.add(at * WORD * shape.size as usize) };
                if word == u64::MAX && left >= WORD {
                    left -= WORD;
                    // SAFETY: `room` has `WORD` slots from the new `left` on, and a full word
                    // stands for as many objects of the slab.
                    unsafe {
                        let slots = room.as_mut_ptr().add(left);
                        for index in 0..WORD {
                            let object = first.add(index * shape.size as usize);
                            slots.add(WORD - 1 - index).write(MaybeUninit::new(object));
                        }
                    }
                    word = 0;
                }
                while word != 0 && left > 0 {
                    left -= 1;
                    let offset = word.trailing_zeros() as usize * shape.size as usize;
                    // SAFETY: a free bit stands for an object within the slab; `left` is below the
                    // length of the room.
                    unsafe { room.get_unchecked_mut(left).write(first.add(offset)) };
                    word &= word - 1;
                }
                *free = word;
                counters::wrote(Line::SlabBitmap, 1);
                if word == 0 {
                    summary &= summary - 1;
                }
            }
            left
        };
        // SAFETY: `fill` writes all slots from `left` on, and returns `left`.
        unsafe { batch.fill_in_front(len, fill) };
        self.summary = summary;
        (batch.len() - before) as u32
    }
}

/// Returns whether the addresses of the first `count` objects ascend by `step`, which may be a
/// wrapped negative. `count` is at least one. Compares all of them instead of stopping early, which
/// takes no branches.
#[inline(always)]
fn is_row(objects: &[*mut u8], count: usize, step: usize) -> bool {
    let (Some(firsts), Some(seconds)) = (objects.get(..count - 1), objects.get(1..count)) else {
        return false;
    };
    let strays =
        |(one, other): (&*mut u8, &*mut u8)| (other.addr().wrapping_sub(one.addr())) ^ step;
    firsts.iter().zip(seconds).map(strays).fold(0, |all, strays| all | strays) == 0
}

/// Returns a word with its lowest `count` bits set, at least one.
#[inline(always)]
fn low_bits(count: usize) -> u64 {
    u64::MAX >> (WORD - count)
}

/// Finds the offender in a rejected group: the first of `objects` that is already free in `word`,
/// or that appears a second time. The group shares a word of the bitmap and comes first in
/// `objects`; those behind it are never reached.
#[cold]
#[inline(never)]
fn find_double_free(objects: &[*mut u8], mut word: u64, base: *mut u8, shape: &Shape) -> *mut u8 {
    let bit = |object: *mut u8| 1 << (shape.index(object.addr() - base.addr()) % WORD);
    let found = objects.iter().find(|object| {
        let seen = word & bit(**object) != 0;
        word |= bit(**object);
        seen
    });
    found.copied().unwrap_or(ptr::null_mut())
}

// These tests use addresses without memory behind them, on which Miri allows no arithmetic.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::shape::shape;
    use super::super::testing::{BASE, address, of_size};
    use super::*;
    use crate::batch::MAX_BATCH;
    use crate::size_class::Class;
    use std::vec::Vec;

    /// Returns the bitmap of a slab after all objects were cut from it, and these objects.
    fn full(class: Class) -> (Bitmap, Vec<*mut u8>) {
        let shape = shape(class);
        let mut bitmap = Bitmap { summary: 0, free: [0; WORD] };
        for index in 0..shape.objects() {
            bitmap.free[index / WORD] |= 1 << (index % WORD);
            bitmap.summary |= 1 << (index / WORD);
        }
        let mut objects = Vec::new();
        loop {
            let mut batch = Batch::new();
            let count = bitmap.cut(address(BASE), &shape, &mut batch, MAX_BATCH);
            assert_eq!(count as usize, batch.len());
            if count == 0 {
                return (bitmap, objects);
            }
            objects.extend(batch.objects().iter().rev());
        }
    }

    fn free_of(bitmap: &Bitmap) -> usize {
        for (at, word) in bitmap.free.iter().enumerate() {
            assert_eq!(bitmap.summary >> at & 1 == 1, *word != 0);
        }
        bitmap.free.iter().map(|word| word.count_ones() as usize).sum()
    }

    #[test]
    fn all_objects_of_a_slab_are_cut_in_order() {
        for class in (0..).map_while(Class::from_index) {
            let shape = shape(class);
            let (bitmap, objects) = full(class);
            assert_eq!(free_of(&bitmap), 0);
            let all = (0..shape.objects()).map(|index| address(BASE + index * class.size()));
            assert!(objects.into_iter().eq(all), "{}", class.size());
        }
    }

    /// In ascending and descending rows, in pieces, and in no order.
    #[test]
    fn objects_can_be_freed_in_any_order() {
        for class in [of_size(8), of_size(48), of_size(1024), of_size(20480)] {
            let shape = shape(class);
            let (mut bitmap, objects) = full(class);
            let down: Vec<_> = objects.iter().rev().copied().collect();
            let steps = [3, 11].into_iter().find(|step| objects.len() % step != 0).unwrap();
            let mixed: Vec<_> =
                (0..objects.len()).map(|at| objects[at * steps % objects.len()]).collect();
            for order in [objects, down, mixed] {
                for part in order.chunks(50) {
                    assert_eq!(bitmap.set_free(part, address(BASE), &shape), Ok(part.len()));
                }
                assert_eq!(free_of(&bitmap), shape.objects());
                let mut batch = Batch::new();
                while bitmap.cut(address(BASE), &shape, &mut batch, MAX_BATCH) > 0 {
                    batch.clear();
                }
            }
        }
    }

    #[test]
    fn double_frees_are_rejected() {
        let class = of_size(48);
        let shape = shape(class);
        let base = address(BASE);
        let object = |index: usize| address(BASE + index * 48);
        let (mut bitmap, _) = full(class);
        assert_eq!(bitmap.set_free(&[object(7)], base, &shape), Ok(1));
        for again in [
            &[object(7)][..],
            &[object(6), object(7), object(8)],
            &[object(8), object(7), object(6)],
            &[object(3), object(30), object(7)],
        ] {
            assert_eq!(bitmap.set_free(again, base, &shape), Err(object(7)));
            assert_eq!(free_of(&bitmap), 1, "other objects of the word were freed");
        }
        let repeated = [object(70), object(90), object(70)];
        assert_eq!(bitmap.set_free(&repeated, base, &shape), Err(object(70)));
        assert_eq!(free_of(&bitmap), 1);
    }

    #[test]
    fn addresses_of_no_object_are_rejected() {
        for class in [of_size(8), of_size(48), of_size(112), of_size(20480)] {
            let shape = shape(class);
            let size = class.size();
            let base = address(BASE);
            let (mut bitmap, objects) = full(class);
            let last = *objects.last().unwrap();
            let beyond = address(last.addr() + size);
            for wrong in [address(BASE + size + 1), address(last.addr() + size / 2), beyond] {
                assert_eq!(bitmap.set_free(&[wrong], base, &shape), Ok(0));
                // Behind other objects of the same word, which are a row or not.
                for before in [&objects[..1], &objects[..2], &[objects[2], objects[0]]] {
                    let all: Vec<_> = before.iter().copied().chain([wrong]).collect();
                    let (mut bitmap, _) = full(class);
                    assert_eq!(bitmap.set_free(&all, base, &shape), Ok(before.len()));
                    assert_eq!(free_of(&bitmap), before.len());
                }
            }
            assert_eq!(free_of(&bitmap), 0);
        }
    }

    #[test]
    fn rows_of_adjacent_objects_are_recognised() {
        let of = |addresses: &[usize]| addresses.iter().map(|at| address(*at)).collect::<Vec<_>>();
        assert!(is_row(&of(&[100]), 1, 8));
        assert!(is_row(&of(&[100, 108, 116, 7]), 3, 8));
        assert!(!is_row(&of(&[100, 108, 116, 7]), 4, 8));
        assert!(!is_row(&of(&[100, 116, 108]), 3, 8));
        assert!(is_row(&of(&[116, 108, 100]), 3, 8_usize.wrapping_neg()));
        assert!(!is_row(&of(&[100]), 2, 8), "the slice is shorter than the row");
    }
}
