//! An interval that does not take the differences to be normal.

use serde::{Deserialize, Serialize};

use super::interval::Interval;

/// The interval of the centre of symmetric differences that Wilcoxon's signed-rank test does not
/// reject (Hodges and Lehmann, Annals of Mathematical Statistics 34, 1963): the ends are order
/// statistics of the means of all pairs of differences, a difference paired with itself included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct SignedRankInterval {
    /// The interval.
    pub(crate) interval: Interval,
    /// Its confidence, exact for differences without ties: at least what was asked for.
    pub(crate) confidence: f64,
}

impl SignedRankInterval {
    /// The interval of `differences` at `confidence` or more; `None` if they are too few for one,
    /// as five are for 0.95, or if one is not finite.
    pub(crate) fn new(differences: &[f64], confidence: f64) -> Option<Self> {
        if !differences.iter().all(|difference| difference.is_finite()) {
            return None;
        }
        let n = differences.len();
        let (left_out, confidence) = left_out_of_each_end(n, confidence)?;
        let mut means: Vec<f64> = (0..n)
            .flat_map(|i| (i..n).map(move |j| (i, j)))
            .map(|(i, j)| f64::midpoint(differences[i], differences[j]))
            .collect();
        means.sort_by(f64::total_cmp);
        let interval = Interval::new(means[left_out], means[means.len() - 1 - left_out])?;
        Some(Self { interval, confidence })
    }
}

/// Means to leave out of each end for `confidence` or more, and the confidence that this has.
fn left_out_of_each_end(n: usize, confidence: f64) -> Option<(usize, f64)> {
    if n == 0 || n > MOST_EXACT || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let probabilities = rank_sum_distribution(n);
    let (mut below, mut left_out) = (0.0, 0);
    // A sum of ranks below `left_out + 1` on either side is what the interval leaves out.
    while 2.0 * (below + probabilities[left_out]) <= 1.0 - confidence {
        below += probabilities[left_out];
        left_out += 1;
    }
    (left_out > 0).then(|| (left_out - 1, 1.0 - 2.0 * below))
}

/// Differences up to which the distribution is computed: beyond, nobody has so many seeds.
const MOST_EXACT: usize = 500;

/// Probability of each sum of the ranks that have a positive sign, if signs are tosses of a coin.
fn rank_sum_distribution(n: usize) -> Vec<f64> {
    let mut probabilities = vec![0.0; n * (n + 1) / 2 + 1];
    probabilities[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..probabilities.len()).rev() {
            let with_it = if sum >= rank { probabilities[sum - rank] } else { 0.0 };
            probabilities[sum] = f64::midpoint(probabilities[sum], with_it);
        }
    }
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::simulated::coverage;

    /// The published table of critical values, and Darwin's 15 maize pairs, whose interval leaves 25 of
    /// the 120 means out at each end.
    #[test]
    fn a_textbook_case_has_the_interval_of_the_table() {
        // Critical values of the signed-rank sum, two-sided 5 % (Wilcoxon and Wilcox, 1964).
        for (n, critical) in [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (15, 25), (20, 52), (25, 89)] {
            let (left_out, confidence) = left_out_of_each_end(n, 0.95).unwrap();
            assert_eq!(left_out, critical, "{n}");
            assert!(confidence >= 0.95, "{n}: {confidence}");
        }
        let pairs = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48];
        let differences: Vec<f64> = pairs.iter().map(|&eighths| f64::from(eighths)).collect();
        let found = SignedRankInterval::new(&differences, 0.95).unwrap().interval;
        let mut means: Vec<f64> = (0..15)
            .flat_map(|i| (i..15).map(move |j| (i, j)))
            .map(|(i, j)| f64::from(pairs[i] + pairs[j]) / 2.0)
            .collect();
        means.sort_by(f64::total_cmp);
        assert_eq!((found.low, found.high), (means[25], means[119 - 25]));
    }

    /// All sign patterns of five pairs: the rarest has a probability of 1 in 16, two-sided.
    #[test]
    fn five_pairs_cannot_reach_95_percent_and_six_can() {
        let differences = [-0.03, -0.01, -0.02, -0.05, -0.04, -0.06];
        assert_eq!(SignedRankInterval::new(&differences[..5], 0.95), None);
        let six = SignedRankInterval::new(&differences, 0.95).unwrap();
        assert!((six.confidence - (1.0 - 2.0 / 64.0)).abs() < 1e-12);
        assert_eq!((six.interval.low, six.interval.high), (-0.06, -0.01));
        assert_eq!(SignedRankInterval::new(&[], 0.95), None);
        assert_eq!(SignedRankInterval::new(&[f64::NAN; 8], 0.95), None);
    }

    /// Differences with tails far from normal (a normal number cubed).
    #[test]
    fn the_interval_covers_the_centre_whatever_the_tails() {
        for n in [6, 8, 12] {
            let expected = left_out_of_each_end(n, 0.95).unwrap().1;
            let covered = coverage(2_000, |noise| {
                let differences: Vec<f64> = (0..n).map(|_| noise.next().powi(3)).collect();
                let found = SignedRankInterval::new(&differences, 0.95).unwrap().interval;
                found.low <= 0.0 && 0.0 <= found.high
            });
            // Three standard errors of 2,000 studies.
            assert!((covered - expected).abs() < 0.015, "{n}: {covered}, not {expected}");
        }
    }
}
