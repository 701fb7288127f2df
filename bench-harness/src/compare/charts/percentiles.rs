//! Durations of single operations, on a logarithmic scale: a line for each allocator, from the
//! median to the maximum.

use plotters::prelude::*;

use super::canvas::{Area, Drawn, INK, colour, stroke, text};
use crate::compare::summary::Percentiles;

/// Labels of the horizontal axis.
const NAMES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];

/// Draws one workload, for which at least one allocator has percentiles.
pub(in crate::compare) fn draw(area: &Area<'_>, lines: &[(&'static str, &Percentiles)]) -> Drawn {
    let values = |found: &Percentiles| {
        [&found.p50, &found.p90, &found.p99, &found.p999, &found.max].map(|it| it.median)
    };
    let all = || lines.iter().flat_map(|(_, found)| values(found));
    // Extends to whole powers of ten, where the labels are.
    let lowest = all().fold(f64::INFINITY, f64::min).max(1.0).log10().floor();
    let highest = all().fold(1.0, f64::max).log10().ceil().max(lowest + 1.0);
    let last = NAMES.len() as i32 - 1;
    let columns: Vec<i32> = (0..=last).collect();
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(30)
        .y_label_area_size(52)
        .build_cartesian_2d(
            (0..last).with_key_points(columns),
            (10f64.powf(lowest)..10f64.powf(highest)).log_scale(),
        )?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(11))
        .y_labels((highest - lowest) as usize + 1)
        .x_label_formatter(&|index| NAMES.get(*index as usize).copied().unwrap_or("").to_owned())
        .y_label_formatter(&|nanoseconds| duration(*nanoseconds))
        .draw()?;
    for (allocator, found) in lines.iter().rev() {
        let points: Vec<(i32, f64)> =
            values(found).into_iter().enumerate().map(|(index, y)| (index as i32, y)).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), stroke(allocator)))?;
        let dot = |&point: &(i32, f64)| Circle::new(point, 3, colour(allocator).filled());
        chart.draw_series(points.iter().map(dot))?;
    }
    Ok(())
}

/// Formats nanoseconds in the largest unit in which they are at least 1.
fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        it if it < 1e3 => format!("{it:.0} ns"),
        it if it < 1e6 => format!("{:.0} µs", it / 1e3),
        it if it < 1e9 => format!("{:.0} ms", it / 1e6),
        it => format!("{:.0} s", it / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_their_unit() {
        let texts = [10.0, 1e3, 1e5, 1e6, 1e9].map(duration);
        assert_eq!(texts, ["10 ns", "1 µs", "100 µs", "1 ms", "1 s"]);
    }
}
