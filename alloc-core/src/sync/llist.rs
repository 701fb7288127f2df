//! A lock-less list: any context adds to it, whoever takes from it takes all. (`llist.h` of Linux.)

use core::ptr;

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

/// A list of nodes, the last one added first.
pub(crate) struct Llist<T> {
    first: AtomicPtr<T>,
}

impl<T: Link> Llist<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Llist<T> {
        Llist { first: AtomicPtr::new(ptr::null_mut()) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Llist<T> {
        Llist { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Whether nothing is on the list; a hint.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// Adds a node; whether the list was empty before.
    ///
    /// # Safety
    /// The node is valid until somebody takes it from the list, and the caller's alone.
    pub(crate) unsafe fn add(&self, node: *mut T) -> bool {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller's promise.
            unsafe { *T::link(node) = first };
            // Release: pairs with the Acquire of `take`, so that the taker sees the link and the node.
            match self.first.compare_exchange(first, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return first.is_null(),
                Err(found) => first = found,
            }
        }
    }

    /// Takes all nodes.
    #[inline]
    pub(crate) fn take(&self) -> Taken<T> {
        if self.is_empty() {
            return Taken(ptr::null_mut());
        }
        // Acquire: pairs with the Release of every `add`: later ones continue the release sequence of earlier ones.
        Taken(self.first.swap(ptr::null_mut(), Ordering::Acquire))
    }
}

/// Nodes taken from an [`Llist`], to be had one by one. Those left when it is dropped are forgotten.
pub(crate) struct Taken<T>(*mut T);

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
