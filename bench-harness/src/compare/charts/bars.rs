//! Ratios as bars that begin at 1, on a logarithmic scale. A bar to the left means less time or
//! memory.
//!
//! The length of a bar is the median over rounds, and a thin line through its end spans all rounds.
//! Bars and lines beyond the scale end at its edge; the number beside each bar is always exact.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{Area, Drawn, INK, colour, text};

/// Width of the picture, in pixels.
pub(in crate::compare) const WIDTH: u32 = 420;
/// Colour of the lines that span all rounds. They must be visible within bars too.
pub(in crate::compare) const SPAN: RGBColor = RGBColor(27, 31, 38);
/// Upper bound of every scale. Its inverse is the lower bound.
const LONGEST: f64 = 8.0;
/// Every scale extends at least to this ratio and to its inverse.
const SHORTEST: f64 = 1.1;

/// Left and right end of the scale. Names are to its left, and both sides have room for a number.
const LEFT: i32 = 130;
const RIGHT: i32 = WIDTH as i32 - 34;
/// Height above the first row, for the labels of the scale.
const TOP: i32 = 24;
const BAR: i32 = 12;
/// Distance between rows.
const GAP: i32 = 10;

/// The bars of one workload.
pub(in crate::compare) struct Row {
    pub(in crate::compare) name: String,
    pub(in crate::compare) bars: Vec<Bar>,
}

/// The bar of one allocator.
pub(in crate::compare) struct Bar {
    pub(in crate::compare) allocator: &'static str,
    /// Median over rounds. `spread` holds the smallest and the largest of all rounds.
    pub(in crate::compare) ratio: f64,
    pub(in crate::compare) spread: (f64, f64),
}

/// Returns the height of a picture of these rows, in pixels.
pub(in crate::compare) fn height(rows: &[Row]) -> u32 {
    (TOP + rows.iter().map(height_of).sum::<i32>() + GAP / 2) as u32
}

fn height_of(row: &Row) -> i32 {
    row.bars.len() as i32 * BAR + GAP
}

/// Draws all rows.
pub(in crate::compare) fn draw(area: &Area<'_>, rows: &[Row]) -> Drawn {
    let scale = Scale::of(rows);
    let bottom = height(rows) as i32 - GAP / 2;
    for tick in scale.ticks() {
        let x = scale.x(tick);
        let style = if tick == 1.0 { INK.stroke_width(1) } else { INK.mix(0.25).stroke_width(1) };
        area.draw(&PathElement::new([(x, TOP - 4), (x, bottom)], style))?;
        let label = text(11).pos(Pos::new(HPos::Center, VPos::Bottom));
        area.draw(&Text::new(format!("{tick}×"), (x, TOP - 6), label))?;
    }
    let mut top = TOP;
    for row in rows {
        let middle = top + (height_of(row)) / 2;
        let label = text(12).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(row.name.clone(), (0, middle), label))?;
        for (index, bar) in row.bars.iter().enumerate() {
            draw_bar(area, &scale, bar, top + GAP / 2 + index as i32 * BAR)?;
        }
        top += height_of(row);
    }
    Ok(())
}

fn draw_bar(area: &Area<'_>, scale: &Scale, bar: &Bar, top: i32) -> Drawn {
    let (one, end) = (scale.x(1.0), scale.x(bar.ratio));
    let corners = [(one.min(end), top + 1), (one.max(end).max(one.min(end) + 1), top + BAR - 1)];
    area.draw(&Rectangle::new(corners, colour(bar.allocator).filled()))?;
    let middle = top + BAR / 2;
    let (low, high) = (scale.x(bar.spread.0), scale.x(bar.spread.1));
    area.draw(&PathElement::new([(low, middle), (high, middle)], SPAN.stroke_width(1)))?;
    // Places the number beyond both the bar and the line.
    let (x, side) = if bar.ratio < 1.0 {
        (end.min(low) - 4, HPos::Right)
    } else {
        (end.max(high) + 4, HPos::Left)
    };
    let label = text(11).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(number(bar.ratio), (x, middle), label))?;
    Ok(())
}

/// Formats a ratio with as many digits as fit.
fn number(ratio: f64) -> String {
    match ratio {
        it if it < 0.1 => format!("{it:.3}"),
        it if it < 10.0 => format!("{it:.2}"),
        it => format!("{it:.0}"),
    }
}

/// Maps ratios to pixels.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Returns the shortest scale that shows all medians, within the bounds.
    fn of(rows: &[Row]) -> Self {
        let ratios = || rows.iter().flat_map(|row| &row.bars).map(|bar| bar.ratio);
        let low = ratios().fold(1.0, f64::min).clamp(1.0 / LONGEST, 1.0 / SHORTEST);
        let high = ratios().fold(1.0, f64::max).clamp(SHORTEST, LONGEST);
        Self { low, high }
    }

    fn x(&self, ratio: f64) -> i32 {
        let part = (ratio.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        LEFT + (part * f64::from(RIGHT - LEFT)).round() as i32
    }

    /// Returns round numbers on the scale, as close as labels allow.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        const FINE: &[f64] = &[0.8, 0.9, 1.0, 1.1, 1.2];
        const MIDDLE: &[f64] = &[0.4, 0.6, 0.8, 1.0, 1.5, 2.0];
        const COARSE: &[f64] = &[0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
        let ticks = match self.high / self.low {
            span if span < 1.6 => FINE,
            span if span < 4.0 => MIDDLE,
            _ => COARSE,
        };
        ticks.iter().copied().filter(|tick| (self.low..=self.high).contains(tick))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::charts::canvas;

    fn row(ratio: f64) -> Row {
        let bar = Bar { allocator: "hayloft", ratio, spread: (ratio * 0.9, ratio * 1.1) };
        Row { name: "json".to_owned(), bars: vec![bar] }
    }

    #[test]
    fn scale_spans_all_ratios_or_is_cut() {
        let scale = Scale::of(&[row(0.5), row(3.0)]);
        assert_eq!((scale.x(0.5), scale.x(3.0)), (LEFT, RIGHT));
        assert!(scale.ticks().any(|tick| tick == 1.0));
        let cut = Scale::of(&[row(0.001), row(145.0)]);
        assert_eq!((cut.low, cut.high), (1.0 / LONGEST, LONGEST));
        assert_eq!((cut.x(0.001), cut.x(145.0)), (LEFT, RIGHT));
        // Even if all ratios are equal, the scale has a width.
        let alike = Scale::of(&[row(1.0)]);
        assert!(LEFT < alike.x(1.0) && alike.x(1.0) < RIGHT);
    }

    #[test]
    fn ratios_of_cut_bars_are_written_out() {
        let rows = [row(145.2), row(0.5)];
        let svg = canvas::svg((WIDTH, height(&rows)), |area| draw(area, &rows)).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> =
            document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(texts.contains(&"145") && texts.contains(&"0.50"), "{texts:?}");
    }
}
