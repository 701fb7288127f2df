//! Cache objects that any context may read while their owners free them.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use hayloft_core::rcu;

use crate::draw::Rng;
use crate::failure::Actor;
use crate::object::{self, Object};

type Slots = [AtomicPtr<u8>; 8];

/// Slots for objects that are freed after a grace period, and unchanged until then.
static WHOLE: Slots = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// Slots for objects that are freed at once and may be in use again while read. Their memory stays
/// memory of such objects.
static TYPESAFE: Slots = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// A slot in which one user publishes objects, one at a time.
#[derive(Debug)]
pub(crate) struct Publisher {
    slot: &'static AtomicPtr<u8>,
    object: Option<Object>,
}

impl Publisher {
    /// Creates the publisher of a thread, for objects of a type-safe cache or of any other. There
    /// are at most as many publishers as slots, so no two share one.
    pub(crate) fn new(thread: u32, typesafe: bool) -> Self {
        let slots = if typesafe { &TYPESAFE } else { &WHOLE };
        Self { slot: &slots[thread as usize % slots.len()], object: None }
    }

    /// Publishes an object, or nothing, and returns the one published before. Readers may still be
    /// using that one.
    pub(crate) fn publish(&mut self, object: Option<Object>) -> Option<Object> {
        let address = object.as_ref().map_or(ptr::null_mut(), |object| object.address().as_ptr());
        // Release: pairs with the Acquire in `read`, so that the reader finds the object filled.
        self.slot.store(address, Ordering::Release);
        std::mem::replace(&mut self.object, object)
    }
}

/// Reads a random published object, if its slot holds one.
pub(crate) fn read(rng: &mut Rng, actor: Actor) {
    let (typesafe, number) = (rng.below(2) == 0, rng.below(WHOLE.len()));
    let slots = if typesafe { &TYPESAFE } else { &WHOLE };
    let _reader = rcu::read_lock();
    // Acquire: pairs with the Release in `publish`.
    let Some(address) = NonNull::new(slots[number].load(Ordering::Acquire)) else { return };
    // SAFETY: the object was published while this RCU reader was active, so its memory stays that
    // of such an object. One in `WHOLE` also stays unchanged.
    unsafe {
        if typesafe {
            object::check_constructed(address, actor);
        } else {
            object::check_whole(address, actor);
        }
    }
}
