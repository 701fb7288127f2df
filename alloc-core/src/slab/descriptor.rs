//! Descriptors: the metadata of slabs.
//!
//! A slab's descriptor lies outside the slab, in the metadata that `page` keeps per unit. The
//! descriptor of the first unit describes the slab and holds the bitmap of its free objects. The
//! descriptors of the other units hold only a copy of the identity, and all hold
//! the states of the objects of a middle size that start in their unit.
//!
//! A descriptor is read and written under the lock of the [`Slabs`] that the slab belongs to. The
//! exception is `identity`, which does not change while objects of the slab are out.
//!
//! [`Slabs`]: super::Slabs

use core::mem;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::bitmap::Bitmap;
use super::entry::Entry;
use super::lists::ARRIVING;
use super::middle::States;
use super::shape::{SHAPES, Shape, WORD, shape};
use crate::batch::Batch;
use crate::size_class::Class;
use crate::sync::Link;

/// The slab that the objects of a unit belong to. Every unit of a slab has a copy.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Identity {
    pub(super) base: *mut u8,
    pub(super) tag: Tag,
}

/// The kind of slab that a unit belongs to. Read and written as one word, since
/// [`Slab::for_each_out`] reads the tags of all units.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub(super) struct Tag {
    class: u16,
    node: u8,
    /// Whether the unit belongs to a slab at present.
    live: bool,
}

impl Tag {
    /// Returns whether this is the tag of a slab of `class`. Zeroed metadata is not.
    #[inline(always)]
    pub(super) fn is_of(&self, class: Class) -> bool {
        self.live && usize::from(self.class) == class.index()
    }

    /// Returns the class of the slab, or `None` if the unit belongs to none.
    #[inline(always)]
    pub(super) fn class(&self) -> Option<Class> {
        Class::any_from_index(self.class.into()).filter(|_| self.live)
    }

    /// Stores a tag.
    ///
    /// # Safety
    /// `this` is the tag of a descriptor that nobody else writes.
    unsafe fn store(this: *mut Tag, tag: Tag) {
        // SAFETY: the caller guarantees that `this` is valid. A tag has the size and alignment of a
        // word, and all its bytes are initialised. Relaxed: a thread that may read more of a slab
        // than its tag is ordered by whatever gave it that right.
        unsafe {
            AtomicU32::from_ptr(this.cast())
                .store(mem::transmute::<Tag, u32>(tag), Ordering::Relaxed);
        }
    }

    /// Loads a tag.
    ///
    /// # Safety
    /// `this` is the tag of a descriptor that is committed.
    #[inline(always)]
    pub(super) unsafe fn load(this: *mut Tag) -> Tag {
        // SAFETY: the caller guarantees that `this` is committed. It is zero, or was stored.
        // Relaxed: a thread that may read more of a slab than its tag is ordered by whatever gave
        // it that right.
        unsafe {
            mem::transmute::<u32, Tag>(AtomicU32::from_ptr(this.cast()).load(Ordering::Relaxed))
        }
    }
}

/// The descriptor of a slab.
#[repr(C, align(64))]
pub(crate) struct Slab {
    pub(super) identity: Identity,
    pub(super) next: *mut Slab,
    pub(super) previous: *mut Slab,
    /// The entries of the slab's units.
    entries: *const Entry,
    /// Number of free objects.
    pub(super) free_count: u32,
    /// The list that holds this slab, or [`UNLISTED`], [`ARRIVING`] or [`LENT`].
    ///
    /// [`UNLISTED`]: super::lists::UNLISTED
    /// [`LENT`]: super::lists::LENT
    pub(super) list: u8,
    /// The states of the objects of a middle size that start in this unit.
    pub(super) middle: States,
    /// The decay window in which the slab was listed or last cut from, whichever is later.
    pub(super) window: u32,
    /// Bytes of holes that were decommitted last. 0 if the slab was cut from since.
    pub(super) punched: u32,
    pub(super) bitmap: Bitmap,
    /// A bit per object that the program holds, to detect double frees.
    #[cfg(debug_assertions)]
    pub(super) held: [core::sync::atomic::AtomicU64; WORD],
}

/// What is wrong with a free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Misuse {
    /// There is no slab at the address, or one of another class, or no object starts there.
    Foreign,
    /// The object is free already.
    DoubleFree,
}

impl Slab {
    /// Initialises a descriptor as that of a slab that has yet to arrive, with all objects free.
    /// `zeroed` states that the objects read as zero.
    ///
    /// # Safety
    /// `this` and `entries` are the first of as many descriptors and entries as the slab has units,
    /// and nobody else uses the descriptors. `base` is the run of these units.
    pub(crate) unsafe fn init(
        this: *mut Slab,
        entries: *const Entry,
        base: *mut u8,
        class: Class,
        node: u8,
        zeroed: bool,
    ) {
        let objects = shape(class).objects as usize;
        // SAFETY: the caller guarantees that nobody else uses the descriptors. Fields are written
        // here, not read.
        unsafe {
            let tag = Tag { class: class.index() as u16, node, live: true };
            for unit in 0..shape(class).units as usize {
                (&raw mut (*this.add(unit)).identity.base).write(base);
                (*entries.add(unit)).set(class, shape(class).in_unit());
                (&raw mut (*this.add(unit)).middle).write(States::new(zeroed));
                Tag::store(&raw mut (*this.add(unit)).identity.tag, tag);
            }
            (&raw mut (*this).entries).write(entries);
            (&raw mut (*this).free_count).write(objects as u32);
            (&raw mut (*this).list).write(ARRIVING);
            (&raw mut (*this).punched).write(0);
            let words = objects.div_ceil(WORD);
            (&raw mut (*this).bitmap.summary).write(u64::MAX >> (WORD - words));
            let free: *mut u64 = (&raw mut (*this).bitmap.free).cast();
            for word in 0..words {
                free.add(word).write(u64::MAX);
            }
            if !objects.is_multiple_of(WORD) {
                free.add(words - 1).write(u64::MAX >> (WORD - objects % WORD));
            }
        }
    }

    /// Runs the constructor of the class, if there is one, on all objects of a new slab.
    ///
    /// # Safety
    /// [`Slab::init`] made `this`, and no object of it is out yet.
    pub(crate) unsafe fn construct(this: *mut Slab) {
        // SAFETY: the caller guarantees that `this` is a slab, and that this thread alone has it.
        let (base, shape) = unsafe { ((*this).identity.base, shape_of(this)) };
        if let Some(constructor) = shape.constructor {
            for index in 0..shape.objects as usize {
                // SAFETY: the address of an object of the slab.
                constructor(unsafe { NonNull::new_unchecked(base.add(index * shape.stride())) });
            }
        }
    }

    /// Marks the units of a slab as belonging to no slab. For a slab that never arrived, or left
    /// its lists when it was empty.
    ///
    /// # Safety
    /// [`Slab::init`] made `this`, and no object of it is out.
    pub(crate) unsafe fn abandon(this: *mut Slab) {
        // SAFETY: the caller guarantees that no object is out, so this thread alone has the slab.
        unsafe {
            let tag = Tag { live: false, ..(*this).identity.tag };
            for unit in 0..shape_of(this).units as usize {
                (*(*this).entries.add(unit)).clear();
                Tag::store(&raw mut (*this.add(unit)).identity.tag, tag);
            }
        }
    }

    /// Cuts the first objects of a new slab into a batch, until that holds `len`.
    ///
    /// # Safety
    /// [`Slab::init`] made `this`, and no object of it is out yet.
    pub(crate) unsafe fn cut_new(this: *mut Slab, batch: &mut Batch, len: usize) {
        // SAFETY: the caller guarantees that no object is out, so this thread alone has the slab.
        unsafe {
            let count = (*this).bitmap.cut((*this).identity.base, &shape_of(this), batch, len);
            (*this).free_count -= count;
        }
    }

    /// Returns the class of the objects of a unit, or `None` if it belongs to no slab.
    ///
    /// # Safety
    /// `this` is metadata of a unit that holds an object or a run in use.
    #[inline(always)]
    pub(crate) unsafe fn class_of_unit(this: *mut Slab) -> Option<Class> {
        // SAFETY: the caller guarantees that the unit is in use, so its identity does not change.
        // Zeroed metadata is a valid identity. A live tag has the index of a class.
        unsafe {
            let tag = &raw const (*this).identity.tag;
            (*tag).live.then(|| Class::any_from_index((*tag).class.into()).unwrap_unchecked())
        }
    }

    /// Returns the class of the objects of a unit, and whether one of them starts at `address`.
    /// Returns `None` if the unit belongs to no slab.
    ///
    /// # Safety
    /// `this` is committed metadata of the unit that contains `address`.
    pub(crate) unsafe fn find(this: *mut Slab, address: *mut u8) -> Option<(Class, bool)> {
        // SAFETY: the caller guarantees that `this` is committed; zeroed metadata is a valid tag.
        let tag = unsafe { Tag::load(&raw mut (*this).identity.tag) };
        let class = tag.class()?;
        // SAFETY: `this` is committed, and a unit whose tag is live has its base.
        let base = unsafe { (*this).identity.base };
        let offset = address.addr().wrapping_sub(base.addr());
        Some((class, shape(class).index_at(offset).is_some()))
    }

    /// Returns the address at which the slab of a unit starts, if it is a slab of `class`.
    ///
    /// # Safety
    /// `this` is committed metadata of a unit.
    pub(crate) unsafe fn base_of(this: *mut Slab, class: Class) -> Option<*mut u8> {
        // SAFETY: the caller guarantees that `this` is committed. Zeroed metadata is a valid tag,
        // and a unit whose tag is live has its base.
        unsafe {
            let is_of_class = Tag::load(&raw mut (*this).identity.tag).is_of(class);
            is_of_class.then(|| (*this).identity.base)
        }
    }

    /// Records that the program receives the object of a middle size that starts at `object`.
    /// Returns whether the object reads as zero.
    ///
    /// # Safety
    /// `this` is metadata of the unit that contains `object`, which is an object of a middle size
    /// that nobody else has.
    #[inline(always)]
    pub(crate) unsafe fn middle_out(this: *mut Slab, object: *mut u8) -> bool {
        // SAFETY: the caller guarantees that `this` is metadata of a live slab.
        unsafe { (*this).middle.hold(object) }
    }

    /// Records that the program frees the object at `address`, and returns its class, if it is an
    /// object of a middle size that the program holds. If two threads free an object at the same
    /// moment, which is an error, both may succeed.
    ///
    /// # Safety
    /// `this` is committed metadata of the unit that contains `address`.
    #[inline(always)]
    pub(crate) unsafe fn middle_in(this: *mut Slab, address: *mut u8) -> Option<Class> {
        // SAFETY: the caller guarantees that `this` is committed.
        let class = unsafe { Slab::middle_held(this, address)? };
        // SAFETY: `this` has states, as it is committed.
        unsafe { (*this).middle.release(address) };
        Some(class)
    }

    /// Returns the class of the object at `address`, if it is an object of a middle size that the
    /// program holds.
    ///
    /// # Safety
    /// As [`Slab::middle_in`].
    #[inline(always)]
    pub(crate) unsafe fn middle_held(this: *mut Slab, address: *mut u8) -> Option<Class> {
        // SAFETY: the caller guarantees that `this` is committed; zeroed metadata is a valid tag
        // and valid states.
        let (tag, is_held) =
            unsafe { (Tag::load(&raw mut (*this).identity.tag), (*this).middle.holds(address)) };
        tag.class().filter(|class| class.is_middle() && is_held)
    }

    /// Marks the object of a middle size that starts at `object`, which the program is about to
    /// receive, as a sample. [`Slab::middle_in`] and [`Slab::middle_held`] do not report it then.
    ///
    /// # Safety
    /// As [`Slab::middle_out`].
    pub(crate) unsafe fn sample_middle(this: *mut Slab, object: *mut u8) {
        // SAFETY: the caller guarantees metadata of the object's unit.
        unsafe { (*this).middle.sample(object) };
    }

    /// Returns the class of the object at `address`, if it is a sample of a middle size that the
    /// program holds.
    ///
    /// # Safety
    /// As [`Slab::middle_in`].
    pub(crate) unsafe fn middle_sample(this: *mut Slab, address: *mut u8) -> Option<Class> {
        // SAFETY: the caller guarantees committed metadata of the address's unit.
        let (tag, is_held) = unsafe {
            (Tag::load(&raw mut (*this).identity.tag), (*this).middle.holds_sample(address))
        };
        tag.class().filter(|class| class.is_middle() && is_held)
    }

    /// Records that the object of a middle size that starts at `object` is free, and no longer
    /// reads as zero.
    ///
    /// # Safety
    /// As [`Slab::middle_out`].
    pub(crate) unsafe fn release_middle(this: *mut Slab, object: *mut u8) {
        // SAFETY: the caller guarantees that `this` is metadata of a live slab.
        unsafe { (*this).middle.release(object) };
    }

    /// Returns the node whose lists the slab belongs to.
    ///
    /// # Safety
    /// `this` is the descriptor of a slab that has objects out.
    #[inline]
    pub(crate) unsafe fn node(this: *mut Slab) -> usize {
        // SAFETY: the caller guarantees that objects are out, so the identity does not change.
        unsafe { (*this).identity.tag.node.into() }
    }

    /// Calls `visit` with each object that is not free, if this is the first unit of a slab of
    /// `class`.
    ///
    /// # Safety
    /// `this` is metadata of the unit at `address`, and nobody changes slabs of this class
    /// meanwhile.
    pub(crate) unsafe fn for_each_out(
        this: *mut Slab,
        address: *mut u8,
        class: Class,
        visit: &mut dyn FnMut(NonNull<u8>),
    ) {
        // SAFETY: the caller guarantees that no slab of `class` changes. Zeroed metadata is a valid
        // tag; that of another class may be written at this moment, so it is loaded as a whole.
        unsafe {
            if !Tag::load(&raw mut (*this).identity.tag).is_of(class)
                || (*this).identity.base != address
            {
                return;
            }
            let shape = shape(class);
            for index in 0..shape.objects as usize {
                if (*this).bitmap.free[index / WORD] >> (index % WORD) & 1 == 0 {
                    visit(NonNull::new_unchecked(address.add(index * shape.stride())));
                }
            }
        }
    }
}

// SAFETY: only lists use `next`, and a slab that arrives is on no other list.
unsafe impl Link for Slab {
    unsafe fn link(slab: *mut Slab) -> *mut *mut Slab {
        // SAFETY: the caller guarantees that `slab` is valid.
        unsafe { &raw mut (*slab).next }
    }
}

/// Returns the shape of a slab.
///
/// # Safety
/// The slab is live.
#[inline]
pub(super) unsafe fn shape_of(slab: *mut Slab) -> Shape {
    // SAFETY: the caller guarantees that the slab is live, so its class is below `MAX_CLASSES`, and
    // the shape of that does not change.
    unsafe {
        let class = usize::from((*slab).identity.tag.class);
        SHAPES.0.get().cast::<Shape>().add(class).read()
    }
}

// These tests use addresses without memory behind them, on which Miri allows no arithmetic.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use core::alloc::Layout;
    use std::alloc::{alloc_zeroed, dealloc};
    use std::vec::Vec;

    use super::super::testing::{BASE, address, of_size};
    use super::*;
    use crate::size_class::UNIT;

    /// The descriptors and entries of consecutive units from [`BASE`] on.
    struct Fixture {
        slabs: *mut Slab,
        entries: *mut Entry,
    }

    const UNITS: usize = 8;
    const LAYOUTS: [Layout; 2] = [Layout::new::<[Slab; UNITS]>(), Layout::new::<[Entry; UNITS]>()];

    impl Fixture {
        fn new() -> Fixture {
            // SAFETY: neither layout is empty.
            let [slabs, entries] = LAYOUTS.map(|layout| unsafe { alloc_zeroed(layout) });
            Fixture { slabs: slabs.cast(), entries: entries.cast() }
        }

        fn unit(&self, index: usize) -> *mut Slab {
            self.slabs.wrapping_add(index)
        }

        /// Makes a slab of `class` on node 3 that starts in unit `first`.
        fn init(&self, first: usize, class: Class) {
            let base = address(BASE + first * UNIT);
            // SAFETY: this test alone uses the descriptors and entries.
            unsafe { Slab::init(self.unit(first), self.entries.add(first), base, class, 3, false) };
        }

        /// Returns the objects of `class` that the slab of unit `first` lacks.
        fn out(&self, first: usize, class: Class) -> Vec<usize> {
            let mut out = Vec::new();
            let mut note = |object: NonNull<u8>| out.push(object.addr().get() - BASE);
            let at = address(BASE + first * UNIT);
            // SAFETY: the descriptor is that of the unit, and only this test changes slabs.
            unsafe { Slab::for_each_out(self.unit(first), at, class, &mut note) };
            out
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let [of_slabs, of_entries] = LAYOUTS;
            // SAFETY: both were allocated with these layouts.
            unsafe {
                dealloc(self.slabs.cast(), of_slabs);
                dealloc(self.entries.cast(), of_entries);
            }
        }
    }

    #[test]
    fn zeroed_metadata_describes_no_slab() {
        let fixture = Fixture::new();
        // SAFETY: zeroed descriptors.
        unsafe {
            assert_eq!(Slab::find(fixture.unit(0), address(BASE)), None);
            assert!(Slab::class_of_unit(fixture.unit(0)).is_none());
            assert!(Slab::base_of(fixture.unit(0), of_size(8)).is_none());
            assert!(Slab::middle_held(fixture.unit(0), address(BASE)).is_none());
        }
        assert!(fixture.out(0, of_size(8)).is_empty());
    }

    #[test]
    fn all_units_of_a_slab_name_its_class_and_base() {
        let fixture = Fixture::new();
        // A slab of several units, and an object that crosses from one unit into the next.
        let class = of_size(40960);
        let units = shape(class).units as usize;
        assert!((2..UNITS).contains(&units));
        fixture.init(1, class);
        let base = BASE + UNIT;
        for unit in 1..=units {
            let slab = fixture.unit(unit);
            // SAFETY: the descriptors of a live slab.
            unsafe {
                assert_eq!(Slab::class_of_unit(slab), Some(class));
                assert_eq!(Slab::base_of(slab, class), Some(address(base)));
                assert_eq!(Slab::base_of(slab, of_size(48)), None);
            }
        }
        for index in 0..shape(class).objects() {
            let object = base + index * class.size();
            let slab = fixture.unit((object - BASE) / UNIT);
            // SAFETY: the descriptor of the unit with the object.
            unsafe {
                assert_eq!(Slab::find(slab, address(object)), Some((class, true)));
                assert_eq!(Slab::find(slab, address(object + 8)), Some((class, false)));
            }
        }
        // SAFETY: no object of the slab is out.
        unsafe { Slab::abandon(fixture.unit(1)) };
        for unit in 1..=units {
            // SAFETY: committed descriptors.
            assert!(unsafe { Slab::find(fixture.unit(unit), address(base)) }.is_none());
        }
    }

    #[test]
    fn objects_cut_from_a_slab_are_out() {
        let fixture = Fixture::new();
        let class = of_size(48);
        fixture.init(2, class);
        assert!(fixture.out(2, class).is_empty());
        let mut batch = Batch::new();
        // SAFETY: no object of the slab is out yet.
        unsafe { Slab::cut_new(fixture.unit(2), &mut batch, 3) };
        assert_eq!(batch.len(), 3);
        assert_eq!(fixture.out(2, class), [0, 1, 2].map(|index| 2 * UNIT + index * 48));
        assert!(fixture.out(2, of_size(64)).is_empty(), "a slab of another class");
        // SAFETY: the slab is live.
        unsafe {
            assert_eq!((*fixture.unit(2)).free_count as usize, shape(class).objects() - 3);
            assert_eq!(Slab::node(fixture.unit(2)), 3);
        }
    }
}
