//! Charts as SVG: text, lines and areas in colours that are legible on white and on black, without a background.

pub(super) mod bars;
pub(super) mod memory;
pub(super) mod percentiles;

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::allocator::{self, OURS};

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(118, 125, 135);
/// One for each allocator in the order of [`allocator::ALL`], so that all charts agree.
pub(super) const PALETTE: [RGBColor; 7] = [
    RGBColor(230, 72, 46),
    RGBColor(41, 128, 222),
    RGBColor(140, 120, 80),
    RGBColor(36, 160, 96),
    RGBColor(155, 104, 222),
    RGBColor(214, 84, 160),
    RGBColor(190, 132, 8),
];

/// What is drawn on.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing comes to.
pub(super) type Drawn = Result<(), Box<dyn Error>>;

/// The text of an SVG of that size, in pixels, on which `draw` draws.
pub(super) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, String> {
    let mut svg = String::new();
    // The backend writes the end of the text when it goes.
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&root).map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// Text of that size, in pixels.
pub(super) fn text(size: u32) -> TextStyle<'static> {
    // The backend makes letters smaller by this factor.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&INK)
}

/// The colour of an allocator.
pub(super) fn colour(allocator: &str) -> RGBColor {
    let index = allocator::ALL.iter().position(|found| found.name == allocator);
    index.map_or(INK, |index| PALETTE[index])
}

/// A colour as HTML and SVG write it.
pub(super) fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// The line of an allocator; ours is thicker.
pub(super) fn stroke(allocator: &str) -> ShapeStyle {
    colour(allocator).stroke_width(if allocator == OURS { 3 } else { 2 })
}
