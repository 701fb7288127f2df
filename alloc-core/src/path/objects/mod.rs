//! Slow paths of all classes, which move objects between sheaves, barns, slabs and pages.
//!
//! A slow path takes a step only when the one before it fails:
//!
//! ```text
//! alloc: sheaf of this CPU -> barn of this node -> partial slabs of this node -> a new slab
//! free:  sheaf of this CPU -> barn of this node -> slabs of the objects' nodes -> pages, if empty
//! ```
//!
//! A context that must not wait skips a step whose lock is busy and tries the next one. Its last
//! resort is the reserve of `page` for an allocation, and `deferred` for a free. Slow paths that
//! may wait first free what was deferred: `slow_path` holds the steps that all have in common.
//!
//! The classes of `kmalloc` and those of object caches share these paths. Callers inline the first
//! step. The cold functions that they call are `extern "C"`, so they cannot unwind: callers need no
//! landing pads, and a panic in here aborts the process.
//!
//! The modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `free` `bulk` | entry points of frees that a sheaf refused; many objects at once |
//! | `cache_class` `cpus` `census` | caches' classes; CPUs that come and go; statistics |
//! | `alloc` | the path of an allocation; runs for slabs and large blocks |
//! | `slow_path` | the first and the last step of every slow path |
//! | `reclaim` | idle memory on its way to the system; trimming |
//! | `punch` | holes of partial slabs, decommitted |
//! | `flush` | sheaves and barns, emptied into slabs |
//! | `deferral` | deferred blocks, freed |
//! | `put` | the path of a freed object, and the deferral of a free |
//! | `middle` | middle sizes: their bound in sheaves, their entries |
//! | `check` | checks of what the program frees |
//! | `lookup` | the class, slab and size of an object |
//! | `node_class` | the barn and the partial slabs of a class on a node |

mod alloc;
mod bulk;
mod cache_class;
mod census;
mod check;
mod cpus;
mod deferral;
mod flush;
mod free;
mod lookup;
mod middle;
mod node_class;
mod punch;
mod put;
mod reclaim;
pub(crate) mod slow_path;

use crate::page;
use crate::percpu;
use crate::sync::{LockClass, RawLock};
pub use alloc::AllocError;
pub(crate) use alloc::{alloc_object, alloc_run, nolock_counts, note_nolock};
pub(crate) use bulk::{alloc_bulk, free_bulk};
pub(crate) use cache_class::{define, flush, shed};
pub(crate) use census::{Census, census, counts_of_node, for_each_out};
#[cfg(debug_assertions)]
pub(crate) use check::note;
pub(crate) use check::{Kind, misused};
pub(crate) use cpus::{end_cpus, offline, online, without_cpus};
pub use deferral::{DeferredFrees, deferred_frees};
pub(crate) use deferral::{deferred_barrier, is_deferred_on};
pub(crate) use flush::{heed_tracer, renew_counts};
pub(crate) use free::{allowance_is_used_up, free_refused, free_slow};
pub(crate) use lookup::{class_of_object, class_of_unit, find, find_in, size};
pub(crate) use middle::{check_middle, middle_in, middle_in_unit, middle_out, middle_sampled};
pub(crate) use node_class::has_node_classes;
pub(crate) use put::{defer, free_block, free_run};
pub(crate) use reclaim::{at_end_of_window, trim};
#[cfg(feature = "fault-points")]
pub(crate) use reclaim::{end_window_in_slices, end_window_now};

/// Calls `visit` with every lock of the slow paths, in the order in which they may be acquired.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    put::DEFERRED.for_each_lock(visit);
    visit(LockClass::Flushing, flush::FLUSHING.raw());
    visit(LockClass::Purging, page::purging_lock());
    percpu::for_each_lock(visit);
    node_class::for_each_lock(visit);
    page::for_each_lock(visit);
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;
    use std::vec::Vec;

    use super::*;
    use crate::page::{self, Unit};
    use crate::size_class::{Class, UNIT};
    use crate::sync::Context;
    use crate::watch;

    fn of_size(size: usize) -> Class {
        let found = (0..).map_while(Class::from_index).find(|class| class.size() >= size);
        found.expect("a class has objects of that size")
    }

    fn alloc(class: Class) -> NonNull<u8> {
        let object = alloc_object(class, None).expect("there is memory");
        // As the entry points do.
        watch::make_accessible(object.as_ptr(), size(class), false);
        object
    }

    fn free(class: Class, object: NonNull<u8>) {
        // A larger class may have served a middle size.
        let class = find(object.as_ptr()).map_or(class, |(class, _)| class);
        watch::make_noaccess(object.as_ptr(), super::size(class));
        // SAFETY: callers pass objects that they allocated, each once.
        unsafe { free_slow(class, object.as_ptr()) };
    }

    /// A class that other tests hardly use, so that counts differ little in between.
    const RARE: usize = 27_000;

    #[test]
    fn objects_are_found_by_their_addresses() {
        for size in [8, 48, 5000, 20_000] {
            let class = of_size(size);
            let object = alloc(class);
            let address = object.as_ptr();
            assert_eq!(find(address), Some((class, true)));
            assert_eq!(find(address.wrapping_add(1)), Some((class, false)));
            // SAFETY: the object is live.
            assert_eq!(unsafe { class_of_object(address) }, Some(class));
            assert!(super::size(class) >= size);
            free(class, object);
        }
        assert_eq!(find(core::ptr::null_mut()), None);
    }

    #[test]
    fn runs_are_no_objects() {
        Context::enter(|context| {
            let run = alloc_run(context, 0, 1, 1).expect("there is memory");
            let address = run.address.as_ptr();
            assert!(find(address).is_none() && find(address.wrapping_add(UNIT / 2)).is_none());
            // SAFETY: the test owns the run.
            unsafe { free_run(context, Unit::of(address).unwrap()) };
        });
    }

    #[test]
    fn freed_objects_leave_their_slabs_empty() {
        let class = of_size(RARE);
        let slabs = || census(class).counts.slabs;
        let before = slabs();
        let count = if cfg!(miri) { 20 } else { 500 };
        let mut objects: Vec<_> = (0..count).map(|_| alloc(class)).collect();
        let most = slabs();
        assert!(most > before, "{before} slabs before, {most} now");
        objects.sort_unstable();
        objects.dedup();
        assert_eq!(objects.len(), count, "no object is handed out twice");
        objects.into_iter().for_each(|object| free(class, object));
        trim(|_| ());
        assert!(slabs() <= before, "{} slabs left of {most}", slabs());
    }

    #[test]
    fn middle_objects_are_held_until_freed() {
        let class = of_size(50_000);
        let object = alloc(class);
        let address = object.as_ptr();
        middle_out(address);
        check_middle(address, class);
        assert_eq!(middle_in(address), Some(class));
        // SAFETY: `middle_in` recorded that the object is free.
        let held = page::meta_at(address)
            .and_then(|meta| unsafe { crate::slab::Slab::middle_held(meta.cast(), address) });
        assert!(held.is_none());
        free(class, object);
    }

    /// Slabs whose holes were decommitted keep the objects that are in use, and their free objects
    /// serve again.
    #[test]
    fn punched_slabs_keep_their_objects() {
        let (count, step) = if cfg!(miri) { (10, 509) } else { (1000, 1) };
        let allocate = |size: usize, value: u8| -> Vec<_> {
            let objects: Vec<_> = (0..count).map(|_| alloc(of_size(size))).collect();
            // SAFETY: the test owns the objects, whose class has at least that size.
            objects.iter().for_each(|object| unsafe { object.write_bytes(value, size) });
            objects
        };
        let check = |objects: &[NonNull<u8>], size: usize, value: u8| {
            for object in objects {
                // SAFETY: as above.
                let bytes = unsafe { core::slice::from_raw_parts(object.as_ptr(), size) };
                let is_whole = bytes.iter().step_by(step).all(|byte| *byte == value);
                assert!(is_whole, "an object of {size} bytes changed");
            }
        };
        let kept = [100, 5000, 14_000, 40_000].map(|size| {
            let mut objects = allocate(size, 1);
            for number in (0..count).rev().filter(|number| number % 8 != 0) {
                free(of_size(size), objects.swap_remove(number));
            }
            (size, objects)
        });
        trim(|_| ());
        for (size, objects) in kept {
            check(&objects, size, 1);
            let more = allocate(size, 2);
            check(&objects, size, 1);
            check(&more, size, 2);
            more.into_iter().chain(objects).for_each(|object| free(of_size(size), object));
        }
    }
}
