//! Tables of functions: by what they hold, and by growth.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

use crate::failure::Failure;
use crate::number::{change, percent, value};
use crate::options::{Order, View};
use crate::stacks::Stacks;

/// What a function holds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Sums {
    /// By its own allocations.
    pub(crate) flat: i64,
    /// And by those of the functions that it calls.
    pub(crate) cum: i64,
}

/// Returns what each function holds.
pub(crate) fn sums(stacks: &Stacks) -> BTreeMap<&str, Sums> {
    let mut all = BTreeMap::<&str, Sums>::new();
    for (stack, value) in &stacks.stacks {
        // A function that calls itself counts once.
        for index in stack.iter().collect::<BTreeSet<_>>() {
            let sums = all.entry(stacks.name(*index)).or_default();
            sums.cum = sums.cum.saturating_add(*value);
        }
        if let Some(index) = stack.last() {
            let sums = all.entry(stacks.name(*index)).or_default();
            sums.flat = sums.flat.saturating_add(*value);
        }
    }
    all
}

/// Returns the functions with the largest amounts, by `order`; those of equal amounts by name.
pub(crate) fn ordered<'a>(
    all: impl IntoIterator<Item = (&'a str, Sums)>,
    order: &Order,
) -> Vec<(&'a str, Sums)> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(name, sums)| {
        let (first, second) = if order.cum { (sums.cum, sums.flat) } else { (sums.flat, sums.cum) };
        (std::cmp::Reverse((first.unsigned_abs(), second.unsigned_abs())), *name)
    });
    all.truncate(order.most);
    all
}

/// Prints the functions that hold most.
pub(crate) fn print(
    stacks: &Stacks,
    view: &View,
    order: &Order,
    to: &mut impl Write,
) -> Result<(), Failure> {
    let unit = &stacks.kind.unit;
    let all = sums(stacks);
    let count = all.len();
    let shown = ordered(all, order);
    writeln!(to, "{}", stacks.headline())?;
    if shown.len() < count {
        writeln!(to, "{} of {count} {}", shown.len(), what(view))?;
    }
    let rows = shown.iter().map(|(name, Sums { flat, cum })| {
        let share = |part| percent(part, stacks.total);
        [value(*flat, unit), share(*flat), value(*cum, unit), share(*cum), (*name).to_owned()]
    });
    table(["FLAT", "FLAT%", "CUM", "CUM%", "FUNCTION"], rows, to)?;
    Ok(())
}

/// Prints the functions that grew or shrank most.
pub(crate) fn print_growth(
    before: &Stacks,
    after: &Stacks,
    view: &View,
    order: &Order,
    to: &mut impl Write,
) -> Result<(), Failure> {
    if before.kind != after.kind {
        return Err(Failure::Other(format!(
            "{} has values of {}, {} of {}",
            before.file, before.kind.name, after.file, after.kind.name
        )));
    }
    let unit = &after.kind.unit;
    let (old, new) = (sums(before), sums(after));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    let growth = names.into_iter().filter_map(|name| {
        let (old, new) = (of(&old, name), of(&new, name));
        let growth =
            Sums { flat: new.flat.saturating_sub(old.flat), cum: new.cum.saturating_sub(old.cum) };
        (growth != Sums::default()).then_some((name, growth))
    });
    let growth: Vec<_> = growth.collect();
    let count = growth.len();
    let shown = ordered(growth, order);
    let (old_sum, new_sum) = (before.selected(), after.selected());
    let difference = change(new_sum.saturating_sub(old_sum), unit);
    let (from, to_value) = (value(old_sum, unit), value(new_sum, unit));
    writeln!(to, "{}: {difference}, from {from} to {to_value}", after.kind.name)?;
    if shown.len() < count {
        writeln!(to, "{} of {count} {} that changed", shown.len(), what(view))?;
    }
    let rows = shown.iter().map(|(name, growth)| {
        let (old, new) = (of(&old, name), of(&new, name));
        [
            change(growth.flat, unit),
            change(growth.cum, unit),
            value(if order.cum { old.cum } else { old.flat }, unit),
            value(if order.cum { new.cum } else { new.flat }, unit),
            (*name).to_owned(),
        ]
    });
    table(["FLAT", "CUM", "BEFORE", "AFTER", "FUNCTION"], rows, to)?;
    Ok(())
}

fn of(all: &BTreeMap<&str, Sums>, name: &str) -> Sums {
    all.get(name).copied().unwrap_or_default()
}

pub(crate) fn what(view: &View) -> &'static str {
    if view.lines { "lines" } else { "functions" }
}

/// Prints a table of numbers and, in the last column, names.
pub(crate) fn table<const COLUMNS: usize>(
    titles: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table.set_header(titles);
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index + 1 < COLUMNS {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(to, "\n{}", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::made;

    fn printed(stacks: &[(&[&str], i64, &str)], order: &Order) -> String {
        let stacks = Stacks::new(&made(stacks), &View::default());
        let stacks = stacks.unwrap_or_else(|error| panic!("{error:?}"));
        let mut text = Vec::new();
        print(&stacks, &View::default(), order, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_function_that_calls_itself_counts_once() {
        let order = Order { most: 10, cum: false };
        let text = printed(&[(&["f", "f", "main"], 3, ""), (&["main"], 1, "")], &order);
        assert_eq!(
            text,
            "space: 4B\n\n\
             FLAT  FLAT%  CUM    CUM%  FUNCTION\n  \
               3B  75.0%   3B   75.0%  f\n  \
               1B  25.0%   4B  100.0%  main\n"
        );
    }

    #[test]
    fn order_and_number_are_as_asked() {
        let stacks: &[(&[&str], i64, &str)] = &[(&["f", "main"], 3, ""), (&["g", "main"], 5, "")];
        let text = printed(stacks, &Order { most: 1, cum: true });
        assert!(text.contains("1 of 3 functions\n") && text.contains("main"), "{text}");
        let text = printed(stacks, &Order { most: 1, cum: false });
        assert!(text.ends_with(" g\n"), "{text}");
    }
}
