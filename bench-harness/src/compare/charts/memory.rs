//! Resident memory over time: a line for each allocator, over the area of live memory.

use plotters::prelude::*;

use super::canvas::{Area, Drawn, INK, stroke, text};
use crate::compare::record::Record;
use crate::compare::runner::Outcome;
use crate::measurement::{Curve, Point};
use crate::workloads::Workload;

/// Colour of the area of live memory.
pub(in crate::compare) const LIVE: RGBAColor = RGBAColor(118, 125, 135, 0.3);
/// Most points drawn per line: one for each pixel.
const COLUMNS: u64 = 760;

/// A line of a chart.
pub(in crate::compare) struct Line<'a> {
    pub(in crate::compare) allocator: &'static str,
    pub(in crate::compare) curve: &'a Curve,
}

impl<'a> Line<'a> {
    /// Finds the curve of one pair: among its rounds, the one with the median of resident bytes per
    /// live byte.
    pub(in crate::compare) fn find(
        record: &'a Record,
        allocator: &'static str,
        workload: &Workload,
    ) -> Option<Self> {
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
        Some(Self { allocator, curve: curves.get(curves.len() / 2)? })
    }
}

/// Draws `lines`, at least one, below the caption if there is one.
pub(in crate::compare) fn draw(
    area: &Area<'_>,
    caption: Option<&str>,
    lines: &[Line<'_>],
) -> Drawn {
    let points = || lines.iter().flat_map(|line| &line.curve.points);
    let end = points().map(seconds).fold(0.0, f64::max);
    let most = points().map(|point| resident(point).max(live(point))).fold(0.0, f64::max);
    let mut builder = ChartBuilder::on(area);
    if let Some(caption) = caption {
        builder.caption(caption, text(13));
    }
    let mut chart = builder
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(11))
        .x_desc("s")
        .y_desc("MiB")
        .x_label_formatter(&|value| format!("{value}"))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    // Live memory, behind all lines. It is that of the first line, which is ours unless our
    // allocator was not selected. Live memory under the others differs by their speed.
    chart.draw_series(AreaSeries::new(thin(&lines[0].curve.points, live), 0.0, LIVE))?;
    // Draws our line last, so that it is above the others.
    for line in lines.iter().rev() {
        let points = thin(&line.curve.points, resident);
        chart.draw_series(LineSeries::new(points, stroke(line.allocator)))?;
    }
    Ok(())
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

/// Returns seconds and `value` of at most [`COLUMNS`] points: the highest of each column, so that
/// no peak is lost.
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

    #[test]
    fn thinning_keeps_ends_and_peaks() {
        let point = |index| Point { ms: index * 20, resident_kib: 2048 + index, live_kib: index };
        let mut points: Vec<Point> = (0..10_000).map(point).collect();
        points[5001].resident_kib = 1 << 30;
        let thinned = thin(&points, resident);
        assert!(thinned.len() <= COLUMNS as usize);
        assert!(thinned.iter().any(|(_, value)| *value == f64::from(1 << 20)));
        assert_eq!(thinned.last().unwrap().0, 199.98);
        assert_eq!(thin(&[], resident), []);
    }
}
