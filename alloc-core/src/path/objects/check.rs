//! Checks of what the program frees, and the messages that end a process that frees wrongly.
//!
//! Every build looks up an object that a full sheaf refuses, and ends the process with what `slab`
//! reports of objects that arrive there. Debug builds also record for each object whether the
//! program holds it, and check the record at each free.

use core::fmt;

use super::lookup::find;
#[cfg(debug_assertions)]
use super::lookup::slab_at;
use crate::os;
#[cfg(debug_assertions)]
use crate::page::Unit;
#[cfg(debug_assertions)]
use crate::sampling;
use crate::size_class::Class;
#[cfg(debug_assertions)]
use crate::slab::Slab;
use crate::slab::{self, Misuse};

/// Records whether the program holds `object`. Ends the process if it is not of `class`, or if the
/// program frees it and does not hold it.
#[cfg(debug_assertions)]
pub(crate) fn note(object: *mut u8, class: Class, held: bool) {
    if sampling::owns(object) {
        return;
    }
    let unit = Unit::of(object).filter(|unit| unit.is_committed());
    let noted = unit.ok_or(Misuse::Foreign).and_then(|unit| {
        // SAFETY: committed metadata of the first unit of the object's slab, if it is in a slab of
        // this class.
        unsafe { Slab::note(slab_at(unit, class), object, class, held) }
    });
    if let Err(misuse) = noted {
        misused(object, class, misuse);
    }
}

/// Ends the process unless an object of `class` starts at `object`.
#[inline]
pub(super) fn check(object: *mut u8, class: Class) {
    if find(object) != Some((class, true)) {
        misused(object, class, Misuse::Foreign);
    }
}

/// A class, displayed as messages name it.
pub(crate) struct Kind(pub(crate) Class);

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.cache_index().is_some() { "a cache of objects of" } else { "class" };
        write!(formatter, "{kind} {}", slab::shape(self.0).stride())
    }
}

/// Ends the process with a message about a free of `object` as one of `class`.
#[cold]
#[inline(never)]
pub(crate) fn misused(object: *mut u8, class: Class, misuse: Misuse) -> ! {
    let kind = Kind(class);
    match (misuse, find(object)) {
        (Misuse::DoubleFree, _) => os::abort(format_args!("double free of {object:p} ({kind})")),
        (Misuse::Foreign, None) => {
            os::abort(format_args!("free of foreign address {object:p} ({kind})"))
        }
        (Misuse::Foreign, Some((found, _))) if found != class => os::abort(format_args!(
            "free of {object:p} as one of {kind}; it is one of {}",
            Kind(found)
        )),
        (Misuse::Foreign, Some(_)) => {
            os::abort(format_args!("free of {object:p}, where no object starts ({kind})"))
        }
    }
}
