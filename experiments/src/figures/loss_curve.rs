//! Training and validation loss over the steps.

use anyhow::{Result, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use switchyard_trainer::metrics::Record;

use super::{Canvas, GRID, INK, WIDTH, draw, draw_text};

const HEIGHT: i32 = 480;
/// Points of a training curve; more would only thicken the line.
const MAX_TRAINING_POINTS: usize = 240;
/// Markers on a validation curve; its line has every point.
const MAX_MARKERS: usize = 16;

/// The palette of Okabe and Ito, for readers who see few colours. The markers tell runs apart too.
const RUN_COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Training and validation loss of `runs` (label, rows) over the steps.
///
/// # Errors
/// No run, or a run without a single step or evaluation.
pub(crate) fn loss_curve_svg(runs: &[(&str, &[Record])]) -> Result<String> {
    let curves: Vec<Curve> = runs
        .iter()
        .enumerate()
        .map(|(index, (label, records))| Curve::new(index, label, records))
        .collect::<Result<_>>()?;
    if curves.is_empty() {
        bail!("no run to draw: name at least one run folder");
    }
    draw(HEIGHT, |canvas| {
        draw_text(canvas, "Loss over training", 19, HPos::Center, (WIDTH / 2, 26))?;
        draw_curves(canvas, &curves)?;
        draw_legend(canvas, &curves)
    })
}

/// What is drawn of one run: points (step, nats).
struct Curve {
    index: usize,
    label: String,
    training: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
}

impl Curve {
    fn new(index: usize, label: &str, records: &[Record]) -> Result<Self> {
        let steps = records.iter().filter_map(Record::as_step);
        let evals = records.iter().filter_map(Record::as_eval);
        let training: Vec<_> = steps.map(|row| (row.step as f64, row.cross_entropy_nats)).collect();
        let validation: Vec<_> = evals.map(|row| (row.step as f64, row.cross_entropy_nats)).collect();
        if training.is_empty() && validation.is_empty() {
            bail!("`{label}` has nothing to draw: there is no row in its `metrics.jsonl`");
        }
        let training = bin_means(&training, MAX_TRAINING_POINTS);
        Ok(Self { index, label: label.into(), training, validation })
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.training.iter().chain(&self.validation)
    }

    fn color(&self) -> RGBColor {
        RUN_COLORS[self.index % RUN_COLORS.len()]
    }

    /// Faint: the validation curve is the result, and it often lies on top of this one.
    fn training_style(&self) -> ShapeStyle {
        self.color().mix(0.4).stroke_width(2)
    }

    fn validation_style(&self) -> ShapeStyle {
        self.color().stroke_width(2)
    }
}

/// `points` averaged over at most `max_bins` groups of neighbours.
fn bin_means(points: &[(f64, f64)], max_bins: usize) -> Vec<(f64, f64)> {
    let bin_len = points.len().div_ceil(max_bins).max(1);
    let mean = |bin: &[(f64, f64)]| {
        let sum = bin.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / bin.len() as f64, sum.1 / bin.len() as f64)
    };
    points.chunks(bin_len).map(mean).collect()
}

/// Lowest and highest of `values`.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

fn draw_curves(canvas: &Canvas, curves: &[Curve]) -> Result<()> {
    let (_, last_step) = range(curves.iter().flat_map(Curve::points).map(|point| point.0));
    let (lowest, highest) = range(curves.iter().flat_map(Curve::points).map(|point| point.1));
    let margin = 0.05 * (highest - lowest).max(0.1);
    let mut chart = ChartBuilder::on(canvas)
        .margin_top(48)
        .margin_right(28)
        .margin_bottom(10)
        .margin_left(10)
        .x_label_area_size(50)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..last_step.max(1.0), lowest - margin..highest + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 17).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 19).into_font().color(&INK))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .x_desc("optimizer steps")
        .y_desc("cross-entropy (nats per token)")
        .draw()?;
    for curve in curves {
        chart.draw_series(LineSeries::new(curve.training.iter().copied(), curve.training_style()))?;
    }
    for curve in curves {
        chart.draw_series(LineSeries::new(curve.validation.iter().copied(), curve.validation_style()))?;
        let stride = curve.validation.len().div_ceil(MAX_MARKERS).max(1);
        // From the end, so that the last evaluation always has its marker.
        for point in curve.validation.iter().rev().step_by(stride) {
            draw_marker(canvas, curve, chart.backend_coord(point))?;
        }
    }
    Ok(())
}

/// The run's sign: colours repeat after four runs, and then the signs are shifted against them.
fn draw_marker(canvas: &Canvas, curve: &Curve, (x, y): (i32, i32)) -> Result<()> {
    let style = curve.color().filled();
    let shift = curve.index / RUN_COLORS.len();
    match (curve.index + shift) % 4 {
        0 => canvas.draw(&Circle::new((x, y), 5, style))?,
        1 => canvas.draw(&Rectangle::new([(x - 4, y - 4), (x + 5, y + 5)], style))?,
        2 => canvas.draw(&TriangleMarker::new((x, y), 7, style))?,
        _ => canvas.draw(&Cross::new((x, y), 5, curve.color().stroke_width(3)))?,
    }
    Ok(())
}

fn draw_legend(canvas: &Canvas, curves: &[Curve]) -> Result<()> {
    const ROW_HEIGHT: i32 = 22;
    const SAMPLE_WIDTH: i32 = 36;
    let lines: Vec<(&Curve, bool)> = curves
        .iter()
        .flat_map(|curve| [(curve, false), (curve, true)])
        .filter(|(curve, is_validation)| {
            !(if *is_validation { &curve.validation } else { &curve.training }).is_empty()
        })
        .collect();
    let longest = curves.iter().map(|curve| curve.label.chars().count()).max().unwrap_or(0) as i32;
    // ", validation" follows the label; 7.5 pixels are a wide guess for a letter of this size.
    let width = SAMPLE_WIDTH + 30 + (longest + 12) * 15 / 2;
    let (left, top) = ((WIDTH - 40 - width).max(90), 58);
    let bottom = top + 12 + ROW_HEIGHT * lines.len() as i32;
    canvas.draw(&Rectangle::new([(left, top), (left + width, bottom)], WHITE.mix(0.85).filled()))?;
    canvas.draw(&Rectangle::new([(left, top), (left + width, bottom)], GRID.stroke_width(1)))?;
    for (row, (curve, is_validation)) in (0..).zip(lines) {
        let y = top + 6 + ROW_HEIGHT / 2 + ROW_HEIGHT * row;
        let (from, to) = (left + 12, left + 12 + SAMPLE_WIDTH);
        let (style, what) = if is_validation {
            (curve.validation_style(), "validation")
        } else {
            (curve.training_style(), "training")
        };
        canvas.draw(&PathElement::new([(from, y), (to, y)], style))?;
        if is_validation {
            draw_marker(canvas, curve, ((from + to) / 2, y))?;
        }
        draw_text(canvas, &format!("{}, {what}", curve.label), 14, HPos::Left, (to + 10, y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample_rows::{eval, step};
    use super::*;

    fn rows(num_steps: u64) -> Vec<Record> {
        let loss = |n: u64| 8.0 / (n as f64).sqrt();
        (1..=num_steps)
            .flat_map(|n| {
                let evaluation = n.is_multiple_of(10).then(|| eval(n, loss(n) + 0.1));
                [step(n, loss(n), Vec::new())].into_iter().chain(evaluation)
            })
            .collect()
    }

    #[test]
    fn every_run_has_both_curves_in_the_legend_on_a_white_ground() {
        let (short, long) = (rows(20), rows(2000));
        let svg = loss_curve_svg(&[("dense", &short), ("a & b", &long)]).unwrap();
        for text in ["dense, training", "dense, validation", "a &amp; b, validation", "nats per token"] {
            assert!(svg.contains(text), "{text}");
        }
        let background = r##"<rect x="0" y="0" width="900" height="480" opacity="1" fill="#FFFFFF""##;
        assert!(svg.contains(background), "{}", &svg[..400]);
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
        assert_eq!(svg, loss_curve_svg(&[("dense", &short), ("a & b", &long)]).unwrap(), "not deterministic");
    }

    #[test]
    fn a_curve_that_was_never_measured_is_not_in_the_legend() {
        let svg = loss_curve_svg(&[("new", &[step(1, 8.0, Vec::new())])]).unwrap();
        assert!(svg.contains("new, training") && !svg.contains("new, validation"));
    }

    #[test]
    fn averaging_keeps_the_mean_and_the_limit() {
        let points: Vec<(f64, f64)> = (0..1000).map(|n| (f64::from(n), f64::from(n % 7))).collect();
        let binned = bin_means(&points, 250);
        assert_eq!(binned.len(), 250);
        let mean =
            |points: &[(f64, f64)]| points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64;
        assert!((mean(&binned) - mean(&points)).abs() < 1e-12);
        assert_eq!(bin_means(&points[..3], 250), points[..3]);
    }

    #[test]
    fn an_empty_run_is_an_error_with_its_name() {
        let message = loss_curve_svg(&[("empty", &[])]).unwrap_err().to_string();
        assert!(message.starts_with("`empty` has nothing to draw"), "{message}");
        assert!(loss_curve_svg(&[]).unwrap_err().to_string().starts_with("no run to draw"));
    }
}
