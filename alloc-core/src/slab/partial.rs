//! The lists of the partial slabs of a class on a node.
//!
//! A slab is *partial* if some of its objects are free. Partial slabs are listed by how free they
//! are, and the fullest are used first, so that the emptiest may become empty. A full slab is on no
//! list: a free finds it by the address of the object.
//!
//! An empty slab stays on a list, or moves to [`Emptied`]. A slab whose holes are decommitted is on
//! no list; it is [`Lent`].
//!
//! The lock of [`Slabs`] protects the lists and the listed slabs.
//!
//! [`Slabs`]: super::Slabs

use core::ptr::{self, NonNull};

use super::descriptor::{Misuse, Slab, shape_of};
use super::emptied::Emptied;
use super::lent::Lent;
use super::lists::{ALL_LISTS, ARRIVING, EMPTY, LENT, PUNCHED, UNLISTED};
use super::shape::{Shape, shape};
use crate::batch::Batch;
use crate::size_class::Class;
use crate::sync::counters::{self, Line};

/// Most slabs that are cut from under one acquisition of the lock. Each of them has a descriptor to
/// read while others wait for the lock.
const MAX_CUT: u32 = 32;

/// The number of slabs and of their free objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    /// Slabs, full ones included.
    pub(crate) slabs: usize,
    /// Slabs with free objects.
    pub(crate) partial: usize,
    /// Free objects of all slabs.
    pub(crate) free: usize,
}

/// The partial slabs of a class on a node.
pub(crate) struct Partial {
    /// The newest slab of each list, and the oldest.
    heads: [*mut Slab; ALL_LISTS],
    tails: [*mut Slab; ALL_LISTS],
    /// A bit per list that is not empty.
    filled: u32,
    /// The number of the current decay window.
    window: u32,
    /// Listed slabs whose objects are all free.
    empty: u32,
    /// Listed slabs.
    listed: u32,
    /// Slabs that arrived, full ones included.
    slabs: usize,
    /// Free objects of all slabs.
    free: usize,
}

// SAFETY: the listed slabs are protected by the lock that holds this, and bound to no thread.
unsafe impl Send for Partial {}

impl Partial {
    pub(crate) const fn new() -> Partial {
        Partial {
            heads: [ptr::null_mut(); ALL_LISTS],
            tails: [ptr::null_mut(); ALL_LISTS],
            filled: 0,
            window: 0,
            empty: 0,
            listed: 0,
            slabs: 0,
            free: 0,
        }
    }

    /// Lists a slab that arrives.
    ///
    /// # Safety
    /// The slab is of the class and node of these lists, and on none of them.
    #[inline]
    pub(super) unsafe fn add(&mut self, slab: *mut Slab) {
        // SAFETY: the caller guarantees that the slab is of these lists, whose lock is held.
        unsafe {
            let shape = shape_of(slab);
            self.empty += u32::from((*slab).free_count == shape.objects);
            counters::wrote(Line::Partial, 1);
            counters::wrote(Line::Slab, 1);
            self.slabs += 1;
            self.free += (*slab).free_count as usize;
            (*slab).list = UNLISTED;
            self.relist(slab, &shape);
        }
    }

    /// Cuts objects from partial slabs until the batch holds `len`, no object is free, or
    /// [`MAX_CUT`] slabs were cut from. The lowest addresses of a slab are cut first and lie last
    /// in the batch.
    pub(crate) fn cut(&mut self, batch: &mut Batch, len: usize) {
        for _ in 0..MAX_CUT {
            if batch.len() >= len || self.filled == 0 {
                return;
            }
            let list = self.filled.trailing_zeros() as usize;
            // SAFETY: the list has a bit, so it exists and has a head. The lock is held, which
            // protects listed slabs.
            unsafe {
                let slab = *self.heads.get_unchecked(list);
                let shape = shape_of(slab);
                let count = (*slab).bitmap.cut((*slab).identity.base, &shape, batch, len);
                self.empty -= u32::from((*slab).free_count == shape.objects);
                (*slab).free_count -= count;
                self.free -= count as usize;
                counters::wrote(Line::Partial, 1);
                counters::wrote(Line::Slab, 1);
                (*slab).window = self.window;
                (*slab).punched = 0;
                if list >= usize::from(PUNCHED) {
                    self.unlist(slab);
                }
                self.relist(slab, &shape);
            }
        }
    }

    /// Takes back `objects`, up to the first one of another node's slab, and returns the rest.
    /// Slabs that became empty and are not kept move to `emptied`.
    ///
    /// # Errors
    /// Returns an object that is not one of `class`, or is free already. Objects before it may have
    /// been taken back.
    ///
    /// # Safety
    /// For an object of `class`, `slab_of` returns the descriptor of its slab. For any other
    /// address it returns committed metadata of a unit, or `None`.
    pub(crate) unsafe fn put<'a>(
        &mut self,
        mut objects: &'a [*mut u8],
        class: Class,
        node: usize,
        slab_of: impl Fn(*mut u8) -> Option<*mut Slab>,
        emptied: &mut Emptied,
    ) -> Result<&'a [*mut u8], (*mut u8, Misuse)> {
        let shape = shape(class);
        while let Some(&first) = objects.first() {
            let slab = slab_of(first).ok_or((first, Misuse::Foreign))?;
            // SAFETY: the caller guarantees that `slab_of` returns committed metadata.
            if unsafe { Slab::node(slab) } != node {
                return Ok(objects);
            }
            // SAFETY: `slab` is committed metadata, which starts with an identity.
            let identity = unsafe { (*slab).identity };
            if !identity.tag.is_of(class) {
                return Err((first, Misuse::Foreign));
            }
            // SAFETY: a slab of this class and node, so the lock protects its bitmap.
            let count = unsafe { (*slab).bitmap.set_free(objects, identity.base, &shape) }
                .map_err(|object| (object, Misuse::DoubleFree))?;
            if count == 0 {
                return Err((first, Misuse::Foreign));
            }
            objects = objects.get(count..).unwrap_or(&[]);
            // SAFETY: a slab of this class and node, so the lock protects it.
            unsafe {
                (*slab).free_count += count as u32;
                counters::wrote(Line::Partial, 1);
                counters::wrote(Line::Slab, 1);
                if (*slab).list == ARRIVING {
                    continue;
                }
                self.free += count;
                if (*slab).list != LENT {
                    self.keep_or_unlink(slab, &shape, emptied);
                }
            }
        }
        Ok(objects)
    }

    /// Relists a slab that has more free objects than before, or unlinks it if it is empty and
    /// enough empty slabs are listed.
    ///
    /// # Safety
    /// The lock protects the slab, which is of this shape, and was not empty when it was last
    /// listed.
    unsafe fn keep_or_unlink(&mut self, slab: *mut Slab, shape: &Shape, emptied: &mut Emptied) {
        // SAFETY: the caller guarantees that the lock protects the slab, and that it is of this
        // shape.
        unsafe {
            if self.keeps(slab, shape, emptied) {
                self.relist(slab, shape);
            }
        }
    }

    /// Returns whether to list `slab`. An empty slab beyond `min_empty` moves to `emptied` instead.
    /// Any other empty slab is counted in `self.empty`.
    ///
    /// # Safety
    /// The lock protects the slab, which is of this shape, and was not empty when it was last
    /// listed.
    unsafe fn keeps(&mut self, slab: *mut Slab, shape: &Shape, emptied: &mut Emptied) -> bool {
        // SAFETY: the caller guarantees that the lock protects the slab, and that it is of this
        // shape.
        unsafe {
            if (*slab).free_count == shape.objects {
                if self.empty >= shape.min_empty {
                    self.unlink_empty(slab, shape, emptied);
                    return false;
                }
                self.empty += 1;
            }
        }
        true
    }

    /// Starts a new decay window, which ages every slab by one window.
    pub(crate) fn end_window(&mut self) {
        self.window = self.window.wrapping_add(1);
    }

    /// Returns whether there are slabs that are not punched.
    pub(crate) fn has_unpunched(&self) -> bool {
        self.filled & ((1 << PUNCHED) - 1) != 0
    }

    /// Unlinks a slab of a size class so that its holes can be decommitted without the lock: one
    /// idle for a whole window, or any if `even_busy`. Return it with [`Partial::relist_lent`].
    pub(crate) fn lend(&mut self, even_busy: bool) -> Option<Lent> {
        // The emptiest slabs have the most holes, and the last one of a list has been there
        // longest.
        for list in (0..usize::from(PUNCHED)).rev() {
            let slab = self.tails[list];
            // SAFETY: the lock is held, which protects listed slabs.
            unsafe {
                if slab.is_null() || !(even_busy || self.window.wrapping_sub((*slab).window) >= 2) {
                    continue;
                }
                let shape = shape_of(slab);
                self.unlist(slab);
                self.empty -= u32::from((*slab).free_count == shape.objects);
                (*slab).list = LENT;
                return Some(Lent {
                    slab,
                    base: (*slab).identity.base,
                    shape,
                    free_count: (*slab).free_count,
                    punched: (*slab).punched as usize,
                    free: (*slab).bitmap.free,
                });
            }
        }
        None
    }

    /// Lists a slab again that was lent and whose holes were decommitted. It counts as punched,
    /// unless objects were freed meanwhile: these may have left new holes.
    ///
    /// # Safety
    /// These lists lent the slab.
    pub(crate) unsafe fn relist_lent(&mut self, lent: Lent, emptied: &mut Emptied) {
        let (slab, shape) = (lent.slab, &lent.shape);
        // SAFETY: the caller guarantees that these lists lent the slab. It stays a slab until it is
        // relisted, which happens once, as `lent` is consumed.
        unsafe {
            (*slab).list = UNLISTED;
            (*slab).punched = lent.punched as u32;
            if self.keeps(slab, shape, emptied) {
                let free = (*slab).free_count;
                let lists = if free == lent.free_count { PUNCHED } else { 0 };
                self.push(slab, shape.list(free) + lists);
            }
        }
    }

    /// Unlinks an empty slab and moves it to `emptied`.
    ///
    /// # Safety
    /// The lock protects the slab, which is of this shape, and all its objects are free.
    unsafe fn unlink_empty(&mut self, slab: *mut Slab, shape: &Shape, emptied: &mut Emptied) {
        self.slabs -= 1;
        self.free -= shape.objects as usize;
        // SAFETY: the caller guarantees that the lock protects the slab, and that all its objects
        // are free.
        unsafe {
            self.unlist(slab);
            emptied.push(slab);
        }
    }

    /// Moves the empty slabs that were kept to `emptied`.
    pub(crate) fn shed(&mut self, class: Class, emptied: &mut Emptied) {
        let shape = shape(class);
        for list in [EMPTY, EMPTY + PUNCHED] {
            while let Some(slab) = NonNull::new(self.heads[usize::from(list)]) {
                // SAFETY: the lock is held, which protects listed slabs. They are of this class,
                // and all objects of those on this list are free.
                unsafe {
                    self.empty -= 1;
                    self.unlink_empty(slab.as_ptr(), &shape, emptied);
                }
            }
        }
    }

    /// Returns the number of slabs and free objects.
    pub(crate) fn counts(&self) -> Counts {
        Counts { slabs: self.slabs, partial: self.listed as usize, free: self.free }
    }

    /// Moves a slab to the list for its number of free objects.
    ///
    /// # Safety
    /// The lock protects the slab, which is of this shape.
    #[inline]
    unsafe fn relist(&mut self, slab: *mut Slab, shape: &Shape) {
        // SAFETY: the caller guarantees that the lock protects the slab, and that it is of this
        // shape.
        unsafe {
            let list = shape.list((*slab).free_count);
            if list == (*slab).list {
                return;
            }
            if list == UNLISTED {
                return self.unlist(slab);
            }
            // A punched slab stays punched until it belongs to another eighth.
            if list + PUNCHED != (*slab).list {
                self.unlist(slab);
                self.push(slab, list);
            }
        }
    }

    /// Adds a slab to a list.
    ///
    /// # Safety
    /// The lock protects the slab, which is on no list.
    unsafe fn push(&mut self, slab: *mut Slab, list: u8) {
        // SAFETY: the caller guarantees that the lock protects the slab, as it does all listed
        // slabs.
        unsafe {
            let head = self.heads.get_unchecked_mut(usize::from(list));
            (*slab).list = list;
            (*slab).window = self.window;
            (*slab).previous = ptr::null_mut();
            (*slab).next = *head;
            if (*head).is_null() {
                *self.tails.get_unchecked_mut(usize::from(list)) = slab;
            } else {
                (**head).previous = slab;
            }
            *head = slab;
            self.filled |= 1 << list;
            self.listed += 1;
        }
    }

    /// Removes a slab from its list, if it is on one.
    ///
    /// # Safety
    /// The lock protects the slab.
    unsafe fn unlist(&mut self, slab: *mut Slab) {
        // SAFETY: the caller guarantees that the lock protects the slab, as it does all listed
        // slabs.
        unsafe {
            let list = (*slab).list;
            if list == UNLISTED {
                return;
            }
            (*slab).list = UNLISTED;
            self.listed -= 1;
            let (previous, next) = ((*slab).previous, (*slab).next);
            if next.is_null() {
                *self.tails.get_unchecked_mut(usize::from(list)) = previous;
            } else {
                (*next).previous = previous;
            }
            if !previous.is_null() {
                (*previous).next = next;
                return;
            }
            *self.heads.get_unchecked_mut(usize::from(list)) = next;
            if next.is_null() {
                self.filled &= !(1 << list);
            }
        }
    }
}

// These tests use addresses without memory behind them, on which Miri allows no arithmetic.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::testing::{BASE, address, of_size};
    use super::super::{Entry, Held, Slabs};
    use super::*;
    use crate::batch::MAX_BATCH;
    use crate::size_class::UNIT;
    use crate::sync::Context;
    use core::alloc::Layout;
    use std::vec::Vec;

    const DESCRIPTOR: Layout = Layout::new::<Slab>();

    /// The entry of all units, since no test here frees by address.
    static ENTRY: Entry = Entry::none();

    /// Slabs of four objects of 16 KiB, with descriptors of their own.
    struct Fixture {
        class: Class,
        slabs: Slabs,
        descriptors: Vec<*mut Slab>,
    }

    impl Fixture {
        fn of(count: usize) -> Fixture {
            let class = of_size(16384);
            let slabs = Slabs::new();
            let descriptors: Vec<*mut Slab> = (0..count)
                .map(|index| {
                    // SAFETY: a new descriptor of this test, whose objects nobody touches.
                    unsafe {
                        let slab = std::alloc::alloc_zeroed(DESCRIPTOR).cast();
                        Slab::init(
                            slab,
                            &raw const ENTRY,
                            address(BASE + index * UNIT),
                            class,
                            0,
                            true,
                        );
                        slabs.arrive(Context::TRYING, slab);
                        slab
                    }
                })
                .collect();
            Fixture { class, slabs, descriptors }
        }

        fn lock(&self) -> Held<'_> {
            self.slabs.lock(Context::TRYING).expect("no other thread has the lock")
        }

        fn lend_and_relist(&self) -> bool {
            let lent = self.lock().lend(true);
            // SAFETY: these lists lent the slab.
            lent.map(|lent| unsafe { self.lock().relist_lent(lent, &mut Emptied::new()) }).is_some()
        }

        fn put(&self, objects: &[*mut u8]) {
            let slab_of =
                |object: *mut u8| self.descriptors.get((object.addr() - BASE) / UNIT).copied();
            let mut emptied = Emptied::new();
            // SAFETY: `slab_of` returns descriptors of slabs of the class.
            let rest = unsafe { self.lock().put(objects, self.class, 0, slab_of, &mut emptied) };
            assert!(rest.is_ok_and(<[_]>::is_empty));
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            for slab in &self.descriptors {
                // SAFETY: allocated with this layout.
                unsafe { std::alloc::dealloc(slab.cast(), DESCRIPTOR) };
            }
        }
    }

    /// The lists of empty slabs hold no others, however many slabs are nearly empty, punched or
    /// not.
    #[test]
    fn lists_of_empty_slabs_hold_no_others() {
        let some = Fixture::of(1);
        some.lock().shed(some.class, &mut Emptied::new());
        assert_eq!(some.lock().counts().slabs, 0);
        let some = Fixture::of(100);
        let mut batch = Batch::new();
        let mut all = Vec::new();
        loop {
            batch.clear();
            some.lock().cut(&mut batch, MAX_BATCH);
            if batch.len() == 0 {
                break;
            }
            all.extend_from_slice(batch.objects());
        }
        assert_eq!(all.len(), 400);
        // Free three of the four objects of each slab.
        let (kept, freed): (Vec<_>, Vec<_>) =
            all.iter().partition(|object| object.addr() % UNIT == 0);
        some.put(&freed);
        while some.lend_and_relist() {}
        assert!(!some.lock().has_unpunched());
        some.put(&kept[..1]);
        let empty = |list: u8| {
            let held = some.lock();
            let mut count = 0;
            let mut next = held.heads[usize::from(list)];
            while let Some(slab) = NonNull::new(next) {
                // SAFETY: a listed slab, under the lock.
                unsafe {
                    assert_eq!((*next).free_count, 4);
                    next = slab.as_ref().next;
                }
                count += 1;
            }
            count
        };
        assert_eq!((empty(EMPTY), empty(EMPTY + PUNCHED)), (1, 0));
        assert!(some.lend_and_relist(), "an empty slab was not lent");
        assert_eq!((empty(EMPTY), empty(EMPTY + PUNCHED)), (0, 1));
        let mut emptied = Emptied::new();
        some.lock().shed(some.class, &mut emptied);
        assert!(emptied.pop().is_some() && emptied.pop().is_none());
        let counts = some.lock().counts();
        assert_eq!((counts.slabs, counts.partial, counts.free), (99, 99, 3 * 99));
    }

    /// A cut holds the lock for no longer than [`MAX_CUT`] slabs take, even if each has few free
    /// objects.
    #[test]
    fn one_cut_visits_few_slabs() {
        let some = Fixture::of(100);
        let mut batch = Batch::new();
        let mut all = Vec::new();
        while all.len() < 400 {
            batch.clear();
            some.lock().cut(&mut batch, MAX_BATCH);
            all.extend_from_slice(batch.objects());
        }
        let one_of_each: Vec<_> =
            all.into_iter().filter(|object| object.addr() % UNIT == 0).collect();
        some.put(&one_of_each);
        batch.clear();
        some.lock().cut(&mut batch, MAX_BATCH);
        assert_eq!(batch.len(), MAX_CUT as usize);
    }
}
