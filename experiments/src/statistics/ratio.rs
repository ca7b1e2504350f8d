//! Ratios over seeds, such as speedups.

use serde::{Deserialize, Serialize};

use super::interval::Interval;
use super::moments::{mean, mean_half_width, standard_deviation};

/// Geometric mean of ratios with an interval from Student's t on their logarithms: twice as fast
/// and half as fast cancel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RatioEstimate {
    /// Geometric mean, above zero.
    pub(crate) geometric_mean: f64,
    /// Its interval, above zero.
    pub(crate) interval: Interval,
}

impl RatioEstimate {
    /// The estimate from one ratio per seed. `None` with fewer than two, if one is not finite and
    /// above zero, if `confidence` is not between 0 and 1, or if the interval is wider than numbers
    /// go.
    pub(crate) fn new(ratios: &[f64], confidence: f64) -> Option<Self> {
        let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        // The logarithm of what is not above zero is not finite, which `mean` refuses.
        let mean = mean(&logarithms)?;
        let deviation = standard_deviation(&logarithms, mean)?;
        let half_width = mean_half_width(deviation, ratios.len() as u64, confidence)?;
        let interval = Interval::new((mean - half_width).exp(), (mean + half_width).exp())?;
        Some(Self { geometric_mean: mean.exp(), interval })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_ratios_give_their_geometric_mean_and_the_interval_of_one_degree_of_freedom() {
        let estimate = RatioEstimate::new(&[2.0, 8.0], 0.95).unwrap();
        assert!((estimate.geometric_mean - 4.0).abs() < 1e-12);
        // Half-width of two values that differ by d: t(1) * d / 2, with t(1) = 12.7062047 and d =
        // ln 4.
        let factor = (12.706_204_7 * 4_f64.ln() / 2.0).exp();
        assert!((estimate.interval.high / (4.0 * factor) - 1.0).abs() < 1e-6);
        assert!((estimate.interval.low / (4.0 / factor) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn ratios_that_have_no_logarithm_or_no_spread_are_refused() {
        for ratios in [&[][..], &[1.0], &[1.0, 0.0], &[1.0, -1.0], &[1.0, f64::NAN], &[1.0, f64::INFINITY]] {
            assert_eq!(RatioEstimate::new(ratios, 0.95), None, "{ratios:?}");
        }
        assert_eq!(RatioEstimate::new(&[1e-300, 1e300], 0.95), None);
        assert_eq!(RatioEstimate::new(&[1.0, 2.0], 1.0), None);
    }

    #[test]
    fn equal_ratios_have_an_interval_without_width() {
        let estimate = RatioEstimate::new(&[2.0; 3], 0.95).unwrap();
        assert!((estimate.interval.high - estimate.interval.low).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn swapping_the_arms_inverts(ratios in prop::collection::vec(0.2..5.0_f64, 3..8)) {
            let inverses: Vec<f64> = ratios.iter().map(|ratio| 1.0 / ratio).collect();
            let (forward, backward) =
                (RatioEstimate::new(&ratios, 0.95).unwrap(), RatioEstimate::new(&inverses, 0.95).unwrap());
            prop_assert!((forward.geometric_mean * backward.geometric_mean - 1.0).abs() < 1e-9);
            prop_assert!((forward.interval.low * backward.interval.high - 1.0).abs() < 1e-9);
        }
    }
}
