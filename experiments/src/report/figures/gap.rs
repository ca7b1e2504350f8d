//! The gap to the baseline on each axis: every seed, the mean and its intervals.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::arm_style::ArmStyle;
use super::plot::Plot;
use super::{Canvas, Figure, INK, SHADE, WIDTH, draw_text, range, shortened};
use crate::report::axes;
use crate::report::content::Content;
use crate::report::numbers::{self, nats, or_absent, percent, round_ticks, tick_labels};
use crate::report::table::Table;
use crate::statistics::Interval;
use crate::study::result::{ArmComparison, Axis, AxisComparison, Question, StudyResult};

const ROW_HEIGHT: i32 = 50;
const TOP: i32 = 66;

/// One arm on one axis.
struct Row<'a> {
    arm: &'a str,
    style: ArmStyle,
    comparison: &'a AxisComparison,
}

/// The paired differences of all arms on all axes; `None` without a study or a comparison.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figure(content: &Content) -> Result<Option<Figure>> {
    let rows = rows(content);
    let (Some(result), false) = (content.result, rows.is_empty()) else { return Ok(None) };
    let margin = result.question.margin;
    let values = rows.iter().flat_map(|row| values(row.comparison)).chain([0.0, -margin, margin]);
    let (low, high) = range(values).unwrap_or((-1.0, 1.0));
    let pad = 0.05 * (high - low).max(1e-4);
    let plot = Plot {
        across: (168, WIDTH - 226),
        down: (TOP, TOP + ROW_HEIGHT * rows.len() as i32),
        x: (low - pad, high + pad),
        y: (0.0, 1.0),
    };
    let names = ("gap", "Gap to the baseline");
    Figure::draw(names, description(result), table(&rows, &result.question), plot.down.1 + 80, |canvas| {
        draw_ground(canvas, &plot, result)?;
        for (index, row) in (0..).zip(&rows) {
            draw_row(canvas, &plot, row, TOP + ROW_HEIGHT * index + ROW_HEIGHT / 2)?;
        }
        Ok(())
    })
    .map(Some)
}

fn rows<'a>(content: &Content<'a>) -> Vec<Row<'a>> {
    let of_arm = |arm: &'a ArmComparison| {
        let style = ArmStyle { index: content.index_of(&arm.arm) };
        arm.axes.iter().map(move |comparison| Row { arm: &arm.arm, style, comparison })
    };
    content.comparisons().iter().flat_map(of_arm).collect()
}

fn values(comparison: &AxisComparison) -> Vec<f64> {
    let difference = &comparison.difference;
    let intervals = difference.t_interval.iter().chain(&difference.bootstrap_interval);
    let ends = intervals.flat_map(|interval| [interval.low, interval.high]);
    difference.differences.iter().copied().chain([difference.mean]).chain(ends).collect()
}

/// The margin, the axis, the zero line and what its sides mean.
fn draw_ground(canvas: &Canvas, plot: &Plot, result: &StudyResult) -> Result<()> {
    let Question { metric, margin, .. } = result.question;
    let (top, bottom) = plot.down;
    let corners = [(plot.column(-margin), top), (plot.column(margin), bottom)];
    canvas.draw(&Rectangle::new(corners, SHADE.filled()))?;
    let ticks = round_ticks(plot.x.0, plot.x.1);
    plot.draw_x_axis(
        canvas,
        &tick_labels(&ticks),
        &format!("difference of {}", metric.measure().of_quantity()),
    )?;
    let zero = plot.column(0.0);
    canvas.draw(&PathElement::new([(zero, top), (zero, bottom)], INK.stroke_width(1)))?;
    draw_text(canvas, "arm is better <", 13, HPos::Right, (zero - 6, top - 14))?;
    let other = format!("> {} is better", shortened(&result.baseline, 20));
    draw_text(canvas, &other, 13, HPos::Left, (zero + 6, top - 14))
}

/// From above: the t interval with the mean on it, the bootstrap interval, the seeds.
fn draw_row(canvas: &Canvas, plot: &Plot, row: &Row, y: i32) -> Result<()> {
    let difference = &row.comparison.difference;
    let style = row.style;
    draw_text(canvas, &shortened(row.arm, 20), 14, HPos::Left, (12, y - 9))?;
    draw_text(canvas, &format!("at equal {}", equal(row)), 12, HPos::Left, (12, y + 8))?;
    if let Some(interval) = &difference.t_interval {
        draw_interval(canvas, plot, interval, y - 8, style.color().stroke_width(3))?;
    }
    if let Some(interval) = &difference.bootstrap_interval {
        draw_interval(canvas, plot, interval, y + 4, style.color().stroke_width(1))?;
    }
    for &seed in &difference.differences {
        canvas.draw(&Circle::new((plot.column(seed), y + 15), 3, INK.stroke_width(1)))?;
    }
    style.draw_marker(canvas, (plot.column(difference.mean), y - 8))?;
    let estimate = numbers::difference(difference.mean, difference.t_interval.as_ref());
    let left = plot.across.1 + 14;
    draw_text(canvas, &estimate, 13, HPos::Left, (left, y - 9))?;
    let seeds = format!("{}, {} seeds", row.comparison.verdict.word(), difference.differences.len());
    draw_text(canvas, &seeds, 12, HPos::Left, (left, y + 8))
}

fn equal(row: &Row) -> &'static str {
    match row.comparison.axis {
        Axis::ActiveFlops => "active FLOPs",
        Axis::Seconds => "seconds",
        axis => axes::file_stem(axis),
    }
}

fn draw_interval(canvas: &Canvas, plot: &Plot, interval: &Interval, y: i32, style: ShapeStyle) -> Result<()> {
    let (low, high) = (plot.column(interval.low), plot.column(interval.high));
    canvas.draw(&PathElement::new([(low, y), (high, y)], style))?;
    for end in [low, high] {
        canvas.draw(&PathElement::new([(end, y - 4), (end, y + 4)], style.color.stroke_width(1)))?;
    }
    Ok(())
}

fn description(result: &StudyResult) -> String {
    let (measure, confidence) = (result.question.metric.measure(), &result.question.confidence);
    let margin = measure.amount(result.question.margin);
    format!(
        "For each arm its {} minus that of {}, paired by seed: below zero the arm is better. The thick line is the {} \
         Student-t interval with the mean on it, the thin line the bootstrap interval, the rings are the seeds. The \
         shaded strip is the margin of {margin} within which a difference does not matter.",
        measure.quantity,
        result.baseline,
        percent(*confidence)
    )
}

fn table(rows: &[Row], question: &Question) -> Table {
    let measure = question.metric.measure();
    let difference = format!("difference of {}", measure.of_quantity());
    let head = ["arm", "at equal", "seed", &difference];
    let cells = rows.iter().flat_map(|row| {
        let seeds = row.comparison.seeds.iter().zip(&row.comparison.difference.differences);
        let cell = |(seed, difference): (&u64, &f64)| {
            vec![
                row.arm.into(),
                axes::name(row.comparison.axis).into(),
                seed.to_string(),
                format!("{difference:+.4}"),
            ]
        };
        let deviation = or_absent(row.comparison.difference.standard_deviation, nats);
        let last = vec![
            row.arm.into(),
            axes::name(row.comparison.axis).into(),
            "standard deviation".into(),
            deviation,
        ];
        seeds.map(cell).chain([last]).collect::<Vec<_>>()
    });
    let caption = format!("Differences by seed; the margin is {}", measure.amount(question.margin));
    Table::new(caption, 2, &head).with_rows(cells)
}
