//! The slope of the gap and its uncertainty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::line::{Line, LineSums};
use crate::statistics::bootstrap::{self, central_range, small_sample_widening};
use crate::statistics::interval::{Interval, student_t_reach};

/// Share of the largest gap below which a change of the gap over the whole range is rounding.
const ROUNDING: f64 = 1e-12;

/// Where the interval of a slope comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SlopeMethod {
    /// Whole seeds were resampled, since the gaps of one seed share its noise: from three seeds on.
    SeedBootstrap,
    /// Student's t on the residuals of the regression, as if each gap had noise of its own: too
    /// narrow where a seed's gaps drift together.
    RegressionT,
}

/// Which way the gap goes as compute grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trend {
    /// The gap falls: the arm gains on the baseline.
    ArmGains,
    /// The gap rises: the arm loses ground to the baseline.
    ArmLosesGround,
    /// The interval of the slope has zero in it.
    Undecided,
}

/// The trend that the interval of a slope shows.
pub(super) fn trend_of(slope_interval: Option<Interval>) -> Trend {
    match slope_interval {
        Some(interval) if interval.high < 0.0 => Trend::ArmGains,
        Some(interval) if interval.low > 0.0 => Trend::ArmLosesGround,
        _ => Trend::Undecided,
    }
}

/// The line through all gaps, and what else it could have been.
pub(super) struct TrendFit {
    /// Least squares over all seeds and budgets.
    pub(super) line: Line,
    /// Interval of its slope.
    pub(super) slope_interval: Option<Interval>,
    /// Where the interval comes from.
    pub(super) method: SlopeMethod,
    /// Lines of the resampled seeds; empty unless the method is the bootstrap.
    pub(super) resampled: Vec<Line>,
    /// Largest budget, in FLOPs.
    pub(super) largest_compute: f64,
    /// Decades from the smallest budget to the largest.
    pub(super) span_decades: f64,
}

impl TrendFit {
    /// The fit to `budgets`, compute ascending; `None` with fewer than two.
    pub(super) fn new(budgets: &[Budget], confidence: f64) -> Option<Self> {
        let (smallest_compute, largest_compute) = (budgets.first()?.compute, budgets.last()?.compute);
        let points = points(budgets, largest_compute);
        let all = sums(&points);
        let line = all.line()?;
        let resampled = resampled_lines(&points, line, confidence);
        let (method, interval) = match &resampled {
            Some(lines) => (SlopeMethod::SeedBootstrap, bootstrap_interval(lines, confidence)),
            None => (SlopeMethod::RegressionT, regression_interval(&points, &all, line, confidence)),
        };
        let span_decades = (largest_compute / smallest_compute).log10();
        let largest_gap = points.iter().fold(0.0, |largest: f64, point| largest.max(point.gap.abs()));
        // Without noise the interval has no width, and a gap that stays the same would get a trend
        // from its last bit.
        let rounding = ROUNDING * largest_gap / span_decades;
        let slope_interval =
            interval.and_then(|found| Interval::new(found.low - rounding, found.high + rounding));
        let resampled = resampled.unwrap_or_default();
        Some(Self { line, slope_interval, method, resampled, largest_compute, span_decades })
    }
}

/// A gap on the axis of the regression.
struct Point {
    seed: u64,
    decades: f64,
    gap: f64,
}

/// The gaps, each at its decades from the largest budget.
fn points(budgets: &[Budget], largest_compute: f64) -> Vec<Point> {
    let of_budget = |budget: &Budget| {
        let decades = (budget.compute / largest_compute).log10();
        budget.gaps.iter().map(|(&seed, &gap)| Point { seed, decades, gap }).collect::<Vec<_>>()
    };
    budgets.iter().flat_map(of_budget).collect()
}

fn sums<'a>(points: impl IntoIterator<Item = &'a Point>) -> LineSums {
    let mut sums = LineSums::default();
    points.into_iter().for_each(|point| sums.add(point.decades, point.gap));
    sums
}

/// Lines through resampled seeds, their deviations from `line` widened for few seeds. `None` with
/// fewer than three seeds that have a line of their own.
fn resampled_lines(points: &[Point], line: Line, confidence: f64) -> Option<Vec<Line>> {
    let mut by_seed: BTreeMap<u64, LineSums> = BTreeMap::new();
    for point in points {
        by_seed.entry(point.seed).or_default().add(point.decades, point.gap);
    }
    let seeds: Vec<LineSums> = by_seed.into_values().collect();
    if seeds.iter().filter(|seed| seed.spread() > 0.0).count() < bootstrap::FEWEST_UNITS {
        return None;
    }
    let widening = small_sample_widening(seeds.len(), confidence)?;
    Some(bootstrap::resamples(seeds.len(), |drawn| {
        let mut all = LineSums::default();
        drawn.iter().for_each(|&seed| all += seeds[seed]);
        Some(all.line()?.widened(line, widening))
    }))
}

fn bootstrap_interval(lines: &[Line], confidence: f64) -> Option<Interval> {
    let (low, high) = central_range(lines.iter().map(|line| line.slope).collect(), confidence)?;
    Interval::new(low, high)
}

/// Student t interval of the slope from the residuals, with two degrees of freedom less than there
/// are points.
fn regression_interval(points: &[Point], all: &LineSums, line: Line, confidence: f64) -> Option<Interval> {
    let degrees_of_freedom = points.len().checked_sub(2)?;
    let squares: f64 = points.iter().map(|point| (point.gap - line.at(point.decades)).powi(2)).sum();
    let standard_error = (squares / degrees_of_freedom as f64 / all.spread()).sqrt();
    Interval::around(line.slope, student_t_reach(confidence, degrees_of_freedom)? * standard_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::gauge::GaugeSample;
    use crate::statistics::gauge::budget::group_by_budget;

    fn fit(samples: &[(f64, u64, f64)]) -> TrendFit {
        let sample = |&(compute, seed, gap): &(f64, u64, f64)| GaugeSample { compute, seed, gap };
        let budgets = group_by_budget(&samples.iter().map(sample).collect::<Vec<_>>()).unwrap();
        TrendFit::new(&budgets, 0.95).unwrap()
    }

    #[test]
    fn the_regression_interval_is_that_of_the_textbook() {
        // Anscombe's first data set: slope 0.500091 with standard error 0.117906 (R's
        // `summary(lm(y1 ~ x1))`), 9 degrees of freedom, t = 2.262157.
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        let samples: Vec<_> = x.into_iter().zip(y).map(|(x, y)| (10_f64.powf(x), 1, y)).collect();
        let fit = fit(&samples);
        let interval = fit.slope_interval.unwrap();
        assert_eq!(fit.method, SlopeMethod::RegressionT);
        assert!(fit.resampled.is_empty());
        assert!((interval.low - (0.500_091 - 2.262_157 * 0.117_906)).abs() < 3e-6);
        assert!((interval.high - (0.500_091 + 2.262_157 * 0.117_906)).abs() < 3e-6);
    }

    #[test]
    fn a_level_that_differs_by_seed_does_not_blur_the_slope() {
        let gap = |level: f64, decades: f64| level + 0.02 * decades;
        let samples: Vec<_> = [0.1, -0.3, 0.2, 0.5]
            .into_iter()
            .zip(1_u64..)
            .flat_map(|(level, seed)| [0.0, 1.0, 2.0, 3.0].map(|x| (10_f64.powf(x), seed, gap(level, x))))
            .collect();
        let interval = fit(&samples).slope_interval.unwrap();
        assert!((interval.low - 0.02).abs() < 1e-9 && (interval.high - 0.02).abs() < 1e-9);
    }

    #[test]
    fn three_seeds_with_lines_of_their_own_are_resampled() {
        let mut samples = vec![(1.0, 1, 0.1), (10.0, 1, 0.2), (1.0, 2, 0.1), (10.0, 2, 0.3), (1.0, 3, 0.1)];
        assert_eq!(fit(&samples).method, SlopeMethod::RegressionT);
        samples.push((10.0, 3, 0.0));
        assert_eq!(fit(&samples).method, SlopeMethod::SeedBootstrap);
    }

    #[test]
    fn a_gap_that_stays_the_same_has_no_trend_despite_rounding() {
        for gap in [0.0, 0.1, -0.3, 1.0 / 3.0] {
            let samples: Vec<_> = (0..5).map(|budget| (3_f64.powi(budget), 1, gap)).collect();
            assert_eq!(trend_of(fit(&samples).slope_interval), Trend::Undecided, "{gap}");
        }
    }
}
