//! Models of the barn, and of the slabs of a class.

use core::ptr;
use loom::sync::Arc;
use std::boxed::Box;
use std::vec::Vec;

use super::{address, race};
use crate::barn::Barn;
use crate::batch::{Batch, MAX_BATCH};
use crate::size_class::{CLASSES, Class};
use crate::slab::{Emptied, Entry, Misuse, Slab, Slabs};
use crate::sync::Context;

/// Two CPUs put a batch each and take an object. No object is lost or duplicated, whatever stale
/// count a CPU reads without the lock.
#[test]
fn barn_neither_loses_nor_duplicates_objects() {
    loom::model(|| {
        let barn = Arc::new(Barn::new());
        let slots = Box::into_raw(Box::new([ptr::null_mut::<u8>(); 2]));
        // SAFETY: the barn alone uses the slots until the end of the model.
        unsafe { barn.attach_slots(slots.cast(), 2) };
        let kept = Arc::new(loom::sync::Mutex::new(Vec::new()));
        let (shared, keep) = (barn.clone(), kept.clone());
        race(move |number| {
            let mut batch = Batch::new();
            batch.push_first(address(number * 16));
            batch.push_first(address(number * 16 + 8));
            // SAFETY: the objects are only addresses, and this thread's own.
            let refused = unsafe { !shared.put(Context::WAITING, &mut batch) };
            if refused {
                keep.lock().unwrap().extend(batch.objects().iter().map(|object| object.addr()));
                batch.clear();
            }
            shared.take(Context::WAITING, &mut batch, 1);
            keep.lock().unwrap().extend(batch.objects().iter().map(|object| object.addr()));
        });
        let mut batch = Batch::new();
        let mut all = kept.lock().unwrap();
        loop {
            barn.take(Context::WAITING, &mut batch, MAX_BATCH);
            if batch.len() == 0 {
                break;
            }
            all.extend(batch.objects().iter().map(|object| object.addr()));
            batch.clear();
        }
        all.sort_unstable();
        assert_eq!(*all, [16, 24, 32, 40]);
        // SAFETY: the slots were made by `Box::into_raw`, and the barn is no longer used.
        drop(unsafe { Box::from_raw(slots) });
    });
}

/// The entry of all units, since no model frees by address.
static ENTRY: Entry = Entry::none();

/// A slab of four objects, with its descriptor.
struct Single {
    slab: *mut Slab,
    base: *mut u8,
    class: Class,
    slabs: Slabs,
}

// SAFETY: `Slabs` uses the descriptor only under its lock, which may be taken on any thread.
unsafe impl Send for Single {}
// SAFETY: `Slabs` uses the descriptor only under its lock, so threads may share it.
unsafe impl Sync for Single {}

impl Single {
    fn unlisted() -> Single {
        let class = (0..CLASSES).filter_map(Class::from_index).find(|class| class.size() == 16384);
        let class = class.expect("a class of 16 KiB");
        let slab = Box::into_raw(Box::<Slab>::new_zeroed()).cast();
        let base = address(1 << 20);
        // SAFETY: a new descriptor that nobody else uses; no object is ever touched.
        unsafe { Slab::init(slab, &raw const ENTRY, base, class, 0, true) };
        Single { slab, base, class, slabs: Slabs::new() }
    }

    fn new() -> Single {
        let single = Single::unlisted();
        // SAFETY: the slab is new, and of the only class and node.
        unsafe { single.slabs.arrive(Context::WAITING, single.slab) };
        single
    }

    fn cut(&self, len: usize) -> Batch {
        let mut batch = Batch::new();
        self.slabs.lock(Context::WAITING).unwrap().cut(&mut batch, len);
        batch
    }

    fn put(&self, objects: &[*mut u8]) -> Result<(), Misuse> {
        let mut emptied = Emptied::new();
        // SAFETY: the closure returns the descriptor of the only slab.
        let done = unsafe {
            self.slabs.lock(Context::WAITING).unwrap().put(
                objects,
                self.class,
                0,
                |_| Some(self.slab),
                &mut emptied,
            )
        };
        assert!(emptied.pop().is_none(), "the only empty slab was given up");
        done.map(|rest| assert!(rest.is_empty())).map_err(|(_, misuse)| misuse)
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        // SAFETY: the descriptor was made by `Box::into_raw`.
        drop(unsafe { Box::from_raw(self.slab) });
    }
}

/// Two CPUs cut and free in turns. Neither gets an object that the other holds, and in the end all
/// objects are free.
#[test]
fn slab_cuts_each_object_once() {
    loom::model(|| {
        let single = Arc::new(Single::new());
        let held = Arc::new([0; 4].map(|_| loom::sync::atomic::AtomicBool::new(false)));
        let (shared, marks) = (single.clone(), held.clone());
        race(move |number| {
            use loom::sync::atomic::Ordering::Relaxed;
            let batch = shared.cut(number + 1);
            let index = |object: &*mut u8| (object.addr() - shared.base.addr()) / 16384;
            for object in batch.objects() {
                assert!(!marks[index(object)].swap(true, Relaxed), "an object was cut twice");
            }
            for object in batch.objects() {
                marks[index(object)].store(false, Relaxed);
            }
            shared.put(batch.objects()).unwrap();
        });
        let all = single.cut(MAX_BATCH);
        let offsets: Vec<_> =
            all.objects().iter().rev().map(|object| object.addr() - single.base.addr()).collect();
        assert_eq!(offsets, [0, 16384, 32768, 49152], "objects ascend from the end of the batch");
        single.put(all.objects()).unwrap();
    });
}

/// A slab arrives while the lock may be busy: one CPU cuts and frees, and the maker frees the
/// objects that it cut before. The slab is listed once, and no object is lost.
#[test]
fn arriving_slab_is_listed_once() {
    loom::model(|| {
        let single = Arc::new(Single::unlisted());
        let shared = single.clone();
        race(move |number| {
            if number == 1 {
                let mut batch = Batch::new();
                // SAFETY: the slab is new, and this thread made it.
                unsafe {
                    Slab::cut_new(shared.slab, &mut batch, 3);
                    shared.slabs.arrive(Context::TRYING, shared.slab);
                }
                shared.put(batch.objects()).unwrap();
            } else {
                shared.put(shared.cut(2).objects()).unwrap();
            }
        });
        assert_eq!(single.cut(MAX_BATCH).len(), 4);
    });
}

/// Two CPUs free the same object. It is taken back once, and the double free is detected once.
#[test]
fn slab_finds_double_free() {
    loom::model(|| {
        let single = Arc::new(Single::new());
        let batch = single.cut(2);
        let object = batch.objects()[0].addr();
        let found = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        let (shared, count) = (single.clone(), found.clone());
        race(move |_| {
            if shared.put(&[address(object)]) == Err(Misuse::DoubleFree) {
                count.fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
            }
        });
        assert_eq!(found.load(loom::sync::atomic::Ordering::Relaxed), 1);
    });
}

/// A slab is lent while another CPU frees objects to it and cuts others. No object in use lies in a
/// hole, none is cut from the slab while it is lent, and in the end all objects are free.
#[test]
fn lent_slab_has_no_live_object_in_a_hole() {
    loom::model(|| {
        let single = Arc::new(Single::new());
        let first = single.cut(1);
        let in_use = Arc::new([true, false, false, false].map(loom::sync::atomic::AtomicBool::new));
        let object = first.objects()[0].addr();
        let (shared, marks) = (single.clone(), in_use.clone());
        race(move |number| {
            use loom::sync::atomic::Ordering::Relaxed;
            let index = |address: usize| (address - shared.base.addr()) / 16384;
            if number == 1 {
                let Some(lent) = shared.slabs.lock(Context::WAITING).unwrap().lend(true) else {
                    return;
                };
                lent.for_each_hole(16384, |address, len| {
                    let first = index(address.as_ptr().addr());
                    for mark in &marks[first..first + len / 16384] {
                        assert!(!mark.load(Relaxed), "an object in use lies in a hole");
                    }
                });
                let mut emptied = Emptied::new();
                let mut partial = shared.slabs.lock(Context::WAITING).unwrap();
                // SAFETY: these lists lent the slab.
                unsafe { partial.relist_lent(lent, &mut emptied) };
                drop(partial);
                assert!(emptied.pop().is_none(), "the only empty slab was given up");
            } else {
                marks[index(object)].store(false, Relaxed);
                shared.put(&[address(object)]).unwrap();
                let batch = shared.cut(2);
                for object in batch.objects() {
                    marks[index(object.addr())].store(true, Relaxed);
                }
                for object in batch.objects() {
                    marks[index(object.addr())].store(false, Relaxed);
                }
                shared.put(batch.objects()).unwrap();
            }
        });
        let partial = single.slabs.lock(Context::WAITING).unwrap();
        let counts = partial.counts();
        assert_eq!((counts.slabs, counts.free), (1, 4));
        drop(partial);
        assert_eq!(single.cut(MAX_BATCH).len(), 4);
    });
}

/// Two slabs are empty in the end, one of which was lent when the other arrived. One stays.
#[test]
fn relisted_slab_is_freed_if_another_is_empty() {
    loom::model(|| {
        let (single, other) = (Single::new(), Single::unlisted());
        let lock = || single.slabs.lock(Context::WAITING).unwrap();
        let lent = lock().lend(true).unwrap();
        // SAFETY: the slab is new, and of the class and node of these lists.
        unsafe { single.slabs.arrive(Context::WAITING, other.slab) };
        let mut emptied = Emptied::new();
        // SAFETY: these lists lent the slab.
        unsafe { lock().relist_lent(lent, &mut emptied) };
        assert!(emptied.pop().is_some() && emptied.pop().is_none());
        let counts = lock().counts();
        assert_eq!((counts.slabs, counts.free), (1, 4));
    });
}
