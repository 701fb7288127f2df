//! A lock-less list: any context adds single nodes, and a taker takes all. (`llist.h` of Linux.)
//!
//! Closing a list and taking all its nodes is one step. So a thread that is delayed before an add
//! cannot leave its node on a list that nobody reads any longer: the add finds the list closed, and
//! goes to another.

use core::ptr;

use super::primitive::{AtomicPtr, Ordering};
use super::{Backoff, array_of, const_unless_loom};

/// A type whose values can be nodes of an [`Llist`].
///
/// # Safety
/// `link` returns the same word for the same node while the node is on a list, and nobody else uses
/// that word meanwhile.
pub(crate) unsafe trait Link {
    /// Returns the address of the word in a node that holds the next node.
    ///
    /// # Safety
    /// `node` is valid.
    unsafe fn link(node: *mut Self) -> *mut *mut Self;
}

/// The result of adding a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Added {
    /// The list was empty; the adder must notify the taker.
    First,
    /// The list was not empty; the adder of its first node notifies the taker.
    Later,
    /// The list is closed, and the node still belongs to its adder.
    Closed,
}

/// A list of nodes, newest first. It can be closed.
pub(crate) struct Llist<T> {
    first: AtomicPtr<T>,
}

/// Returns the value that stands for the first node of a closed list.
const fn closed<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

impl<T: Link> Llist<T> {
    const_unless_loom! {
        /// Creates an open list.
        pub(crate) const fn new() -> Llist<T> {
            Llist { first: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Returns whether there is nothing to take; a hint.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let first = self.first.load(Ordering::Relaxed);
        first.is_null() || first == closed()
    }

    /// Adds a node, unless the list is closed.
    ///
    /// # Safety
    /// The node is valid until it is taken from the list, and belongs to the caller alone.
    pub(crate) unsafe fn add(&self, node: *mut T) -> Added {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            if first == closed() {
                return Added::Closed;
            }
            // SAFETY: the caller guarantees that the node is valid and its own.
            unsafe { *T::link(node) = first };
            // Release: pairs with the Acquire in `take` and `close`, so that the taker sees the
            // link and the node.
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
            // Acquire: pairs with the Release of every `add`, as later ones continue the release
            // sequence of earlier ones.
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

    /// Takes all nodes and closes the list.
    pub(crate) fn close(&self) -> Taken<T> {
        // Acquire: pairs with the Release of every `add`, as in `take`.
        let first = self.first.swap(closed(), Ordering::Acquire);
        Taken(if first == closed() { ptr::null_mut() } else { first })
    }

    /// Opens the list again if it is closed.
    pub(crate) fn open(&self) {
        // Relaxed: a closed list has no nodes.
        let _ = self.first.compare_exchange(
            closed(),
            ptr::null_mut(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

/// An iterator over nodes taken from an [`Llist`]. Nodes that are left when it is dropped are
/// leaked.
pub(crate) struct Taken<T>(*mut T);

// SAFETY: the nodes belong to the taker alone, on whatever thread.
unsafe impl<T> Send for Taken<T> {}

impl<T> Taken<T> {
    /// No nodes.
    pub(crate) const NONE: Taken<T> = Taken(ptr::null_mut());

    /// Returns whether no node is left.
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
        // SAFETY: nodes taken from a list are valid and belong to the taker alone.
        self.0 = unsafe { *T::link(node) };
        Some(node)
    }
}

/// A list for each CPU that is online, and a boot list for the time before any is.
pub(crate) struct CpuLists<T, const CPUS: usize> {
    lists: [Llist<T>; CPUS],
    boot: Llist<T>,
}

impl<T: Link, const CPUS: usize> CpuLists<T, CPUS> {
    const_unless_loom! {
        /// Creates lists for the time before the CPU threads start: only the boot list is open.
        pub(crate) const fn new() -> CpuLists<T, CPUS> {
            CpuLists {
                lists: array_of![Llist { first: AtomicPtr::new(closed()) }; CPUS],
                boot: Llist::new(),
            }
        }
    }

    /// Adds a node to the list of `cpu`, or of another CPU if `cpu` is offline, or to the boot list
    /// if that is open. Returns the CPU to notify, if there is one.
    ///
    /// # Safety
    /// As [`Llist::add`].
    pub(crate) unsafe fn add(&self, cpu: usize, node: *mut T) -> Option<usize> {
        let mut backoff = Backoff::new();
        loop {
            // SAFETY: the caller guarantees what `Llist::add` requires, and a closed list does not
            // take the node.
            if unsafe { self.boot.add(node) } != Added::Closed {
                return None;
            }
            // Starts at this CPU and wraps around after the last.
            for number in (0..CPUS).map(|offset| (cpu % CPUS + offset) % CPUS) {
                // SAFETY: the caller guarantees what `Llist::add` requires, and a closed list does
                // not take the node.
                match unsafe { self.of(number).add(node) } {
                    Added::First => return Some(number),
                    Added::Later => return None,
                    Added::Closed => {}
                }
            }
            // At least one CPU is online at any time, but not always the same one.
            backoff.pause();
        }
    }

    /// Closes the lists of all CPUs in a fork child, and moves their nodes to the boot list. Calls
    /// `keep` with every node that is on the boot list then.
    pub(crate) fn without_cpus(&self, keep: impl Fn(*mut T)) {
        let early = self.boot.take();
        self.boot.open();
        for node in early.chain(self.lists.iter().flat_map(Llist::close)) {
            keep(node);
            // SAFETY: a node that was on a list stays valid until it is taken.
            unsafe { self.boot.add(node) };
        }
    }

    /// Returns the list of a CPU.
    #[inline]
    pub(crate) fn of(&self, cpu: usize) -> &Llist<T> {
        self.lists.get(cpu % CPUS).unwrap_or(&self.boot)
    }

    /// Returns whether the boot list is in use: the CPU threads have not started.
    pub(crate) fn is_boot(&self) -> bool {
        self.boot.first.load(Ordering::Relaxed) != closed()
    }

    /// Returns the boot list.
    #[inline]
    pub(crate) fn boot(&self) -> &Llist<T> {
        &self.boot
    }
}
