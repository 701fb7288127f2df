//! The lock witness: in debug builds, checks each lock acquisition against an order and against
//! rules. (lockdep of Linux, WITNESS of the BSDs.)
//!
//! - *Order.* Locks have classes. Waiting for a lock of class B while holding one of class A adds
//!   an edge A → B. An edge that closes a cycle is a potential deadlock. A lock that is only tried
//!   adds no edge to itself, but counts as held afterwards.
//! - *Context.* Operations that sleep, and the locks of the control plane, are forbidden in slow
//!   paths and in the handler of a CPU thread. Other locks are waited for in slow paths only: a
//!   [`Context`](super::Context) must not leave the slow path that it is for.
//!
//! A violation ends the process with a message that names both places. In release builds nothing of
//! this is compiled in.

use crate::variants::enumerated;

enumerated! {
    /// A class of locks, which are all acquired in the same way.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(u8)]
    pub(crate) enum LockClass {
        /// The sheaves of a CPU, on the fallback backend. The first class, as such a lock is made
        /// of zeroed memory.
        Sheaves => "sheaves",
        /// CPU hotplug.
        Hotplug => "hotplug",
        /// The set of caches.
        SlabMutex => "caches",
        /// The turn to wait for all frees that wait for readers.
        RcuBarrier => "rcu barrier",
        /// Frees that wait for readers.
        Waiting => "rcu waiting",
        /// Emptying a deferred list.
        Emptying => "emptying",
        /// Flushing idle objects to slabs.
        Flushing => "flushing",
        /// Purging free memory.
        Purging => "purging",
        /// Closing the sheaves of other CPUs.
        Closing => "closing",
        /// A barn.
        Barn => "barn",
        /// The slabs of a class on a node.
        Slabs => "slabs",
        /// Creating an arena.
        ArenaMaking => "arena making",
        /// Committing more of an arena.
        Committing => "committing",
        /// The runs of an arena.
        Arena => "arena",
    }
}

#[cfg(all(debug_assertions, not(loom)))]
pub(crate) use checking::{acquired, interrupt, may_sleep, released, waits};

#[cfg(not(all(debug_assertions, not(loom))))]
pub(crate) use nothing::{acquired, interrupt, may_sleep, released, waits};

#[cfg(not(all(debug_assertions, not(loom))))]
mod nothing {
    use super::LockClass;

    #[inline(always)]
    pub(crate) fn waits(_: LockClass) {}

    #[inline(always)]
    pub(crate) fn acquired(_: LockClass) {}

    #[inline(always)]
    pub(crate) fn released(_: LockClass) {}

    #[inline(always)]
    pub(crate) fn may_sleep() {}

    #[inline(always)]
    pub(crate) fn interrupt<R>(handler: impl FnOnce() -> R) -> R {
        handler()
    }
}

#[cfg(all(debug_assertions, not(loom)))]
mod checking {
    use super::super::Context;
    use super::LockClass;
    use crate::arch::{self, WITNESS_WORDS};
    use crate::os;
    use core::panic::Location;
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence};

    const CLASSES: usize = LockClass::ALL.len();
    /// Maximum number of locks that a thread may hold, including its handlers.
    const MAX_HELD: usize = 16;

    type Place = &'static Location<'static>;
    type Held = Option<(LockClass, Place)>;

    /// The witness's state of this thread, zero at its start. Only the thread itself and handlers
    /// on it use it.
    struct Known {
        /// Number of locks that the thread holds.
        count: &'static AtomicUsize,
        /// 1 in the handler of a CPU thread, else 0.
        interrupted: &'static AtomicUsize,
        /// The first `MAX_HELD` locks that are held, two words each: the class plus one, and the
        /// place of acquisition. An entry that is being written reads as empty in a handler.
        held: &'static [AtomicUsize],
    }

    const _: () = assert!(WITNESS_WORDS == 2 + 2 * MAX_HELD);

    impl Known {
        fn of_this_thread() -> Known {
            let [count, interrupted, held @ ..] = &arch::locals().witness;
            Known { count, interrupted, held }
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }

        fn set_count(&self, count: usize) {
            self.count.store(count, Ordering::Relaxed);
        }

        fn get(&self, number: usize) -> Held {
            let [class, place] = self.held.get(2 * number..)?.first_chunk()?;
            let class = *LockClass::ALL.get(class.load(Ordering::Relaxed).checked_sub(1)?)?;
            let place: *const Location<'static> =
                ptr::with_exposed_provenance(place.load(Ordering::Relaxed));
            // SAFETY: `set` stored the address of a `Location`, and then the class.
            Some((class, unsafe { &*place }))
        }

        /// Records a lock, or none. Returns false if there is no room.
        fn set(&self, number: usize, lock: Held) -> bool {
            let Some([class, place]) =
                self.held.get(2 * number..).and_then(|words| words.first_chunk())
            else {
                return false;
            };
            class.store(0, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            if let Some((of, at)) = lock {
                place.store(ptr::from_ref(at).expose_provenance(), Ordering::Relaxed);
                compiler_fence(Ordering::SeqCst);
                class.store(of as usize + 1, Ordering::Relaxed);
            }
            true
        }

        /// Returns the locks that the thread holds, with their positions.
        fn all(&self) -> impl DoubleEndedIterator<Item = (usize, (LockClass, Place))> {
            (0..self.count()).filter_map(|number| Some((number, self.get(number)?)))
        }
    }

    /// The places where a lock of one class was held and one of another was waited for.
    struct Edge {
        held: AtomicPtr<Location<'static>>,
        waited: AtomicPtr<Location<'static>>,
    }

    /// Edges from the class held to the class waited for.
    pub(super) struct Graph([[Edge; CLASSES]; CLASSES]);

    static GRAPH: Graph = Graph::new();

    /// An order that was seen both ways.
    #[derive(Debug)]
    pub(super) struct Inversion {
        pub(super) held: Place,
        pub(super) waited: Place,
    }

    impl Graph {
        pub(super) const fn new() -> Graph {
            Graph(
                [const {
                    [const {
                        Edge {
                            held: AtomicPtr::new(ptr::null_mut()),
                            waited: AtomicPtr::new(ptr::null_mut()),
                        }
                    }; CLASSES]
                }; CLASSES],
            )
        }

        /// Adds the edge from a class held to a class waited for.
        ///
        /// # Errors
        /// The first edge of a path that leads back.
        pub(super) fn add(
            &self,
            (held, held_at): (LockClass, Place),
            (waited, waited_at): (LockClass, Place),
        ) -> Result<(), Inversion> {
            let mut seen = [false; CLASSES];
            if let Some(inversion) = self.way(waited, held, &mut seen) {
                return Err(inversion);
            }
            let edge = &self.0[held as usize][waited as usize];
            edge.held.store(ptr::from_ref(held_at).cast_mut(), Ordering::Relaxed);
            // Release: pairs with the Acquire in `way_from`.
            edge.waited.store(ptr::from_ref(waited_at).cast_mut(), Ordering::Release);
            Ok(())
        }

        /// Returns the first edge on a path from one class to another.
        fn way(
            &self,
            from: LockClass,
            to: LockClass,
            seen: &mut [bool; CLASSES],
        ) -> Option<Inversion> {
            self.way_from(from as usize, to as usize, seen)
        }

        fn way_from(
            &self,
            from: usize,
            to: usize,
            seen: &mut [bool; CLASSES],
        ) -> Option<Inversion> {
            seen[from] = true;
            for (next, edge) in self.0[from].iter().enumerate() {
                // Acquire: pairs with the Release in `add`.
                let waited = edge.waited.load(Ordering::Acquire);
                if waited.is_null() {
                    continue;
                }
                if next == to || (!seen[next] && self.way_from(next, to, seen).is_some()) {
                    // SAFETY: `add` stored both addresses, `held` before `waited`.
                    let (held, waited) = unsafe { (&*edge.held.load(Ordering::Relaxed), &*waited) };
                    return Some(Inversion { held, waited });
                }
            }
            None
        }
    }

    /// Checks a lock against the order. Call before waiting for a lock of `class`.
    #[track_caller]
    pub(crate) fn waits(class: LockClass) {
        let here = Location::caller();
        if matches!(class, LockClass::Hotplug | LockClass::SlabMutex | LockClass::RcuBarrier) {
            may_sleep();
        } else if Context::is_outermost() {
            os::abort(format_args!("{class:?} is waited for at {here}, outside of any slow path"));
        }
        for (_, held) in Known::of_this_thread().all() {
            if held.0 == class {
                os::abort(format_args!(
                    "a second lock of class {class:?} is waited for at {here}; the first was taken at {}",
                    held.1
                ));
            }
            if let Err(before) = GRAPH.add(held, (class, here)) {
                os::abort(format_args!(
                    "{class:?} is waited for at {here} with {:?} held since {}; before, on the way the other \
                     way round, {} with a lock held since {}",
                    held.0, held.1, before.waited, before.held
                ));
            }
        }
    }

    /// Records a lock of `class`. Call after acquiring it.
    #[track_caller]
    pub(crate) fn acquired(class: LockClass) {
        let here = Location::caller();
        let known = Known::of_this_thread();
        let number = known.count();
        // The count is raised before the entry is written: a handler in between appends its own
        // entry above.
        known.set_count(number + 1);
        compiler_fence(Ordering::SeqCst);
        if !known.set(number, Some((class, here))) {
            os::abort(format_args!("more than {MAX_HELD} locks held at {here}"));
        }
    }

    /// Removes a lock of `class`. Call before releasing it.
    #[track_caller]
    pub(crate) fn released(class: LockClass) {
        let known = Known::of_this_thread();
        let Some((found, _)) = known.all().rfind(|(_, (held, _))| *held == class) else {
            os::abort(format_args!("{class:?} is let go of at {} but not held", Location::caller()))
        };
        let last = known.count() - 1;
        for number in found..last {
            known.set(number, known.get(number + 1));
        }
        known.set(last, None);
        compiler_fence(Ordering::SeqCst);
        known.set_count(last);
    }

    /// Checks that the thread may sleep: it is in no slow path and not in the handler of a CPU
    /// thread. Call in operations that may sleep for long.
    #[track_caller]
    pub(crate) fn may_sleep() {
        let interrupted = Known::of_this_thread().interrupted.load(Ordering::Relaxed) != 0;
        if interrupted || !Context::is_outermost() {
            os::abort(format_args!(
                "{} may sleep, in a {}",
                Location::caller(),
                if interrupted { "handler" } else { "slow path" }
            ));
        }
    }

    /// Runs the handler of a CPU thread.
    pub(crate) fn interrupt<R>(handler: impl FnOnce() -> R) -> R {
        let interrupted = Known::of_this_thread().interrupted;
        interrupted.store(1, Ordering::Relaxed);
        let result = handler();
        interrupted.store(0, Ordering::Relaxed);
        result
    }
}

#[cfg(all(test, debug_assertions, not(loom)))]
mod tests {
    use super::LockClass::{Arena, Barn, Slabs};
    use super::checking::Graph;
    use core::panic::Location;

    #[test]
    fn cycle_of_lock_classes_is_found() {
        let graph = Graph::new();
        let here = Location::caller();
        assert!(graph.add((Barn, here), (Slabs, here)).is_ok());
        assert!(graph.add((Barn, here), (Slabs, here)).is_ok());
        assert!(graph.add((Slabs, here), (Arena, here)).is_ok());
        assert!(graph.add((Barn, here), (Arena, here)).is_ok());
        let inversion = graph.add((Arena, here), (Barn, here)).expect_err("a cycle");
        assert_eq!((inversion.held, inversion.waited), (here, here));
        assert!(graph.add((Slabs, here), (Barn, here)).is_err());
    }
}
