//! The legend: a row of line samples with names, above the plot so that it never covers data.

use anyhow::Result;
use plotters::style::text_anchor::HPos;

use super::arm_style::ArmStyle;
use super::{Canvas, WIDTH, draw_text, shortened};

const ROW_HEIGHT: i32 = 22;
const SAMPLE_WIDTH: i32 = 38;

/// Names with the looks that they stand for, laid out.
pub(super) struct Legend {
    /// Looks, name, and where the entry begins.
    entries: Vec<(ArmStyle, String, (i32, i32))>,
    top: i32,
    num_rows: i32,
}

impl Legend {
    /// A legend whose first row begins at `top`.
    pub(super) fn new(names: impl IntoIterator<Item = (ArmStyle, String)>, top: i32) -> Self {
        let (mut entries, mut x, mut row) = (Vec::new(), 12, 0);
        for (style, name) in names {
            let name = shortened(&name, 60);
            // A wide guess: letters of this size are 6 to 8 pixels wide.
            let width = SAMPLE_WIDTH + 28 + name.chars().count() as i32 * 15 / 2;
            if x > 12 && x + width > WIDTH {
                (x, row) = (12, row + 1);
            }
            entries.push((style, name, (x, top + ROW_HEIGHT * row + ROW_HEIGHT / 2)));
            x += width;
        }
        Self { entries, top, num_rows: row + 1 }
    }

    /// Where the plot may begin.
    pub(super) fn bottom(&self) -> i32 {
        self.top + ROW_HEIGHT * self.num_rows + 8
    }

    pub(super) fn draw(&self, canvas: &Canvas) -> Result<()> {
        for (style, name, (x, y)) in &self.entries {
            style.draw_line(canvas, &[(*x, *y), (x + SAMPLE_WIDTH, *y)])?;
            style.draw_marker(canvas, (x + SAMPLE_WIDTH / 2, *y))?;
            draw_text(canvas, name, 14, HPos::Left, (x + SAMPLE_WIDTH + 8, *y))?;
        }
        Ok(())
    }
}
