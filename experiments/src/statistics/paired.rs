//! The difference of two arms over seeds that both have run.

use serde::{Deserialize, Serialize};

use super::anytime::{anytime_interval, anytime_p_value, anytime_reach};
use super::bootstrap::{self, central_range, small_sample_widening};
use super::interval::{Interval, student_t_tail};
use super::moments::{mean, mean_half_width, standard_deviation};
use super::verdict::{Stopping, Verdict};

/// Largest answer of [`PairedDifference::pairs_to_decide`]; it stands for that many or more.
pub(super) const MOST_PAIRS: u64 = 1_000;

/// The mean of paired differences, with what is known about its error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PairedDifference {
    /// Arm minus baseline, one per pair.
    pub(crate) differences: Vec<f64>,
    /// Their mean.
    pub(crate) mean: f64,
    /// Sample standard deviation; `None` with one pair.
    pub(crate) standard_deviation: Option<f64>,
    /// Student t interval of the mean; `None` with one pair. The verdict is taken from it unless
    /// pairs were added after a look.
    pub(crate) t_interval: Option<Interval>,
    /// Interval of the mean that holds however often pairs are added; `None` where it is unbounded.
    #[serde(default)]
    pub(crate) anytime_interval: Option<Interval>,
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
            anytime_interval: anytime_interval(differences, confidence),
            bootstrap_interval: bootstrap_interval(differences, mean, confidence),
            sign_consistency: same_sign as f64 / num_pairs as f64,
        })
    }

    /// The interval that decides.
    pub(crate) fn interval(&self, stopping: Stopping) -> Option<&Interval> {
        match stopping {
            Stopping::Planned => self.t_interval.as_ref(),
            Stopping::Open => self.anytime_interval.as_ref(),
        }
    }

    /// The interval that would decide at another `confidence`; `None` where it is unbounded.
    pub(crate) fn interval_at(&self, confidence: f64, stopping: Stopping) -> Option<Interval> {
        match stopping {
            Stopping::Planned => {
                let num_pairs = self.differences.len() as u64;
                let half = mean_half_width(self.standard_deviation?, num_pairs, confidence)?;
                Interval::around(self.mean, half)
            }
            Stopping::Open => anytime_interval(&self.differences, confidence),
        }
    }

    /// Wins if the whole interval is below `-margin`, loses if it is above `margin`; undecided in
    /// between and without an interval. A lower loss is better.
    pub(crate) fn verdict(&self, margin: f64, stopping: Stopping) -> Verdict {
        match self.interval(stopping) {
            Some(interval) if interval.high < -margin => Verdict::Wins,
            Some(interval) if interval.low > margin => Verdict::Loses,
            _ => Verdict::Undecided,
        }
    }

    /// Two-sided p-value against the margin, of the same test as [`PairedDifference::verdict`];
    /// `None` with one pair.
    pub(crate) fn p_value(&self, margin: f64, stopping: Stopping) -> Option<f64> {
        match stopping {
            Stopping::Planned => t_test(&self.differences, margin),
            Stopping::Open => anytime_p_value(&self.differences, margin),
        }
    }

    /// Pairs in all at which an interval at `confidence` of the same mean and standard deviation
    /// would decide, at most [`MOST_PAIRS`]: that of the confidence sequence, since pairs that are
    /// added have been asked for by a look. An even bet: new pairs move the mean. `None` if no number
    /// decides since the mean is within the margin, or with one pair.
    pub(crate) fn pairs_to_decide(&self, margin: f64, confidence: f64) -> Option<u64> {
        let deviation = self.standard_deviation?;
        let beyond_margin = self.mean.abs() - margin;
        if beyond_margin <= 0.0 {
            return None;
        }
        let decides = |pairs: u64| {
            let reach = anytime_reach(confidence, pairs as usize).unwrap_or(f64::INFINITY);
            reach * deviation / (pairs as f64).sqrt() < beyond_margin
        };
        // The half-width falls with the number of pairs, so the first that decides is found by
        // bisection.
        let (mut too_few, mut enough) = (self.differences.len() as u64, MOST_PAIRS);
        while enough.saturating_sub(too_few) > 1 {
            let middle = u64::midpoint(too_few, enough);
            if decides(middle) { enough = middle } else { too_few = middle }
        }
        Some(enough)
    }
}

/// Two-sided p-value of Student's test of the mean of `differences` against the margin that is
/// nearer: at most `1 - confidence` exactly where an interval at `confidence` leaves the whole
/// margin out. `None` with one pair.
pub(crate) fn t_test(differences: &[f64], margin: f64) -> Option<f64> {
    let mean = mean(differences)?;
    let deviation = standard_deviation(differences, mean)?;
    let error = deviation / (differences.len() as f64).sqrt();
    let beyond = mean.abs() - margin;
    if beyond <= 0.0 {
        return Some(1.0);
    }
    if error == 0.0 {
        return Some(0.0);
    }
    Some(2.0 * student_t_tail(beyond / error, differences.len() - 1)?.min(0.5))
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
