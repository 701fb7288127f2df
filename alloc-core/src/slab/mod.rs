//! Slabs: runs cut into objects of one class, with a free bit per object.
//!
//! *Descriptor.* A slab's descriptor lies outside the slab, in the metadata that `page` keeps per
//! unit. It holds a bitmap of the free objects. So a free does not touch the object, objects are
//! cut in ascending order of address whatever the order of the frees, and a double free is detected
//! in passing.
//!
//! *Lists.* A slab is *partial* if some of its objects are free. Partial slabs are listed by how
//! free they are, and the fullest are used first, so that the emptiest may become empty. A full
//! slab is on no list: a free finds it by the address of the object.
//!
//! *Holes.* Pages of a partial slab that hold no live object are *holes*. They are decommitted when
//! nothing was cut from the slab for a while. Then the slab is *punched*, and used after all
//! others.
//!
//! *Arrival.* A new slab is private to its maker until it *arrives* at the lists, after its maker
//! has cut objects from it. The maker lists it at once. If the lock is busy and the maker must not
//! wait, it queues the slab as an arrival, and the next holder of the lock lists it. Until then the
//! slab is not freed, even if it is empty.
//!
//! *Locking.* A descriptor is read and written under the lock of its [`Slabs`]. The exception is
//! `identity`, which does not change while objects of the slab are out.

mod entry;

use core::cell::UnsafeCell;
use core::mem::{self, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::batch::Batch;
use crate::size_class::{Class, MAX_CLASSES, MAX_SMALL, UNIT};
#[cfg(not(loom))]
use crate::sync::RawLock;
use crate::sync::counters::{self, Line};
use crate::sync::{Context, Guard, Link, Llist, Lock, LockClass};
pub(crate) use entry::Entry;
#[cfg(not(loom))]
pub(crate) use entry::{CLASS, IN_UNIT};

/// Bits of a word of the bitmap.
const WORD: usize = u64::BITS as usize;
/// Most objects of a slab. The summary has a bit per word of the bitmap, and must fit one word.
const MAX_OBJECTS: usize = WORD * WORD;
/// Lists of partial slabs, by eighths of free objects.
pub(crate) const LISTS: usize = 8;
/// Empty slabs of a class that a node keeps, except for middle sizes.
pub(crate) const MIN_EMPTY: u32 = 1;
/// The `list` of a slab that is on no list.
const UNLISTED: u8 = u8::MAX;
/// The `list` of a slab that has yet to arrive.
const ARRIVING: u8 = u8::MAX - 1;
/// The `list` of a slab that is on no list while its holes are decommitted.
const LENT: u8 = u8::MAX - 2;
/// The list of slabs whose objects are all free.
const EMPTY: u8 = LISTS as u8;
/// The first list of punched slabs. There is one for each list before it.
const PUNCHED: u8 = EMPTY + 1;
/// The number of lists, those of punched slabs included.
const ALL_LISTS: usize = 2 * PUNCHED as usize;
/// Most slabs that are cut from under one acquisition of the lock. Each of them has a descriptor to
/// read while others wait for the lock.
const MAX_CUT: u32 = 32;

/// The layout and the policy of the slabs of a class.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes from one object to the next.
    size: u32,
    /// 2^32 / size, rounded up. Multiplied by an offset in the slab, it yields the exact index of
    /// the object, in the upper 32 bits.
    reciprocal: u32,
    /// Objects of a slab.
    objects: u32,
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
    min_empty: u32,
    /// Initialises each object of a new slab. What it wrote stays in an object while that is free.
    constructor: Option<fn(NonNull<u8>)>,
}

/// The shapes of all classes. Those of size classes never change. That of a cache class is written
/// when a cache is created, while the class has no objects.
struct Shapes(UnsafeCell<[Shape; MAX_CLASSES]>);

// SAFETY: a shape is written only while its class has no objects. A thread that gets an object from
// another synchronises with it.
unsafe impl Sync for Shapes {}

static SHAPES: Shapes = {
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
    /// [`MAX_SMALL`]: crate::size_class::MAX_SMALL
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
    const fn in_unit(&self) -> u32 {
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
    fn list(&self, free: u32) -> u8 {
        match free {
            0 => UNLISTED,
            _ if free == self.objects => EMPTY,
            _ => ((free * self.list_scale) >> 16) as u8,
        }
    }

    /// Returns the index of the object that starts at `offset` bytes in a slab, if one does.
    #[inline(always)]
    fn index_at(&self, offset: usize) -> Option<usize> {
        if offset >= self.span as usize {
            return None;
        }
        let index = self.index(offset);
        (index * self.size as usize == offset).then_some(index)
    }

    /// Returns the index of the object that contains `offset`, which is less than 2^32.
    #[inline(always)]
    fn index(&self, offset: usize) -> usize {
        ((offset as u64 * u64::from(self.reciprocal)) >> 32) as usize
    }

    /// Returns the part of the slab that word `at` of the bitmap stands for: its offset and its
    /// length in bytes.
    #[inline(always)]
    fn word(&self, at: usize) -> (usize, usize) {
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

/// The slab that the objects of a unit belong to. Every unit of a slab has a copy.
#[derive(Clone, Copy)]
#[repr(C)]
struct Identity {
    base: *mut u8,
    tag: Tag,
}

/// The kind of slab that a unit belongs to. Read and written as one word, since
/// [`Slab::for_each_out`] reads the tags of all units.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Tag {
    class: u16,
    node: u8,
    /// Whether the unit belongs to a slab at present.
    live: bool,
}

impl Tag {
    /// Returns whether this is the tag of a slab of `class`. Zeroed metadata is not.
    #[inline(always)]
    fn is_of(&self, class: Class) -> bool {
        self.live && usize::from(self.class) == class.index()
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
    unsafe fn load(this: *mut Tag) -> Tag {
        // SAFETY: the caller guarantees that `this` is committed. It is zero, or was stored.
        // Relaxed: as in `store`.
        unsafe {
            mem::transmute::<u32, Tag>(AtomicU32::from_ptr(this.cast()).load(Ordering::Relaxed))
        }
    }
}

/// The descriptor of a slab.
#[repr(C, align(64))]
pub(crate) struct Slab {
    identity: Identity,
    next: *mut Slab,
    previous: *mut Slab,
    /// The entries of the slab's units.
    entries: *const Entry,
    /// Number of free objects.
    free_count: u32,
    /// The list that holds this slab, or [`UNLISTED`], [`ARRIVING`] or [`LENT`].
    list: u8,
    /// The decay window in which the slab was listed or last cut from, whichever is later.
    window: u32,
    bitmap: Bitmap,
    /// A bit per object that the program holds, to detect double frees.
    #[cfg(debug_assertions)]
    held: [core::sync::atomic::AtomicU64; WORD],
}

/// The free objects of a slab. A struct of its own, so that a mutable borrow under the lock does
/// not cover `identity`, which is read without the lock.
#[repr(C)]
struct Bitmap {
    /// A bit per word of `free` that is not zero.
    summary: u64,
    /// A bit per free object.
    free: [u64; WORD],
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
                (*entries.add(unit)).set(class, shape(class).in_unit(), zeroed);
                Tag::store(&raw mut (*this.add(unit)).identity.tag, tag);
            }
            (&raw mut (*this).entries).write(entries);
            (&raw mut (*this).free_count).write(objects as u32);
            (&raw mut (*this).list).write(ARRIVING);
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
        let class = Class::any_from_index(tag.class.into()).filter(|_| tag.live)?;
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

    /// Returns the index of `object` in a slab of `class`.
    ///
    /// # Safety
    /// `this` is metadata of the first unit of the slab of `object`, if it is in a slab of `class`.
    #[cfg(debug_assertions)]
    unsafe fn index_of(this: *mut Slab, object: *mut u8, class: Class) -> Option<usize> {
        // SAFETY: the caller guarantees that this is metadata; zeroed metadata is a valid identity.
        let identity = unsafe { &(*this).identity };
        if !identity.tag.is_of(class) {
            return None;
        }
        shape(class).index_at(object.addr().wrapping_sub(identity.base.addr()))
    }
}

impl Bitmap {
    /// Marks `objects` as free, up to the first one that is no object of the slab at `base`.
    /// Returns the number of objects marked.
    ///
    /// # Errors
    /// Returns an object that is free already, or occurs twice. Then the objects gathered with it
    /// for the same word of the bitmap are not marked.
    #[inline]
    fn set_free(
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
    fn cut(&mut self, base: *mut u8, shape: &Shape, batch: &mut Batch, len: usize) -> u32 {
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

/// Empty slabs that left their lists. Their runs must be freed, after the lock is released.
pub(crate) struct Emptied(*mut Slab);

impl Emptied {
    pub(crate) const fn new() -> Emptied {
        Emptied(ptr::null_mut())
    }

    /// Adds a slab.
    ///
    /// # Safety
    /// The caller alone has the slab.
    unsafe fn push(&mut self, slab: *mut Slab) {
        // SAFETY: the caller guarantees that it alone has the slab.
        unsafe {
            Slab::abandon(slab);
            (*slab).next = self.0;
        }
        self.0 = slab;
    }

    /// Removes a slab and returns the base address of its run.
    pub(crate) fn pop(&mut self) -> Option<*mut u8> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the slabs in here are on no list, and have no objects out.
        unsafe {
            let slab = self.0;
            self.0 = (*slab).next;
            Some((*slab).identity.base)
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

/// The slabs of a class on a node. (`kmem_cache_node` of `mm/slub.c`, without its barn.)
pub(crate) struct Slabs {
    partial: Lock<Partial>,
    arrivals: Llist<Slab>,
    counts: PublicCounts,
}

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

/// A copy of the [`Counts`], as of the last release of the lock, for reading without the lock.
/// Nothing relies on it, so loom need not know its atomics.
struct PublicCounts {
    slabs: AtomicUsize,
    partial: AtomicUsize,
    free: AtomicUsize,
}

impl PublicCounts {
    const fn new() -> PublicCounts {
        PublicCounts {
            slabs: AtomicUsize::new(0),
            partial: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
        }
    }
}

/// The partial slabs under their lock. Publishes the counts when it is dropped.
pub(crate) struct Held<'a> {
    partial: Guard<'a, Partial>,
    counts: &'a PublicCounts,
}

impl Deref for Held<'_> {
    type Target = Partial;

    fn deref(&self) -> &Partial {
        &self.partial
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Partial {
        &mut self.partial
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Counts { slabs, partial, free } = self.partial.counts();
        // Relaxed: see `PublicCounts`. The lock is still held.
        self.counts.slabs.store(slabs, Ordering::Relaxed);
        self.counts.partial.store(partial, Ordering::Relaxed);
        self.counts.free.store(free, Ordering::Relaxed);
    }
}

impl Slabs {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Slabs {
        Slabs {
            partial: Lock::new(LockClass::Slabs, Partial::new()),
            arrivals: Llist::new(),
            counts: PublicCounts::new(),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Slabs {
        Slabs {
            partial: Lock::new(LockClass::Slabs, Partial::new()),
            arrivals: Llist::new(),
            counts: PublicCounts::new(),
        }
    }

    /// Returns the counts as of the last release of the lock. Any context.
    #[cfg(not(loom))]
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            slabs: self.counts.slabs.load(Ordering::Relaxed),
            partial: self.counts.partial.load(Ordering::Relaxed),
            free: self.counts.free.load(Ordering::Relaxed),
        }
    }

    /// Locks the partial slabs, and lists the slabs that arrived meanwhile. Returns `None` if the
    /// lock is busy and the context must not wait, or if a fork abandoned the lock.
    pub(crate) fn lock(&self, context: Context) -> Option<Held<'_>> {
        let mut partial = Held { partial: self.partial.acquire(context)?, counts: &self.counts };
        for slab in self.arrivals.take() {
            counters::wrote(Line::Arrivals, 1);
            // SAFETY: arrivals are slabs of this class and node, and the lock is held.
            unsafe { partial.add(slab) };
        }
        Some(partial)
    }

    #[cfg(not(loom))]
    pub(crate) fn raw(&self) -> &RawLock {
        self.partial.raw()
    }

    /// Lists a new slab at once, or if the lock is busy and the context must not wait, when the
    /// lock is acquired next.
    ///
    /// # Safety
    /// The slab is new, of this class and node, and the caller no longer uses it.
    pub(crate) unsafe fn arrive(&self, context: Context, slab: *mut Slab) {
        let listed = self.lock(context);
        // SAFETY: the caller guarantees that the slab is new, and of this class and node.
        unsafe {
            match listed {
                Some(mut partial) => partial.add(slab),
                None => {
                    counters::wrote(Line::Arrivals, 1);
                    self.arrivals.add(slab);
                }
            }
        }
    }
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
    unsafe fn add(&mut self, slab: *mut Slab) {
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
    /// As [`Partial::keep_or_unlink`].
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

/// A slab that is on no list while its holes are decommitted, as it was when it was lent. Objects
/// may be freed to it meanwhile, but none are cut from it.
#[must_use = "a slab that is not brought back by `relist_lent` is lost"]
pub(crate) struct Lent {
    slab: *mut Slab,
    base: *mut u8,
    shape: Shape,
    free_count: u32,
    /// A copy of the bitmap.
    free: [u64; WORD],
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
                // SAFETY: offsets within the slab.
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

/// Returns the shape of a slab.
///
/// # Safety
/// The slab is live.
#[inline]
unsafe fn shape_of(slab: *mut Slab) -> Shape {
    // SAFETY: the caller guarantees that the slab is live, so its class is below `MAX_CLASSES`, and
    // the shape of that does not change.
    unsafe {
        let class = usize::from((*slab).identity.tag.class);
        SHAPES.0.get().cast::<Shape>().add(class).read()
    }
}

/// Debug builds track for each object whether the program holds it.
#[cfg(debug_assertions)]
impl Slab {
    /// Records that the program receives `object`, if `held`, or frees it.
    ///
    /// # Errors
    /// Returns the misuse, if this is no object of `class`, or the program held or freed it
    /// already.
    ///
    /// # Safety
    /// `this` is metadata of the first unit of the slab of `object`, if it is in a slab of `class`.
    pub(crate) unsafe fn note(
        this: *mut Slab,
        object: *mut u8,
        class: Class,
        held: bool,
    ) -> Result<(), Misuse> {
        use core::sync::atomic::Ordering::Relaxed;
        // SAFETY: the caller guarantees that `this` is metadata of the slab that `object` would be
        // in.
        let index = unsafe { Slab::index_of(this, object, class) }.ok_or(Misuse::Foreign)?;
        // SAFETY: the index is below the objects of a slab; the words are atomics.
        let word = unsafe { (*this).held.get_unchecked(index / WORD) };
        let bit = 1 << (index % WORD);
        // Relaxed: only the bit itself counts, and a thread that passes an object on orders that
        // itself.
        let old = if held { word.fetch_or(bit, Relaxed) } else { word.fetch_and(!bit, Relaxed) };
        if (old & bit != 0) == held { Err(Misuse::DoubleFree) } else { Ok(()) }
    }
}

// These tests use addresses without memory behind them, on which Miri allows no arithmetic.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::batch::MAX_BATCH;
    use core::alloc::Layout;
    use std::vec::Vec;

    fn of_size(size: usize) -> Class {
        let found = (0..).map_while(Class::from_index).find(|class| class.size() == size);
        found.expect("there is such a class")
    }

    /// Returns an address that is only compared.
    fn address(at: usize) -> *mut u8 {
        ptr::without_provenance_mut(at)
    }

    const BASE: usize = 16 << 20;
    const DESCRIPTOR: Layout = Layout::new::<Slab>();

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
    fn a_slab_is_cut_from_end_to_end() {
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
    fn what_was_cut_comes_back_in_any_order() {
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
    fn what_is_free_is_not_freed() {
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
            assert_eq!(free_of(&bitmap), 1, "those of its word stay as they were");
        }
        let repeated = [object(70), object(90), object(70)];
        assert_eq!(bitmap.set_free(&repeated, base, &shape), Err(object(70)));
        assert_eq!(free_of(&bitmap), 1);
    }

    #[test]
    fn what_is_no_object_is_not_freed() {
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
    fn slabs_waste_little() {
        // Not the smallest class: a bitmap has room for only half of the objects in a unit.
        for class in (1..).map_while(Class::from_index) {
            let (shape, size) = (shape(class), class.size());
            let (bytes, used) = (shape.units as usize * UNIT, shape.span as usize);
            assert!(
                bytes - used <= bytes / 12 && bytes <= 2 * size.max(256 << 10),
                "{size} {bytes}"
            );
            assert_eq!(shape.in_unit() == 0, class.is_middle());
        }
    }

    /// The word by which `free` decides where objects start agrees with division.
    #[test]
    fn objects_are_known_by_where_they_start() {
        for class in (0..).map_while(Class::from_index).filter(|class| !class.is_middle()) {
            let shape = shape(class);
            let word = shape.in_unit();
            let step =
                if shape.units == 1 { class.size() } else { 1 << class.size().trailing_zeros() };
            for offset in (0..UNIT).step_by(if cfg!(miri) { 1021 } else { 1 }) {
                let starts = (offset as u32).wrapping_mul(word) < word;
                assert_eq!(starts, offset % step == 0, "{} {offset}", class.size());
            }
        }
        // Objects of caches may have any size.
        for stride in (8..=crate::size_class::MAX_SMALL).step_by(8) {
            let shape = Shape::for_cache(stride, 0, false, None);
            let word = shape.in_unit();
            for index in 0..shape.objects().min(UNIT.div_ceil(stride)) {
                let offset = index * stride % UNIT;
                assert!((offset as u32).wrapping_mul(word) < word, "{stride} {index}");
                assert_eq!(shape.index_at(index * stride), Some(index));
                assert_eq!(shape.index_at(index * stride + stride / 2), None);
            }
        }
    }

    #[test]
    fn rows() {
        let of = |addresses: &[usize]| addresses.iter().map(|at| address(*at)).collect::<Vec<_>>();
        assert!(is_row(&of(&[100]), 1, 8));
        assert!(is_row(&of(&[100, 108, 116, 7]), 3, 8));
        assert!(!is_row(&of(&[100, 108, 116, 7]), 4, 8));
        assert!(!is_row(&of(&[100, 116, 108]), 3, 8));
        assert!(is_row(&of(&[116, 108, 100]), 3, 8_usize.wrapping_neg()));
        assert!(!is_row(&of(&[100]), 2, 8), "there are not as many");
    }

    #[test]
    fn lists_are_by_eighths() {
        for class in (0..).map_while(Class::from_index) {
            let shape = shape(class);
            assert_eq!(shape.list(0), UNLISTED);
            assert_eq!(shape.list(shape.objects), EMPTY);
            let lists: Vec<_> = (1..shape.objects).map(|free| shape.list(free)).collect();
            assert!(lists.is_sorted() && lists.iter().all(|list| usize::from(*list) < LISTS));
        }
    }

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
                        slabs.arrive(waiting(), slab);
                        slab
                    }
                })
                .collect();
            Fixture { class, slabs, descriptors }
        }

        fn lock(&self) -> Held<'_> {
            self.slabs.lock(waiting()).expect("it can be waited for")
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

    fn waiting() -> Context {
        Context::enter(|context| context)
    }

    /// The lists of empty slabs hold no others, however many slabs are nearly empty, punched or
    /// not.
    #[test]
    fn empty_slabs_are_found_without_looking_at_others() {
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
        assert!(some.lend_and_relist(), "an empty one is not settled");
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
    fn few_slabs_are_cut_at_once() {
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
            assert_eq!(holes, wanted, "{size} {used:?}");
        }
    }
}
