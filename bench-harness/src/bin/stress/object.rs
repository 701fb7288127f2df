//! An object of a cache that can check its own contents.

use std::alloc::Layout;
use std::ptr::NonNull;

use crate::failure::{self, Actor, Fault};
use crate::pattern;

/// Mark that the constructor of a cache leaves in each object. It stays for as long as the object's
/// memory does.
const CONSTRUCTED: u64 = 0x6861_796c_6f66_7421;

/// The start of an object. The pattern of the object's key follows.
#[repr(C)]
struct Header {
    /// Written by the constructor, if the cache has one.
    mark: u64,
    key: u64,
    size: usize,
}

const HEADER: usize = size_of::<Header>();

/// Constructs an object: writes the mark.
pub(crate) fn construct(address: NonNull<u8>) {
    let header: *mut Header = address.as_ptr().cast();
    // SAFETY: the cache passes memory of one of its objects, which have room for a header.
    unsafe { (&raw mut (*header).mark).write(CONSTRUCTED) };
}

/// An allocated object, in use.
#[derive(Debug)]
#[must_use]
pub(crate) struct Object {
    address: NonNull<u8>,
    layout: Layout,
    key: u64,
    constructed: bool,
    born: Actor,
}

// SAFETY: an object in use belongs to its owner alone, on any thread.
unsafe impl Send for Object {}

impl Object {
    /// Wraps a newly allocated object, checks that it is zeroed or constructed as its cache
    /// promises, and fills it.
    pub(crate) fn new(
        address: NonNull<u8>,
        layout: Layout,
        key: u64,
        (zeroed, constructed): (bool, bool),
        born: Actor,
    ) -> Self {
        let object = Self { address, layout, key, constructed, born };
        if !address.addr().get().is_multiple_of(layout.align()) {
            object.fail(Fault::Misaligned, born);
        }
        // SAFETY: a zeroed object has `layout.size()` initialised bytes.
        let nonzero =
            zeroed.then(|| unsafe { pattern::find_nonzero(object.start(), layout.size()) });
        if let Some(mismatch) = nonzero.flatten() {
            object.fail(Fault::NotZeroed(mismatch), born);
        }
        if constructed {
            // SAFETY: the cache has `construct` as its constructor, which has run on this object.
            unsafe { check_constructed(address, born) };
        }
        object.fill();
        object
    }

    /// Returns the address.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    fn start(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    fn fill(&self) {
        let header: *mut Header = self.start().cast();
        let size = self.layout.size();
        // SAFETY: `self` owns the object, which has `size` bytes and room for a header.
        unsafe {
            (&raw mut (*header).key).write(self.key);
            (&raw mut (*header).size).write(size);
            pattern::fill(self.start().add(HEADER), 0, size - HEADER, self.key);
        }
    }

    /// Checks every byte of the object, ends its use and returns its address.
    pub(crate) fn into_checked(self, actor: Actor) -> NonNull<u8> {
        if self.constructed {
            // SAFETY: the cache has `construct` as its constructor, which has run on this object.
            unsafe { check_constructed(self.address, actor) };
        }
        // SAFETY: the object has `layout.size()` bytes, and `fill` wrote all those after the
        // header.
        let mismatch = unsafe {
            pattern::find_mismatch(self.start().add(HEADER), self.layout.size() - HEADER, self.key)
        };
        if let Some(mismatch) = mismatch {
            self.fail(Fault::Contents(mismatch), actor);
        }
        self.address
    }

    #[cold]
    fn fail(&self, fault: Fault, actor: Actor) -> ! {
        let when = "in a cache";
        failure::report(fault, when, actor, Some(self.born), self.start(), self.layout)
    }
}

/// Checks every byte of an object on behalf of a reader.
///
/// # Safety
///
/// The object is filled, and nothing writes to it meanwhile.
pub(crate) unsafe fn check_whole(address: NonNull<u8>, actor: Actor) {
    // SAFETY: the caller guarantees that the object is filled, header included, and that nothing
    // writes to it.
    unsafe {
        let header: *const Header = address.as_ptr().cast();
        let (key, size) = ((*header).key, (*header).size);
        let pattern = address.as_ptr().add(HEADER);
        if let Some(mismatch) = pattern::find_mismatch(pattern, size.saturating_sub(HEADER), key) {
            fail_reading(Fault::Contents(mismatch), address, actor);
        }
    }
}

/// Checks that the object still has the constructor's mark.
///
/// # Safety
///
/// The memory is that of an object, in use or free, of a cache with [`construct`] as its
/// constructor.
pub(crate) unsafe fn check_constructed(address: NonNull<u8>, actor: Actor) {
    // SAFETY: the caller guarantees that `construct` made the object; nothing writes the mark after
    // that.
    let mark = unsafe { (&raw const (*address.cast::<Header>().as_ptr()).mark).read() };
    if mark != CONSTRUCTED {
        fail_reading(Fault::NotConstructed(mark), address, actor);
    }
}

#[cold]
fn fail_reading(fault: Fault, address: NonNull<u8>, actor: Actor) -> ! {
    let layout = Layout::new::<Header>();
    failure::report(fault, "while reading", actor, None, address.as_ptr(), layout)
}
