//! Whether a straight line fits the gaps, and what the last budgets alone say.
//!
//! A gap that grows and then shrinks has a line in the middle of which nobody sees the end coming.
//! Both questions are asked of each seed apart and answered over the seeds, so that the noise that a
//! seed's gaps share counts once (a contrast in a mixed model of seed and budget).

use serde::{Deserialize, Serialize};

use super::budget::Budget;
use crate::statistics::interval::Interval;
use crate::statistics::moments::{mean, mean_half_width, standard_deviation};
use crate::statistics::paired::t_test;

/// Share of the largest gap below which a bend over the whole range is rounding.
const ROUNDING: f64 = 1e-9;

/// Seeds below which a contrast has no test worth the name.
const FEWEST_SEEDS: usize = 3;

/// How far the gaps are from a straight line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Straightness {
    /// Mean over seeds of the gap's curvature: the coefficient of the squared decades of compute,
    /// per square decade. Above 0 an advantage comes to its end.
    pub(crate) curvature: f64,
    /// p-value of Student's test that it is zero.
    pub(crate) p_value: f64,
    /// Change of the gap per decade between the last two budgets.
    pub(crate) last_slope: f64,
    /// Its Student t interval.
    pub(crate) last_interval: Interval,
}

impl Straightness {
    /// Of `budgets`, compute ascending, over the seeds that have all of them. `None` with fewer than
    /// three such seeds or budgets.
    pub(super) fn new(budgets: &[Budget], confidence: f64) -> Option<Self> {
        let decades: Vec<f64> = budgets.iter().map(|budget| budget.compute.log10()).collect();
        let weights = quadratic_weights(&decades)?;
        let of_seed = |seed: &u64| budgets.iter().map(|budget| budget.gaps.get(seed).copied()).collect();
        let gaps: Vec<Vec<f64>> = budgets.first()?.gaps.keys().filter_map(of_seed).collect();
        if gaps.len() < FEWEST_SEEDS {
            return None;
        }
        let curvature = |gaps: &Vec<f64>| gaps.iter().zip(&weights).map(|(gap, weight)| gap * weight).sum();
        let curvatures: Vec<f64> = gaps.iter().map(curvature).collect();
        let mean_curvature = mean(&curvatures)?;
        // Without noise a straight gap has the curvature of its last bits.
        let span = decades.last()? - decades.first()?;
        let largest_gap = gaps.iter().flatten().fold(0.0_f64, |largest, gap| largest.max(gap.abs()));
        let is_rounding = mean_curvature.abs() * span * span <= ROUNDING * largest_gap;
        let p_value = if is_rounding { 1.0 } else { t_test(&curvatures, 0.0)? };
        let last = budgets.len() - 1;
        let run = decades[last] - decades[last - 1];
        let slopes: Vec<f64> = gaps.iter().map(|gaps| (gaps[last] - gaps[last - 1]) / run).collect();
        let last_slope = mean(&slopes)?;
        let deviation = standard_deviation(&slopes, last_slope)?;
        let half_width = mean_half_width(deviation, slopes.len() as u64, confidence)?;
        Some(Self {
            curvature: mean_curvature,
            p_value,
            last_slope,
            last_interval: Interval::around(last_slope, half_width)?,
        })
    }

    /// Whether a straight line does not fit at `confidence`.
    pub(super) fn is_bent(&self, confidence: f64) -> bool {
        self.p_value <= 1.0 - confidence
    }
}

/// Weights of the gaps at `decades` in the coefficient of the square when a parabola is fitted by
/// least squares. `None` with fewer than three.
fn quadratic_weights(decades: &[f64]) -> Option<Vec<f64>> {
    let n = decades.len() as f64;
    if decades.len() < 3 {
        return None;
    }
    let mean = decades.iter().sum::<f64>() / n;
    let x: Vec<f64> = decades.iter().map(|decade| decade - mean).collect();
    let power = |exponent: i32| x.iter().map(|x| x.powi(exponent)).sum::<f64>();
    // The square less its projection on a constant and on the line.
    let (constant, slope) = (power(2) / n, power(3) / power(2));
    let residuals: Vec<f64> = x.iter().map(|x| x * x - constant - slope * x).collect();
    let squares: f64 = residuals.iter().map(|residual| residual * residual).sum();
    Some(residuals.iter().map(|residual| residual / squares).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_find_the_square_in_a_parabola_and_nothing_in_a_line() {
        let decades = [11.0, 11.3, 11.7, 12.5];
        let weights = quadratic_weights(&decades).unwrap();
        let contrast = |gap: &dyn Fn(f64) -> f64| -> f64 {
            decades.iter().zip(&weights).map(|(&x, weight)| gap(x) * weight).sum()
        };
        assert!((contrast(&|x| 0.3 - 0.7 * x + 0.25 * x * x) - 0.25).abs() < 1e-9);
        assert!(contrast(&|x| 3.0 - 0.7 * x).abs() < 1e-9);
        assert_eq!(quadratic_weights(&decades[..2]), None);
    }
}
