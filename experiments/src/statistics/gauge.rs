//! The gauge: how the gap between two arms changes with compute, and where it would cross zero.
//!
//! The early warning of a project whose advantage at small budgets does not last. The gap is taken
//! to be straight in the logarithm of compute as long as the gaps do not say otherwise; where they
//! do, the last budgets are asked alone. A crossing beyond the budgets measured is a reason to
//! measure there, not a prediction to rely on.

mod budget;
mod crossing;
mod line;
mod sentence;
mod straightness;
mod trend;

use serde::{Deserialize, Serialize};

use self::budget::{Budget, group_by_budget};
pub(crate) use self::crossing::{Crossing, CrossingInterval};
pub(crate) use self::straightness::Straightness;
pub(crate) use self::trend::{SlopeMethod, Trend};
use self::trend::{TrendFit, trend_of};
use super::interval::Interval;
use super::measure::Measure;
use super::paired::PairedDifference;

/// Distinct budgets below which there is no gauge.
const FEWEST_BUDGETS: usize = 4;

/// The gap of one seed at one budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct GaugeSample {
    /// Training compute of the budget in FLOPs, the same for all seeds of a budget.
    pub(crate) compute: f64,
    /// Seed of both runs.
    pub(crate) seed: u64,
    /// Loss of the arm minus that of the baseline: below zero the arm is ahead.
    pub(crate) gap: f64,
}

/// The gap at one budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GaugePoint {
    /// Training compute in FLOPs.
    pub(crate) compute: f64,
    /// Mean gap over the seeds.
    pub(crate) mean_gap: f64,
    /// Student t interval of the mean gap; `None` with one seed.
    pub(crate) interval: Option<Interval>,
    /// Seeds at this budget.
    pub(crate) num_seeds: usize,
}

/// The gap between an arm and its baseline against compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gauge {
    /// One point per budget, compute ascending; at least four.
    pub(crate) points: Vec<GaugePoint>,
    /// Change of the gap per decade of compute: least squares over all seeds.
    pub(crate) slope_per_decade: f64,
    /// Interval of the slope; `None` where it has no finite ends.
    pub(crate) slope_interval: Option<Interval>,
    /// Where the slope's interval comes from.
    pub(crate) slope_method: SlopeMethod,
    /// Whether the line fits, and what the last budgets say; `None` with fewer than three seeds at
    /// all budgets, and in results of earlier versions.
    #[serde(default)]
    pub(crate) straightness: Option<Straightness>,
    /// Which way the gap goes: that of the line, or of the last budgets where no line fits.
    pub(crate) trend: Trend,
    /// Fitted gap at the largest compute.
    pub(crate) intercept_at_largest: f64,
    /// Where the fitted gap is zero.
    pub(crate) crossing: Crossing,
    /// All of it in words.
    pub(crate) sentence: String,
}

impl Gauge {
    /// The gauge of `samples` of a `measure`, in any order, with intervals at `confidence`. `None` with fewer than
    /// four distinct budgets, if a number is not finite or a compute not above zero, if a seed is
    /// twice at a budget, or if `confidence` is not between 0 and 1.
    pub(crate) fn new(samples: &[GaugeSample], measure: Measure, confidence: f64) -> Option<Self> {
        let budgets = group_by_budget(samples).filter(|budgets| budgets.len() >= FEWEST_BUDGETS)?;
        let points =
            budgets.iter().map(|budget| GaugePoint::new(budget, confidence)).collect::<Option<Vec<_>>>()?;
        let fit = TrendFit::new(&budgets, confidence)?;
        let straightness = Straightness::new(&budgets, confidence);
        let bent = straightness.filter(|found| found.is_bent(confidence));
        let trend = trend_of(bent.map_or(fit.slope_interval, |found| Some(found.last_interval)));
        let crossing = Crossing::of(&fit, &points, trend, bent.is_some(), confidence);
        let mut gauge = Self {
            points,
            slope_per_decade: fit.line.slope,
            slope_interval: fit.slope_interval,
            slope_method: fit.method,
            straightness,
            trend,
            intercept_at_largest: fit.line.at_largest,
            crossing,
            sentence: String::new(),
        };
        gauge.sentence = gauge.words(measure, confidence);
        Some(gauge)
    }
}

impl GaugePoint {
    fn new(budget: &Budget, confidence: f64) -> Option<Self> {
        let gaps: Vec<f64> = budget.gaps.values().copied().collect();
        let difference = PairedDifference::new(&gaps, confidence)?;
        Some(Self {
            compute: budget.compute,
            mean_gap: difference.mean,
            interval: difference.t_interval,
            num_seeds: gaps.len(),
        })
    }
}

#[cfg(test)]
mod tests;
