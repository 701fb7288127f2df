//! The general-purpose allocator for callers who free a block by its address alone, as in C.
//!
//! An address leads to its unit, and the unit to the class of its objects, or to a run. All blocks
//! are aligned to at least 16 bytes, as programs in C take for granted, so the classes of 8 and 24
//! bytes are not used. All allocating functions return the same kind of block: `kmalloc` may free a
//! block from here with a layout that fits. In turn, a block of `kmalloc` may be freed here, and so
//! may the objects of a cache (as with `kfree`).
//!
//! An address in none of our arenas is *foreign*: it belongs to another allocator, or is no block
//! at all. The caller of a free by address chooses what happens with a foreign block.

use core::alloc::Layout;
use core::ptr::{self, NonNull};

use crate::arch::{self, Push};
use crate::front::instrument::{self, EXACT, handed_out, resized, run_taken_back, taken_back};
use crate::front::kmalloc;
use crate::front::nolock;
use crate::os;
use crate::page::{self, ENTRY_SIZE, Unit};
use crate::path::large;
use crate::path::objects;
use crate::percpu;
use crate::sampling;
use crate::size_class::{Class, MALLOC_ALIGN, small_class_of, small_class_of_size};
use crate::slab;
use crate::sync::Context;

/// Returns the layout that serves `size` bytes, or `None` if no layout can be that large.
fn layout_of(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), MALLOC_ALIGN).ok()
}

/// The first step of [`alloc`], for callers that want nothing else inlined. Returns `None` if the
/// sheaf of this CPU is empty, or if `size` is not small.
#[inline(always)]
#[must_use]
pub fn pop(size: usize) -> Option<NonNull<u8>> {
    let class = small_class_of_size(size)?;
    let object = NonNull::new(percpu::pop(class))?;
    handed_out(object.as_ptr(), size, false);
    Some(object)
}

/// Allocates `size` bytes. Returns null when there is no memory. A size of 0 is served like a size
/// of 1.
#[must_use]
pub fn alloc(size: usize) -> *mut u8 {
    layout_of(size).map_or(ptr::null_mut(), kmalloc::alloc)
}

/// As [`alloc`], and the memory reads as zero.
#[must_use]
pub fn alloc_zeroed(size: usize) -> *mut u8 {
    layout_of(size).map_or(ptr::null_mut(), kmalloc::alloc_zeroed)
}

/// As [`alloc`], at a multiple of `align`. Returns null also if `align` is above 16 and not a power
/// of two.
#[must_use]
pub fn alloc_aligned(size: usize, align: usize) -> *mut u8 {
    let layout = Layout::from_size_align(size.max(1), align.max(MALLOC_ALIGN));
    layout.map_or(ptr::null_mut(), kmalloc::alloc)
}

/// As [`alloc`], without ever waiting: see [`nolock`].
#[must_use]
pub fn alloc_nolock(size: usize) -> *mut u8 {
    layout_of(size).and_then(nolock::alloc).map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// A function to call with a block that is foreign and not null.
pub type Foreign = unsafe extern "C" fn(*mut u8);

/// Frees a block. Does nothing if the block is null.
///
/// # Safety
/// The block is null, or was allocated by this allocator, was not freed, and is no longer used. The
/// process ends with a message if the block is foreign, if no block starts at the address, or if
/// the block was the last or the last but one freed on the same CPU. In slabs of several units of
/// small sizes (6.5, 11, 13 and 14 KiB, and above 16 KiB), an address inside an object is found
/// only if it is no multiple of the power of two in the object's size. With debug assertions, the
/// process ends for any block that was freed already.
#[inline(always)]
pub unsafe fn free(block: *mut u8) {
    // SAFETY: the caller guarantees that `block` is null, or live and not used.
    unsafe { free_or(block, refuse) }
}

/// As [`free`], but passes a foreign block to `foreign`.
///
/// # Safety
/// As [`free`], except that the block may be foreign.
#[inline(always)]
pub unsafe fn free_or(block: *mut u8, foreign: Foreign) {
    taken_back(block);
    // SAFETY: the caller guarantees that a block in our arenas is live, so its unit has an entry
    // and keeps its class.
    unsafe {
        match arch::push_by_address::<ENTRY_SIZE, { slab::IN_UNIT }, { slab::CLASS }>(block) {
            Push::Done => {}
            Push::Refused => free_refused(block),
            Push::Elsewhere => free_elsewhere(block, foreign),
        }
    }
}

/// As [`free`], without ever waiting.
///
/// # Safety
/// As [`free`].
pub unsafe fn free_nolock(block: *mut u8) {
    taken_back(block);
    // SAFETY: the caller guarantees that `block` is null, or live and not used.
    Context::without_waiting(|| unsafe { free_elsewhere(block, refuse) });
}

/// Frees an object that its sheaf refused. It takes a single argument, so that the fast path need
/// not keep the class in the register of a second one.
///
/// # Safety
/// As [`free`], for an object.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_refused(object: *mut u8) {
    // SAFETY: the caller guarantees that `object` is live and not used.
    unsafe {
        if let Some(Place::Object(class)) = Place::of(object) {
            objects::free_refused(class, object);
        }
    }
}

/// As [`free_or`], for a block in any arena or in none.
///
/// # Safety
/// As [`free_or`].
#[cold]
#[inline(never)]
unsafe extern "C" fn free_elsewhere(block: *mut u8, foreign: Foreign) {
    // Not foreign, and frequent: the search for an arena is skipped.
    if block.is_null() {
        return;
    }
    // SAFETY: the caller guarantees that `block` is foreign, or live and not used.
    unsafe {
        match objects::middle_in(block) {
            Some(class) => kmalloc::free_middle(block, class),
            None => free_anywhere(block, foreign),
        }
    }
}

/// As [`free_elsewhere`], for a block that is not of a middle size in the first arena.
///
/// # Safety
/// As [`free_or`].
#[cold]
#[inline(never)]
unsafe extern "C" fn free_anywhere(block: *mut u8, foreign: Foreign) {
    // SAFETY: the caller guarantees that `block` is foreign, or live and not used.
    unsafe {
        let Some(unit) = Unit::of(block) else { return free_apart(block, foreign) };
        if let Some(class) = objects::middle_in_unit(unit, block) {
            return kmalloc::free_middle(block, class);
        }
        match Place::in_unit(unit, block) {
            Place::Object(class) => {
                if !percpu::push_once(class, block) {
                    objects::free_refused(class, block);
                }
            }
            Place::Apart(_) => free_apart(block, foreign),
            Place::Run(_) => {
                run_taken_back(block);
                large::free_found(unit);
            }
        }
    }
}

/// As [`free_elsewhere`], for a block in no arena: a sampled one, or a foreign one.
///
/// # Safety
/// As [`free_or`].
unsafe fn free_apart(block: *mut u8, foreign: Foreign) {
    // SAFETY: the caller guarantees that `block` is foreign, or live and not used.
    unsafe {
        if !sampling::owns(block) {
            foreign(block);
        } else if !sampling::free(block) {
            os::abort(format_args!("{block:p} is no block in use: it was sampled, and freed"));
        }
    }
}

/// Ends the process, since a foreign block was freed.
#[cold]
unsafe extern "C" fn refuse(block: *mut u8) {
    refuse_foreign(block);
}

/// Ends the process with a message, since a foreign block was freed or resized.
#[cold]
pub fn refuse_foreign(block: *mut u8) -> ! {
    os::abort(format_args!("free or realloc of foreign address {block:p}"))
}

/// Returns whether a block is foreign: null, or in none of our arenas.
#[must_use]
pub fn is_foreign(block: *mut u8) -> bool {
    Unit::of(block).is_none() && !sampling::owns(block)
}

/// Kind of a block of this allocator, by its address.
enum Place {
    Object(Class),
    /// A sampled or guarded block apart from slabs, of this many bytes.
    Apart(usize),
    /// A run, of which this many bytes are used.
    Run(usize),
}

impl Place {
    /// Returns the kind of a block, or `None` if it is foreign. Ends the process if the address
    /// lies in our arenas and no block in use starts there.
    ///
    /// # Safety
    /// If the block is of this allocator, it was not freed.
    unsafe fn of(block: *mut u8) -> Option<Place> {
        match Unit::of(block) {
            // SAFETY: the caller guarantees that a block of this allocator was not freed.
            Some(unit) => Some(unsafe { Place::in_unit(unit, block) }),
            None => sampling::size_of_block(block).map(Place::Apart),
        }
    }

    /// As [`Place::of`], for a block in `unit`.
    ///
    /// # Safety
    /// As [`Place::of`].
    unsafe fn in_unit(unit: Unit, block: *mut u8) -> Place {
        match objects::find_in(unit, block) {
            Some((class, true)) => return Place::Object(class),
            Some((class, false)) => os::abort(format_args!(
                "{block:p} is no block in use: no object starts there ({})",
                objects::Kind(class)
            )),
            None => {}
        }
        // SAFETY: the caller guarantees that a block of this allocator was not freed.
        match unsafe { large::find(unit, block) } {
            Ok(bytes) => Place::Run(bytes),
            Err(why) => os::abort(format_args!("{block:p} is no block in use: {why}")),
        }
    }
}

/// Returns the bytes that a block may use, all of which [`realloc`] keeps. Returns 0 for a foreign
/// block and for null.
///
/// # Safety
/// If `block` is of this allocator, it was not freed.
#[must_use]
pub unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: the caller guarantees that `block` was not freed.
    match unsafe { Place::of(block) } {
        None => 0,
        // SAFETY: `block` is of this allocator, and the caller guarantees that it was not freed.
        _ if EXACT => unsafe { instrument::usable_size(block) },
        Some(Place::Object(class)) => objects::size(class),
        Some(Place::Apart(size) | Place::Run(size)) => size,
    }
}

/// Changes the size of a block to `new_size` bytes and keeps its contents up to the lesser size.
/// The block may move, and then has no alignment beyond that of [`alloc`]. A block that shrinks
/// does not move unless more than half of it would be wasted, and shrinking succeeds even when
/// there is no memory. Returns null, and leaves the block unchanged, when there is no memory for a
/// larger one or the block is foreign.
///
/// # Safety
/// As [`free_or`]; and `block` is not null.
#[must_use]
pub unsafe fn realloc(block: *mut u8, new_size: usize) -> *mut u8 {
    let Some(new_layout) = layout_of(new_size) else { return ptr::null_mut() };
    // SAFETY: the caller guarantees that `block` is foreign or live. A run is as if it had been
    // allocated with a layout of its used bytes.
    unsafe {
        let Some(place) = Place::of(block) else { return ptr::null_mut() };
        let size = match place {
            _ if EXACT => usable_size(block),
            Place::Run(size) if small_class_of(new_layout).is_none() => {
                let layout = Layout::from_size_align_unchecked(size, MALLOC_ALIGN);
                let new = kmalloc::realloc_large(block, layout, new_layout);
                // The rest of the run is room to grow. As a part of the block it would be copied.
                if let Some(unit) = Unit::of(new)
                    && objects::find_in(unit, new).is_none()
                {
                    page::set_used_bytes(unit, new_size);
                }
                return new;
            }
            Place::Run(size) => size,
            // Shrinking a little is not worth a copy.
            Place::Apart(size) if (size / 2..=size).contains(&new_size) => {
                return resized(block, block, new_size);
            }
            Place::Apart(size) => size,
            Place::Object(class) => match objects::size(class) {
                size if (size / 2..=size).contains(&new_size) => {
                    objects::check_middle(block, class);
                    return resized(block, block, new_size);
                }
                size => size,
            },
        };
        let new = kmalloc::alloc(new_layout);
        if new.is_null() {
            // If there is no memory for a smaller block, the old one is large enough.
            let stays = new_size <= size && !EXACT;
            return if stays { resized(block, block, new_size) } else { new };
        }
        ptr::copy_nonoverlapping(block, new, size.min(new_size));
        free(block);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::size_class::{MAX_SMALL, UNIT};

    fn filled(size: usize, value: u8) -> *mut u8 {
        let block = alloc(size);
        assert!(!block.is_null(), "{size} bytes were refused");
        assert!(block.addr().is_multiple_of(MALLOC_ALIGN), "{block:p} for {size} bytes");
        // SAFETY: the block is fresh, and the program may use all of it.
        unsafe {
            assert!(usable_size(block) >= size);
            block.write_bytes(value, usable_size(block));
        }
        block
    }

    #[test]
    fn blocks_of_all_sizes_can_be_freed_by_address() {
        for size in [0, 1, 8, 16, 17, 24, 32, 33, 100, 5000, MAX_SMALL, MAX_SMALL + 1, 5 * UNIT] {
            for _ in 0..if cfg!(miri) { 2 } else { 300 } {
                let (first, second) = (filled(size, 1), filled(size, 2));
                // SAFETY: both blocks are live and have that size.
                unsafe {
                    assert!(*first == 1 && *second == 2);
                    free(first);
                    free_nolock(second);
                    let (zeroed, nolock) = (alloc_zeroed(size), alloc_nolock(size));
                    assert!(size == 0 || (*zeroed == 0 && *zeroed.add(size - 1) == 0));
                    free(nolock);
                    free(zeroed);
                }
            }
        }
    }

    #[test]
    fn realloc_keeps_contents() {
        let sizes = [1, 8, 100, 60, 5000, 40_000, 70_000, 700_000, 900_000, 300_000, 33_000, 10];
        let mut block = filled(sizes[0], 7);
        for new_size in sizes {
            // SAFETY: the block is live, has that size, and is filled to its end.
            unsafe {
                let kept = usable_size(block).min(new_size);
                block = realloc(block, new_size);
                assert!(!block.is_null());
                let step = if cfg!(miri) { 509 } else { 1 };
                let is_kept = (0..kept).step_by(step).all(|offset| *block.add(offset) == 7);
                assert!(is_kept, "contents changed on the way to {new_size} bytes");
                block.write_bytes(7, usable_size(block));
                assert!(realloc(block, usize::MAX).is_null());
            }
        }
        // SAFETY: the block is live.
        unsafe { free(block) };
    }

    #[test]
    fn aligned_blocks_have_their_alignment() {
        for align in [1, 8, 16, 64, 4096, UNIT, 1 << 20] {
            for size in [0, 1, 100, 40_000] {
                let block = alloc_aligned(size, align);
                assert!(!block.is_null(), "{size} bytes were refused");
                assert!(block.addr().is_multiple_of(align), "{block:p} for alignment {align}");
                // SAFETY: the block is live.
                unsafe {
                    assert!(usable_size(block) >= size);
                    free(block);
                }
            }
        }
        assert!(alloc_aligned(1, 48).is_null() && alloc(usize::MAX).is_null());
        assert!(alloc_zeroed(usize::MAX).is_null() && alloc_nolock(usize::MAX).is_null());
    }

    #[test]
    fn foreign_blocks_go_to_the_given_function() {
        use core::sync::atomic::{AtomicPtr, Ordering};
        static FREED: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
        unsafe extern "C" fn record(block: *mut u8) {
            FREED.store(block, Ordering::Relaxed);
        }
        let mut local = 0u8;
        // SAFETY: these addresses are null or foreign.
        unsafe {
            free(ptr::null_mut());
            free_nolock(ptr::null_mut());
            free_or(ptr::null_mut(), record);
            assert!(FREED.load(Ordering::Relaxed).is_null());
            free_or(&raw mut local, record);
            assert_eq!(FREED.load(Ordering::Relaxed), &raw mut local);
            assert!(is_foreign(&raw mut local));
            assert_eq!(usable_size(&raw mut local), 0);
            assert!(realloc(&raw mut local, 10).is_null());
        }
    }

    #[test]
    fn objects_and_kmalloc_blocks_can_be_freed() {
        let layout = Layout::from_size_align(24, 8).unwrap();
        let cache = Cache::builder("by address", layout).build().unwrap();
        for _ in 0..if cfg!(miri) { 2 } else { 300 } {
            let (object, block) = (cache.alloc().unwrap().as_ptr(), kmalloc::alloc(layout));
            // SAFETY: both are live, and the program may use only as many bytes of the object as it
            // requested.
            unsafe {
                assert_eq!((usable_size(object), usable_size(block)), (24, 24));
                free(object);
                free(block);
            }
        }
        cache.destroy().unwrap();
    }
}
