//! Validation loss against each axis: the mean over the seeds, in a band from the lowest to the
//! highest. The evaluations of each arm's longest runs; where these were evaluated at their end
//! alone, the ends of the runs of all budgets.

use anyhow::Result;

use super::arm_style::ArmStyle;
use super::legend::Legend;
use super::plot::Plot;
use super::{Canvas, Figure, WIDTH, range, thinned};
use crate::report::axes::{self, AXES};
use crate::report::content::{ArmRuns, Content, MeanPoint};
use crate::report::numbers::{nats, round_ticks, si_tick_labels, tick_labels};
use crate::report::table::Table;
use crate::study::result::Axis;

const PLOT_HEIGHT: i32 = 320;
const MAX_MARKERS: usize = 12;
const MAX_TABLE_ROWS: usize = 12;

/// Loss against one axis.
#[derive(Debug)]
pub(in crate::report) struct LossFigure {
    pub(in crate::report) axis: Axis,
    pub(in crate::report) figure: Figure,
}

/// The mean curve of an arm.
struct Curve<'a> {
    arm: &'a ArmRuns<'a>,
    points: Vec<MeanPoint>,
}

/// One figure per axis; none without an evaluation.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figures(content: &Content) -> Result<Vec<LossFigure>> {
    let arms = content.longest_runs();
    let mut figures = Vec::new();
    for axis in AXES {
        figures.extend(figure(content, &arms, axis)?.map(|figure| LossFigure { axis, figure }));
    }
    Ok(figures)
}

fn figure(content: &Content, arms: &[ArmRuns], axis: Axis) -> Result<Option<Figure>> {
    let of_ends = arms.iter().all(|arm| arm.mean_curve(axis).len() < 2);
    let points = |arm: &ArmRuns| match of_ends {
        true => content.budgets_of(arm.index).iter().filter_map(|runs| runs.mean_curve(axis).pop()).collect(),
        false => arm.mean_curve(axis),
    };
    let all: Vec<Curve> = arms
        .iter()
        .map(|arm| Curve { arm, points: points(arm) })
        .filter(|curve| !curve.points.is_empty())
        .collect();
    let (start, shown) = without_the_beginning(&all);
    let Some(x) = range(shown.iter().flat_map(|curve| curve.points.iter().map(|point| point.x))) else {
        return Ok(None);
    };
    let Some(y) = range(shown.iter().flat_map(|curve| curve.points.iter().flat_map(|p| [p.low, p.high])))
    else {
        return Ok(None);
    };
    let legend =
        Legend::new(shown.iter().map(|curve| (ArmStyle { index: curve.arm.index }, curve.arm.legend())), 36);
    let margin = 0.06 * (y.1 - y.0).max(0.02);
    let top = legend.bottom() + 26;
    let plot = Plot {
        across: (72, WIDTH - 30),
        down: (top, top + PLOT_HEIGHT),
        x: (if start > 0.0 { start } else { x.0.min(0.0) }, x.1),
        y: (y.0 - margin, y.1 + margin),
    };
    let name = format!("loss-vs-{}", axes::file_stem(axis));
    let title = format!("Validation loss against {}", axes::name(axis));
    let names = (name.as_str(), title.as_str());
    let unit = if content.is_in_bits_per_byte() { "bits per byte" } else { "nats per token" };
    let has_seeds = shown.iter().any(|curve| curve.arm.runs.len() > 1);
    Figure::draw(
        names,
        description(axis, start, of_ends, has_seeds),
        table(&all, axis, unit),
        plot.down.1 + 54,
        |canvas| {
            legend.draw(canvas)?;
            draw_plot(canvas, &plot, &shown, (axis, unit))
        },
    )
    .map(Some)
}

/// The curves from a tenth of the shortest on, and where that is: the fall from the initial loss
/// would flatten the rest. All of them, and 0, where this leaves too little.
fn without_the_beginning<'a>(curves: &[Curve<'a>]) -> (f64, Vec<Curve<'a>>) {
    let ends = curves.iter().filter_map(|curve| curve.points.last()).map(|point| point.x);
    let start = 0.1 * ends.fold(f64::INFINITY, f64::min);
    let from = |start: f64| {
        let later = |curve: &Curve<'a>| Curve {
            arm: curve.arm,
            points: curve.points.iter().copied().filter(|point| point.x >= start).collect(),
        };
        curves.iter().map(later).collect::<Vec<_>>()
    };
    let late = from(start);
    if late.iter().any(|curve| curve.points.len() < 4) {
        return (0.0, from(f64::NEG_INFINITY));
    }
    (start, late)
}

fn draw_plot(canvas: &Canvas, plot: &Plot, curves: &[Curve], (axis, loss_unit): (Axis, &str)) -> Result<()> {
    let x_ticks = round_ticks(plot.x.0, plot.x.1);
    let unit = if axis == Axis::ActiveFlops { "FLOP" } else { "" };
    plot.draw_x_axis(canvas, &si_tick_labels(&x_ticks, unit), axes::name(axis))?;
    plot.draw_y_axis(
        canvas,
        &tick_labels(&round_ticks(plot.y.0, plot.y.1)),
        &format!("cross-entropy, {loss_unit}"),
    )?;
    for curve in curves.iter().filter(|curve| curve.arm.runs.len() > 1) {
        let upper = curve.points.iter().map(|point| plot.at((point.x, point.high)));
        let lower = curve.points.iter().rev().map(|point| plot.at((point.x, point.low)));
        ArmStyle { index: curve.arm.index }.draw_band(canvas, upper.chain(lower).collect())?;
    }
    for curve in curves {
        let style = ArmStyle { index: curve.arm.index };
        let pixels: Vec<_> = curve.points.iter().map(|point| plot.at((point.x, point.mean))).collect();
        style.draw_line(canvas, &pixels)?;
        for pixel in thinned(&pixels, MAX_MARKERS) {
            style.draw_marker(canvas, pixel)?;
        }
    }
    Ok(())
}

fn description(axis: Axis, start: f64, of_ends: bool, has_seeds: bool) -> String {
    let runs = match (of_ends, has_seeds) {
        (true, _) => "The ends of the runs of each budget.",
        (false, true) => "Each arm at its largest budget.",
        (false, false) => "Every evaluation of the validation split.",
    };
    let seeds = if has_seeds {
        " The line is the mean over its seeds, the band reaches from the lowest to the highest seed."
    } else {
        ""
    };
    let left_out = if start > 0.0 {
        format!(
            " The evaluations before {} are left out of the picture, not of curves.csv.",
            axes::amount(axis, start)
        )
    } else {
        String::new()
    };
    format!("{runs}{seeds} Lower is better.{left_out}")
}

fn table(curves: &[Curve], axis: Axis, unit: &str) -> Table {
    let loss = format!("mean loss ({unit})");
    let head = ["arm", axes::name(axis), &loss, "lowest seed", "highest seed"];
    let rows = curves.iter().flat_map(|curve| {
        thinned(&curve.points, MAX_TABLE_ROWS).into_iter().map(|point| {
            let losses = [point.mean, point.low, point.high].map(nats);
            [curve.arm.label.to_string(), axes::amount(axis, point.x)].into_iter().chain(losses).collect()
        })
    });
    Table::new(format!("Validation loss against {}", axes::name(axis)), 1, &head).with_rows(rows)
}
