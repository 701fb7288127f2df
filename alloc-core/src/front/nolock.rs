//! Allocating and freeing without ever waiting, in any context.
//!
//! [`kmalloc`] detects by itself when it runs in a signal handler that interrupted an allocation or
//! a free, and then behaves like these functions. Use these functions in code that must not wait
//! although it interrupted nothing: with a spinlock held, or on a thread with a deadline. Blocks
//! may be allocated by either module and freed by the other. (`kmalloc_nolock` and `kfree_nolock`
//! of `mm/slub.c`, which serve fewer sizes.)

#![expect(improper_ctypes_definitions, reason = "`extern \"C\"` for its unwinding rule, not for C")]

use core::alloc::Layout;
use core::ptr::NonNull;

use crate::front::instrument::{handed_out, object_taken_back};
use crate::front::kmalloc;
use crate::path::objects;
use crate::percpu;
use crate::size_class::{Class, small_class_of};
use crate::sync::Context;

/// Allocates memory for `layout`. Returns `None` when only waiting could provide the memory, or
/// when there is none. Size 0 is served like size 1.
#[inline(always)]
#[must_use]
pub fn alloc(layout: Layout) -> Option<NonNull<u8>> {
    if let Some(class) = small_class_of(layout)
        && let Some(object) = NonNull::new(percpu::pop(class))
    {
        handed_out(object.as_ptr(), layout.size(), false);
        return Some(object);
    }
    NonNull::new(alloc_slow(layout))
}

/// Frees a block that [`alloc`] or the functions of [`kmalloc`] returned. Never fails: a free that
/// is impossible now is deferred to the next slow path that may wait. May start the thread that
/// returns idle memory to the system.
///
/// # Safety
/// As [`kmalloc::free`].
#[inline(always)]
pub unsafe fn free(object: NonNull<u8>, layout: Layout) {
    let object = object.as_ptr();
    let Some(class) = small_class_of(layout) else {
        // SAFETY: the caller guarantees that `object` is live and of `layout`, which has no small
        // class.
        return unsafe { free_large(object, layout) };
    };
    object_taken_back(object, class);
    // SAFETY: the caller guarantees that `object` is live and of `layout`, and thus of `class`.
    unsafe {
        if !percpu::push(class, object) {
            free_slow(class, object);
        }
    }
}

#[cold]
#[inline(never)]
extern "C" fn alloc_slow(layout: Layout) -> *mut u8 {
    Context::without_waiting(|| kmalloc::alloc(layout))
}

/// # Safety
/// As [`free`], for an object of `class`.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_slow(class: Class, object: *mut u8) {
    // SAFETY: the caller guarantees that `object` is live and of `class`.
    Context::without_waiting(|| unsafe { objects::free_slow(class, object) });
}

/// # Safety
/// As [`free`], for a layout that has no small class.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_large(object: *mut u8, layout: Layout) {
    // SAFETY: the caller guarantees that `object` is live and of `layout`, which has no small
    // class.
    Context::without_waiting(|| unsafe { kmalloc::free_large(object, layout) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_can_be_freed_by_nolock_and_by_kmalloc() {
        for size in [0, 1, 100, 5000, 40_000, 3 << 20] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            for _ in 0..if cfg!(miri) { 2 } else { 300 } {
                let first = alloc(layout).unwrap();
                let second = NonNull::new(kmalloc::alloc(layout)).unwrap();
                // SAFETY: both blocks are live and of `layout`, and each is freed once.
                unsafe {
                    first.write_bytes(1, size);
                    second.write_bytes(2, size);
                    assert!(size == 0 || *first.as_ptr() == 1);
                    kmalloc::free(first.as_ptr(), layout);
                    free(second, layout);
                }
            }
        }
    }
}
