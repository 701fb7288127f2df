//! How long the blocks of functions lived.

use std::io::Write;

use crate::failure::Failure;
use crate::number::{duration, percent};
use crate::options::{Order, View};
use crate::profile::Profile;
use crate::stacks::Stacks;
use crate::top::{Sums, ordered, sums, table, what};

/// Prints the functions that freed most blocks, with the mean of the times that these lived.
pub(crate) fn print(
    mut profile: Profile,
    view: &View,
    order: &Order,
    to: &mut impl Write,
) -> Result<(), Failure> {
    if view.by.is_some() {
        return Err(Failure::Usage("lifetimes has no --by".into()));
    }
    // Object caches have exact numbers, but no lifetimes.
    profile.leave_out_named();
    let by = |kind| Stacks::by(Some(kind), &profile, view);
    let (allocs, live) = (by("alloc_objects")?, by("inuse_objects")?);
    let lived = by("lifetime")?;
    let allocated = allocs.selected();
    let freed = allocated.saturating_sub(live.selected());
    let (share, lifetime) = (percent(freed, allocated), mean(lived.selected(), freed));
    writeln!(
        to,
        "{freed} of {allocated} blocks were freed ({share}), after {lifetime} on average"
    )?;
    let (live, lived) = (sums(&live), sums(&lived));
    let all = sums(&allocs).into_iter().filter_map(|(name, allocs)| {
        let live = live.get(name).copied().unwrap_or_default();
        let freed = Sums { flat: allocs.flat - live.flat, cum: allocs.cum - live.cum };
        (freed != Sums::default()).then_some((name, freed))
    });
    let all: Vec<_> = all.collect();
    let count = all.len();
    let shown = ordered(all, order);
    if shown.len() < count {
        writeln!(to, "{} of {count} {}", shown.len(), what(view))?;
    }
    let rows = shown.iter().map(|(name, freed)| {
        let lived = lived.get(name).copied().unwrap_or_default();
        let (flat, cum) = (mean(lived.flat, freed.flat), mean(lived.cum, freed.cum));
        [freed.flat.to_string(), flat, freed.cum.to_string(), cum, (*name).to_owned()]
    });
    table(["FREED", "LIFETIME", "CUM", "LIFETIME", "FUNCTION"], rows, to)?;
    Ok(())
}

/// Formats the mean lifetime of `blocks` that lived this long all together.
fn mean(milliseconds: i64, blocks: i64) -> String {
    if blocks <= 0 { "-".to_owned() } else { duration(milliseconds as f64 / blocks as f64) }
}
