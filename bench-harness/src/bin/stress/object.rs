//! An object of a cache that knows what it should contain.

use std::alloc::Layout;
use std::ptr::NonNull;

use crate::failure::{self, Actor, Fault};
use crate::pattern;

/// What the constructor of a cache leaves in an object, for as long as there is one.
const CONSTRUCTED: u64 = 0x6861_796c_6f66_7421;

/// What an object begins with; the pattern of its key follows.
#[repr(C)]
struct Header {
    /// The constructor's, if there is one.
    mark: u64,
    key: u64,
    size: usize,
}

const HEADER: usize = size_of::<Header>();

/// The constructor.
pub(crate) fn construct(address: NonNull<u8>) {
    let header: *mut Header = address.as_ptr().cast();
    // SAFETY: objects have room for a header.
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

// SAFETY: an object in use is its owner's, on whatever thread.
unsafe impl Send for Object {}

impl Object {
    /// Takes a fresh object, zeroed or constructed, and fills it.
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
        // SAFETY: a zeroed object is initialised, and this long.
        let nonzero =
            zeroed.then(|| unsafe { pattern::find_nonzero(object.start(), layout.size()) });
        if let Some(mismatch) = nonzero.flatten() {
            object.fail(Fault::NotZeroed(mismatch), born);
        }
        if constructed {
            // SAFETY: an object that the constructor has made.
            unsafe { check_constructed(address, born) };
        }
        object.fill();
        object
    }

    /// Where it is.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    fn start(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    fn fill(&self) {
        let header: *mut Header = self.start().cast();
        let size = self.layout.size();
        // SAFETY: the object is owned, and this long; it has room for a header.
        unsafe {
            (&raw mut (*header).key).write(self.key);
            (&raw mut (*header).size).write(size);
            pattern::fill(self.start().add(HEADER), 0, size - HEADER, self.key);
        }
    }

    /// Checks every byte, and gives the object up.
    pub(crate) fn into_checked(self, actor: Actor) -> NonNull<u8> {
        if self.constructed {
            // SAFETY: an object that the constructor has made.
            unsafe { check_constructed(self.address, actor) };
        }
        // SAFETY: the object is this long, and filled.
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

/// Checks every byte of an object that only readers use.
///
/// # Safety
/// The object was filled, and nobody writes it.
pub(crate) unsafe fn check_whole(address: NonNull<u8>, actor: Actor) {
    // SAFETY: the caller's promise.
    unsafe {
        let header: *const Header = address.as_ptr().cast();
        let (key, size) = ((*header).key, (*header).size);
        let pattern = address.as_ptr().add(HEADER);
        if let Some(mismatch) = pattern::find_mismatch(pattern, size.saturating_sub(HEADER), key) {
            fail_reading(Fault::Contents(mismatch), address, actor);
        }
    }
}

/// Checks that an object is still what the constructor made.
///
/// # Safety
/// The memory is that of an object of a cache with [`construct`], in use or free.
pub(crate) unsafe fn check_constructed(address: NonNull<u8>, actor: Actor) {
    // SAFETY: the caller's promise; once constructed, nobody writes the mark.
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
