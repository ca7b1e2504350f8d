//! The early warning: the gap to the baseline against compute, with its trend.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use switchyard_ground::units::scaled;

use super::arm_style::ArmStyle;
use super::legend::Legend;
use super::plot::Plot;
use super::{Canvas, Figure, INK, SHADE, WIDTH, draw_text, range};
use crate::report::content::Content;
use crate::report::numbers::{self, or_absent, round_ticks, tick_labels};
use crate::report::table::Table;
use crate::statistics::{Crossing, CrossingInterval, Gauge, GaugePoint, Interval, Measure};
use crate::study::result::Question;

const PLOT_HEIGHT: i32 = 280;
/// Budgets nearer than this on the axis share a label.
const LABEL_WIDTH: i32 = 74;

/// The gauge of one arm.
struct ArmGauge<'a> {
    arm: &'a str,
    style: ArmStyle,
    gauge: &'a Gauge,
}

/// The gauges of all arms that have one.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figure(content: &Content) -> Result<Option<Figure>> {
    let gauges: Vec<ArmGauge> = content
        .comparisons()
        .iter()
        .filter_map(|arm| {
            let style = ArmStyle { index: content.index_of(&arm.arm) };
            arm.gauge.as_ref().map(|gauge| ArmGauge { arm: &arm.arm, style, gauge })
        })
        .collect();
    let points = || gauges.iter().flat_map(|arm| &arm.gauge.points);
    let Some(Question { metric, margin, .. }) = content.result.map(|result| &result.question) else {
        return Ok(None);
    };
    let (measure, margin) = (metric.measure(), *margin);
    let ends = points().flat_map(|point| [Some(point.mean_gap), low(&point.interval), high(&point.interval)]);
    let Some(x) = range(points().map(|point| point.compute.log10())) else { return Ok(None) };
    let Some(y) = range(ends.flatten().chain([0.0, margin, -margin])) else { return Ok(None) };
    let legend = Legend::new(gauges.iter().map(|arm| (arm.style, arm.arm.to_string())), 36);
    let top = legend.bottom() + 26;
    let pad = |(low, high): (f64, f64), share: f64| (low - share * (high - low), high + share * (high - low));
    let plot =
        Plot { across: (84, WIDTH - 30), down: (top, top + PLOT_HEIGHT), x: pad(x, 0.06), y: pad(y, 0.08) };
    let names = ("gauge", "Gap to the baseline against compute");
    Figure::draw(names, description(&gauges, measure), table(&gauges, measure), plot.down.1 + 54, |canvas| {
        legend.draw(canvas)?;
        draw_ground(canvas, &plot, (margin, measure), points().map(|point| point.compute).collect())?;
        gauges.iter().try_for_each(|arm| draw_gauge(canvas, &plot, arm))
    })
    .map(Some)
}

fn low(interval: &Option<Interval>) -> Option<f64> {
    interval.as_ref().map(|interval| interval.low)
}

fn high(interval: &Option<Interval>) -> Option<f64> {
    interval.as_ref().map(|interval| interval.high)
}

fn draw_ground(
    canvas: &Canvas,
    plot: &Plot,
    (margin, measure): (f64, Measure),
    mut budgets: Vec<f64>,
) -> Result<()> {
    let (left, right) = plot.across;
    let corners = [(left, plot.row(margin)), (right, plot.row(-margin))];
    canvas.draw(&Rectangle::new(corners, SHADE.filled()))?;
    budgets.sort_by(f64::total_cmp);
    let mut ticks: Vec<(f64, String)> = Vec::new();
    for budget in budgets {
        let x = budget.log10();
        if ticks.last().is_none_or(|(last, _)| plot.column(x) - plot.column(*last) >= LABEL_WIDTH) {
            ticks.push((x, scaled(budget, "FLOP")));
        }
    }
    plot.draw_x_axis(canvas, &ticks, "compute of a run (active training FLOPs, logarithmic)")?;
    plot.draw_y_axis(
        canvas,
        &tick_labels(&round_ticks(plot.y.0, plot.y.1)),
        &format!("gap of {}", measure.of_quantity()),
    )?;
    let zero = plot.row(0.0);
    canvas.draw(&PathElement::new([(left, zero), (right, zero)], INK.stroke_width(1)))?;
    draw_text(canvas, "below zero: the arm is better", 13, HPos::Right, (right, plot.down.0 - 14))
}

/// The fitted line, then each budget's mean with its interval.
fn draw_gauge(canvas: &Canvas, plot: &Plot, ArmGauge { style, gauge, .. }: &ArmGauge) -> Result<()> {
    let decades = gauge.points.iter().map(|point| point.compute.log10());
    if let Some((first, last)) = range(decades) {
        let fitted = |x: f64| gauge.intercept_at_largest + gauge.slope_per_decade * (x - last);
        let line = [first, last].map(|x| plot.at((x, fitted(x))));
        style.draw_line(canvas, &line)?;
    }
    for point in &gauge.points {
        let (x, y) = plot.at((point.compute.log10(), point.mean_gap));
        if let Some(interval) = &point.interval {
            let ends = [(x, plot.row(interval.low)), (x, plot.row(interval.high))];
            canvas.draw(&PathElement::new(ends, style.color().stroke_width(1)))?;
            for (x, y) in ends {
                canvas.draw(&PathElement::new([(x - 4, y), (x + 4, y)], style.color().stroke_width(1)))?;
            }
        }
        style.draw_marker(canvas, (x, y))?;
    }
    Ok(())
}

fn description(gauges: &[ArmGauge], measure: Measure) -> String {
    let sentences = gauges.iter().map(|arm| format!(" {}: {}", arm.arm, arm.gauge.sentence));
    let sentences: String = sentences.collect();
    format!(
        "For each arm its {} minus that of the baseline at each budget, with the interval over the seeds and the fitted \
         trend.{sentences}",
        measure.quantity
    )
}

fn table(gauges: &[ArmGauge], measure: Measure) -> Table {
    let gap = format!("gap of {}", measure.of_quantity());
    let head = ["arm", "compute", "seeds", &gap];
    let rows = gauges.iter().flat_map(|arm| {
        let point = |point: &GaugePoint| {
            vec![
                arm.arm.to_string(),
                scaled(point.compute, "FLOP"),
                point.num_seeds.to_string(),
                numbers::difference(point.mean_gap, point.interval.as_ref()),
            ]
        };
        let slope = numbers::difference(arm.gauge.slope_per_decade, arm.gauge.slope_interval.as_ref());
        let trend = vec![arm.arm.to_string(), "change per decade".into(), String::new(), slope];
        let crossing =
            vec![arm.arm.to_string(), "crossing".into(), String::new(), crossing(&arm.gauge.crossing)];
        arm.gauge.points.iter().map(point).chain([trend, crossing]).collect::<Vec<_>>()
    });
    Table::new("Gap against compute", 1, &head).with_rows(rows)
}

/// Where the gap is zero, in words.
fn crossing(crossing: &Crossing) -> String {
    let at = |compute: f64, interval: Option<CrossingInterval>| {
        let end = |end: Option<f64>| or_absent(end, |flops| scaled(flops, "FLOP"));
        let around = interval.map(|interval| format!(" [{}, {}]", end(interval.low), end(interval.high)));
        scaled(compute, "FLOP") + &around.unwrap_or_default()
    };
    match *crossing {
        Crossing::WithinRange { compute, interval } => at(compute, interval),
        Crossing::Extrapolated { compute, interval } => format!("{}, extrapolated", at(compute, interval)),
        Crossing::NotWithinReach => "not within reach".into(),
    }
}
