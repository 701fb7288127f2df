//! What a file holds.

use std::io::Write;

use crate::failure::Failure;
use crate::number::value;
use crate::profile::Profile;
use crate::symbols::Symbols;

/// Prints it.
pub(crate) fn print(
    profile: &Profile,
    symbols: &Symbols<'_>,
    to: &mut impl Write,
) -> Result<(), Failure> {
    let raw = &profile.raw;
    writeln!(to, "file       {}", profile.name)?;
    if let Some(time) = profile.time() {
        writeln!(to, "time       {time}")?;
    }
    if raw.duration_nanos != 0 {
        writeln!(to, "duration   {}", value(raw.duration_nanos, "nanoseconds"))?;
    }
    if let Some(kind) = &raw.period_type {
        let kind = profile.kind(kind);
        writeln!(to, "period     {} of {}", value(raw.period, &kind.unit), kind.name)?;
    }
    for index in &raw.comment {
        writeln!(to, "comment    {}", profile.string(*index))?;
    }
    let functions = raw.location.iter().filter(|location| !location.line.is_empty()).count();
    writeln!(to, "samples    {}", raw.sample.len())?;
    writeln!(to, "locations  {}, {functions} of them with functions", raw.location.len())?;
    writeln!(to, "\nvalues")?;
    let default = profile.kind_index(None)?;
    for (index, kind) in profile.kinds().iter().enumerate() {
        let values = raw.sample.iter().filter_map(|sample| sample.value.get(index));
        let sum = values.fold(0_i64, |sum, value| sum.saturating_add(*value));
        let mark = if index == default { ", shown by default" } else { "" };
        writeln!(to, "  {:<16} {}{mark}", kind.name, value(sum, &kind.unit))?;
    }
    let tags = tags(profile);
    if !tags.is_empty() {
        writeln!(to, "\nlabels")?;
        for (key, values) in tags {
            writeln!(to, "  {key:<16} {values} different values")?;
        }
    }
    writeln!(to, "\nmappings")?;
    for mapping in &raw.mapping {
        let (start, limit) = (mapping.memory_start, mapping.memory_limit);
        let build_id = profile.string(mapping.build_id);
        let build_id = if build_id.is_empty() { "-".into() } else { build_id };
        let name = profile.string(mapping.filename);
        writeln!(to, "  {start:012x}-{limit:012x} {name}")?;
        writeln!(to, "      build ID {build_id}; {}", symbols.find(profile, mapping))?;
    }
    Ok(())
}

/// Returns the keys of labels, with the numbers of their values.
fn tags(profile: &Profile) -> Vec<(String, usize)> {
    use std::collections::{BTreeMap, BTreeSet};
    let mut all = BTreeMap::<i64, BTreeSet<(i64, i64)>>::new();
    for label in profile.raw.sample.iter().flat_map(|sample| &sample.label) {
        all.entry(label.key).or_default().insert((label.str, label.num));
    }
    let count =
        |(key, values): (i64, BTreeSet<_>)| (profile.string(key).into_owned(), values.len());
    all.into_iter().map(count).collect()
}
