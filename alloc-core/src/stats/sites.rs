//! The sites of sampled blocks that hold most, and those that allocate most.

use super::Name;
use crate::sampling::{self, Recent};

/// Sites of each kind: those that hold most, and those that allocate most.
const OF_A_KIND: usize = 32;
/// Most sites.
pub(super) const MOST: usize = 2 * OF_A_KIND;
/// Frames of a site that are shown. The allocator's own come first.
const FRAMES: usize = 24;

/// Estimates of what a stack allocated, from the samples of a heap profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(C)]
#[non_exhaustive]
pub struct SiteStats {
    /// Identifies the site as long as the process lives.
    pub number: u64,
    /// Return addresses, the innermost first; 0 behind the last one.
    pub frames: [usize; FRAMES],
    /// Name of the [tag](crate::tag); empty without one.
    pub tag: Name,
    /// Blocks in use.
    pub live: u64,
    /// Bytes of these.
    pub live_bytes: u64,
    /// Standard error of `live_bytes`.
    pub live_error: u64,
    /// Blocks allocated so far.
    pub allocs: u64,
    /// Bytes of these.
    pub alloc_bytes: u64,
    /// Bytes allocated in a second, in the last second.
    pub alloc_rate: u64,
}

impl SiteStats {
    fn new(recent: &Recent) -> SiteStats {
        let Recent { number, place, sums, rate } = recent;
        let mut frames = [0; FRAMES];
        frames.iter_mut().zip(place.frames).for_each(|(to, from)| *to = *from);
        SiteStats {
            number: u64::from(*number),
            frames,
            tag: Name::new(place.tag),
            live: sums.live as u64,
            live_bytes: sums.live_bytes as u64,
            live_error: sampling::root(sums.live_variance),
            allocs: sums.allocs as u64,
            alloc_bytes: sums.alloc_bytes as u64,
            alloc_rate: *rate,
        }
    }
}

/// The sites with the largest keys, in no order.
struct Top {
    sites: [Option<(u64, Recent)>; OF_A_KIND],
    /// The place of the smallest key; a free one if there is one.
    least: usize,
}

impl Top {
    const fn new() -> Top {
        Top { sites: [const { None }; OF_A_KIND], least: 0 }
    }

    fn key(&self, place: usize) -> u64 {
        self.sites.get(place).and_then(|site| site.as_ref().map(|(key, _)| *key)).unwrap_or(0)
    }

    fn add(&mut self, key: u64, recent: Recent) {
        if key > self.key(self.least)
            && let Some(least) = self.sites.get_mut(self.least)
        {
            *least = Some((key, recent));
            self.least = (0..OF_A_KIND).min_by_key(|place| self.key(*place)).unwrap_or(0);
        }
    }

    fn sites(&self) -> impl Iterator<Item = &Recent> {
        self.sites.iter().flatten().map(|(_, recent)| recent)
    }
}

/// Returns the sites with the most bytes in use, and those that allocate most; at most [`MOST`].
/// `milliseconds` is the time since the last call; 0 if there was none. Only one thread may call
/// it. Blocks that were freed just now may count as in use until the sheaf of their CPU is flushed.
pub(crate) fn top_sites(milliseconds: u64) -> impl Iterator<Item = SiteStats> {
    let (mut holding, mut allocating) = (Top::new(), Top::new());
    sampling::for_each_recent(milliseconds, |recent| {
        allocating.add(recent.rate, recent);
        holding.add(recent.sums.live_bytes as u64, recent);
    });
    let mut place = 0;
    core::iter::from_fn(move || {
        while place < MOST {
            let top = if place < OF_A_KIND { &holding } else { &allocating };
            let recent = top.sites.get(place % OF_A_KIND).and_then(Option::as_ref);
            place += 1;
            let Some((_, recent)) = recent else { continue };
            let is_in_both = holding.sites().any(|other| other.number == recent.number);
            if place <= OF_A_KIND || !is_in_both {
                return Some(SiteStats::new(recent));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Place, Sums};

    #[test]
    fn the_largest_are_kept() {
        let mut top = Top::new();
        let count = 10 * OF_A_KIND as u32;
        // Neither ascending nor descending.
        for number in (0..count).map(|number| number * 7 % count) {
            let place = Place { frames: &[], tag: "" };
            let recent = Recent { number, place, sums: Sums::default(), rate: 0 };
            top.add(u64::from(number), recent);
        }
        let mut found: std::vec::Vec<_> = top.sites().map(|recent| recent.number).collect();
        found.sort_unstable();
        assert!(found.into_iter().eq(count - OF_A_KIND as u32..count));
    }
}
