//! Checks of debug builds: the objects that the program holds.
//!
//! The bitmap of a slab records the objects that lie in the slab. Any other object is held by the
//! program, or lies in a sheaf or a batch. Debug builds track for each object whether the program
//! holds it. This detects the double free of an object that has yet to reach its slab.

use super::descriptor::{Misuse, Slab};
use super::shape::{WORD, shape};
use crate::size_class::Class;

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

    /// Returns the index of `object` in a slab of `class`.
    ///
    /// # Safety
    /// `this` is metadata of the first unit of the slab of `object`, if it is in a slab of `class`.
    unsafe fn index_of(this: *mut Slab, object: *mut u8, class: Class) -> Option<usize> {
        // SAFETY: the caller guarantees that this is metadata; zeroed metadata is a valid identity.
        let identity = unsafe { &(*this).identity };
        if !identity.tag.is_of(class) {
            return None;
        }
        shape(class).index_at(object.addr().wrapping_sub(identity.base.addr()))
    }
}
