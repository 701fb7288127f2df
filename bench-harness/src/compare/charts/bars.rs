//! Ratios as bars that begin at 1, on a logarithmic scale: to the left is what takes less.
//!
//! A bar is as long as the median over rounds, and a thin line through its end spans all rounds. What is beyond the scale
//! ends at its edge; the number beside the bar says how much it is in any case.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, Drawn, INK, colour, text};

/// The width of the picture, in pixels.
pub(in crate::compare) const WIDTH: u32 = 420;
/// The lines that span all rounds, within bars too.
pub(in crate::compare) const SPAN: RGBColor = RGBColor(27, 31, 38);
/// No scale goes further than this, nor than its inverse.
const LONGEST: f64 = 8.0;
/// Any scale goes at least as far.
const SHORTEST: f64 = 1.1;

/// Where the scale is, and what is to its sides: names to the left, and on both sides room for a number.
const LEFT: i32 = 130;
const RIGHT: i32 = WIDTH as i32 - 34;
/// What is above the first row, for the labels of the scale.
const TOP: i32 = 24;
const BAR: i32 = 12;
/// Between rows.
const GAP: i32 = 10;

/// One workload.
pub(in crate::compare) struct Row {
    pub(in crate::compare) name: String,
    pub(in crate::compare) bars: Vec<Bar>,
}

/// One allocator.
pub(in crate::compare) struct Bar {
    pub(in crate::compare) allocator: &'static str,
    /// The median, and the smallest and largest of all rounds.
    pub(in crate::compare) ratio: f64,
    pub(in crate::compare) spread: (f64, f64),
}

/// How high a picture of these rows is, in pixels.
pub(in crate::compare) fn height(rows: &[Row]) -> u32 {
    (TOP + rows.iter().map(height_of).sum::<i32>() + GAP / 2) as u32
}

fn height_of(row: &Row) -> i32 {
    row.bars.len() as i32 * BAR + GAP
}

/// Draws them all.
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
    // Beyond both the bar and the line.
    let (x, side) = if bar.ratio < 1.0 {
        (end.min(low) - 4, HPos::Right)
    } else {
        (end.max(high) + 4, HPos::Left)
    };
    let label = text(11).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(number(bar.ratio), (x, middle), label))?;
    Ok(())
}

/// A ratio with as many digits as it has room for.
fn number(ratio: f64) -> String {
    match ratio {
        it if it < 0.1 => format!("{it:.3}"),
        it if it < 10.0 => format!("{it:.2}"),
        it => format!("{it:.0}"),
    }
}

/// From ratios to pixels.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// As long as it has to be for all medians, and not longer than it may be.
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

    /// Round numbers within, as close as labels may be.
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

    fn row(ratio: f64) -> Row {
        let bar = Bar { allocator: "hayloft", ratio, spread: (ratio * 0.9, ratio * 1.1) };
        Row { name: "json".to_owned(), bars: vec![bar] }
    }

    #[test]
    fn a_scale_holds_all_or_is_cut() {
        let scale = Scale::of(&[row(0.5), row(3.0)]);
        assert_eq!((scale.x(0.5), scale.x(3.0)), (LEFT, RIGHT));
        assert!(scale.ticks().any(|tick| tick == 1.0));
        let cut = Scale::of(&[row(0.001), row(145.0)]);
        assert_eq!((cut.low, cut.high), (1.0 / LONGEST, LONGEST));
        assert_eq!((cut.x(0.001), cut.x(145.0)), (LEFT, RIGHT));
        // Even where all are alike there is something to see.
        let alike = Scale::of(&[row(1.0)]);
        assert!(LEFT < alike.x(1.0) && alike.x(1.0) < RIGHT);
    }

    #[test]
    fn what_is_cut_is_written_out() {
        let rows = [row(145.2), row(0.5)];
        let svg = super::super::svg((WIDTH, height(&rows)), |area| draw(area, &rows)).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> =
            document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(texts.contains(&"145") && texts.contains(&"0.50"), "{texts:?}");
    }
}
