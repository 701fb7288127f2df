//! Draws how memory goes over time: an SVG for each workload that is watched.

use std::error::Error;
use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::record::Record;
use super::runner::Outcome;
use crate::allocator::{self, OURS};
use crate::measurement::{Curve, Point};
use crate::workloads::{self, Kind, Workload};

const SIZE: (u32, u32) = (960, 420);
/// How much of it is the legend, at the right.
const LEGEND: u32 = 120;

/// Text and axes, as well to be read on white as on black, as all colours here: there is no background.
const INK: RGBColor = RGBColor(118, 125, 135);
/// One for each allocator in the order of [`allocator::ALL`], so that all charts agree.
const PALETTE: [RGBColor; 7] = [
    RGBColor(230, 72, 46),
    RGBColor(41, 128, 222),
    RGBColor(140, 120, 80),
    RGBColor(36, 160, 96),
    RGBColor(155, 104, 222),
    RGBColor(214, 84, 160),
    RGBColor(205, 145, 10),
];

/// The area of what is live.
const LIVE: RGBAColor = RGBAColor(118, 125, 135, 0.3);
/// At most as many points of a line are drawn: one for each pixel.
const COLUMNS: u64 = 760;

/// What is drawn on.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line of a chart.
struct Line<'a> {
    allocator: &'static str,
    curve: &'a Curve,
}

/// Writes the charts of all workloads that were watched to `directory`, which is made if need be.
pub fn save(record: &Record, directory: &Path) -> Result<(), String> {
    let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(|error| explain(&error))?;
    for workload in workloads::ALL.iter().filter(|workload| workload.kind == Kind::Curve) {
        let lines: Vec<Line<'_>> =
            allocator::ALL.iter().filter_map(|found| line(record, found.name, workload)).collect();
        if lines.is_empty() {
            continue;
        }
        let svg = draw(workload, &lines).map_err(|error| explain(&error))?;
        let file = directory.join(format!("{}.svg", workload.name));
        fs::write(&file, svg).map_err(|error| explain(&error))?;
    }
    Ok(())
}

/// The curve of one pair: of its rounds the one in the middle, by what is resident for each live byte.
fn line<'a>(record: &'a Record, allocator: &'static str, workload: &Workload) -> Option<Line<'a>> {
    let ours = record
        .samples
        .iter()
        .filter(|it| it.allocator == allocator && it.workload == workload.name);
    let mut curves: Vec<&Curve> = ours
        .filter_map(|sample| match &sample.outcome {
            Outcome::Measured(measurement) => measurement.curve.as_ref(),
            Outcome::Failed(_) => None,
        })
        .collect();
    let weight = |curve: &Curve| curve.resident_per_live().unwrap_or_default();
    curves.sort_by(|a, b| weight(a).total_cmp(&weight(b)));
    Some(Line { allocator, curve: curves.get(curves.len() / 2)? })
}

/// A chart as the text of an SVG.
fn draw(workload: &Workload, lines: &[Line<'_>]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let (left, right) = root.split_horizontally(SIZE.0 - LEGEND);
    let title = format!("{}: {}", workload.name, workload.about);
    chart(&left, &title, lines)?;
    legend(&right, lines)?;
    root.present()?;
    // The backend writes the end of the text when it goes.
    drop((root, left, right));
    Ok(svg)
}

fn chart(area: &Area<'_>, title: &str, lines: &[Line<'_>]) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.curve.points);
    let end = points().map(seconds).fold(0.0, f64::max);
    let most = points().map(|point| resident(point).max(live(point))).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(13))
        .x_desc("s")
        .y_desc("MiB")
        .x_label_formatter(&|value| format!("{value}"))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    // What is live, behind all lines: as the first of them saw it, which is ours unless it was not asked for. Under the
    // others it differs by how fast they are.
    chart.draw_series(AreaSeries::new(thin(&lines[0].curve.points, live), 0.0, LIVE))?;
    // Ours last, and thus above the others.
    for line in lines.iter().rev() {
        let points = thin(&line.curve.points, resident);
        chart.draw_series(LineSeries::new(points, stroke(line.allocator)))?;
    }
    Ok(())
}

/// Names and colours, beside the chart: within, it would hide something.
fn legend(area: &Area<'_>, lines: &[Line<'_>]) -> Result<(), Box<dyn Error>> {
    const TOP: i32 = 50;
    const STEP: i32 = 22;
    let mut y = TOP;
    for line in lines {
        area.draw(&PathElement::new([(0, y), (20, y)], stroke(line.allocator)))?;
        area.draw(&Text::new(line.allocator, (28, y - 6), text(13)))?;
        y += STEP;
    }
    area.draw(&Rectangle::new([(0, y - 5), (20, y + 5)], LIVE.filled()))?;
    area.draw(&Text::new("live", (28, y - 6), text(13)))?;
    Ok(())
}

/// Text of that size.
fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// The line of an allocator; ours is thicker.
fn stroke(allocator: &str) -> ShapeStyle {
    let index = allocator::ALL.iter().position(|found| found.name == allocator).unwrap_or(0);
    PALETTE[index].stroke_width(if allocator == OURS { 3 } else { 2 })
}

fn seconds(point: &Point) -> f64 {
    point.ms as f64 / 1000.0
}

fn resident(point: &Point) -> f64 {
    point.resident_kib as f64 / 1024.0
}

fn live(point: &Point) -> f64 {
    point.live_kib as f64 / 1024.0
}

/// Seconds and `value` of at most [`COLUMNS`] points: the highest of each column, so that no peak is lost.
fn thin(points: &[Point], value: fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let end = points.last().map_or(1, |point| point.ms + 1);
    let column = |point: &Point| point.ms * COLUMNS / end;
    points
        .chunk_by(|a, b| column(a) == column(b))
        .filter_map(|column| column.iter().max_by(|a, b| value(a).total_cmp(&value(b))))
        .map(|point| (seconds(point), value(point)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: u64) -> Curve {
        let point = |index| Point {
            ms: index * 20,
            resident_kib: 2048 + index * 1024,
            live_kib: index * 1024,
        };
        Curve { freed_ms: None, points: (0..points).map(point).collect() }
    }

    #[test]
    fn a_chart_is_an_svg_with_a_line_for_each_allocator() {
        let curve = curve(100);
        let lines: Vec<Line<'_>> = allocator::ALL
            .iter()
            .map(|allocator| Line { allocator: allocator.name, curve: &curve })
            .collect();
        let svg = draw(workloads::find("sawtooth").unwrap(), &lines).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert!(document.root_element().has_tag_name("svg"));
        for colour in PALETTE.map(|RGBColor(r, g, b)| format!("#{r:02X}{g:02X}{b:02X}")) {
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
    fn a_curve_without_time_or_memory_can_be_drawn() {
        let point = Point { ms: 0, resident_kib: 0, live_kib: 0 };
        let curve = Curve { freed_ms: None, points: vec![point] };
        let lines = [Line { allocator: OURS, curve: &curve }];
        let svg = draw(workloads::find("sawtooth").unwrap(), &lines).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
    }

    #[test]
    fn thinning_keeps_ends_and_peaks() {
        let mut curve = curve(10_000);
        curve.points[5001].resident_kib = 1 << 30;
        let thinned = thin(&curve.points, resident);
        assert!(thinned.len() <= COLUMNS as usize);
        assert!(thinned.iter().any(|(_, value)| *value == f64::from(1 << 20)));
        assert_eq!(thinned.last().unwrap().0, 199.98);
        assert_eq!(thin(&[], resident), []);
    }
}
