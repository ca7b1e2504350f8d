//! Total and active parameters of the arms.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use switchyard_ground::units::scaled;

use super::arm_style::ArmStyle;
use super::{Canvas, Figure, INK, WIDTH, draw_text, shortened};
use crate::report::content::Content;
use crate::report::numbers::percent;
use crate::report::series::ParamCounts;
use crate::report::table::Table;

const ROW_HEIGHT: i32 = 58;
const TOP: i32 = 44;
const LEFT: i32 = 168;
const RIGHT: i32 = WIDTH - 30;

/// Bars of the arms whose model is known; `None` without any.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figure(content: &Content) -> Result<Option<Figure>> {
    let arms = content.params();
    let Some(largest) = arms.iter().map(|(_, params)| params.total).max() else { return Ok(None) };
    let height = TOP + ROW_HEIGHT * arms.len() as i32 + 8;
    let names = ("parameters", "Total and active parameters");
    let description =
        "The outlined bar is all parameters of an arm, the filled bar those that a token meets.";
    Figure::draw(names, description.into(), table(&arms), height, |canvas| {
        for (row, (label, params)) in (0..).zip(&arms) {
            let style = ArmStyle { index: content.index_of(label) };
            draw_row(canvas, (label, style), *params, largest, TOP + ROW_HEIGHT * row)?;
        }
        Ok(())
    })
    .map(Some)
}

fn draw_row(
    canvas: &Canvas,
    (label, style): (&str, ArmStyle),
    params: ParamCounts,
    largest: u64,
    top: i32,
) -> Result<()> {
    let (bar_top, bar_bottom) = (top + 6, top + 28);
    let end =
        |count: u64| LEFT + (count as f64 / largest.max(1) as f64 * f64::from(RIGHT - LEFT)).round() as i32;
    let bar = |count: u64| [(LEFT, bar_top), (end(count), bar_bottom)];
    canvas.draw(&Rectangle::new(bar(params.active), style.color().filled()))?;
    canvas.draw(&Rectangle::new(bar(params.total), INK.stroke_width(1)))?;
    draw_text(canvas, &shortened(label, 20), 14, HPos::Left, (12, (bar_top + bar_bottom) / 2))?;
    let text = format!(
        "{} active ({}) of {}",
        scaled(params.active as f64, ""),
        percent(active_share(params)),
        scaled(params.total as f64, "")
    );
    draw_text(canvas, &text, 13, HPos::Left, (LEFT, bar_bottom + 13))
}

fn active_share(params: ParamCounts) -> f64 {
    params.active as f64 / params.total.max(1) as f64
}

fn table(arms: &[(&str, ParamCounts)]) -> Table {
    let head = ["arm", "total", "active", "active share", "sparsity"];
    let rows = arms.iter().map(|(label, params)| {
        let share = active_share(*params);
        let counts = [params.total, params.active].map(|count| scaled(count as f64, ""));
        let shares = [share, 1.0 - share].map(percent);
        std::iter::once(label.to_string()).chain(counts).chain(shares).collect()
    });
    Table::new("Parameters; sparsity is the share that a token does not meet", 1, &head).with_rows(rows)
}
