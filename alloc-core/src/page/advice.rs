//! Advice to the kernel about the memory of arenas: huge pages or none, and the NUMA node.
//!
//! Transparent huge pages are requested beyond the first [`HUGE_FROM`] units and for runs of at
//! least [`LONG`] units (`HAYLOFT_THP=auto|always|never`). Everywhere else they are switched off,
//! and `collapse` makes them of what stays in use.
//!
//! First touch alone would place a page near the thread that first used its run; but runs are
//! reused, and must stay near the threads that allocate them later. So each arena belongs to a
//! node, and its memory is requested from that node.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::node;
use crate::os;
use crate::settings::{self, Name};
use crate::size_class::UNIT;

/// Number of committed units of an arena from which on huge pages are requested. In a heap that
/// large, the unused rest of half-used huge pages is a small part of the whole. In smaller heaps,
/// programs took up to 10 % more memory with huge pages, and on the whole no less time: a heap that
/// grows to 340 MB in phases took 1 % less time, Perl with 90 MB 5 % more, and SQLite with 530 MB
/// 10 % more. (Measured on a virtual machine, whose host has to find 2 MiB of memory, too.)
pub(super) const HUGE_FROM: u32 = (1 << 30) / UNIT as u32;

/// Length in units from which on a run that has to be committed gets huge pages in any heap, since
/// it will be used from end to end. With them a block that grows to a gigabyte takes 0.77 of the
/// time, and blocks of up to 64 MB that come and go take 0.6.
pub(super) const LONG: u32 = (8 << 20) / UNIT as u32;

/// When huge pages are requested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum HugePages {
    /// From [`HUGE_FROM`] committed units on, and for runs of at least [`LONG`] units.
    Auto = 1,
    Always,
    Never,
}

impl HugePages {
    /// Returns the setting of `HAYLOFT_THP`.
    pub(super) fn wanted() -> HugePages {
        /// The setting, or 0 before it was read.
        static WANTED: AtomicU8 = AtomicU8::new(0);
        const AUTO: u8 = HugePages::Auto as u8;
        const ALWAYS: u8 = HugePages::Always as u8;
        const NEVER: u8 = HugePages::Never as u8;
        // Relaxed: the value guards nothing, and never changes once it is not 0.
        match WANTED.load(Ordering::Relaxed) {
            AUTO => return HugePages::Auto,
            ALWAYS => return HugePages::Always,
            NEVER => return HugePages::Never,
            _ => {}
        }
        let wanted = match settings::text(Name::Thp) {
            Some("always") => HugePages::Always,
            Some("never") => HugePages::Never,
            _ => HugePages::Auto,
        };
        WANTED.store(wanted as u8, Ordering::Relaxed);
        wanted
    }

    /// Returns whether to request huge pages for `room` units in an arena that has `committed`
    /// units already.
    #[inline]
    pub(super) fn are_for(room: u32, committed: u32) -> bool {
        match HugePages::wanted() {
            HugePages::Auto => room >= LONG || committed >= HUGE_FROM,
            HugePages::Always => true,
            HugePages::Never => false,
        }
    }
}

/// Asks the kernel to take the memory of an arena's pages from the arena's node, if there are
/// several nodes.
///
/// # Safety
/// `address..address + bytes` lies in one reservation, on page boundaries.
pub(super) unsafe fn prefer_node(address: NonNull<u8>, bytes: usize, node: usize) {
    if node::count() > 1
        && let Some(number) = node::number(node)
    {
        // SAFETY: the caller guarantees whole pages of one reservation.
        unsafe { os::prefer_node(address, bytes, number) };
    }
}
