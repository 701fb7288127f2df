//! The changes since an earlier run, in tables.

use super::grid::{Entry, Grid};
use crate::compare::changes::{Changes, Line, Verdict};
use crate::compare::summary::Aspect;
use crate::statistics::{Mood, Shift};

/// Returns the heading of the section.
pub(super) fn title(changes: &Changes) -> String {
    format!("Changes since the run of {}", changes.then)
}

/// Returns an explanation of the tables, and reasons to doubt them.
pub(super) fn paragraphs(changes: &Changes) -> Vec<String> {
    let mut paragraphs = vec![
        "Ratios of now to then: the median of those of every round now to every round then, and its interval of 95 % \
         (Hodges and Lehmann, Mann and Whitney). It is noise if the interval has 1 in it, or the ratio is within 3 % of 1. \
         A mean is compared by the means of single rounds. Of forty that did not change, expect one to come out as better and one as \
         worse by chance."
            .to_owned(),
    ];
    paragraphs.extend(changes.warnings.iter().map(|warning| format!("Beware: {warning}.")));
    paragraphs
}

/// Returns a table for time and one for memory, if they have rows.
pub(super) fn tables(changes: &Changes) -> Vec<(&'static str, Grid)> {
    let titles = [(Aspect::Time, "Time, now to then"), (Aspect::Memory, "Memory, now to then")];
    let grids = titles.map(|(aspect, title)| (title, table(changes, aspect)));
    grids.into_iter().filter(|(_, grid)| !grid.is_empty()).collect()
}

fn table(changes: &Changes, aspect: Aspect) -> Grid {
    let allocators = changes.allocators.iter().map(|name| (*name).to_owned());
    let mut grid =
        Grid::new(std::iter::once("workload".to_owned()).chain(allocators).collect()).separated();
    for line in changes.lines.iter().filter(|line| line.aspect == aspect) {
        let name = if line.is_mean { format!("mean: {}", line.name) } else { line.name.to_owned() };
        let entries = line.shifts.iter().map(|shift| entry(line, shift.as_ref()));
        grid.push(std::iter::once(Entry::plain(name)).chain(entries).collect());
    }
    grid
}

fn entry(line: &Line, shift: Option<&Shift>) -> Entry {
    let Some(shift) = shift else {
        return Entry::plain("–");
    };
    let verdict = Verdict::of(shift);
    let mut text = format!("{:.2}× {}", shift.ratio, verdict.word(line.aspect));
    if let Some((low, high)) = shift.interval {
        text += &format!("\n{low:.2}–{high:.2}");
    }
    let mood = match verdict {
        Verdict::Better => Mood::Better,
        Verdict::Worse => Mood::Worse,
        Verdict::Noise | Verdict::TooFew => Mood::Even,
    };
    Entry::in_mood(text, mood)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::summary::Summary;
    use crate::compare::synthetic;

    #[test]
    fn tables_have_verdicts_with_their_intervals() {
        let run = |slower: f64| synthetic::record(&["json"], 5, |_, _| slower);
        let now = run(2.0);
        let changes = Changes::new(&now, &Summary::new(&now), &run(1.0));
        let tables = tables(&changes);
        let titles: Vec<&str> = tables.iter().map(|(title, _)| *title).collect();
        assert_eq!(titles, ["Time, now to then", "Memory, now to then"]);
        let text = tables[0].1.render(true);
        assert!(text.contains("mean: time, programs") && text.contains("2.00× slower · 2.00–2.00"));
        assert!(tables[1].1.render(true).contains("1.00× noise"));
        let paragraphs = paragraphs(&changes);
        assert!(paragraphs.iter().any(|text| text.starts_with("Beware: ")), "{paragraphs:?}");
    }
}
