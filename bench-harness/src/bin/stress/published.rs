//! Objects of caches that anybody may read, in any context, while their owners take them back.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use alloc_core::rcu;

use crate::draw::Rng;
use crate::failure::Actor;
use crate::object::{self, Object};

type Slots = [AtomicPtr<u8>; 8];

/// Objects that are freed when their readers are gone, and stay as they are until then.
static WHOLE: Slots = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// Objects that are freed at once and may be in use again, in memory that stays memory of such objects.
static TYPESAFE: Slots = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// Where one user publishes objects, one at a time.
#[derive(Debug)]
pub(crate) struct Publisher {
    slot: &'static AtomicPtr<u8>,
    object: Option<Object>,
}

impl Publisher {
    /// The publisher of a thread, of which there are not more than slots, for objects of a type-safe cache
    /// or of another.
    pub(crate) fn new(thread: u32, typesafe: bool) -> Self {
        let slots = if typesafe { &TYPESAFE } else { &WHOLE };
        Self { slot: &slots[thread as usize % slots.len()], object: None }
    }

    /// Publishes an object, or nothing, and takes back the one before, which readers may be at still.
    pub(crate) fn publish(&mut self, object: Option<Object>) -> Option<Object> {
        let address = object.as_ref().map_or(ptr::null_mut(), |object| object.address().as_ptr());
        // Release: pairs with the Acquire in `read`: the reader finds it filled.
        self.slot.store(address, Ordering::Release);
        std::mem::replace(&mut self.object, object)
    }
}

/// Reads some published object, if there is one.
pub(crate) fn read(rng: &mut Rng, actor: Actor) {
    let (typesafe, number) = (rng.below(2) == 0, rng.below(WHOLE.len()));
    let slots = if typesafe { &TYPESAFE } else { &WHOLE };
    let _reader = rcu::read_lock();
    // Acquire: pairs with the Release in `publish`.
    let Some(address) = NonNull::new(slots[number].load(Ordering::Acquire)) else { return };
    // SAFETY: it was published when the reader was there already.
    unsafe {
        if typesafe {
            object::check_constructed(address, actor);
        } else {
            object::check_whole(address, actor);
        }
    }
}
