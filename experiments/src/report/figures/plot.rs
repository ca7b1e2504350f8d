//! A rectangle with two linear axes.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Canvas, GRID, INK, draw_text};

/// Where a plot lies on the canvas, and what its edges stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plot {
    /// Left and right edge, in pixels.
    pub(super) across: (i32, i32),
    /// Upper and lower edge, in pixels.
    pub(super) down: (i32, i32),
    /// Values at the left and right edge.
    pub(super) x: (f64, f64),
    /// Values at the lower and upper edge.
    pub(super) y: (f64, f64),
}

impl Plot {
    /// The pixel of a point; points outside are moved to the edge.
    pub(super) fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        (self.column(x), self.row(y))
    }

    pub(super) fn column(&self, x: f64) -> i32 {
        position(x, self.x, self.across)
    }

    pub(super) fn row(&self, y: f64) -> i32 {
        position(y, self.y, (self.down.1, self.down.0))
    }

    /// Grid lines and labels for values of x, and the lower edge.
    pub(super) fn draw_x_axis(&self, canvas: &Canvas, ticks: &[(f64, String)], name: &str) -> Result<()> {
        let (top, bottom) = self.down;
        for (value, label) in ticks {
            let x = self.column(*value);
            canvas.draw(&PathElement::new([(x, top), (x, bottom)], GRID))?;
            draw_text(canvas, label, 13, HPos::Center, (x, bottom + 14))?;
        }
        canvas.draw(&PathElement::new([(self.across.0, bottom), (self.across.1, bottom)], INK))?;
        draw_text(canvas, name, 14, HPos::Center, ((self.across.0 + self.across.1) / 2, bottom + 36))
    }

    /// Grid lines and labels for values of y, and the left edge; the name stands above it.
    pub(super) fn draw_y_axis(&self, canvas: &Canvas, ticks: &[(f64, String)], name: &str) -> Result<()> {
        let (left, right) = self.across;
        for (value, label) in ticks {
            let y = self.row(*value);
            canvas.draw(&PathElement::new([(left, y), (right, y)], GRID))?;
            draw_text(canvas, label, 13, HPos::Right, (left - 8, y))?;
        }
        canvas.draw(&PathElement::new([(left, self.down.0), (left, self.down.1)], INK))?;
        draw_text(canvas, name, 14, HPos::Left, (12, self.down.0 - 14))
    }
}

/// The pixel at `value` of a linear axis.
fn position(value: f64, (from, to): (f64, f64), (first, last): (i32, i32)) -> i32 {
    let span = to - from;
    let share = if span == 0.0 { 0.5 } else { ((value - from) / span).clamp(0.0, 1.0) };
    first + (share * f64::from(last - first)).round() as i32
}
