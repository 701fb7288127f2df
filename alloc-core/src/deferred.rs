//! Deferred frees: what was freed in a context that could not wait, until somebody who can frees it in earnest.
//!
//! Each CPU has a list, linked through the first word of the blocks. Adding to it needs no lock and cannot fail. Every
//! slow path that may wait empties the list of the CPU it runs on first. (`defer_free` and `free_deferred_objects` of
//! `mm/slub.c`.)
//!
//! This file may touch `sync` and `percpu`.

use crate::percpu;
use crate::sync::{Link, Llist};

/// Lists; CPUs beyond share with the first ones. A power of two.
const LISTS: usize = 1024;

/// A block that waits: an object of a slab or a run.
pub(crate) struct Block {
    next: *mut Block,
}

// SAFETY: the word is the block's own, and whoever freed the block does not use it any more.
unsafe impl Link for Block {
    unsafe fn link(block: *mut Block) -> *mut *mut Block {
        // SAFETY: the caller's promise.
        unsafe { &raw mut (*block).next }
    }
}

/// Apart, so that CPUs do not share cache lines.
#[repr(align(64))]
struct List(Llist<Block>);

static DEFERRED: [List; LISTS] = [const { List(Llist::new()) }; LISTS];

fn list() -> &'static Llist<Block> {
    &DEFERRED[percpu::cpu() % LISTS].0
}

/// Puts a block off.
///
/// # Safety
/// The block is at least a word long, aligned to one, and nobody uses it.
pub(crate) unsafe fn add(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { list().add(block.cast()) };
}

/// Takes the blocks that were put off on this CPU.
#[inline]
pub(crate) fn take() -> impl Iterator<Item = *mut u8> {
    list().take().map(<*mut Block>::cast)
}
