//! The lists of partial slabs, by number.
//!
//! Slabs are listed by eighths of free objects, the fullest first. The lists of punched slabs
//! follow in the same order. So the lowest list with a slab is the one to cut from, and a word with
//! a bit per list finds it. The values for slabs on no list lie above the numbers of all lists.

/// Lists of partial slabs, by eighths of free objects.
pub(crate) const LISTS: usize = 8;
/// The list of slabs whose objects are all free.
pub(super) const EMPTY: u8 = LISTS as u8;
/// The first list of punched slabs. There is one for each list before it.
pub(super) const PUNCHED: u8 = EMPTY + 1;
/// The number of lists, those of punched slabs included.
pub(super) const ALL_LISTS: usize = 2 * PUNCHED as usize;
/// The `list` of a slab that is on no list.
pub(super) const UNLISTED: u8 = u8::MAX;
/// The `list` of a slab that has yet to arrive.
pub(super) const ARRIVING: u8 = u8::MAX - 1;
/// The `list` of a slab that is on no list while its holes are decommitted.
pub(super) const LENT: u8 = u8::MAX - 2;
