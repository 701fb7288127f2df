//! A lock-less list: any context adds to it, whoever takes from it takes all. (`llist.h` of Linux.)
//!
//! A list can be closed, in the same step in which all is taken from it. So nobody can be stopped on the way to a list that
//! nobody will look at any more: the add finds it closed, and goes to another.

use core::ptr;

use super::Backoff;
use super::primitive::{AtomicPtr, Ordering};

/// What can be a node of an [`Llist`].
///
/// # Safety
/// `link` returns the same word for the same node as long as the node is on a list, and nobody else uses that word
/// meanwhile.
pub(crate) unsafe trait Link {
    /// The word of a node that is to hold the next one.
    ///
    /// # Safety
    /// `node` is valid.
    unsafe fn link(node: *mut Self) -> *mut *mut Self;
}

/// What became of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Added {
    /// It is the only one: its adder tells whoever is to take it.
    First,
    /// It is on the list behind others, whose adders do that.
    Later,
    /// The list is closed, and the node still its adder's.
    Closed,
}

/// A list of nodes, the last one added first. It can be closed.
pub(crate) struct Llist<T> {
    first: AtomicPtr<T>,
}

/// Stands for the first node of a closed list.
fn closed<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

impl<T: Link> Llist<T> {
    /// An open list.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Llist<T> {
        Llist { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// An open list.
    #[cfg(loom)]
    pub(crate) fn new() -> Llist<T> {
        Llist { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Whether there is nothing to take; a hint.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let first = self.first.load(Ordering::Relaxed);
        first.is_null() || first == closed()
    }

    /// Adds a node, unless the list is closed.
    ///
    /// # Safety
    /// The node is valid until somebody takes it from the list, and the caller's alone.
    pub(crate) unsafe fn add(&self, node: *mut T) -> Added {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            if first == closed() {
                return Added::Closed;
            }
            // SAFETY: the caller's promise.
            unsafe { *T::link(node) = first };
            // Release: pairs with the Acquire of `replace`, so that the taker sees the link and the node.
            match self.first.compare_exchange(first, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return if first.is_null() { Added::First } else { Added::Later },
                Err(found) => first = found,
            }
        }
    }

    /// Takes all nodes.
    #[inline]
    pub(crate) fn take(&self) -> Taken<T> {
        let mut first = self.first.load(Ordering::Relaxed);
        while !first.is_null() && first != closed() {
            // Acquire: pairs with the Release of every `add`, as later ones continue the release sequence of earlier ones.
            let taken = self.first.compare_exchange(
                first,
                ptr::null_mut(),
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => return Taken(first),
                Err(found) => first = found,
            }
        }
        Taken::NONE
    }

    /// Takes all nodes and lets nobody add any more.
    pub(crate) fn close(&self) -> Taken<T> {
        // Acquire: as in `take`.
        let first = self.first.swap(closed(), Ordering::Acquire);
        Taken(if first == closed() { ptr::null_mut() } else { first })
    }

    /// Lets nodes be added again to a list that is closed.
    pub(crate) fn open(&self) {
        // Relaxed: there is nothing on the list.
        let _ = self.first.compare_exchange(
            closed(),
            ptr::null_mut(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

/// Nodes taken from an [`Llist`], to be had one by one. Those left when it is dropped are forgotten.
pub(crate) struct Taken<T>(*mut T);

// SAFETY: the nodes are the taker's alone, on whatever thread.
unsafe impl<T> Send for Taken<T> {}

impl<T> Taken<T> {
    /// No nodes.
    pub(crate) const NONE: Taken<T> = Taken(ptr::null_mut());

    /// Whether none is left.
    #[cfg(not(loom))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_null()
    }
}

impl<T: Link> Iterator for Taken<T> {
    type Item = *mut T;

    fn next(&mut self) -> Option<*mut T> {
        if self.0.is_null() {
            return None;
        }
        let node = self.0;
        // SAFETY: nodes taken from a list are valid and the taker's alone.
        self.0 = unsafe { *T::link(node) };
        Some(node)
    }
}

/// A list for each CPU that is online, and one for the time before there are any.
pub(crate) struct CpuLists<T, const CPUS: usize> {
    lists: [Llist<T>; CPUS],
    boot: Llist<T>,
}

impl<T: Link, const CPUS: usize> CpuLists<T, CPUS> {
    /// Lists for a machine that was not started: only that for the time before is open.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> CpuLists<T, CPUS> {
        CpuLists {
            lists: [const { Llist { first: AtomicPtr::new(ptr::without_provenance_mut(1)) } };
                CPUS],
            boot: Llist::new(),
        }
    }

    /// Lists for a machine that was not started: only that for the time before is open.
    #[cfg(loom)]
    pub(crate) fn new() -> CpuLists<T, CPUS> {
        let list = |_| Llist { first: AtomicPtr::new(closed()) };
        CpuLists { lists: core::array::from_fn(list), boot: Llist::new() }
    }

    /// Adds a node to the list of `cpu`, or of another if that is offline; which CPU has to be told of it, if any has.
    ///
    /// # Safety
    /// As [`Llist::add`].
    pub(crate) unsafe fn add(&self, cpu: usize, node: *mut T) -> Option<usize> {
        let mut backoff = Backoff::new();
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.boot.add(node) } != Added::Closed {
                return None;
            }
            // From this CPU on to the last, and from the first to this.
            for number in (0..CPUS).map(|offset| (cpu % CPUS + offset) % CPUS) {
                // SAFETY: the caller's promise.
                match unsafe { self.of(number).add(node) } {
                    Added::First => return Some(number),
                    Added::Later => return None,
                    Added::Closed => {}
                }
            }
            // One CPU at least is online, but not the same one all the time.
            backoff.pause();
        }
    }

    /// In the child of a fork: closes the lists of all CPUs, and has what was on them on that for the time before there were
    /// any. Calls `keep` with all that is on it then.
    #[cfg(not(loom))]
    pub(crate) fn without_cpus(&self, keep: impl Fn(*mut T)) {
        let early = self.boot.take();
        self.boot.open();
        for node in early.chain(self.lists.iter().flat_map(Llist::close)) {
            keep(node);
            // SAFETY: what was on a list stays valid until it is taken.
            unsafe { self.boot.add(node) };
        }
    }

    /// The list of a CPU.
    #[inline]
    pub(crate) fn of(&self, cpu: usize) -> &Llist<T> {
        self.lists.get(cpu % CPUS).unwrap_or(&self.boot)
    }

    /// Whether this is the time before the machine was started.
    pub(crate) fn is_boot(&self) -> bool {
        self.boot.first.load(Ordering::Relaxed) != closed()
    }

    /// The list for the time before the machine was started.
    #[inline]
    pub(crate) fn boot(&self) -> &Llist<T> {
        &self.boot
    }
}
