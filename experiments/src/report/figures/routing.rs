//! Routing entropy, dropped tokens and imbalance over the steps, of one run of each sparse arm.

use std::collections::BTreeMap;

use anyhow::Result;

use switchyard_ground::units::grouped;

use super::arm_style::ArmStyle;
use super::legend::Legend;
use super::plot::Plot;
use super::{Canvas, Figure, WIDTH, range, thinned};
use crate::report::content::{ArmRuns, Content};
use crate::report::numbers::{round_ticks, si_tick_labels, tick_labels};
use crate::report::series::{LayerSeries, RunSeries};
use crate::report::table::Table;

const PANEL_HEIGHT: i32 = 130;
const PANEL_GAP: i32 = 44;
/// Points of a curve; more would only thicken the line.
const MAX_POINTS: usize = 160;
const MAX_MARKERS: usize = 10;
const MAX_TABLE_ROWS: usize = 8;

/// What a panel shows of a layer.
type Measure = fn(&LayerSeries) -> &[(u64, f64)];

const MEASURES: [(&str, Measure); 3] = [
    ("routing entropy, nats", |layer| &layer.entropy),
    ("dropped share of the tokens", |layer| &layer.dropped_fraction),
    ("MaxVio: busiest expert, even shares above 1", |layer| &layer.max_violation),
];

/// One measure of one arm.
struct Curve<'a> {
    label: &'a str,
    style: ArmStyle,
    points: Vec<LayerMean>,
}

/// Mean over the layers, with the lowest and the highest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LayerMean {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

struct Panel<'a> {
    name: &'static str,
    curves: Vec<Curve<'a>>,
}

/// The panels that any arm has rows for; `None` without any.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figure(content: &Content) -> Result<Option<Figure>> {
    let arms = content.longest_runs();
    let sparse: Vec<(&ArmRuns, &RunSeries)> =
        arms.iter().filter_map(|arm| Some((arm, arm.sparse_run()?))).collect();
    let panels: Vec<Panel> = MEASURES
        .into_iter()
        .map(|(name, measure)| panel(name, measure, &sparse))
        .filter(Panel::has_rows)
        .collect();
    let all = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let Some(x) = range(all().map(|point| point.step)) else { return Ok(None) };
    let names = sparse
        .iter()
        .map(|(arm, run)| (ArmStyle { index: arm.index }, format!("{}, seed {}", arm.label, run.seed)));
    let legend = Legend::new(names, 36);
    let plots = stacked(&panels, x, legend.bottom() + 26);
    let bottom = plots.last().map_or(0, |plot| plot.down.1);
    let description = "One run of each sparse arm, the lowest seed at the largest budget. The line is the mean over \
                       the layers, the band reaches from the lowest to the highest layer.";
    let names = ("entropy", "Routing entropy, drops and imbalance");
    Figure::draw(names, description.into(), table(&panels), bottom + 54, |canvas| {
        legend.draw(canvas)?;
        panels.iter().zip(&plots).try_for_each(|(panel, plot)| draw_panel(canvas, panel, plot))?;
        let Some(last) = plots.last() else { return Ok(()) };
        last.draw_x_axis(canvas, &si_tick_labels(&round_ticks(x.0, x.1), ""), "optimizer steps")
    })
    .map(Some)
}

fn panel<'a>(name: &'static str, measure: Measure, sparse: &[(&ArmRuns<'a>, &RunSeries)]) -> Panel<'a> {
    let curve = |(arm, run): &(&ArmRuns<'a>, &RunSeries)| Curve {
        label: arm.label,
        style: ArmStyle { index: arm.index },
        points: layer_means(run.layers.iter().map(measure)),
    };
    Panel { name, curves: sparse.iter().map(curve).filter(|curve| !curve.points.is_empty()).collect() }
}

impl Panel<'_> {
    fn has_rows(&self) -> bool {
        !self.curves.is_empty()
    }

    /// Range of the values, never empty.
    fn values(&self) -> (f64, f64) {
        let ends =
            self.curves.iter().flat_map(|curve| &curve.points).flat_map(|point| [point.low, point.high]);
        let (low, high) = range(ends).unwrap_or((0.0, 1.0));
        let pad = 0.08 * (high - low).max(0.01);
        (if low >= 0.0 { (low - pad).max(0.0) } else { low - pad }, high + pad)
    }
}

/// The layers' finite values at each step, in at most [`MAX_POINTS`] groups of neighbouring steps.
fn layer_means<'a>(layers: impl Iterator<Item = &'a [(u64, f64)]>) -> Vec<LayerMean> {
    let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for &(step, value) in layers.flatten().filter(|(_, value)| value.is_finite()) {
        by_step.entry(step).or_default().push(value);
    }
    let steps: Vec<LayerMean> = by_step
        .iter()
        .map(|(step, values)| LayerMean {
            step: *step as f64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
        .collect();
    steps.chunks(steps.len().div_ceil(MAX_POINTS).max(1)).map(mean_of).collect()
}

fn mean_of(group: &[LayerMean]) -> LayerMean {
    let mean = |of: fn(&LayerMean) -> f64| group.iter().map(of).sum::<f64>() / group.len() as f64;
    LayerMean {
        step: mean(|point| point.step),
        mean: mean(|point| point.mean),
        low: mean(|point| point.low),
        high: mean(|point| point.high),
    }
}

fn stacked(panels: &[Panel], x: (f64, f64), top: i32) -> Vec<Plot> {
    let plot = |(index, panel): (i32, &Panel)| {
        let top = top + (PANEL_HEIGHT + PANEL_GAP) * index;
        Plot { across: (72, WIDTH - 30), down: (top, top + PANEL_HEIGHT), x, y: panel.values() }
    };
    (0..).zip(panels).map(plot).collect()
}

fn draw_panel(canvas: &Canvas, panel: &Panel, plot: &Plot) -> Result<()> {
    plot.draw_y_axis(canvas, &tick_labels(&round_ticks(plot.y.0, plot.y.1)), panel.name)?;
    for curve in &panel.curves {
        let upper = curve.points.iter().map(|point| plot.at((point.step, point.high)));
        let lower = curve.points.iter().rev().map(|point| plot.at((point.step, point.low)));
        curve.style.draw_band(canvas, upper.chain(lower).collect())?;
    }
    for curve in &panel.curves {
        let pixels: Vec<_> = curve.points.iter().map(|point| plot.at((point.step, point.mean))).collect();
        curve.style.draw_line(canvas, &pixels)?;
        for pixel in thinned(&pixels, MAX_MARKERS) {
            curve.style.draw_marker(canvas, pixel)?;
        }
    }
    Ok(())
}

fn table(panels: &[Panel]) -> Table {
    let head = ["measure", "arm", "step", "mean of the layers", "lowest layer", "highest layer"];
    let rows = panels.iter().flat_map(|panel| {
        panel.curves.iter().flat_map(|curve| {
            thinned(&curve.points, MAX_TABLE_ROWS).into_iter().map(|point| {
                let words =
                    [panel.name.to_string(), curve.label.to_string(), grouped(point.step.round() as u64)];
                let values = [point.mean, point.low, point.high].map(|value| format!("{value:.4}"));
                words.into_iter().chain(values).collect()
            })
        })
    });
    Table::new("Routing over the steps; every step is in routing.csv", 2, &head).with_rows(rows)
}
