//! Pictures of a run, as SVG: its loss curve and the load of its experts. The same rows give the
//! same bytes.

mod expert_load;
mod loss_curve;
#[cfg(test)]
pub(crate) mod sample_rows;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use switchyard_ground::printable::printable;

pub(crate) use expert_load::expert_load_svg;
pub(crate) use loss_curve::loss_curve_svg;

/// A picture in the making; its coordinates are pixels.
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width of every picture.
const WIDTH: i32 = 900;
/// Text and axes.
const INK: RGBColor = RGBColor(40, 44, 52);
/// Grid lines and frames.
const GRID: RGBColor = RGBColor(222, 226, 230);

/// The SVG of what `content` draws on a white canvas.
fn draw(height: i32, content: impl FnOnce(&Canvas) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        // Without a background of its own the picture would be dark on dark for half of its
        // readers.
        canvas.fill(&WHITE).context("cannot draw the figure")?;
        content(&canvas)?;
        canvas.present().context("cannot draw the figure")?;
    }
    Ok(drawable(&svg))
}

/// `svg` without the characters that XML has no place for, such as the control characters of escape
/// codes: labels are whatever a run's files say.
pub(crate) fn drawable(svg: &str) -> String {
    printable(svg).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

/// Text of a size in pixels, anchored at its left, centre or right.
fn text_style(size: u32, h_pos: HPos) -> TextStyle<'static> {
    // plotters shrinks every font by this factor when it writes SVG.
    let font_size = f64::from(size) * 1.24;
    ("sans-serif", font_size).into_font().color(&INK).pos(Pos::new(h_pos, VPos::Center))
}

fn draw_text(canvas: &Canvas, text: &str, size: u32, h_pos: HPos, at: (i32, i32)) -> Result<()> {
    Ok(canvas.draw(&Text::new(text.to_string(), at, text_style(size, h_pos)))?)
}
