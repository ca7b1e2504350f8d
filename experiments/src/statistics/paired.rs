//! The difference of two arms over seeds that both have run.

use serde::{Deserialize, Serialize};

use super::bootstrap::{self, central_range, small_sample_widening};
use super::interval::{Interval, student_t_reach};
use super::verdict::Verdict;

/// Largest answer of [`PairedDifference::pairs_to_decide`]; it stands for that many or more.
pub(super) const MOST_PAIRS: u64 = 10_000;

/// The mean of paired differences, with what is known about its error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PairedDifference {
    /// Arm minus baseline, one per pair.
    pub(crate) differences: Vec<f64>,
    /// Their mean.
    pub(crate) mean: f64,
    /// Sample standard deviation; `None` with one pair.
    pub(crate) standard_deviation: Option<f64>,
    /// Student t interval of the mean; `None` with one pair. The verdict is taken from it.
    pub(crate) t_interval: Option<Interval>,
    /// Percentile bootstrap interval of the mean, widened for few pairs; `None` with fewer than
    /// three pairs. Far from the t interval, it says that the differences are not normal.
    pub(crate) bootstrap_interval: Option<Interval>,
    /// Share of the pairs whose sign is that of the mean, in `[0, 1]`.
    pub(crate) sign_consistency: f64,
}

impl PairedDifference {
    /// The mean of `differences` with intervals at `confidence`, such as 0.95. `None` without
    /// differences, if one is not finite or too large for a sum of squares, or if `confidence` is
    /// not between 0 and 1.
    pub(crate) fn new(differences: &[f64], confidence: f64) -> Option<Self> {
        let mean = mean(differences)?;
        let standard_deviation = standard_deviation(differences, mean);
        let valid = confidence > 0.0 && confidence < 1.0;
        if !valid || !mean.is_finite() || standard_deviation.is_some_and(|deviation| !deviation.is_finite()) {
            return None;
        }
        let num_pairs = differences.len();
        let half_width = |deviation| mean_half_width(deviation, num_pairs as u64, confidence);
        let same_sign = differences.iter().filter(|&&difference| sign(difference) == sign(mean)).count();
        Some(Self {
            differences: differences.to_vec(),
            mean,
            standard_deviation,
            t_interval: standard_deviation.and_then(half_width).and_then(|half| Interval::around(mean, half)),
            bootstrap_interval: bootstrap_interval(differences, mean, confidence),
            sign_consistency: same_sign as f64 / num_pairs as f64,
        })
    }

    /// Wins if the whole t interval is below `-margin`, loses if it is above `margin`; undecided in
    /// between and with one pair. A lower loss is better.
    pub(crate) fn verdict(&self, margin: f64) -> Verdict {
        match &self.t_interval {
            Some(interval) if interval.high < -margin => Verdict::Wins,
            Some(interval) if interval.low > margin => Verdict::Loses,
            _ => Verdict::Undecided,
        }
    }

    /// Pairs in all, those at hand included, at which a t interval of the same mean and standard
    /// deviation would decide, at most [`MOST_PAIRS`]. An even bet: new pairs move the mean. `None`
    /// if it is decided, if no number decides since the mean is within the margin, or with one
    /// pair.
    pub(crate) fn pairs_to_decide(&self, margin: f64, confidence: f64) -> Option<u64> {
        let deviation = self.standard_deviation?;
        let beyond_margin = self.mean.abs() - margin;
        if self.verdict(margin) != Verdict::Undecided || beyond_margin <= 0.0 {
            return None;
        }
        let decides = |pairs| Some(mean_half_width(deviation, pairs, confidence)? < beyond_margin);
        // The half-width falls with the number of pairs, so the first that decides is found by
        // bisection.
        let (mut too_few, mut enough) = (self.differences.len() as u64, MOST_PAIRS);
        while enough.saturating_sub(too_few) > 1 {
            let middle = u64::midpoint(too_few, enough);
            if decides(middle)? { enough = middle } else { too_few = middle }
        }
        Some(enough)
    }
}

/// Mean of finite values; `None` without values or if one is not finite.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    let usable = !values.is_empty() && values.iter().all(|value| value.is_finite());
    usable.then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, with n - 1 in the denominator; `None` with one value.
pub(super) fn standard_deviation(values: &[f64], mean: f64) -> Option<f64> {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Half the width of the Student t interval of a mean of `count` values; `None` with one value.
pub(super) fn mean_half_width(standard_deviation: f64, count: u64, confidence: f64) -> Option<f64> {
    let reach = student_t_reach(confidence, count.checked_sub(1)? as usize)?;
    Some(reach * standard_deviation / (count as f64).sqrt())
}

/// Percentile interval of the resampled means, their deviations from the mean widened; `None` with
/// too few values.
fn bootstrap_interval(values: &[f64], mean: f64, confidence: f64) -> Option<Interval> {
    if values.len() < bootstrap::FEWEST_UNITS {
        return None;
    }
    let widening = small_sample_widening(values.len(), confidence)?;
    let means = bootstrap::resamples(values.len(), |drawn| {
        let deviation: f64 = drawn.iter().map(|&unit| values[unit] - mean).sum();
        Some(mean + widening * deviation / values.len() as f64)
    });
    let (low, high) = central_range(means, confidence)?;
    Interval::new(low, high)
}

/// -1, 0 or 1. Unlike `signum`, that of zero is 0.
fn sign(value: f64) -> i8 {
    i8::from(value > 0.0) - i8::from(value < 0.0)
}

#[cfg(test)]
mod tests;
