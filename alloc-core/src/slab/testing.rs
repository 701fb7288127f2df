//! Sizes and addresses for the tests of slabs.

use core::ptr;

use crate::size_class::Class;

/// Returns the size class whose objects have `size` bytes.
pub(super) fn of_size(size: usize) -> Class {
    let found = (0..).map_while(Class::from_index).find(|class| class.size() == size);
    found.expect("the size is that of a class")
}

/// Returns an address that is only compared.
pub(super) fn address(at: usize) -> *mut u8 {
    ptr::without_provenance_mut(at)
}

/// The address at which the first slab of a test starts. No memory lies there.
pub(super) const BASE: usize = 16 << 20;
