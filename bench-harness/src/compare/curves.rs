//! Draws memory over time: an SVG for each watched workload.

use std::fs;
use std::path::Path;

use plotters::prelude::*;

use super::charts::canvas::{self, Area, Drawn, stroke, text};
use super::charts::memory::{self, LIVE, Line};
use super::record::Record;
use crate::allocator;
use crate::workloads::{self, Kind, Workload};

const SIZE: (u32, u32) = (960, 420);
/// Width of the legend, at the right of the picture.
const LEGEND: u32 = 120;

/// Writes the charts of all watched workloads to `directory`, and creates it if necessary.
pub fn save(record: &Record, directory: &Path) -> Result<(), String> {
    let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(|error| explain(&error))?;
    for workload in workloads::ALL.iter().filter(|workload| workload.kind == Kind::Curve) {
        let lines = lines(record, workload);
        if lines.is_empty() {
            continue;
        }
        let svg = draw(workload, &lines).map_err(|error| explain(&error))?;
        let file = directory.join(format!("{}.svg", workload.name));
        fs::write(&file, svg).map_err(|error| explain(&error))?;
    }
    Ok(())
}

/// Returns a line for each allocator under which the workload was watched.
pub(super) fn lines<'a>(record: &'a Record, workload: &Workload) -> Vec<Line<'a>> {
    let find = |found: &'static allocator::Allocator| Line::find(record, found.name, workload);
    allocator::ALL.iter().filter_map(find).collect()
}

/// Returns a chart with its title and legend, as the text of an SVG.
fn draw(workload: &Workload, lines: &[Line<'_>]) -> Result<String, String> {
    canvas::svg(SIZE, |root| {
        let (left, right) = root.split_horizontally(SIZE.0 - LEGEND);
        let title = format!("{}: {}", workload.name, workload.about);
        memory::draw(&left, Some(&title), lines)?;
        legend(&right, lines)
    })
}

/// Draws names and colours beside the chart. Within the chart they would hide parts of it.
fn legend(area: &Area<'_>, lines: &[Line<'_>]) -> Drawn {
    const TOP: i32 = 50;
    const STEP: i32 = 22;
    let mut y = TOP;
    for line in lines {
        area.draw(&PathElement::new([(0, y), (20, y)], stroke(line.allocator)))?;
        area.draw(&Text::new(line.allocator, (28, y - 6), text(11)))?;
        y += STEP;
    }
    area.draw(&Rectangle::new([(0, y - 5), (20, y + 5)], LIVE.filled()))?;
    area.draw(&Text::new("live", (28, y - 6), text(11)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::OURS;
    use crate::compare::charts::canvas::PALETTE;
    use crate::measurement::{Curve, Point};

    #[test]
    fn chart_has_a_line_for_each_allocator() {
        let point = |index: u64| Point {
            ms: index * 20,
            resident_kib: 2048 + index * 1024,
            live_kib: index * 1024,
        };
        let curve = Curve { freed_ms: None, points: (0..100).map(point).collect() };
        let lines: Vec<Line<'_>> = allocator::ALL
            .iter()
            .map(|allocator| Line { allocator: allocator.name, curve: &curve })
            .collect();
        let svg = draw(workloads::find("sawtooth").unwrap(), &lines).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert!(document.root_element().has_tag_name("svg"));
        for colour in PALETTE.map(canvas::hex) {
            let of_colour = document
                .descendants()
                .filter(|node| node.attribute("stroke") == Some(&colour))
                .count();
            // One in the chart and one in the legend.
            assert_eq!(of_colour, 2, "{colour}\n{svg}");
        }
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        for expected in ["sawtooth", "MiB", "hayloft", "rusty_alloc", "live"] {
            assert!(texts.iter().any(|text| text.contains(expected)), "{expected}\n{svg}");
        }
    }

    #[test]
    fn curve_without_time_or_memory_can_be_drawn() {
        let point = Point { ms: 0, resident_kib: 0, live_kib: 0 };
        let curve = Curve { freed_ms: None, points: vec![point] };
        let lines = [Line { allocator: OURS, curve: &curve }];
        let svg = draw(workloads::find("sawtooth").unwrap(), &lines).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
    }
}
