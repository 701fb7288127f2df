//! Function pointers that change at run time, and functions found at an address.
//!
//! A lower layer that has to call a higher one is passed a function and keeps it here. This is the
//! only place that converts between addresses and function pointers.

use core::marker::PhantomData;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// A type of function pointers.
///
/// # Safety
/// The type is a function pointer, so its values are the addresses of functions and its `None` is
/// null.
pub(crate) unsafe trait FnPtr: Copy {
    /// Returns the address of the function.
    fn address(self) -> *mut ();

    /// Returns the function at `address`; `None` if that is null.
    ///
    /// # Safety
    /// `address` is null, or that of a function of this type.
    unsafe fn at(address: *mut ()) -> Option<Self>;
}

macro_rules! function_pointers {
    ($($type:ty, of $($parameter:ident),*;)*) => {$(
        // SAFETY: the macro is called with function pointers only.
        unsafe impl<$($parameter),*> FnPtr for $type {
            fn address(self) -> *mut () {
                self as *mut ()
            }

            unsafe fn at(address: *mut ()) -> Option<Self> {
                // SAFETY: an `Option` of a function pointer is a pointer that may be null. The
                // caller guarantees that the address is null or that of a function of this type.
                unsafe { mem::transmute::<*mut (), Option<Self>>(address) }
            }
        }
    )*};
}

function_pointers! {
    fn() -> R, of R;
    fn(A) -> R, of R, A;
    fn(A, B) -> R, of R, A, B;
    unsafe extern "C" fn() -> R, of R;
    unsafe extern "C" fn(A) -> R, of R, A;
    unsafe extern "C" fn(A, B) -> R, of R, A, B;
    unsafe extern "C" fn(A, B, C) -> R, of R, A, B, C;
}

/// A function pointer, or none, that any context may set and read.
///
/// All accesses are Relaxed. The code of a function is there before any thread can see its pointer
/// and never changes, so a call needs no ordering. Where a function relies on data that was
/// written before the pointer was set, the setter must publish that data by other means.
pub(crate) struct AtomicFn<F> {
    address: AtomicPtr<()>,
    of: PhantomData<F>,
}

impl<F: FnPtr> AtomicFn<F> {
    /// Creates an atomic without a function.
    pub(crate) const fn new() -> AtomicFn<F> {
        AtomicFn { address: AtomicPtr::new(ptr::null_mut()), of: PhantomData }
    }

    /// Sets the function.
    pub(crate) fn set(&self, function: F) {
        self.address.store(function.address(), Ordering::Relaxed);
    }

    /// Returns the function, if one is set.
    #[inline]
    pub(crate) fn get(&self) -> Option<F> {
        // SAFETY: the address is null, or `set` stored that of a function of this type.
        unsafe { F::at(self.address.load(Ordering::Relaxed)) }
    }

    /// Removes the function and returns it, if one was set.
    pub(crate) fn take(&self) -> Option<F> {
        // SAFETY: the address is null, or `set` stored that of a function of this type.
        unsafe { F::at(self.address.swap(ptr::null_mut(), Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_and_take_return_the_last_function_set() {
        let kept: AtomicFn<fn(u32) -> u32> = AtomicFn::new();
        assert!(kept.get().is_none());
        kept.set(|number| number + 1);
        assert_eq!(kept.get().map(|function| function(1)), Some(2));
        kept.set(|number| number * 10);
        assert_eq!(kept.take().map(|function| function(1)), Some(10));
        assert!(kept.get().is_none() && kept.take().is_none());
    }
}
