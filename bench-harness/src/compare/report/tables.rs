//! The tables: time, memory, latency, and their means.

use super::grid::{Entry, Grid};
use crate::allocator::OURS;
use crate::compare::summary::{Aspect, Cell, MEANS, Quantity, Summary};
use crate::statistics::{median, range};
use crate::workloads::{Kind, Resident};

/// Returns the tables of the measurements with their titles, without empty ones.
pub(super) fn details(summary: &Summary) -> Vec<(String, Grid)> {
    let baseline = summary.baseline_name();
    let tables = vec![
        (format!("Time: ns per operation, ratio to {baseline}, min–max"), time(summary)),
        (format!("Memory: peak resident MiB, ratio to {baseline}"), memory(summary)),
        (
            format!(
                "Latency: ns, reading the clock included, medians over rounds, ratio to {baseline}"
            ),
            latency(summary),
        ),
        (
            format!("Over time: resident MiB, and for each live byte, ratio to {baseline}"),
            curves(summary),
        ),
    ];
    tables.into_iter().filter(|(_, grid)| !grid.is_empty()).collect()
}

/// Returns the tables of the means and of the noise with their titles, without empty ones.
pub(super) fn overview(summary: &Summary) -> Vec<(String, Grid)> {
    let baseline = summary.baseline_name();
    let tables = vec![
        (format!("Geometric means of the ratios to {baseline}"), means(summary)),
        ("Noise: the slowest round to the fastest".to_owned(), noise(summary)),
    ];
    tables.into_iter().filter(|(_, grid)| !grid.is_empty()).collect()
}

/// Returns a table with a column for each allocator.
fn by_allocator(summary: &Summary, first: &str) -> Grid {
    let allocators = summary.allocators.iter().map(|name| (*name).to_owned());
    Grid::new(std::iter::once(first.to_owned()).chain(allocators).collect())
}

fn time(summary: &Summary) -> Grid {
    let mut grid = by_allocator(summary, "workload").separated();
    for row in summary.of_aspect(Aspect::Time) {
        let mut entries = vec![Entry::plain(row.workload.name)];
        entries.extend(row.cells.iter().map(|cell| entry(cell, cell.time.as_ref(), true)));
        grid.push(entries);
    }
    grid
}

fn memory(summary: &Summary) -> Grid {
    let mut header = vec!["workload"];
    header.extend(&summary.allocators);
    let title = format!("{OURS} to the best of the others");
    if summary.ours().is_some() {
        header.push(&title);
    }
    let mut grid = Grid::new(header.into_iter().map(str::to_owned).collect());
    for row in summary.of_aspect(Aspect::Memory) {
        let note = match row.workload.resident {
            Resident::Peak => "",
            Resident::Final => " (at the end)",
        };
        let mut entries = vec![Entry::plain(format!("{}{note}", row.workload.name))];
        entries.extend(row.cells.iter().map(|cell| entry(cell, cell.resident.as_ref(), false)));
        if let Some(ours) = summary.ours() {
            let best = summary.best_rival(row, ours, Aspect::Memory);
            entries.push(best.map_or(Entry::plain("–"), |(ratio, index)| {
                let rival = summary.allocators[index];
                Entry::rated(format!("{ratio:.2}× {rival}"), Some(ratio))
            }));
        }
        grid.push(entries);
    }
    grid
}

/// Formats a quantity with its ratio and, if `with_range`, its range. If a process failed, returns
/// the failure instead.
fn entry(cell: &Cell, quantity: Option<&Quantity>, with_range: bool) -> Entry {
    if let Some(how) = &cell.failure {
        return Entry::bad(how);
    }
    let Some(quantity) = quantity else {
        return Entry::plain("–");
    };
    let mut text = number(quantity.median);
    if let Some(ratio) = quantity.ratio {
        text += &format!("  {ratio:.2}×");
    }
    if with_range {
        text += &format!("\n{}–{}", number(quantity.min), number(quantity.max));
    }
    Entry::rated(text, quantity.ratio)
}

fn latency(summary: &Summary) -> Grid {
    let header = ["workload", "allocator", "p50", "p90", "p99", "p99.9", "max", "clock alone"];
    let mut grid = Grid::new(header.map(str::to_owned).to_vec());
    for row in summary.of_kind(Kind::Latency) {
        for (name, cell) in summary.allocators.iter().zip(&row.cells) {
            let Some(own) = &cell.latency else { continue };
            let mut entries = vec![Entry::plain(row.workload.name), Entry::plain(*name)];
            for quantity in [&own.p50, &own.p90, &own.p99, &own.p999, &own.max] {
                entries.push(nanoseconds(quantity));
            }
            entries.push(Entry::plain(format!("{:.0}", own.clock.median)));
            grid.push(entries);
        }
    }
    grid
}

fn curves(summary: &Summary) -> Grid {
    let header = [
        "workload",
        "allocator",
        "before",
        "peak",
        "2 s after the free",
        "left of the burst",
        "at the end",
        "per live, 2 s after the free",
        "per live, at the end",
        "per live, all the time",
    ];
    let mut grid = Grid::new(header.map(str::to_owned).to_vec());
    for row in summary.of_kind(Kind::Curve) {
        for (name, cell) in summary.allocators.iter().zip(&row.cells) {
            let mut entries = vec![Entry::plain(row.workload.name), Entry::plain(*name)];
            let rated = |quantity| entry(cell, quantity, false);
            // A difference may be zero or negative, so it has no ratio.
            let plain = |quantity: Option<&Quantity>| {
                let plain = quantity.map(|quantity| Quantity { ratio: None, ..quantity.clone() });
                entry(cell, plain.as_ref(), false)
            };
            let curve = cell.curve.as_ref();
            entries.extend([
                plain(curve.map(|it| &it.before)),
                rated(cell.resident.as_ref()),
                rated(curve.and_then(|it| it.after_free.as_ref())),
                plain(curve.and_then(|it| it.left.as_ref())),
                rated(curve.map(|it| &it.end)),
                rated(curve.and_then(|it| it.per_live_after_free.as_ref())),
                rated(curve.and_then(|it| it.per_live_at_end.as_ref())),
                rated(curve.and_then(|it| it.per_live.as_ref())),
            ]);
            grid.push(entries);
        }
    }
    grid
}

/// Formats whole nanoseconds with their ratio.
fn nanoseconds(quantity: &Quantity) -> Entry {
    let mut text = format!("{:.0}", quantity.median);
    if let Some(ratio) = quantity.ratio {
        text += &format!("  {ratio:.2}×");
    }
    Entry::rated(text, quantity.ratio)
}

fn means(summary: &Summary) -> Grid {
    let mut grid = by_allocator(summary, "mean over");
    for mean in &MEANS {
        let values: Vec<Option<f64>> =
            (0..summary.allocators.len()).map(|index| summary.mean(mean, index)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let entry = |value: &Option<f64>| match value {
            Some(ratio) => Entry::rated(format!("{ratio:.3}×"), Some(*ratio)),
            None => Entry::plain("–"),
        };
        grid.push(
            std::iter::once(Entry::plain(mean.title)).chain(values.iter().map(entry)).collect(),
        );
    }
    grid
}

/// Returns a table of the differences between rounds: those of times by themselves, and those of
/// their ratios to the baseline.
fn noise(summary: &Summary) -> Grid {
    type Range = fn(&Quantity) -> Option<(f64, f64)>;
    type Over = fn(Vec<f64>) -> Option<f64>;
    let times: Range = |quantity| range(quantity.rounds.iter().copied().flatten());
    let ratios: Range = |quantity| quantity.spread;
    let middle: Over = |values| median(values);
    let most: Over = |values| values.into_iter().reduce(f64::max);
    let lines = [
        ("times, median over workloads", times, middle),
        ("times, most", times, most),
        ("ratios, median over workloads", ratios, middle),
        ("ratios, most", ratios, most),
    ];
    let mut grid = by_allocator(summary, "of");
    let quantities = |index: usize| {
        summary.of_aspect(Aspect::Time).filter_map(move |row| row.cells[index].time.as_ref())
    };
    if quantities(summary.baseline).all(|quantity| quantity.rounds.len() < 2) {
        return grid;
    }
    for (title, of, over) in lines {
        let mut entries = vec![Entry::plain(title)];
        entries.extend((0..summary.allocators.len()).map(|index| {
            let spreads = quantities(index).filter_map(of).map(|(low, high)| high / low);
            let value = over(spreads.collect());
            Entry::plain(value.map_or("–".to_owned(), |value| format!("{value:.2}×")))
        }));
        grid.push(entries);
    }
    grid
}

/// Formats a number with three significant digits, and without a fraction from a hundred on.
fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(number(1.976), "1.98");
        assert_eq!(number(19.76), "19.8");
        assert_eq!(number(1976.4), "1976");
    }
}
