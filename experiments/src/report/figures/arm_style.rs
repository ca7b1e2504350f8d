//! How an arm looks in every figure: colour, sign and dashes, so that colour is never the only
//! difference.

use anyhow::Result;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::Canvas;

/// The palette of Okabe and Ito, for readers who see few colours. The page has lighter ones on a
/// dark ground.
pub(super) const ARM_COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Length of a dash and of the space behind it, in pixels; the first line is solid.
const DASHES: [Option<(i32, i32)>; 4] = [None, Some((9, 4)), Some((3, 3)), Some((14, 5))];

/// The looks of the arm at a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArmStyle {
    /// Place of the arm.
    pub(super) index: usize,
}

impl ArmStyle {
    pub(super) fn color(self) -> RGBColor {
        ARM_COLORS[self.index % ARM_COLORS.len()]
    }

    pub(super) fn draw_line(self, canvas: &Canvas, points: &[(i32, i32)]) -> Result<()> {
        let style = self.color().stroke_width(2);
        match DASHES[(self.index + self.round()) % DASHES.len()] {
            None => canvas.draw(&PathElement::new(points.to_vec(), style))?,
            Some((dash, space)) => {
                canvas.draw(&DashedPathElement::new(points.iter().copied(), dash, space, style))?;
            }
        }
        Ok(())
    }

    pub(super) fn draw_band(self, canvas: &Canvas, outline: Vec<(i32, i32)>) -> Result<()> {
        Ok(canvas.draw(&Polygon::new(outline, self.color().mix(0.2)))?)
    }

    pub(super) fn draw_marker(self, canvas: &Canvas, (x, y): (i32, i32)) -> Result<()> {
        let style = self.color().filled();
        match (self.index + self.round()) % 4 {
            0 => canvas.draw(&Circle::new((x, y), 4, style))?,
            1 => canvas.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], style))?,
            2 => canvas.draw(&TriangleMarker::new((x, y), 6, style))?,
            _ => canvas.draw(&Cross::new((x, y), 4, self.color().stroke_width(2)))?,
        }
        Ok(())
    }

    /// Colours repeat after four arms; then signs and dashes are shifted against them.
    fn round(self) -> usize {
        self.index / ARM_COLORS.len()
    }
}
