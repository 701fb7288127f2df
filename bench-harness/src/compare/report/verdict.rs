//! Wins and losses in words, against the baseline and against the best of the others.

use crate::allocator::OURS;
use crate::compare::summary::{Aspect, Row, Summary};
use crate::statistics::Mood;

/// Returns one line for each comparison.
pub(super) fn lines(summary: &Summary) -> Vec<String> {
    let baseline = summary.baseline_name();
    let mut lines = Vec::new();
    for (index, name) in summary.allocators.iter().enumerate() {
        if index == summary.baseline {
            continue;
        }
        let ratios = summary.of_aspect(Aspect::Time).filter_map(|row| {
            let ratio = row.cells[index].time.as_ref()?.ratio?;
            Some(Score { ratio, workload: row.workload.name, rival: None })
        });
        lines.extend(line(&format!("{name} against {baseline}, time"), ratios.collect()));
    }
    lines.extend(failures(summary));
    if let Some(ours) = summary.ours() {
        let title = format!("{OURS} against the best of the others");
        let score = |row: &Row, aspect| {
            let (ratio, rival) = summary.best_rival(row, ours, aspect)?;
            let rival = Some(summary.allocators[rival]);
            Some(Score { ratio, workload: row.workload.name, rival })
        };
        let scores = summary.of_aspect(Aspect::Time).filter_map(|row| score(row, Aspect::Time));
        lines.extend(line(&format!("{title}, time"), scores.collect()));
        let scores = summary.of_aspect(Aspect::Memory).filter_map(|row| score(row, Aspect::Memory));
        lines.extend(line(&format!("{title}, memory"), scores.collect()));
    }
    lines
}

/// Returns one line for each allocator with failures, which count nowhere else.
fn failures(summary: &Summary) -> Vec<String> {
    let of_allocator = |(index, name): (usize, &&str)| {
        let failed: Vec<String> = summary
            .rows
            .iter()
            .filter_map(|row| {
                Some(format!("{} {}", row.workload.name, row.cells[index].failure.as_ref()?))
            })
            .collect();
        let word = console::style("fails").red().bold();
        (!failed.is_empty()).then(|| format!("{name} {word}: {}", failed.join(", ")))
    };
    summary.allocators.iter().enumerate().filter_map(of_allocator).collect()
}

/// A ratio, with its workload and the rival it was compared with.
struct Score {
    ratio: f64,
    workload: &'static str,
    rival: Option<&'static str>,
}

/// Most losses that a line names.
const NAMED: usize = 10;

/// Counts wins, draws and losses, and names the losses, the worst first.
fn line(title: &str, mut scores: Vec<Score>) -> Option<String> {
    if scores.is_empty() {
        return None;
    }
    scores.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let count =
        |mood| scores.iter().filter(|score| Mood::of(score.ratio) == mood).count().to_string();
    let wins = console::style(count(Mood::Better)).green();
    let losses = console::style(count(Mood::Worse)).red();
    let mut text = format!("{title}: wins {wins}, even {}, loses {losses}", count(Mood::Even));
    let lost: Vec<&Score> =
        scores.iter().filter(|score| Mood::of(score.ratio) == Mood::Worse).collect();
    let mut named: Vec<String> = lost
        .iter()
        .take(NAMED)
        .map(|Score { ratio, workload, rival }| {
            let rival = rival.map_or(String::new(), |rival| format!(" {rival}"));
            format!("{workload} {ratio:.2}×{rival}")
        })
        .collect();
    if lost.len() > NAMED {
        named.push(format!("{} more", lost.len() - NAMED));
    }
    if !named.is_empty() {
        text += &format!(" ({})", named.join(", "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_listed_worst_first() {
        let score = |workload, ratio| Score { ratio, workload, rival: None };
        let scores = vec![score("a", 0.5), score("b", 1.1), score("c", 1.0), score("d", 2.0)];
        let text = line("x", scores).unwrap();
        let text = console::strip_ansi_codes(&text);
        assert_eq!(text, "x: wins 1, even 1, loses 2 (d 2.00×, b 1.10×)");
        assert!(line("x", Vec::new()).is_none());
    }
}
