//! The area of a chart, and the colours and styles that all charts share. They are legible on both
//! white and black.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::allocator::{self, OURS};

/// Colour of text and axes.
pub(in crate::compare) const INK: RGBColor = RGBColor(118, 125, 135);
/// Colours of the allocators in the order of [`allocator::ALL`], the same in all charts.
pub(in crate::compare) const PALETTE: [RGBColor; 7] = [
    RGBColor(230, 72, 46),
    RGBColor(41, 128, 222),
    RGBColor(140, 120, 80),
    RGBColor(36, 160, 96),
    RGBColor(155, 104, 222),
    RGBColor(214, 84, 160),
    RGBColor(190, 132, 8),
];

/// The area that a chart is drawn on.
pub(in crate::compare) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The result of drawing.
pub(in crate::compare) type Drawn = Result<(), Box<dyn Error>>;

/// Returns the text of an SVG of `size` pixels with the shapes that `draw` draws.
pub(in crate::compare) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, String> {
    let mut svg = String::new();
    // The backend completes the text when it is dropped.
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&root).map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// Returns the style of text of `size` pixels.
pub(in crate::compare) fn text(size: u32) -> TextStyle<'static> {
    // The backend shrinks letters by this factor.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&INK)
}

/// Returns the colour of an allocator.
pub(in crate::compare) fn colour(allocator: &str) -> RGBColor {
    let index = allocator::ALL.iter().position(|found| found.name == allocator);
    index.map_or(INK, |index| PALETTE[index])
}

/// Formats a colour as in HTML and SVG.
pub(in crate::compare) fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Returns the line style of an allocator. Our line is thicker.
pub(in crate::compare) fn stroke(allocator: &str) -> ShapeStyle {
    colour(allocator).stroke_width(if allocator == OURS { 3 } else { 2 })
}
