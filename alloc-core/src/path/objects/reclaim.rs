//! Returns idle memory to the system, one step per decay window, or all of it when memory is short.
//!
//! `crate::reclaim` decides when a window ends, and whether its thread or a free does the work of
//! the window. This module does that work.

use super::flush::{FLUSHING, empty_node_class, empty_node_classes, empty_sheaves};
use super::lookup::move_event;
use super::node_class::node_classes;
use super::punch::{Punch, punch_holes};
use super::put::{DEFERRED, flush_to_slabs, free_block};
use crate::atomic_fn::AtomicFn;
use crate::batch::Batch;
use crate::page;
use crate::percpu;
use crate::reclaim::{self, Occasion};
use crate::size_class::{Class, MAX_CLASSES};
use crate::sync::Context;
use crate::watch;

/// Lets `reclaim` act on what was freed. Call last in every freeing slow path, holding no lock.
pub(crate) fn may_reclaim(context: Context) {
    reclaim::freed(context, reclaim_on);
}

/// Lets `reclaim` act on what frees had to leave. Call last in every slow path that frees nothing,
/// holding no lock.
#[inline]
pub(crate) fn may_reclaim_what_was_left(context: Context) {
    reclaim::allocated(context, reclaim_on);
}

/// Most bytes of free runs that a free purges at the end of a decay window.
const BYTES_OF_A_FREE: usize = 32 << 20;
/// Bytes of free runs up to which a slice purges all that is due, as slices of less are not worth a
/// wake-up: a piece.
const LEAST_OF_A_SLICE: usize = 8 << 20;

/// Does the work of a decay window, or a part of it: moves memory that was idle throughout a window
/// one step towards the system, from sheaves and barns to slabs, from slabs to pages, from pages to
/// the system. If memory is short, moves all memory all the way. The thread also makes huge pages
/// of memory that stays in use. Returns whether there is more to move on the next occasion of this
/// kind; a free, whether there is more to do now.
fn reclaim_on(context: Context, occasion: Occasion) -> bool {
    match occasion {
        Occasion::Free => {
            age(context, occasion);
            let punched = punch_holes(context, &Punch { is_end: true, ..Punch::OF_A_FREE });
            page::purge_due(context, BYTES_OF_A_FREE);
            punched.is_cut_short
        }
        Occasion::Piece => punch_holes(context, &Punch::OF_A_FREE).is_cut_short,
        Occasion::Window => {
            let moved = age(context, occasion);
            let punched = punch_holes(context, &Punch { slabs: 0, ..Punch::ALL });
            let chunks = page::end_window_of_chunks(context, reclaim::window());
            moved || punched.has_more || chunks || page::is_dirty(context)
        }
        Occasion::Slice { left } => {
            let punched = punch_holes(context, &Punch::OF_A_SLICE);
            let due = page::due(context);
            if due > 0 {
                page::purge_due(context, (due / left as usize).max(LEAST_OF_A_SLICE));
            }
            let collapsed = page::collapse_one();
            punched.is_cut_short || collapsed || page::due(context) > 0
        }
        Occasion::Shortage => {
            let moved = age(context, occasion);
            let punched = punch_holes(context, &Punch { even_busy: true, ..Punch::ALL });
            page::trim(context);
            page::pause_collapsing();
            moved || punched.has_more || page::is_dirty(context)
        }
    }
}

/// Ends a decay window for sheaves, barns and pages: flushes sheaves and barns that were idle
/// throughout it, or if memory is short, all; makes pages due. Returns whether there may be more to
/// flush at the end of the next window.
///
/// A free leaves sheaves alone: those of other CPUs can only be emptied by a system call that a
/// sandbox may forbid, and that interrupts the CPU.
fn age(context: Context, occasion: Occasion) -> bool {
    let is_short = occasion == Occasion::Shortage;
    // All lists, not only this CPU's: a signal handler may have deferred blocks in a program that
    // has been idle since, and has started no CPU threads.
    // SAFETY: the lists hold deferred blocks.
    let mut freed = DEFERRED.flush_all(unsafe { free_block(context) });
    if occasion != Occasion::Free {
        freed |= free_for_readers(context);
    }
    let mut moved = true;
    // Only tries, since another thread that flushes or defines a class is soon done.
    if let Some(flushing) = FLUSHING.acquire(Context::TRYING) {
        moved = occasion != Occasion::Free && empty_sheaves(context, &flushing, is_short);
        moved |= empty_node_classes(context, &flushing, is_short);
    }
    page::end_window(context);
    freed || moved
}

/// The routine that frees objects that waited for readers.
static FOR_READERS: AtomicFn<fn(Context) -> bool> = AtomicFn::new();

/// Sets the routine that the end of each decay window calls. The routine frees objects that waited
/// for readers, and returns whether any are still waiting.
pub(crate) fn at_end_of_window(routine: fn(Context) -> bool) {
    FOR_READERS.set(routine);
}

fn free_for_readers(context: Context) -> bool {
    FOR_READERS.get().is_some_and(|routine| routine(context))
}

/// Flushes the sheaves and barns of all classes, frees empty slabs, purges dirty runs and punches
/// holes. Returns the bytes returned to the system. Objects that wait for readers go to `waiting`.
/// No cache may be created or destroyed meanwhile.
pub(crate) fn trim(mut waiting: impl FnMut(&mut Batch)) -> usize {
    Context::enter(|context| {
        let backend = percpu::backend(context);
        for cpu in (0..percpu::regions()).filter(|cpu| percpu::has_any(*cpu)) {
            percpu::flush_all(context, cpu, |class, batch| match class {
                Class::RCU => waiting(batch),
                _ => {
                    watch::flush(|| move_event(class, batch.len(), cpu));
                    // SAFETY: the objects have just left a sheaf of `class`, so this thread alone
                    // holds them.
                    unsafe { flush_to_slabs(context, backend, class, batch) };
                }
            });
        }
    });
    for class in (0..MAX_CLASSES).filter_map(Class::any_from_index) {
        Context::enter(|context| {
            // A fork waits for this lock, so that no slab is between its lists and the pages then.
            let _flushing = FLUSHING.acquire(context);
            let backend = percpu::backend(context);
            for node_class in node_classes(class) {
                // SAFETY: `node_classes` returns node classes of `class`.
                unsafe { empty_node_class(context, backend, class, node_class) };
            }
        });
    }
    Context::enter(|context| {
        page::trim(context) + punch_holes(context, &Punch { even_busy: true, ..Punch::ALL }).bytes
    })
}

/// Ends a decay window and decommits what is due at once, whatever thread usually does so and
/// however long windows are. Returns whether there is more to move. For tests, which must not
/// depend on time.
#[cfg(feature = "fault-points")]
pub(crate) fn end_window_now() -> bool {
    Context::enter(|context| {
        let moved = age(context, Occasion::Window);
        let punched = punch_holes(context, &Punch { is_end: true, ..Punch::ALL });
        page::purge_due(context, usize::MAX);
        moved || punched.has_more || page::is_dirty(context)
    })
}

/// Ends a decay window and decommits what is due in `slices` parts, as the thread does. Calls
/// `between` after each. For tests.
#[cfg(feature = "fault-points")]
pub(crate) fn end_window_in_slices(slices: u32, mut between: impl FnMut()) {
    Context::enter(|context| reclaim_on(context, Occasion::Window));
    for left in (1..=slices).rev() {
        Context::enter(|context| reclaim_on(context, Occasion::Slice { left }));
        between();
    }
}
