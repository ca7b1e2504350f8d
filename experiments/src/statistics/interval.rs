//! Closed intervals, and the quantiles of Student's t and of the normal distribution that their
//! widths come from.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Closed interval with finite ends, `low <= high`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    /// Lower end.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
}

impl Interval {
    /// The interval between two ends; `None` if one is not finite, for which JSON has no number, or
    /// if they are swapped.
    pub(super) fn new(low: f64, high: f64) -> Option<Self> {
        (low.is_finite() && high.is_finite() && low <= high).then_some(Self { low, high })
    }

    /// `centre` plus and minus `half_width`; `None` under the conditions of [`Interval::new`].
    pub(super) fn around(centre: f64, half_width: f64) -> Option<Self> {
        Self::new(centre - half_width, centre + half_width)
    }
}

/// How many standard errors a two-sided interval reaches to either side, from Student's t with
/// `degrees_of_freedom`; `None` without degrees of freedom or if `confidence` is not between 0
/// and 1.
pub(super) fn student_t_reach(confidence: f64, degrees_of_freedom: usize) -> Option<f64> {
    let probability = upper_probability(confidence)?;
    let distribution = StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).ok()?;
    Some(distribution.inverse_cdf(probability))
}

/// Probability that Student's t with `degrees_of_freedom` is above `t`; `None` without degrees of
/// freedom.
pub(super) fn student_t_tail(t: f64, degrees_of_freedom: usize) -> Option<f64> {
    Some(StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).ok()?.sf(t))
}

/// As [`student_t_reach`], from the normal distribution: with infinitely many degrees of freedom.
pub(super) fn normal_reach(confidence: f64) -> Option<f64> {
    Some(Normal::standard().inverse_cdf(upper_probability(confidence)?))
}

/// Probability below the upper end of a two-sided interval; `None` if `confidence` is not strictly
/// between 0 and 1.
fn upper_probability(confidence: f64) -> Option<f64> {
    (confidence > 0.0 && confidence < 1.0).then_some(0.5 + confidence / 2.0)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use proptest::prelude::*;

    use super::*;

    /// Confidence of the two-sided interval that ends at the upper quantile of `probability`.
    fn confidence(probability: f64) -> f64 {
        2.0 * probability - 1.0
    }

    #[test]
    fn the_quantiles_are_those_of_the_published_table() {
        // NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2: upper critical
        // values, three decimals.
        let probabilities = [0.90, 0.95, 0.975, 0.99, 0.995];
        let table = [
            (1, [3.078, 6.314, 12.706, 31.821, 63.657]),
            (2, [1.886, 2.920, 4.303, 6.965, 9.925]),
            (3, [1.638, 2.353, 3.182, 4.541, 5.841]),
            (4, [1.533, 2.132, 2.776, 3.747, 4.604]),
            (5, [1.476, 2.015, 2.571, 3.365, 4.032]),
            (9, [1.383, 1.833, 2.262, 2.821, 3.250]),
            (10, [1.372, 1.812, 2.228, 2.764, 3.169]),
            (30, [1.310, 1.697, 2.042, 2.457, 2.750]),
            (100, [1.290, 1.660, 1.984, 2.364, 2.626]),
        ];
        for (degrees_of_freedom, expected) in table {
            for (probability, expected) in probabilities.into_iter().zip(expected) {
                let found = student_t_reach(confidence(probability), degrees_of_freedom).unwrap();
                assert!((found - expected).abs() < 6e-4, "{degrees_of_freedom} {probability}: {found}");
            }
        }
        for (probability, expected) in probabilities.into_iter().zip([1.282, 1.645, 1.960, 2.326, 2.576]) {
            let found = normal_reach(confidence(probability)).unwrap();
            assert!((found - expected).abs() < 6e-4, "normal {probability}: {found}");
        }
    }

    #[test]
    fn many_degrees_of_freedom_are_the_normal_distribution() {
        let normal = normal_reach(0.95).unwrap();
        for degrees_of_freedom in [1_000, 9_999, 100_000] {
            let found = student_t_reach(0.95, degrees_of_freedom).unwrap();
            // First term of the Cornish-Fisher expansion: z + (z^3 + z) / (4 df).
            let expected = normal + (normal.powi(3) + normal) / (4.0 * degrees_of_freedom as f64);
            assert!((found - expected).abs() < 1e-5, "{degrees_of_freedom}: {found} {expected}");
        }
    }

    #[test]
    fn a_quantile_without_meaning_is_refused() {
        assert_eq!(student_t_reach(0.95, 0), None);
        for confidence in [f64::NAN, -0.1, 0.0, 1.0, 1.5] {
            assert_eq!(student_t_reach(confidence, 3), None);
            assert_eq!(normal_reach(confidence), None);
        }
    }

    #[test]
    fn an_interval_has_finite_ends_in_order() {
        assert_eq!(Interval::new(1.0, 1.0), Some(Interval { low: 1.0, high: 1.0 }));
        assert_eq!(Interval::new(2.0, 1.0), None);
        assert_eq!(Interval::new(f64::NEG_INFINITY, 1.0), None);
        assert_eq!(Interval::around(f64::NAN, 1.0), None);
    }

    proptest! {
        #[test]
        fn the_quantiles_equal_their_closed_forms(confidence in 0.01..0.999_f64) {
            let probability = 0.5 + confidence / 2.0;
            let one = (PI * (probability - 0.5)).tan();
            let two = confidence / (2.0 * probability * (1.0 - probability)).sqrt();
            let root = (4.0 * probability * (1.0 - probability)).sqrt();
            let four = 2.0 * ((root.acos() / 3.0).cos() / root - 1.0).sqrt();
            for (degrees_of_freedom, expected) in [(1, one), (2, two), (4, four)] {
                let found = student_t_reach(confidence, degrees_of_freedom).unwrap();
                prop_assert!((found / expected - 1.0).abs() < 1e-8, "{degrees_of_freedom}: {found} {expected}");
            }
        }

        #[test]
        fn more_degrees_of_freedom_reach_less_far(confidence in 0.5..0.999_f64, few in 1..400_usize) {
            prop_assert!(student_t_reach(confidence, few) > student_t_reach(confidence, few + 1));
        }
    }
}
